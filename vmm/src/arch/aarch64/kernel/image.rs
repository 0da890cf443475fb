//! The header of an `Image`, and the checks of it. (`Documentation/arch/arm64/booting.rst`, "Call the kernel image".)
//!
//! ```text
//!  0  code0, code1        two instructions, the first of the kernel
//!  8  text_offset         the kernel's place behind a multiple of 2 MiB, 8 bytes
//! 16  image_size          the bytes of memory that it needs, with those that the file doesn't have, 8 bytes
//! 24  flags               bit 0: big endian; bits 1 and 2: the size of its pages, 8 bytes
//! 56  magic               "ARM\x64"
//! 60  offset of the PE header, for firmware
//! ```
//!
//! The size of pages isn't checked: a kernel with pages that the processor lacks stops before it has a console.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use super::layout;
use crate::kernel::{Image, KernelError, u16_at, u32_at, u64_at};

/// Bytes of the header.
const HEADER: usize = 64;
const MAGIC: [u8; 4] = *b"ARM\x64";
const FLAG_BIG_ENDIAN: u64 = 1 << 0;

/// The PE header's magic number, its size without the optional header, and the sizes and fields of its sections.
/// ("PE Format", Microsoft.)
const PE_MAGIC: [u8; 4] = *b"PE\0\0";
const PE_HEADER: usize = 24;
const SECTION: usize = 40;
/// More sections than any kernel has.
const SECTIONS_MAX: u16 = 96;

/// Checks the header of an Image; returns the guest-physical addresses that it takes.
pub(super) fn check(
    file: &mut (impl Read + Seek),
    image: Image,
) -> Result<Range<u64>, KernelError> {
    let mut header = [0; HEADER];
    if image.size < HEADER as u64 {
        return Err(KernelError::NotAKernel);
    }
    read_at(file, 0, &mut header)?;
    if header[56..60] != MAGIC {
        return Err(foreign(file, &header, image.size));
    }
    if u64_at(&header, 24) & FLAG_BIG_ENDIAN != 0 {
        return Err(KernelError::WrongMachine("big-endian arm64".into()));
    }
    let (text_offset, size) = (u64_at(&header, 8), u64_at(&header, 16));
    if size == 0 {
        return Err(KernelError::Damaged(
            "its header has no image size: Linux 4.2 or newer is needed".into(),
        ));
    }
    check_whole(file, &header, image)?;
    let start = layout::KERNEL.0.saturating_add(text_offset);
    let end = image.fits(start, size.max(image.size))?;
    Ok(start..end)
}

/// Checks that the file has all sections of its PE header, if it has one: the Image's own header doesn't give the file's size.
fn check_whole(
    file: &mut (impl Read + Seek),
    header: &[u8; HEADER],
    image: Image,
) -> Result<(), KernelError> {
    let at = u64::from(u32_at(header, 60));
    let mut pe = [0; PE_HEADER];
    if !header.starts_with(b"MZ") {
        return Ok(());
    }
    image.holds("its PE header", at, PE_HEADER as u64)?;
    read_at(file, at, &mut pe)?;
    if pe[..4] != PE_MAGIC {
        return Ok(());
    }
    let sections = u16_at(&pe, 6);
    if sections > SECTIONS_MAX {
        return Err(KernelError::Damaged(
            "its PE header has too many sections".into(),
        ));
    }
    let table = at + PE_HEADER as u64 + u64::from(u16_at(&pe, 20));
    for number in 0..u64::from(sections) {
        let at = table + number * SECTION as u64;
        image.holds("a section's header", at, SECTION as u64)?;
        let mut section = [0; SECTION];
        read_at(file, at, &mut section)?;
        let (size, offset) = (u32_at(&section, 16), u32_at(&section, 20));
        image.holds("a section", offset.into(), size.into())?;
    }
    Ok(())
}

/// Names what a file is that isn't an Image.
fn foreign(file: &mut (impl Read + Seek), header: &[u8; HEADER], size: u64) -> KernelError {
    let mut hdrs = [0; 4];
    if size > 0x206 && read_at(file, 0x202, &mut hdrs).is_ok() && hdrs == *b"HdrS" {
        return KernelError::WrongMachine("x86".into());
    }
    if header.starts_with(b"\x7fELF") {
        return match u16_at(header, 18) {
            183 => KernelError::Unbootable(
                "it is an ELF file (vmlinux): take arch/arm64/boot/Image of the same build".into(),
            ),
            62 => KernelError::WrongMachine("x86-64".into()),
            other => KernelError::WrongMachine(format!("machine number {other}")),
        };
    }
    KernelError::NotAKernel
}

pub(super) fn read_at(
    file: &mut (impl Read + Seek),
    offset: u64,
    into: &mut [u8],
) -> Result<(), KernelError> {
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(into))
        .map_err(KernelError::Read)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use minivm_tests::mutation::try_out;
    use minivm_tests::stress;

    use super::*;

    const RAM_END: u64 = layout::RAM.0 + (64 << 20);

    /// An Image of 8 KiB that needs 1 MiB, with a PE header of one section that has all but the first 4 KiB.
    fn good() -> Vec<u8> {
        let mut image = vec![0; 0x2000];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(16, &0x10_0000u64.to_le_bytes());
        put(24, &0xau64.to_le_bytes());
        put(56, &MAGIC);
        put(60, &64u32.to_le_bytes());
        put(64, &PE_MAGIC);
        put(70, &1u16.to_le_bytes());
        put(84, &160u16.to_le_bytes());
        put(64 + 24 + 160 + 16, &0x1000u32.to_le_bytes());
        put(64 + 24 + 160 + 20, &0x1000u32.to_le_bytes());
        image
    }

    fn checked(bytes: Vec<u8>) -> Result<Range<u64>, KernelError> {
        let image = Image {
            size: bytes.len() as u64,
            ram_end: RAM_END,
        };
        check(&mut Cursor::new(bytes), image)
    }

    fn changed(at: usize, bytes: &[u8]) -> Result<Range<u64>, KernelError> {
        let mut image = good();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        checked(image)
    }

    #[test]
    fn an_image_takes_what_its_header_says() {
        let start = layout::KERNEL.0;
        assert_eq!(checked(good()).unwrap(), start..start + 0x10_0000);
        let offset = changed(8, &0x8_0000u64.to_le_bytes()).unwrap();
        assert_eq!(offset, start + 0x8_0000..start + 0x18_0000);
        let small = changed(16, &1u64.to_le_bytes()).unwrap();
        assert_eq!(small, start..start + 0x2000, "the file's bytes need room");
        let without_pe = changed(64, b"none").unwrap();
        assert_eq!(without_pe, start..start + 0x10_0000);
    }

    #[test]
    fn headers_that_cannot_be_booted_are_refused() {
        let far = u64::MAX.to_le_bytes();
        let elf = |machine: u16| {
            let mut elf = vec![0; 64];
            elf[..4].copy_from_slice(b"\x7fELF");
            elf[18..20].copy_from_slice(&machine.to_le_bytes());
            checked(elf)
        };
        let mut bzimage = vec![0; 0x300];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        for (result, part) in [
            (checked(Vec::new()), "not a kernel"),
            (checked(good()[..63].to_vec()), "not a kernel"),
            (changed(56, b"ARMx"), "not a kernel"),
            (changed(24, &1u64.to_le_bytes()), "big-endian"),
            (changed(16, &0u64.to_le_bytes()), "no image size"),
            (changed(16, &far), "not in guest RAM"),
            (changed(8, &far), "not in guest RAM"),
            (
                changed(16, &(63u64 << 20).to_le_bytes()),
                "not in guest RAM",
            ),
            (checked(good()[..0x1fff].to_vec()), "truncated"),
            (checked(good()[..0x100].to_vec()), "truncated"),
            (checked(good()[..70].to_vec()), "its PE header"),
            (changed(70, &u16::MAX.to_le_bytes()), "too many sections"),
            (changed(84, &u16::MAX.to_le_bytes()), "truncated"),
            (
                changed(64 + 24 + 160 + 20, &u32::MAX.to_le_bytes()),
                "truncated",
            ),
            (elf(183), "boot/Image"),
            (elf(62), "x86-64"),
            (elf(8), "machine number 8"),
            (checked(bzimage), "for x86"),
        ] {
            let refusal = result.expect_err(part).to_string();
            assert!(refusal.contains(part), "{refusal:?} has no {part:?}");
        }
        // Whatever the offset of the PE header is, there is an answer.
        for at in [0, 1, 0x1ff0, 0x2000, u32::MAX] {
            let _ = changed(60, &at.to_le_bytes());
        }
    }

    #[test]
    fn a_changed_image_has_its_place_in_ram_or_is_refused() {
        let target = |file: &[u8]| {
            if let Ok(place) = checked(file.to_vec()) {
                let len = file.len() as u64;
                assert!(
                    place.start >= layout::KERNEL.0 && place.end <= RAM_END,
                    "{place:x?}"
                );
                assert!(place.end - place.start >= len, "{place:x?} for {len} bytes");
            }
        };
        // A short one, so that most changes are in its headers: its section is its last half.
        let mut small = good();
        small.truncate(0x200);
        for field in [16, 20] {
            let at = 64 + 24 + 160 + field;
            small[at..at + 4].copy_from_slice(&0x100u32.to_le_bytes());
        }
        checked(small.clone()).unwrap();
        try_out(target, &[small], "", stress::count(2000, 2_000_000));
    }
}
