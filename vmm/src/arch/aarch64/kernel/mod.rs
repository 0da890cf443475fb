//! The loaders of kernels for arm64: an `Image`, or one that is compressed by gzip, as a file (`Image.gz`) or in an EFI program
//! that unpacks it (`vmlinuz.efi`).

mod image;
mod packed;

use std::fs::File;
use std::io::{Cursor, Read, Seek};

use linux_loader::loader::KernelLoader;
use linux_loader::loader::pe::PE;
use vm_memory::{GuestAddress, ReadVolatile};

use super::layout;
use crate::kernel::{Image, KernelError, Loaded, loaded};
use crate::memory::GuestRam;

/// An Image's header holds nothing that the boot data need.
pub(crate) type Header = ();

/// Loads the kernel in `file`, which begins with `magic`.
pub(crate) fn load(
    mut file: &File,
    _magic: &[u8],
    image: Image,
    _cmdline_len: usize,
    ram: &GuestRam,
) -> Result<Loaded, KernelError> {
    match packed::unpack(&mut file, image)? {
        None => place(&mut file, image, ram),
        Some(bytes) => {
            let unpacked = Image {
                size: bytes.len() as u64,
                ..image
            };
            place(&mut Cursor::new(bytes), unpacked, ram)
        }
    }
}

/// Checks an Image and copies it to its place.
fn place<F>(file: &mut F, image: Image, ram: &GuestRam) -> Result<Loaded, KernelError>
where
    F: Read + ReadVolatile + Seek,
{
    let place = image::check(file, image)?;
    // It copies the file. The bytes behind it up to the kernel's end are zeros, for nothing has been written there.
    loaded(PE::load(ram.map(), Some(layout::KERNEL), file, None))?;
    Ok(Loaded {
        entry: GuestAddress(place.start),
        end: GuestAddress(place.end),
        initramfs_end: layout::RAM.0 + layout::INITRAMFS_WINDOW,
        header: (),
    })
}
