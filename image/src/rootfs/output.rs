//! Writers that the archive goes through: they count and compress.

use std::io::{self, Write};
use std::num::NonZero;
use std::thread;

use serde::{Deserialize, Serialize};

use super::limits::Limits;

/// The compression of an archive. The guest's kernel recognizes it, if it was built to read the format (`CONFIG_RD_LZ4`,
/// `CONFIG_RD_ZSTD`, `CONFIG_RD_GZIP`).
///
/// A guest on the same machine starts fastest without: the archive is copied into its memory as it is, and there is nothing to
/// do before its kernel copies the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// No compression.
    #[default]
    None,
    /// LZ4, which is quick to read. In legacy frames, the only ones that Linux reads.
    Lz4,
    /// Zstandard, which makes the smallest archives.
    Zstd,
    /// gzip, which every kernel can read.
    Gzip,
}

/// A writer that compresses. Equal data make equal bytes, however many processors there are.
pub(super) enum Compressor<W: Write> {
    None(W),
    Lz4(Lz4<W>),
    Zstd(zstd::Encoder<'static, W>),
    Gzip(flate2::write::GzEncoder<W>),
}

impl<W: Write> Compressor<W> {
    pub(super) fn new(compression: Compression, out: W) -> io::Result<Compressor<W>> {
        Ok(match compression {
            Compression::None => Compressor::None(out),
            Compression::Lz4 => Compressor::Lz4(Lz4::new(out)?),
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                // Any number of threads makes the same bytes, but none at all makes others.
                encoder.multithread(u32::try_from(processors()).unwrap_or(1))?;
                Compressor::Zstd(encoder)
            }
            Compression::Gzip => {
                // Its header has no name and no time.
                let level = flate2::Compression::default();
                Compressor::Gzip(flate2::write::GzEncoder::new(out, level))
            }
        })
    }

    pub(super) fn finish(self) -> io::Result<()> {
        let mut out = match self {
            Compressor::None(out) => out,
            Compressor::Lz4(lz4) => lz4.finish()?,
            Compressor::Zstd(encoder) => encoder.finish()?,
            Compressor::Gzip(encoder) => encoder.finish()?,
        };
        out.flush()
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::None(out) => out.write(bytes),
            Compressor::Lz4(lz4) => lz4.write(bytes),
            Compressor::Zstd(encoder) => encoder.write(bytes),
            Compressor::Gzip(encoder) => encoder.write(bytes),
        }
    }

    /// Does nothing: a flush would end a block early, and the bytes would depend on it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn processors() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(8)
}

/// LZ4's first frame format: a magic number, then blocks of 8 MiB, each compressed alone, with its compressed size before it
/// (`Documentation/lz4_Frame_format.md` of LZ4, "Legacy frame"; `lib/decompress_unlz4.c` of Linux).
pub(super) struct Lz4<W> {
    out: W,
    /// Blocks to be compressed at once, all full but the last.
    blocks: Vec<Vec<u8>>,
    batch: usize,
}

const LZ4_MAGIC: u32 = 0x184C_2102;
const LZ4_BLOCK: usize = 8 << 20;

impl<W: Write> Lz4<W> {
    fn new(mut out: W) -> io::Result<Lz4<W>> {
        out.write_all(&LZ4_MAGIC.to_le_bytes())?;
        Ok(Lz4 {
            out,
            blocks: Vec::new(),
            batch: processors(),
        })
    }

    /// Compresses and writes the blocks.
    fn drain(&mut self) -> io::Result<()> {
        let blocks = std::mem::take(&mut self.blocks);
        let compressed: Vec<Vec<u8>> = thread::scope(|scope| {
            let compress = |block: &Vec<u8>| lz4_flex::block::compress(block);
            let threads: Vec<_> = (blocks.iter())
                .map(|block| {
                    let thread = thread::Builder::new();
                    thread.spawn_scoped(scope, move || compress(block))
                })
                .collect();
            let joined = threads.into_iter().zip(&blocks).map(|(thread, block)| {
                // Without a thread it only takes longer.
                let done = thread.ok().and_then(|thread| thread.join().ok());
                done.unwrap_or_else(|| compress(block))
            });
            joined.collect()
        });
        for block in compressed {
            let len = u32::try_from(block.len()).map_err(io::Error::other)?;
            self.out.write_all(&len.to_le_bytes())?;
            self.out.write_all(&block)?;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        self.drain()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Lz4<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self
            .blocks
            .last()
            .is_none_or(|block| block.len() == LZ4_BLOCK)
        {
            if self.blocks.len() == self.batch {
                self.drain()?;
            }
            self.blocks.push(Vec::with_capacity(LZ4_BLOCK));
        }
        let block = self.blocks.last_mut().expect("one was just added");
        let count = bytes.len().min(LZ4_BLOCK - block.len());
        block.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that counts bytes, and stops at a limit.
pub(super) struct Counter<W> {
    pub(super) out: W,
    pub(super) bytes: u64,
    limits: Limits,
}

impl<W: Write> Counter<W> {
    pub(super) fn new(out: W, limits: &Limits) -> Counter<W> {
        Counter {
            out,
            bytes: 0,
            limits: *limits,
        }
    }
}

impl<W: Write> Write for Counter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.bytes += count as u64;
        let checked = self.limits.check_archive(self.bytes);
        checked.map_err(io::Error::other)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
