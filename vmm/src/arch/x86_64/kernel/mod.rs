//! The loaders of kernels for x86-64: an ELF `vmlinux`, or a bzImage.

mod bzimage;
mod elf;

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;

use crate::kernel::{Image, KernelError, Loaded};
use crate::memory::GuestRam;

/// A bzImage's own setup header, which the zero page has to repeat.
pub(crate) type Header = Option<setup_header>;

/// Loads the kernel in `file`, which begins with `magic`.
pub(crate) fn load(
    file: &File,
    magic: &[u8],
    image: Image,
    cmdline_len: usize,
    ram: &GuestRam,
) -> Result<Loaded, KernelError> {
    match magic {
        b"\x7fELF" => elf::load(file, image, ram),
        _ if is_for_arm64(file) => Err(KernelError::WrongMachine("arm64".into())),
        _ => bzimage::load(file, image, cmdline_len, ram),
    }
}

/// Returns whether the file is an arm64 Image. (`Documentation/arch/arm64/booting.rst`, "Call the kernel image".)
fn is_for_arm64(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 56).is_ok() && magic == *b"ARM\x64"
}
