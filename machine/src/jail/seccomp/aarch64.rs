//! System calls that arm64 has beside those of all architectures.

/// The bits that mark calls of another ABI with the same numbers: 32-bit programs have numbers of their own, and a filter ends them.
pub(super) const OTHER_ABIS: &[i64] = &[];

/// Calls of [`MONTY`](super::lists::MONTY).
pub(super) const MONTY: &[i64] = &[];

/// Calls of [`DENO`](super::lists::DENO).
pub(super) const DENO: &[i64] = &[];

/// `kexec_file_load`, which the crate libc doesn't name for each C library (`include/uapi/asm-generic/unistd.h`).
const KEXEC_FILE_LOAD: i64 = 294;

/// Calls of [`DANGEROUS`](super::lists::DANGEROUS).
pub(super) const DANGEROUS: &[i64] = &[KEXEC_FILE_LOAD];

/// Calls of [`MODES`](super::lists::MODES).
pub(super) const MODES: &[(i64, u8)] = &[];

/// Calls of [`OPENS`](super::lists::OPENS).
pub(super) const OPENS: &[(i64, u8, u8)] = &[];
