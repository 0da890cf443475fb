//! The data of files in an image being made, found again by the files' numbers.

use std::collections::HashMap;
use std::fs::File;

use crate::erofs::{self, Blocks, Chunks, Extent, Failure, Holes, Metadata};
use crate::rootfs::entry::{Entry, Kind};
use crate::rootfs::error::{Error, Fault};
use crate::rootfs::limits::Limits;
use crate::rootfs::tree::{Content, Inode};
use minivm_guest::newc::Node;

/// The largest file that Linux knows, in bytes (`MAX_LFS_FILESIZE` in `include/linux/fs.h`).
const FILE_MAX: u64 = i64::MAX.cast_unsigned();

/// The image's blocks, and whose they are.
pub(super) struct Stored<'f> {
    blocks: Blocks<'f>,
    /// By layer, in the order of their entries' numbers: the places of files' data.
    extents: Vec<Vec<(u32, Extent)>>,
    lost: Lost,
}

/// Extended attributes that an image can't hold for their names, and so doesn't.
#[derive(Default)]
struct Lost {
    /// The first one, and its file.
    first: String,
    count: u64,
}

impl<'f> Stored<'f> {
    pub(super) fn new(out: &'f File, limits: &Limits) -> Stored<'f> {
        Stored {
            blocks: Blocks::new(out, limits),
            extents: Vec::new(),
            lost: Lost::default(),
        }
    }

    /// Begins the next layer.
    pub(super) fn begin(&mut self) {
        self.extents.push(Vec::new());
    }

    /// Refuses an entry that an image can't hold; returns how many bytes of data it has.
    pub(super) fn check(&mut self, entry: &Entry) -> Result<u64, Fault> {
        for (name, _) in &entry.xattrs {
            if !erofs::is_known_xattr(name) {
                self.lost.add(name, &entry.path);
            }
        }
        erofs::check_xattrs(&entry.xattrs)?;
        match entry.kind {
            Kind::Node(Node::CharDevice { major, minor } | Node::BlockDevice { major, minor }) => {
                let device = erofs::device(major, minor);
                device.ok_or(Fault::Device { major, minor }).map(|_| 0)
            }
            Kind::File { size } if size > FILE_MAX => Err(Fault::Number { field: "size" }),
            Kind::File { size } => Ok(size),
            _ => Ok(0),
        }
    }

    /// Writes the data of the file with this number in the layer; returns how many bytes of memory its place takes.
    pub(super) fn put(
        &mut self,
        number: usize,
        size: u64,
        chunks: Option<Chunks>,
        data: impl Holes,
    ) -> Result<usize, Failure> {
        let extent = self.blocks.put(size, chunks, data)?;
        let held = extent.memory();
        // The limit of entries is far below.
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        if let Some(layer) = self.extents.last_mut() {
            layer.push((number, extent));
        }
        Ok(held)
    }

    /// Takes the data of hidden files out, and writes the rest of the image; returns its length in bytes.
    pub(super) fn finish(mut self, metadata: &mut Metadata<'_>) -> Result<u64, Error> {
        if let Some(warning) = self.lost.warning() {
            log::warn!("{warning}");
        }
        let named: HashMap<_, _> = metadata.inodes().filter_map(file).collect();
        let all = self
            .extents
            .iter_mut()
            .zip(0..)
            .flat_map(|(layer, number)| {
                let files = layer.iter_mut();
                files.map(move |(entry, extent)| ((number, *entry), extent))
            });
        let kept = all.filter_map(|(key, extent)| Some((extent, *named.get(&key)?)));
        self.blocks.keep(kept).map_err(Error::Write)?;
        let extents = self.extents;
        let extent = |inode: &Inode| {
            let ((layer, entry), _) = file(inode)?;
            let layer = extents.get(layer as usize)?;
            let place = layer.binary_search_by_key(&entry, |(number, _)| *number);
            place.ok().map(|place| &layer[place].1)
        };
        let written = metadata.write(self.blocks, extent);
        written.map_err(|failure| super::failed("the image", failure))
    }
}

/// Returns the layer, the entry and the size of a file.
fn file(inode: &Inode) -> Option<((u32, u32), u64)> {
    match inode.content {
        Content::File { layer, entry, size } => Some(((layer, entry), size)),
        _ => None,
    }
}

impl Lost {
    fn add(&mut self, name: &[u8], path: &[u8]) {
        if self.count == 0 {
            self.first = format!("{} of /{}", name.escape_ascii(), path.escape_ascii());
        }
        self.count += 1;
    }

    fn warning(&self) -> Option<String> {
        let first = &self.first;
        match self.count {
            0 => None,
            1 => Some(format!(
                "an attribute that EROFS can't hold is left out: {first}"
            )),
            count => Some(format!(
                "{count} attributes that EROFS can't hold are left out, the first is {first}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_attributes_are_one_line() {
        let mut lost = Lost::default();
        assert_eq!(lost.warning(), None);
        lost.add(b"odd\n", b"");
        let one = "an attribute that EROFS can't hold is left out: odd\\n of /";
        assert_eq!(lost.warning().as_deref(), Some(one));
        lost.add(b"other", b"a/b");
        let two = "2 attributes that EROFS can't hold are left out, the first is odd\\n of /";
        assert_eq!(lost.warning().as_deref(), Some(two));
    }
}
