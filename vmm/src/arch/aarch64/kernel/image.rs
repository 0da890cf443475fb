//! The header of an `Image`, and the checks of it. (`Documentation/arch/arm64/booting.rst`, "Call the kernel image".)
//!
//! ```text
//!  0  code0, code1        two instructions, the first of the kernel
//!  8  text_offset         the kernel's place behind a multiple of 2 MiB, 8 bytes
//! 16  image_size          the bytes of memory that it needs, with those that the file doesn't have, 8 bytes
//! 24  flags               bit 0: big endian, 8 bytes
//! 56  magic               "ARM\x64"
//! 60  offset of the PE header, for firmware
//! ```

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use super::layout;
use crate::kernel::{Image, KernelError};

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
            "its header has no image size; Linux 3.17 or newer writes one",
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
    if !header.starts_with(b"MZ") || image.holds("its PE header", at, PE_HEADER as u64).is_err() {
        return Ok(());
    }
    read_at(file, at, &mut pe)?;
    if pe[..4] != PE_MAGIC {
        return Ok(());
    }
    let sections = u16_at(&pe, 6).min(SECTIONS_MAX);
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
                "it is an ELF file (vmlinux): take arch/arm64/boot/Image of the same build",
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

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
