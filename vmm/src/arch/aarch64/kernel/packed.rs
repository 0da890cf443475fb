//! Compressed kernels: an Image in a gzip file, or in an EFI zboot image.
//!
//! An EFI zboot image is a program for firmware, which unpacks the kernel that is its payload:
//!
//! ```text
//!  0  "MZ\0\0"
//!  4  "zimg"
//!  8  offset of the payload, 4 bytes
//! 12  its size in bytes, 4 bytes
//! 24  the compression's name, which ends with a NUL
//! ```
//!
//! (Linux, `drivers/firmware/efi/libstub/zboot-header.S`.)

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use flate2::read::GzDecoder;

use super::image::{read_at, u32_at};
use crate::kernel::{Image, KernelError};

/// The most bytes of an unpacked kernel: some four times the largest that a distribution has.
const UNPACKED_MAX: u64 = 256 << 20;
/// Bytes of the zboot header that are read.
const ZBOOT: usize = 64;
const COMPRESSION: usize = 24;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Returns the unpacked kernel, or `None` if it isn't compressed.
pub(super) fn unpack(file: &mut File, image: Image) -> Result<Option<Vec<u8>>, KernelError> {
    let mut header = [0; ZBOOT];
    if image.size < ZBOOT as u64 {
        return Ok(None);
    }
    read_at(file, 0, &mut header)?;
    if header.starts_with(&GZIP) {
        return gunzip(file, 0, image.size).map(Some);
    }
    if !header.starts_with(b"MZ\0\0zimg") {
        return Ok(None);
    }
    let (offset, size) = (u32_at(&header, 8).into(), u32_at(&header, 12).into());
    image.holds("the compressed kernel", offset, size)?;
    let name = &header[COMPRESSION..];
    let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(0)];
    match name {
        b"gzip" => gunzip(file, offset, size).map(Some),
        other => Err(KernelError::Compression(
            String::from_utf8_lossy(other).escape_default().to_string(),
        )),
    }
}

fn gunzip(file: &mut File, offset: u64, size: u64) -> Result<Vec<u8>, KernelError> {
    file.seek(SeekFrom::Start(offset))
        .map_err(KernelError::Read)?;
    let mut unpacked = Vec::new();
    // One byte more than the most, so that a larger one shows.
    let mut kernel = GzDecoder::new(file.take(size)).take(UNPACKED_MAX + 1);
    kernel
        .read_to_end(&mut unpacked)
        .map_err(KernelError::Unpack)?;
    if unpacked.len() as u64 > UNPACKED_MAX {
        return Err(KernelError::UnpackedTooLarge(UNPACKED_MAX));
    }
    Ok(unpacked)
}
