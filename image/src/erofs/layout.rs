//! The places of inodes and of folders' blocks in an image.
//!
//! A folder is followed by what is in it, then by the folders in it, so that what is looked up together stands together.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::blocks::Extent;
use super::chunks::ADDRESS;
use super::inode::{self, Fields, Layout};
use super::metadata::{Metadata, mode};
use super::{BLOCK, SLOT, blocks_of, directory, xattr};
use crate::rootfs::{Content, Id, Inode, ROOT, Time};
use minivm_guest::newc::Node;

/// The place of an inode and of its blocks.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    /// The byte from the first slot on.
    pub(super) at: u64,
    /// The bytes of a folder's entries.
    pub(super) size: u64,
    /// The first block of a folder or a link.
    pub(super) block: u32,
    /// Whether the rest of it is behind the inode.
    pub(super) inline: bool,
}

impl Metadata<'_> {
    /// Finds the inodes that have names, their order and the numbers of their names.
    pub(super) fn collect(&mut self) {
        let mut folders = vec![ROOT];
        while let Some(above) = folders.pop() {
            self.order.push(above);
            // Its name, and its own dot.
            self.links[above as usize] += 2;
            let Some(folder) = self.tree.folder(above) else {
                continue;
            };
            self.names += folder.names.len() as u64;
            let first = folders.len();
            for &id in folder.names.values() {
                if self.tree.folder(id).is_some() {
                    self.above[id as usize] = above;
                    self.links[above as usize] += 1;
                    folders.push(id);
                    continue;
                }
                if self.links[id as usize] == 0 {
                    self.order.push(id);
                }
                self.links[id as usize] += 1;
            }
            folders[first..].reverse();
        }
    }

    /// The time with which most inodes can be compact; of several, the earliest.
    pub(super) fn usual_time(&self) -> Time {
        let mut counts = BTreeMap::<Time, u64>::new();
        for &id in &self.order {
            *counts
                .entry(self.tree.inode(id).attributes.mtime)
                .or_default() += 1;
        }
        let usual = counts
            .into_iter()
            .max_by_key(|&(time, count)| (count, Reverse(time)));
        usual.map_or_else(Time::default, |(time, _)| time)
    }

    /// Gives everything its place; returns how many bytes all of it takes.
    pub(super) fn lay_out<'e>(
        &mut self,
        first: u32,
        extent: &impl Fn(&Inode) -> Option<&'e Extent>,
    ) -> u64 {
        self.places = vec![Place::default(); self.tree.len()];
        let (mut block, mut at) = (u64::from(first), SLOT);
        for &id in &self.order {
            let inode = self.tree.inode(id);
            if self.tree.folder(id).is_some() {
                self.places[id as usize].size = self.folder_size(id);
            }
            let fields = self.fields(id, extent);
            let head = fields.len(self.time) + u64::from(fields.xattrs);
            let rest = fields.size % BLOCK;
            let inline = self.is_small(id) && rest > 0 && head + rest <= BLOCK;
            let own = head
                + match (&inode.content, extent(inode)) {
                    _ if inline => rest,
                    (Content::File { size, .. }, Some(extent)) => addresses(extent, *size),
                    _ => 0,
                };
            // What fits into a block stays within one: inline data have to, and the rest is read at once.
            if at % BLOCK + own > BLOCK {
                at = at.next_multiple_of(BLOCK);
            }
            let place = &mut self.places[id as usize];
            place.at = at;
            place.block = u32::try_from(block).unwrap_or(u32::MAX);
            place.inline = inline;
            at = (at + own).next_multiple_of(SLOT);
            block += match self.is_small(id) {
                true if inline => fields.size / BLOCK,
                true => blocks_of(fields.size),
                false => 0,
            };
        }
        (block - u64::from(first)) * BLOCK + at.next_multiple_of(BLOCK)
    }

    /// Whether the inode is a folder or a link, whose data may be behind it.
    fn is_small(&self, id: Id) -> bool {
        matches!(
            self.tree.inode(id).content,
            Content::Folder(_) | Content::Symlink(_)
        )
    }

    /// The fields of an inode, as far as they are known.
    pub(super) fn fields<'e>(
        &self,
        id: Id,
        extent: &impl Fn(&Inode) -> Option<&'e Extent>,
    ) -> Fields {
        let inode = self.tree.inode(id);
        let place = self.places[id as usize];
        let layout = if place.inline {
            Layout::Inline
        } else {
            Layout::Plain
        };
        let (layout, size, data) = match &inode.content {
            Content::Folder(_) => (layout, place.size, place.block),
            Content::Symlink(target) => (layout, target.len() as u64, place.block),
            Content::Node(node) => (Layout::Plain, 0, device(*node)),
            Content::File { size, .. } => match extent(inode) {
                None => (Layout::Plain, *size, 0),
                Some(Extent {
                    block,
                    chunks: None,
                }) => (Layout::Plain, *size, *block),
                Some(Extent {
                    chunks: Some(chunks),
                    ..
                }) => (Layout::Chunked, *size, chunks.format()),
            },
        };
        Fields {
            layout,
            // Larger ones were refused.
            xattrs: u32::try_from(xattr::encoded_len(&inode.xattrs)).unwrap_or(u32::MAX),
            mode: mode(inode),
            links: self.links[id as usize],
            size,
            place: data,
            number: u32::try_from(place.at / SLOT).unwrap_or(u32::MAX),
            uid: inode.attributes.uid,
            gid: inode.attributes.gid,
            mtime: inode.attributes.mtime,
        }
    }

    fn folder_size(&self, id: Id) -> u64 {
        let names = self.sorted(id);
        let blocks = directory::pack(names.iter().map(|(name, _)| name.len()));
        let last = blocks
            .last()
            .map_or(&names[..0], |last| &names[last.clone()]);
        let used = directory::used(last.iter().map(|(name, _)| name.len()));
        (blocks.len() as u64 - 1) * BLOCK + used
    }
}

/// Returns the bytes of the addresses of a file's chunks, if it has some.
fn addresses(extent: &Extent, size: u64) -> u64 {
    let chunks = extent.chunks.as_ref();
    chunks.map_or(0, |chunks| chunks.count(size) * ADDRESS)
}

fn device(node: Node) -> u32 {
    match node {
        Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
            inode::device(major, minor).unwrap_or(0)
        }
        Node::Fifo | Node::Socket => 0,
    }
}
