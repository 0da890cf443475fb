//! System calls that x86-64 has alone: mostly older forms of calls that newer architectures have in one form.

/// The bit that marks calls of the x32 ABI, which has the same numbers (`__X32_SYSCALL_BIT`). Few kernels support it.
const X32: i64 = 0x4000_0000;
/// The bits that mark calls of another ABI with the same numbers.
pub(super) const OTHER_ABIS: &[i64] = &[X32];

/// Calls of [`MONTY`](super::lists::MONTY).
pub(super) const MONTY: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
];

/// Calls of [`DENO`](super::lists::DENO).
pub(super) const DENO: &[i64] = &[
    libc::SYS_chmod,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getpgrp,
    libc::SYS_link,
    libc::SYS_mkdir,
    libc::SYS_pipe,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_symlink,
    libc::SYS_unlink,
];

/// Calls of [`DANGEROUS`](super::lists::DANGEROUS).
pub(super) const DANGEROUS: &[i64] = &[
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_modify_ldt,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];

/// Calls of [`MODES`](super::lists::MODES).
pub(super) const MODES: &[(i64, u8)] = &[
    (libc::SYS_chmod, 1),
    (libc::SYS_creat, 1),
    (libc::SYS_mknod, 1),
];

/// Calls of [`OPENS`](super::lists::OPENS).
pub(super) const OPENS: &[(i64, u8, u8)] = &[(libc::SYS_open, 1, 2)];
