//! Compressed archives: known by their first bytes, and decompressed.
//!
//! They are hostile: none takes more than [`MEMORY`] to decompress, whatever it claims, and readers bound how much comes out.

use std::io::{self, BufRead, Read};

/// The most bytes that a decompressor may need: what zstd takes by itself, and twice what `xz -9` wants.
const MEMORY: u32 = 128 << 20;
/// Bytes at the start of an archive by which its format is known.
pub(crate) const START: usize = 512;

/// The format of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
    /// Compressed by a program whose format isn't read.
    Other(&'static str),
}

/// Returns the format of an archive with these first bytes. A plain one begins with a file's name, which may look like
/// anything.
pub(crate) fn format(start: &[u8]) -> Format {
    let magics: [(&[u8], Format); 9] = [
        (&[0x1f, 0x8b], Format::Gzip),
        (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
        (b"\xfd7zXZ\0", Format::Xz),
        (b"BZh", Format::Bzip2),
        (&[0x04, 0x22, 0x4d, 0x18], Format::Other("lz4")),
        (&[0x02, 0x21, 0x4c, 0x18], Format::Other("lz4")),
        (&[0x5d, 0x00, 0x00], Format::Other("lzma")),
        (b"LZIP", Format::Other("lzip")),
        (&[0x1f, 0x9d], Format::Other("compress")),
    ];
    if start.get(257..262) == Some(b"ustar") {
        return Format::Plain;
    }
    // A zstd file may start with a frame to be skipped, of one of sixteen numbers.
    if start.len() > 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18] {
        return Format::Zstd;
    }
    let found = magics.iter().find(|(magic, _)| start.starts_with(magic));
    found.map_or(Format::Plain, |&(_, format)| format)
}

/// Returns the decompressed bytes of all archives that stand one behind the other. Those of other formats stay as they are.
pub(crate) fn decompress<'a>(
    format: Format,
    input: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match format {
        Format::Plain | Format::Other(_) => Box::new(input),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Format::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
        Format::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
            input,
            true,
            MEMORY >> 10,
        )),
        Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    pub(crate) fn compressed(format: Format, data: &[u8]) -> Vec<u8> {
        match format {
            Format::Xz => {
                let options = lzma_rust2::XzOptions::with_preset(1);
                let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Format::Bzip2 => {
                let mut writer =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Format::Gzip => {
                let mut writer =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Format::Zstd => zstd::encode_all(data, 1).unwrap(),
            Format::Plain | Format::Other(_) => data.to_vec(),
        }
    }

    fn read(format: Format, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        decompress(format, bytes)?
            .take(1 << 20)
            .read_to_end(&mut data)?;
        Ok(data)
    }

    pub(crate) const FORMATS: [Format; 4] = [Format::Gzip, Format::Zstd, Format::Xz, Format::Bzip2];

    #[test]
    fn compressed_data_are_read_to_their_end() {
        let data: Vec<u8> = (0..100_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        for kind in FORMATS {
            let once = compressed(kind, &data);
            assert!(once.len() < data.len());
            assert_eq!(format(&once), kind);
            assert!(read(kind, &once).unwrap() == data, "{kind:?}");
            let twice = [&once[..], &compressed(kind, b"more")].concat();
            assert!(read(kind, &twice).unwrap() == [&data[..], b"more"].concat());
            for end in [once.len() - 1, once.len() / 2, 10] {
                assert!(read(kind, &once[..end]).is_err(), "{kind:?} to {end}");
            }
            let mut damaged = once.clone();
            damaged[once.len() / 2] ^= 1;
            // Neither gzip's header nor zstd's frame has a checksum in every case, but all have one of their data, or not all.
            assert!(
                read(kind, &damaged).map_or(true, |read| read != data),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn a_format_is_known_by_its_first_bytes() {
        assert_eq!(format(b"\xfd7zXZ\0\0"), Format::Xz);
        assert_eq!(format(b"LZIP\x01"), Format::Other("lzip"));
        assert_eq!(format(&[0x5a, 0x2a, 0x4d, 0x18, 0]), Format::Zstd);
        assert_eq!(format(b""), Format::Plain);
        let mut header = tar::Header::new_ustar();
        header.set_path("BZh").unwrap();
        assert_eq!(format(header.as_bytes()), Format::Plain);
    }

    #[test]
    fn a_decompressor_that_would_need_much_memory_is_refused() {
        // A stream's header, and a block's with a dictionary of 1.5 GiB (property 37).
        let mut bytes = b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36".to_vec();
        let block = [2, 0, 0x21, 1, 37, 0, 0, 0];
        bytes.extend(block);
        let mut sum = flate2::Crc::new();
        sum.update(&block);
        bytes.extend(sum.sum().to_le_bytes());
        bytes.extend([0; 64]);
        let error = read(Format::Xz, &bytes).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }

    proptest! {
        #[test]
        fn no_change_panics(kind in 0..4_usize, at in any::<prop::sample::Index>(), to: u8, cut in any::<prop::sample::Index>()) {
            let kind = FORMATS[kind];
            let mut bytes = compressed(kind, b"some text, some text and some more text");
            let index = at.index(bytes.len());
            bytes[index] = to;
            bytes.truncate(cut.index(bytes.len()) + 1);
            let _ = read(kind, &bytes);
        }
    }
}
