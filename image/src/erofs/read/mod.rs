//! A reader of EROFS images, which checks all that it reads. An image is hostile: whatever it holds, the reader returns what is there or
//! an error, and takes no more memory and time than its length lets expect.
//!
//! It reads what this module's writer writes, and what others write that use no more of the format: no compression, no second device,
//! no attributes that inodes share.
//!
//! ```
//! use minivm_image::erofs::read::Reader;
//!
//! let error = Reader::open(&b"no image"[..]).err().expect("it is too short");
//! assert_eq!(error.to_string(), "it is not an EROFS image");
//! ```

mod data;
mod inode;
mod walk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::superblock::{CHECKED, OFFSET, Superblock};
use super::{BLOCK, blocks_of};
use crate::rootfs::Time;

pub use self::data::Data;

/// The reason why an image can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its bytes can't be read.
    #[error("it can't be read")]
    Read(#[from] io::Error),
    /// It has no superblock.
    #[error("it is not an EROFS image")]
    Magic,
    /// Its superblock was changed, or has no checksum.
    #[error("it is damaged: its superblock's checksum is wrong")]
    Checksum,
    /// It uses more of the format than is read.
    #[error("it is an EROFS image of another kind, with the features {features:#x}")]
    Features {
        /// The superblock's `feature_incompat`.
        features: u32,
    },
    /// Its superblock has fields that contradict others, or that come with other features.
    #[error("it is damaged: its superblock has a bad field")]
    Superblock,
    /// It is shorter than the length in its superblock.
    #[error("it is incomplete: it has {actual} of {expected} bytes")]
    Short {
        /// The length that it should have, in bytes.
        expected: u64,
        /// Its length.
        actual: u64,
    },
    /// An inode is not valid.
    #[error("it is damaged: inode {number} {problem}")]
    Inode {
        /// The inode's number.
        number: u64,
        /// What is wrong with it: a sentence without its subject.
        problem: &'static str,
    },
}

/// The bytes of an image.
pub trait ReadAt {
    /// Reads all of `bytes` from this place on.
    ///
    /// # Errors
    ///
    /// Where they can't be read, or the image ends before.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    /// Returns the number of bytes.
    ///
    /// # Errors
    ///
    /// Where it can't be found out.
    fn bytes(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let from = self.get(start..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// An image being read.
#[derive(Debug)]
pub struct Reader<'s, S: ?Sized> {
    source: &'s S,
    superblock: Superblock,
}

/// Extended attributes: names and values, sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number, which all of its names have.
    pub number: u64,
    /// Its permissions, set-user-ID and the like: the lower twelve bits of `st_mode`.
    pub permissions: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The number of its names; of a folder two, and one for each folder in it.
    pub links: u32,
    /// The time of its last change.
    pub mtime: Time,
    /// Its extended attributes.
    pub xattrs: Xattrs,
    /// What it is.
    pub content: Content,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A folder.
    Folder,
    /// A file with data, which [`Reader::data`] reads.
    File(Place),
    /// A symbolic link to this path.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// The number of the driver.
        major: u32,
        /// The number of the device.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// The number of the driver.
        major: u32,
        /// The number of the device.
        minor: u32,
    },
    /// A pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// The size of a file's data, and their place in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes of the file.
    pub size: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// From this byte of the image on.
    Row(u64),
    /// In chunks of this length, whose addresses are from this byte on.
    Chunks { len: u64, addresses: u64 },
    /// In a row, and the last `inline` bytes at another place.
    Inline { row: u64, inline: u64, at: u64 },
}

impl<'s, S: ReadAt + ?Sized> Reader<'s, S> {
    /// Opens an image and checks its superblock.
    ///
    /// # Errors
    ///
    /// Where it is not an EROFS image, is one of another kind or damaged, or can't be read.
    pub fn open(source: &'s S) -> Result<Self, Error> {
        let actual = source.bytes()?;
        if actual < BLOCK {
            return Err(Error::Magic);
        }
        let mut bytes = [0; CHECKED];
        source.read_at(&mut bytes, OFFSET as u64)?;
        let superblock = Superblock::parse(&bytes)?;
        let expected = u64::from(superblock.blocks) * BLOCK;
        if actual < expected {
            return Err(Error::Short { expected, actual });
        }
        match superblock.metadata < superblock.blocks {
            true => Ok(Reader { source, superblock }),
            false => Err(Error::Superblock),
        }
    }

    /// Returns a reader of a file's data.
    pub fn data(&self, place: &Place) -> Data<'s, S> {
        self.data_from(place, 0)
    }

    /// Returns a reader of a file's data from this byte on.
    pub fn data_from(&self, place: &Place, at: u64) -> Data<'s, S> {
        Data::new(self.source, *place, at)
    }

    /// Returns the number of blocks that a file's data have: fewer than its size needs where it has holes.
    ///
    /// # Errors
    ///
    /// Where the image can't be read.
    pub fn blocks(&self, place: &Place) -> Result<u64, Error> {
        let mut blocks = 0;
        self.extents(place, &mut |_, len| {
            blocks += blocks_of(len);
            Ok(())
        })?;
        Ok(blocks)
    }

    /// Returns the image's length in bytes.
    fn len(&self) -> u64 {
        u64::from(self.superblock.blocks) * BLOCK
    }
}

fn bad(number: u64, problem: &'static str) -> Error {
    Error::Inode { number, problem }
}
