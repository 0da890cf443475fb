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

use std::io::{Read, Seek, SeekFrom};

use flate2::read::GzDecoder;

use super::image::read_at;
use super::layout;
use crate::kernel::{Image, KernelError, u32_at};

/// The most bytes of an unpacked kernel: some four times the largest that a distribution has.
const UNPACKED_MAX: u64 = 256 << 20;
/// Bytes of the zboot header that are read.
const ZBOOT: usize = 64;
const COMPRESSION: usize = 24;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Returns the unpacked kernel, or `None` if it isn't compressed.
pub(super) fn unpack(
    file: &mut (impl Read + Seek),
    image: Image,
) -> Result<Option<Vec<u8>>, KernelError> {
    let mut header = [0; ZBOOT];
    if image.size < ZBOOT as u64 {
        return Ok(None);
    }
    read_at(file, 0, &mut header)?;
    if header.starts_with(&GZIP) {
        return gunzip(file, 0, image.size, image.ram_end).map(Some);
    }
    if !header.starts_with(b"MZ\0\0zimg") {
        return Ok(None);
    }
    let (offset, size) = (u32_at(&header, 8).into(), u32_at(&header, 12).into());
    image.holds("the compressed kernel", offset, size)?;
    let name = &header[COMPRESSION..];
    let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(0)];
    match name {
        b"gzip" => gunzip(file, offset, size, image.ram_end).map(Some),
        other => Err(KernelError::Compression(
            String::from_utf8_lossy(other).escape_default().to_string(),
        )),
    }
}

/// Unpacks `size` bytes of the file, into no more than a kernel can have in RAM that ends at `ram_end`.
fn gunzip(
    file: &mut (impl Read + Seek),
    offset: u64,
    size: u64,
    ram_end: u64,
) -> Result<Vec<u8>, KernelError> {
    let most = UNPACKED_MAX.min(ram_end.saturating_sub(layout::KERNEL.0));
    file.seek(SeekFrom::Start(offset))
        .map_err(KernelError::Read)?;
    let mut unpacked = Vec::new();
    // One byte more than the most, so that a larger one shows.
    let mut kernel = GzDecoder::new(file.take(size)).take(most + 1);
    kernel
        .read_to_end(&mut unpacked)
        .map_err(KernelError::Unpack)?;
    if unpacked.len() as u64 > most {
        return Err(KernelError::UnpackedTooLarge(most));
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use minivm_tests::mutation::try_out;
    use minivm_tests::stress;

    use super::*;

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zboot(compression: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut image = b"MZ\0\0zimg".to_vec();
        image.extend(64u32.to_le_bytes());
        image.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.resize(COMPRESSION, 0);
        image.extend(compression);
        image.resize(ZBOOT, 0);
        image.extend(payload);
        image
    }

    fn unpacked(bytes: &[u8]) -> Result<Option<Vec<u8>>, KernelError> {
        let image = Image {
            size: bytes.len() as u64,
            ram_end: layout::KERNEL.0 + (1 << 20),
        };
        unpack(&mut Cursor::new(bytes), image)
    }

    #[test]
    fn gzip_and_zboot_are_unpacked_and_the_rest_is_left_alone() {
        let kernel: Vec<u8> = (0..=u8::MAX).cycle().take(100_000).collect();
        let packed = gzipped(&kernel);
        assert_eq!(unpacked(&packed).unwrap().unwrap(), kernel);
        assert_eq!(unpacked(&zboot(b"gzip", &packed)).unwrap().unwrap(), kernel);
        assert_eq!(unpacked(&kernel).unwrap(), None);
        assert_eq!(unpacked(b"MZ").unwrap(), None);
    }

    #[test]
    fn what_cannot_be_unpacked_is_refused() {
        let packed = gzipped(&[7; 100_000]);
        let bomb = gzipped(&vec![0; (1 << 20) + 1]);
        for (file, part) in [
            (zboot(b"zstd", &packed), "compressed by \"zstd\""),
            (zboot(&[0xff; 40], &packed), "compressed by \"\""),
            (zboot(b"gzip", &packed)[..100].to_vec(), "truncated"),
            (packed[..packed.len() - 9].to_vec(), "cannot be unpacked"),
            ([&GZIP[..], &[0xaa; 100]].concat(), "cannot be unpacked"),
            (bomb, "more than the 1048576 bytes"),
        ] {
            let refusal = unpacked(&file).expect_err(part).to_string();
            assert!(refusal.contains(part), "{refusal:?} has no {part:?}");
        }
    }

    #[test]
    fn a_changed_archive_is_unpacked_within_its_limit_or_refused() {
        let target = |file: &[u8]| {
            if let Ok(Some(kernel)) = unpacked(file) {
                assert!(kernel.len() <= 1 << 20, "{} bytes", kernel.len());
            }
        };
        let packed = gzipped(&[7; 5000]);
        let good = [zboot(b"gzip", &packed), packed];
        try_out(target, &good, "", stress::count(2000, 1_000_000));
    }
}
