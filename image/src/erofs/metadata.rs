//! All of an image but its files' data: the tree becomes inodes, folders' blocks and the superblock.
//!
//! An inode's number depends on the sizes of all before it, and folders have the numbers of what is in them. So everything has its
//! place first (`layout`), and is written then.

use std::io;

use super::blocks::{Blocks, Extent, Failure};
use super::directory::{self, Entry};
use super::layout::Place;
use super::superblock::{OFFSET, Superblock};
use super::{BLOCK, SLOT, TYPE, xattr};
use crate::digest::Hasher;
use crate::rootfs::{Content, Id, Inode, ROOT, Time, Tree};
use minivm_guest::newc::Node;

/// The tree of an image's files, in the order of its inodes.
pub(crate) struct Metadata<'t> {
    pub(super) tree: &'t Tree<'t>,
    pub(super) order: Vec<Id>,
    /// By inode: the number of its names, for a folder those of Unix.
    pub(super) links: Vec<u32>,
    /// By inode: a folder's folder.
    pub(super) above: Vec<Id>,
    /// By inode: its place.
    pub(super) places: Vec<Place>,
    /// The time that most inodes have.
    pub(super) time: Time,
    /// The number of names.
    pub(super) names: u64,
}

impl<'t> Metadata<'t> {
    /// Brings the inodes that have names into their order.
    pub(crate) fn new(tree: &'t Tree<'t>) -> Metadata<'t> {
        let mut metadata = Metadata {
            tree,
            order: Vec::new(),
            links: vec![0; tree.len()],
            above: vec![ROOT; tree.len()],
            places: Vec::new(),
            time: Time::default(),
            names: 0,
        };
        metadata.collect();
        metadata.time = metadata.usual_time();
        metadata
    }

    /// The number of names, without the root's.
    pub(crate) fn names(&self) -> u64 {
        self.names
    }

    /// The inodes that have names, in order.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = &'t Inode> {
        let tree = self.tree;
        self.order.iter().map(move |&id| tree.inode(id))
    }

    /// Writes everything and ends the image; returns its length in bytes. `extent` returns the place of a file's data; a file without
    /// data needs none.
    pub(crate) fn write<'e>(
        &mut self,
        mut blocks: Blocks<'_>,
        extent: impl Fn(&Inode) -> Option<&'e Extent>,
    ) -> Result<u64, Failure> {
        let bytes = self.lay_out(blocks.next(), &extent);
        blocks.reserve(bytes)?;
        self.write_blocks(&mut blocks).map_err(Failure::Write)?;
        let superblock = self.write_inodes(&mut blocks, &extent);
        let superblock = superblock.map_err(Failure::Write)?;
        let first = [&[0; OFFSET][..], &superblock.encode()].concat();
        blocks.finish(&first).map_err(Failure::Write)
    }

    /// The names of a folder, sorted, with `.` and `..`.
    pub(super) fn sorted(&self, id: Id) -> Vec<(&'t [u8], Id)> {
        let names = self.tree.folder(id).map(|folder| &folder.names);
        let names = names.into_iter().flatten().map(|(name, &id)| (&**name, id));
        let own = [(&b"."[..], id), (b"..", self.above[id as usize])];
        let mut names: Vec<_> = own.into_iter().chain(names).collect();
        names.sort_unstable();
        names
    }

    /// The blocks of a folder, as far as each is used.
    fn folder_blocks(&self, id: Id) -> impl DoubleEndedIterator<Item = Vec<u8>> {
        let names = self.sorted(id);
        let blocks = directory::pack(names.iter().map(|(name, _)| name.len()));
        blocks.into_iter().map(move |block| {
            let entries = names[block].iter().map(|&(name, id)| Entry {
                name,
                number: self.places[id as usize].at / SLOT,
                file_type: directory::file_type(mode(self.tree.inode(id))),
            });
            directory::encode(&entries.collect::<Vec<_>>())
        })
    }

    /// Writes the blocks of folders and links.
    fn write_blocks(&self, blocks: &mut Blocks<'_>) -> io::Result<()> {
        for &id in &self.order {
            let is_inline = self.places[id as usize].inline;
            match &self.tree.inode(id).content {
                Content::Folder(_) => {
                    let mut own = self.folder_blocks(id).peekable();
                    while let Some(block) = own.next() {
                        if is_inline && own.peek().is_none() {
                            break;
                        }
                        blocks.write(&block)?;
                        blocks.fill_block()?;
                    }
                }
                // A target has less than a block.
                Content::Symlink(target) if !is_inline => {
                    blocks.write(target)?;
                    blocks.fill_block()?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes the inodes, with what is behind them; returns the superblock.
    fn write_inodes<'e>(
        &self,
        blocks: &mut Blocks<'_>,
        extent: &impl Fn(&Inode) -> Option<&'e Extent>,
    ) -> io::Result<Superblock> {
        let metadata = blocks.next();
        let start = u64::from(metadata) * BLOCK;
        let mut hash = Hasher::default();
        let mut chunked = false;
        for &id in &self.order {
            let inode = self.tree.inode(id);
            blocks.pad_to(start + self.places[id as usize].at)?;
            let mut write = |bytes: &[u8]| {
                hash.update(bytes);
                blocks.write(bytes)
            };
            write(&self.fields(id, extent).encode(self.time))?;
            write(&xattr::encode(&inode.xattrs))?;
            chunked |= self.write_behind(id, extent(inode), &mut write)?;
        }
        blocks.fill_block()?;
        let root = self.places[ROOT as usize].at / SLOT;
        let superblock = Superblock {
            // It is the first.
            root: u16::try_from(root).unwrap_or(u16::MAX),
            inodes: self.order.len() as u64,
            time: self.time,
            blocks: blocks.next(),
            metadata,
            uuid: [0; 16],
            chunked,
        };
        hash.update(&superblock.encode());
        let uuid = uuid(hash);
        Ok(Superblock { uuid, ..superblock })
    }

    /// Writes what is behind an inode and its attributes; returns whether that is the addresses of chunks.
    fn write_behind(
        &self,
        id: Id,
        extent: Option<&Extent>,
        write: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        let is_inline = self.places[id as usize].inline;
        match (&self.tree.inode(id).content, extent) {
            (Content::Folder(_), _) if is_inline => {
                write(&self.folder_blocks(id).next_back().unwrap_or_default())?;
            }
            (Content::Symlink(target), _) if is_inline => write(target)?,
            (
                Content::File { size, .. },
                Some(Extent {
                    block,
                    chunks: Some(chunks),
                }),
            ) => {
                let mut addresses = chunks.addresses(*size, *block).peekable();
                // A file may have gigabytes of them.
                while addresses.peek().is_some() {
                    let some = addresses.by_ref().take(1024).flat_map(u32::to_le_bytes);
                    write(&some.collect::<Vec<_>>())?;
                }
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }
}

/// Returns a UUID that is made of a digest of the inodes (RFC 9562, section 5.8). Equal images have equal ones, and so have images that
/// differ in their files' data alone.
fn uuid(hash: Hasher) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash.bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

pub(super) fn mode(inode: &Inode) -> u32 {
    let file_type = match inode.content {
        Content::Folder(_) => 0o040_000,
        Content::File { .. } => 0o100_000,
        // Linux gives every link these permissions, whatever a layer has.
        Content::Symlink(_) => return 0o120_777,
        Content::Node(Node::CharDevice { .. }) => 0o020_000,
        Content::Node(Node::BlockDevice { .. }) => 0o060_000,
        Content::Node(Node::Fifo) => 0o010_000,
        Content::Node(Node::Socket) => 0o140_000,
    };
    file_type | inode.attributes.permissions & !TYPE
}
