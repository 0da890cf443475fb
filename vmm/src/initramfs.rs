//! The initramfs: bytes at the top of low RAM. The kernel copies what is in it into its first root file system and
//! gives the memory back.

use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use crate::error::{Error, Result};
use crate::kernel::{self, Loaded};
use crate::memory::GuestRam;

/// Where the initramfs was put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Its first guest-physical address.
    pub(crate) start: u64,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// Loads the initramfs at the top of low RAM, above the kernel, where the kernel can reach it.
pub(crate) fn load(path: &Path, kernel: &Loaded, ram: &GuestRam) -> Result<Placed> {
    let (mut file, size) = kernel::open("initramfs", path)?;
    let top = kernel::low_ram_end(ram).min(kernel.initramfs_end());
    let placed = place(size, kernel.end.0, top).ok_or_else(|| Error::InitramfsTooLarge {
        path: path.into(),
        size,
        room: top.saturating_sub(kernel.end.0),
    })?;
    let len = usize::try_from(placed.size).expect("it fits into RAM");
    ram.map()
        .read_exact_volatile_from(GuestAddress(placed.start), &mut file, len)
        .map_err(|error| Error::File {
            what: "initramfs",
            path: path.into(),
            source: std::io::Error::other(error),
        })?;
    Ok(placed)
}

/// The highest page-aligned place for `size` bytes between `floor` and `top`.
fn place(size: u64, floor: u64, top: u64) -> Option<Placed> {
    let start = top.checked_sub(size)? & !0xfff;
    (start >= floor).then_some(Placed { start, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_at_the_top_on_a_page_and_never_in_the_kernel() {
        assert_eq!(
            place(0x1234, 0, 0x10_0000),
            Some(Placed {
                start: 0xf_e000,
                size: 0x1234
            })
        );
        assert_eq!(
            place(0x1000, 0xf_f000, 0x10_0000),
            Some(Placed {
                start: 0xf_f000,
                size: 0x1000
            })
        );
        assert_eq!(place(0x1001, 0xf_f000, 0x10_0000), None);
        assert_eq!(place(u64::MAX, 0, 0x10_0000), None);
    }
}
