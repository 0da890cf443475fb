//! A bzImage: a compressed kernel that unpacks itself, behind a setup header with its requirements.
//!
//! Its 64-bit entry stands 0x200 bytes behind the load address of the protected-mode part.
//! (`Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header" and "64-bit Boot Protocol".)

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64, setup_header};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{ByteValued, GuestAddress};

use crate::kernel::{Image, KernelError, Loaded, loaded};
use crate::memory::GuestRam;

/// The setup header's offset in the file.
const HEADER_OFFSET: u64 = 0x1f1;
/// "HdrS", the header's magic number.
const HDRS: u32 = 0x5372_6448;
/// The oldest protocol that has `xloadflags`, and with it the flag for a 64-bit entry.
const OLDEST_PROTOCOL: u16 = 0x020c;
/// `loadflags`: the protected-mode code goes to 1 MiB or above (a bzImage, not a zImage).
const LOADED_HIGH: u8 = 1;
/// The offset of `startup_64` behind the load address.
const ENTRY_64_OFFSET: u64 = 0x200;

/// Checks `file` and copies its protected-mode part to its preferred address.
pub(super) fn load(
    mut file: &File,
    image: Image,
    cmdline_len: usize,
    ram: &GuestRam,
) -> Result<Loaded, KernelError> {
    let header = read_header(file, image)?;
    let (start, end) = check(&header, image, cmdline_len)?;
    loaded(BzImage::load(ram.map(), Some(start), &mut file, None))?;
    let entry = GuestAddress(start.0 + ENTRY_64_OFFSET);
    Ok(Loaded {
        entry,
        end: GuestAddress(end),
        initramfs_end: initramfs_end(&header),
        header: Some(header),
    })
}

/// Returns the first address behind those that the initramfs can have. (`Documentation/arch/x86/boot.rst`,
/// `initrd_addr_max` and `XLF_CAN_BE_LOADED_ABOVE_4G`.)
fn initramfs_end(header: &setup_header) -> u64 {
    match header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G {
        0 => u64::from(header.initrd_addr_max) + 1,
        _ => u64::MAX,
    }
}

fn read_header(file: &File, image: Image) -> Result<setup_header, KernelError> {
    let mut header = setup_header::default();
    let len = size_of::<setup_header>() as u64;
    if image.size < HEADER_OFFSET + len {
        return Err(KernelError::NotAKernel);
    }
    file.read_exact_at(header.as_mut_slice(), HEADER_OFFSET)
        .map_err(KernelError::Read)?;
    Ok(header)
}

/// Returns the kernel's load address and the end of the memory that it needs to unpack itself, or its defect.
fn check(
    header: &setup_header,
    image: Image,
    cmdline_len: usize,
) -> Result<(GuestAddress, u64), KernelError> {
    if header.header != HDRS {
        return Err(KernelError::NotAKernel);
    }
    if header.version < OLDEST_PROTOCOL {
        return Err(KernelError::OldProtocol(header.version));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 || header.loadflags & LOADED_HIGH == 0 {
        return Err(KernelError::No64BitEntry);
    }
    if usize::try_from(header.cmdline_size).is_ok_and(|max| cmdline_len > max) {
        return Err(KernelError::CmdlineTooLong {
            max: header.cmdline_size,
            len: cmdline_len,
        });
    }
    // A setup_sects of 0 means 4, for a reason that is older than Linux 2.
    let setup_sects = if header.setup_sects == 0 {
        4
    } else {
        u64::from(header.setup_sects)
    };
    let payload = (setup_sects + 1) * 512;
    // The header counts the protected-mode part in paragraphs of 16 bytes.
    let syssize = u64::from(header.syssize) * 16;
    image.holds("the kernel proper", payload, syssize.saturating_sub(15))?;
    // It unpacks itself in place and needs init_size bytes for that, which are more than the file has.
    let start = header.pref_address;
    let end = image.fits(start, u64::from(header.init_size).max(image.size - payload))?;
    Ok((GuestAddress(start), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: Image = Image {
        size: 0x10_0000,
        ram_end: 64 << 20,
    };

    fn good() -> setup_header {
        setup_header {
            header: HDRS,
            version: 0x20f,
            xloadflags: XLF_KERNEL_64,
            loadflags: LOADED_HIGH,
            cmdline_size: 2047,
            setup_sects: 1,
            syssize: 0x1000,
            pref_address: 0x100_0000,
            init_size: 0x200_0000,
            ..Default::default()
        }
    }

    #[test]
    fn a_kernel_is_loaded_at_its_preferred_address() {
        assert_eq!(
            check(&good(), IMAGE, 0).unwrap(),
            (GuestAddress(0x100_0000), 0x300_0000)
        );
    }

    #[test]
    fn headers_that_cannot_be_booted_are_refused() {
        let refusal = |header| check(&header, IMAGE, 100).unwrap_err().to_string();
        assert!(
            refusal(setup_header {
                header: 0,
                ..good()
            })
            .contains("not a kernel")
        );
        assert!(
            refusal(setup_header {
                version: 0x20b,
                ..good()
            })
            .contains("version 2.11")
        );
        assert!(
            refusal(setup_header {
                xloadflags: 0,
                ..good()
            })
            .contains("no 64-bit entry")
        );
        assert!(
            refusal(setup_header {
                loadflags: 0,
                ..good()
            })
            .contains("no 64-bit entry")
        );
        assert!(
            refusal(setup_header {
                cmdline_size: 99,
                ..good()
            })
            .contains("at most 99")
        );
        assert!(
            refusal(setup_header {
                syssize: 0x10_0000,
                ..good()
            })
            .contains("truncated")
        );
        assert!(
            refusal(setup_header {
                init_size: u32::MAX,
                ..good()
            })
            .contains("not in guest RAM")
        );
        assert!(
            refusal(setup_header {
                pref_address: 0,
                ..good()
            })
            .contains("not in guest RAM")
        );
        assert!(
            refusal(setup_header {
                pref_address: u64::MAX,
                ..good()
            })
            .contains("not in guest RAM")
        );
    }
}
