//! The root file system as a tree in memory: names and inodes. The files' data stay in the layers.

use std::collections::{BTreeMap, HashSet};

use super::entry::{Attributes, NAME_MAX, PATH_MAX, Xattrs};
use super::error::{Fault, path};
use super::limits::Budget;
use minivm_guest::manifest;
use minivm_guest::newc::Node;

/// The most links that Linux follows (`MAXSYMLINKS` in `include/linux/namei.h`).
const MAX_LINKS: u32 = 40;

/// The number of an inode: its place in [`Tree::inodes`].
pub(crate) type Id = u32;
pub(crate) const ROOT: Id = 0;

/// A file, folder or the like, which one or more names stand for.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) attributes: Attributes,
    pub(crate) xattrs: Xattrs,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    Folder(Folder),
    /// A file's data: the entry with this number of that layer.
    File {
        layer: u32,
        entry: u32,
        size: u64,
    },
    Symlink(Box<[u8]>),
    Node(Node),
}

/// Names, sorted, and how many bytes the folder's own path has.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    pub(crate) names: BTreeMap<Box<[u8]>, Id>,
    path_len: usize,
}

/// The tree. Inodes that a layer hides or replaces stay in it, unnamed.
#[derive(Debug)]
pub(crate) struct Tree<'b> {
    inodes: Vec<Inode>,
    budget: &'b Budget,
}

impl<'b> Tree<'b> {
    /// An empty root.
    pub(super) fn new(budget: &'b Budget) -> Tree<'b> {
        Tree {
            inodes: vec![implied(0)],
            budget,
        }
    }

    pub(crate) fn inode(&self, id: Id) -> &Inode {
        &self.inodes[id as usize]
    }

    /// The number of inodes, with those that have no name.
    pub(crate) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Returns the inode as a folder, if it is one.
    pub(crate) fn folder(&self, id: Id) -> Option<&Folder> {
        match &self.inode(id).content {
            Content::Folder(folder) => Some(folder),
            _ => None,
        }
    }

    pub(super) fn folder_mut(&mut self, id: Id) -> Option<&mut Folder> {
        match &mut self.inodes[id as usize].content {
            Content::Folder(folder) => Some(folder),
            _ => None,
        }
    }

    pub(super) fn child(&self, folder: Id, name: &[u8]) -> Option<Id> {
        self.folder(folder)?.names.get(name).copied()
    }

    /// Gives the root, or another folder of the tree, new attributes; its content stays.
    pub(super) fn update(&mut self, folder: Id, attributes: Attributes, xattrs: Xattrs) {
        let inode = &mut self.inodes[folder as usize];
        inode.attributes = attributes;
        inode.xattrs = xattrs;
    }

    /// Adds an inode and names it. A name that was there now stands for this inode.
    pub(super) fn add(&mut self, folder: Id, name: &[u8], mut inode: Inode) -> Result<Id, Fault> {
        if let Content::Folder(added) = &mut inode.content {
            added.path_len = self.path_len(folder, name);
        }
        let id = Id::try_from(self.inodes.len()).map_err(|_| Fault::TooLong)?;
        self.name(folder, name, id)?;
        self.inodes.push(inode);
        Ok(id)
    }

    /// Gives an inode a name.
    pub(super) fn name(&mut self, folder: Id, name: &[u8], id: Id) -> Result<(), Fault> {
        if folder == ROOT && name == manifest::FOLDER.as_bytes() {
            return Err(Fault::Reserved);
        }
        // Also bounds how deep a tree can get, and with it everything that walks one.
        if self.path_len(folder, name) >= PATH_MAX || name.len() > NAME_MAX {
            return Err(Fault::TooLong);
        }
        if let Some(folder) = self.folder_mut(folder) {
            folder.names.insert(name.into(), id);
        }
        Ok(())
    }

    fn path_len(&self, folder: Id, name: &[u8]) -> usize {
        let above = self.folder(folder).map_or(0, |folder| folder.path_len);
        above + usize::from(above > 0) + name.len()
    }

    /// Finds the folder that a path leads to, and makes folders that are missing on the way.
    pub(super) fn make(&mut self, path: &[u8]) -> Result<Id, Fault> {
        let mut walk = Walk::new(path);
        loop {
            match walk.find(self, None)? {
                Found::Folder(id) => return Ok(id),
                Found::Missing(above, name) => {
                    self.budget.entry()?;
                    let id = self.add(above, &name, implied(0))?;
                    walk.enter(id);
                }
            }
        }
    }

    /// Finds the folder that a path leads to, if it is there. A path through a symbolic link whose name is in `replaced` is
    /// not followed.
    pub(super) fn find(
        &self,
        path: &[u8],
        replaced: Option<&HashSet<&[u8]>>,
    ) -> Result<Option<Id>, Fault> {
        Ok(match Walk::new(path).find(self, replaced)? {
            Found::Folder(id) => Some(id),
            Found::Missing(..) => None,
        })
    }
}

/// Returns a folder for which no layer has an entry.
fn implied(path_len: usize) -> Inode {
    Inode {
        attributes: Attributes::new(0o755),
        xattrs: Xattrs::default(),
        content: Content::Folder(Folder {
            names: BTreeMap::new(),
            path_len,
        }),
    }
}

/// The end of a walk.
enum Found {
    Folder(Id),
    /// That folder has no such name.
    Missing(Id, Vec<u8>),
}

/// A path being followed from the root, along symbolic links, and never above the root.
struct Walk {
    /// The path, of which the rest from `at` on is left. A link's target takes the place of the path to the link.
    path: Vec<u8>,
    at: usize,
    /// The folders entered, without the root.
    entered: Vec<Id>,
    links: u32,
}

impl Walk {
    fn new(path: &[u8]) -> Walk {
        Walk {
            path: path.to_vec(),
            at: 0,
            entered: Vec::new(),
            links: 0,
        }
    }

    fn enter(&mut self, id: Id) {
        self.entered.push(id);
    }

    fn here(&self) -> Id {
        self.entered.last().copied().unwrap_or(ROOT)
    }

    fn find(&mut self, tree: &Tree<'_>, replaced: Option<&HashSet<&[u8]>>) -> Result<Found, Fault> {
        while self.at < self.path.len() {
            let rest = &self.path[self.at..];
            let len = rest.iter().position(|&byte| byte == b'/');
            let part = &rest[..len.unwrap_or(rest.len())];
            let end = self.at + part.len();
            self.at = end + 1;
            if self.links > 0 {
                tree.budget.detour(1)?;
            }
            match part {
                b"" | b"." => continue,
                b".." => {
                    self.entered.pop();
                    continue;
                }
                _ => {}
            }
            let Some(id) = tree.child(self.here(), part) else {
                return Ok(Found::Missing(self.here(), part.to_vec()));
            };
            match &tree.inode(id).content {
                Content::Folder(_) => self.enter(id),
                Content::Symlink(target) => {
                    let known = replaced.filter(|_| self.links == 0);
                    if known.is_some_and(|names| names.contains(&self.path[..end])) {
                        return Ok(Found::Missing(self.here(), part.to_vec()));
                    }
                    self.follow(target, end)?;
                    tree.budget.detour(self.path.len() as u64 / 64)?;
                }
                Content::File { .. } | Content::Node(_) => {
                    let path = path(&self.path[..end]);
                    return Err(Fault::NoFolder { path });
                }
            }
        }
        Ok(Found::Folder(self.here()))
    }

    fn follow(&mut self, target: &[u8], end: usize) -> Result<(), Fault> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Fault::Loop);
        }
        if target.starts_with(b"/") {
            self.entered.clear();
        }
        self.path = [target, &self.path[end..]].concat();
        self.at = 0;
        Ok(())
    }
}
