//! Inodes, and what is behind them.

use std::io::Read;

use super::data::Data;
use super::walk::{PATH_MAX, Walk};
use super::{Content, Error, Inode, Kind, Place, ReadAt, Xattrs, bad};
use crate::erofs::chunks::{ADDRESS, Chunks};
use crate::erofs::inode::{Fields, Layout, numbers};
use crate::erofs::superblock::END;
use crate::erofs::{BLOCK, SLOT, TYPE, xattr};

impl<S: ReadAt + ?Sized> Walk<'_, '_, S> {
    /// Reads an inode; returns it with its mode, and the place of a folder's blocks.
    pub(super) fn inode(&mut self, number: u64) -> Result<(Inode, u32, Option<Place>), Error> {
        let (fields, end) = self.fields(number)?;
        let xattrs = self.xattrs(number, &fields, end)?;
        let behind = end + u64::from(fields.xattrs);
        let kind = self.kind(number, &fields, behind)?;
        let place = Place {
            size: fields.size,
            kind,
        };
        self.check(number, &place)?;
        let (major, minor) = numbers(fields.place);
        let mut folder = None;
        let content = match fields.mode & TYPE {
            0o040_000 => {
                folder = Some(place);
                Content::Folder
            }
            0o100_000 => Content::File(place),
            0o120_000 => Content::Symlink(self.target(number, &place)?),
            0o020_000 => Content::CharDevice { major, minor },
            0o060_000 => Content::BlockDevice { major, minor },
            0o010_000 => Content::Fifo,
            0o140_000 => Content::Socket,
            _ => return Err(bad(number, "has a mode without a type")),
        };
        let is_node = !matches!(
            content,
            Content::Folder | Content::File(_) | Content::Symlink(_)
        );
        if is_node && fields.size > 0 {
            return Err(bad(number, "is a device, a pipe or a socket with data"));
        }
        if folder.is_some() && (fields.size == 0 || matches!(kind, Kind::Chunks { .. })) {
            return Err(bad(number, "is a folder without a block"));
        }
        let inode = Inode {
            number,
            permissions: fields.mode & !TYPE,
            uid: fields.uid,
            gid: fields.gid,
            links: fields.links,
            mtime: fields.mtime,
            xattrs,
            content,
        };
        Ok((inode, fields.mode, folder))
    }

    /// Reads an inode's fields; returns them with the place behind them.
    fn fields(&self, number: u64) -> Result<(Fields, u64), Error> {
        let outside = || bad(number, "is not in the image");
        let start = u64::from(self.reader.superblock.metadata) * BLOCK;
        let at = number
            .checked_mul(SLOT)
            .and_then(|at| at.checked_add(start));
        let at = at
            .filter(|&at| at <= self.reader.len() - SLOT)
            .ok_or_else(outside)?;
        let mut bytes = [0; 64];
        let (first, _) = bytes.split_first_chunk_mut().ok_or_else(outside)?;
        self.reader.source.read_at(first, at)?;
        let len = Fields::len_of(first).ok_or_else(|| bad(number, "has no known form"))?;
        let end = at + len as u64;
        if end > self.reader.len() {
            return Err(outside());
        }
        self.reader.source.read_at(&mut bytes[..len], at)?;
        let fields = Fields::parse(&bytes[..len], self.reader.superblock.time);
        let fields = fields.ok_or_else(|| bad(number, "has an unknown layout or a bad time"))?;
        match fields.size > i64::MAX.cast_unsigned() {
            true => Err(bad(number, "has a size that no file has")),
            false => Ok((fields, end)),
        }
    }

    fn xattrs(&mut self, number: u64, fields: &Fields, at: u64) -> Result<Xattrs, Error> {
        let len = u64::from(fields.xattrs);
        self.charge(number, len)?;
        if at + len > self.reader.len() {
            let problem = "has extended attributes that are not in the image";
            return Err(bad(number, problem));
        }
        let mut bytes = vec![0; fields.xattrs as usize];
        self.reader.source.read_at(&mut bytes, at)?;
        xattr::decode(&bytes).ok_or_else(|| bad(number, "has bad extended attributes"))
    }

    /// Returns where an inode's data are; `behind` is the place behind it and its attributes.
    fn kind(&self, number: u64, fields: &Fields, behind: u64) -> Result<Kind, Error> {
        let row = u64::from(fields.place) * BLOCK;
        match fields.layout {
            Layout::Plain => Ok(Kind::Row(row)),
            Layout::Inline => {
                let inline = fields.size % BLOCK;
                match inline > 0 && behind % BLOCK + inline <= BLOCK {
                    true => Ok(Kind::Inline {
                        row,
                        inline,
                        at: behind,
                    }),
                    false => Err(bad(number, "has inline data that go beyond a block")),
                }
            }
            Layout::Chunked if !self.reader.superblock.chunked => Err(bad(
                number,
                "has chunks, of which the superblock says nothing",
            )),
            Layout::Chunked => {
                let len = Chunks::len_of(fields.place)
                    .ok_or_else(|| bad(number, "has an unknown kind of chunks"))?;
                Ok(Kind::Chunks {
                    len,
                    addresses: behind,
                })
            }
        }
    }

    fn target(&mut self, number: u64, place: &Place) -> Result<Vec<u8>, Error> {
        if place.size == 0 || place.size >= PATH_MAX as u64 {
            return Err(bad(number, "is a link whose target is too long, or empty"));
        }
        self.charge(number, place.size)?;
        let target = self.read(place, 0, place.size)?;
        match target.contains(&0) {
            true => Err(bad(number, "is a link whose target has a NUL in it")),
            false => Ok(target),
        }
    }

    /// Reads at most a block of a file's data.
    pub(super) fn read(&self, place: &Place, at: u64, len: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let data = Data::new(self.reader.source, *place, at);
        data.take(len).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Refuses data that are not in the image behind its superblock.
    fn check(&mut self, number: u64, place: &Place) -> Result<(), Error> {
        let (end, outside) = (self.reader.len(), || {
            bad(number, "has data that are not in the image")
        });
        if let Kind::Chunks { len, addresses } = place.kind {
            let bytes = place.size.div_ceil(len).saturating_mul(ADDRESS);
            self.charge(number, bytes)?;
            if addresses + bytes > end {
                return Err(outside());
            }
        }
        self.reader.extents(place, &mut |from, len| {
            let inside = from >= END && from.checked_add(len).is_some_and(|data| data <= end);
            inside.then_some(()).ok_or_else(outside)
        })
    }

    /// Takes so many bytes from those that may still be read.
    pub(super) fn charge(&mut self, number: u64, bytes: u64) -> Result<(), Error> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| bad(number, "has more bytes than the image"))?;
        Ok(())
    }
}
