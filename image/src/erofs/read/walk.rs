//! A walk through all files of an image, which checks each of them.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Error, Inode, Place, ReadAt, Reader, bad};
use crate::erofs::{BLOCK, directory};

/// The longest path, with a NUL (`PATH_MAX` in `include/uapi/linux/limits.h`).
pub(super) const PATH_MAX: usize = 4096;

/// What a walk has found.
pub(super) struct Walk<'r, 's, S: ?Sized> {
    pub(super) reader: &'r Reader<'s, S>,
    /// The inodes that were found, by number.
    seen: BTreeMap<u64, Seen>,
    /// Bytes of folders, attributes and links that may still be read. All that an image has are in it, each once.
    pub(super) left: u64,
}

/// An inode that was found.
struct Seen {
    file_type: u8,
    /// The number of names in the inode, and of those that were found.
    links: u32,
    names: u32,
    /// The inode, if more names of it may come.
    inode: Option<Rc<Inode>>,
}

/// A folder whose names are being visited.
struct Level {
    number: u64,
    /// The length of its path.
    path: usize,
    place: Place,
    /// The start of the next block.
    at: u64,
    /// Names that are left of the last block, the next one last.
    names: Vec<(Vec<u8>, u64, u8)>,
    /// The last name, which all that follow are greater than.
    last: Vec<u8>,
    /// The folders in it, and the inodes that its own entries have.
    folders: u32,
    own: [Option<u64>; 2],
}

impl<'s, S: ReadAt + ?Sized> Reader<'s, S> {
    /// Calls `visit` with the path and the inode of each file, the root first, and each folder before what is in it. A file with several
    /// names comes with each. The paths have no slash at their beginnings; the root's is empty.
    ///
    /// # Errors
    ///
    /// Where the image is damaged or can't be read, and those of `visit`.
    pub fn walk<E: From<Error>>(
        &self,
        mut visit: impl FnMut(&[u8], &Inode) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut walk = Walk {
            reader: self,
            seen: BTreeMap::new(),
            left: self.len(),
        };
        let mut path = Vec::new();
        let root = self.superblock.root.into();
        let (inode, level) = walk.enter(root, directory::file_type(0o040_000), 0)?;
        visit(&path, &inode)?;
        let mut levels: Vec<_> = level.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            let above = level.number;
            let Some((name, number, file_type)) = walk.next(level)? else {
                let parent = levels
                    .len()
                    .checked_sub(2)
                    .map_or(root, |parent| levels[parent].number);
                let ended = levels.pop();
                ended.map_or(Ok(()), |ended| walk.leave(&ended, parent))?;
                continue;
            };
            path.truncate(level.path);
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if path.len() >= PATH_MAX {
                return Err(bad(above, "has a path that is too long").into());
            }
            let (inode, below) = walk.enter(number, file_type, path.len())?;
            visit(&path, &inode)?;
            levels.extend(below);
        }
        Ok(walk.finish()?)
    }
}

impl<S: ReadAt + ?Sized> Walk<'_, '_, S> {
    /// Reads the inode that an entry names; returns the level to walk through, if it is a folder.
    fn enter(
        &mut self,
        number: u64,
        file_type: u8,
        path: usize,
    ) -> Result<(Rc<Inode>, Option<Level>), Error> {
        if let Some(seen) = self.seen.get_mut(&number) {
            seen.names = seen.names.saturating_add(1);
            // A folder isn't kept.
            let more = seen.names <= seen.links && seen.file_type == file_type;
            let inode = seen.inode.clone().filter(|_| more);
            let inode =
                inode.ok_or_else(|| bad(number, "has more names than it says, or another type"))?;
            return Ok((inode, None));
        }
        let (inode, mode, folder) = self.inode(number)?;
        if directory::file_type(mode) != file_type {
            return Err(bad(number, "is not of the type that its folder says"));
        }
        let inode = Rc::new(inode);
        let more = folder.is_none() && inode.links > 1;
        let seen = Seen {
            file_type,
            links: inode.links,
            names: 1,
            inode: more.then(|| Rc::clone(&inode)),
        };
        self.seen.insert(number, seen);
        let level = folder.map(|place| Level {
            number,
            path,
            place,
            at: 0,
            names: Vec::new(),
            last: Vec::new(),
            folders: 0,
            own: [None; 2],
        });
        Ok((inode, level))
    }

    /// Returns the next name of a folder that is not its own; `None` after the last.
    fn next(&mut self, level: &mut Level) -> Result<Option<(Vec<u8>, u64, u8)>, Error> {
        loop {
            if level.names.is_empty() && !self.fill(level)? {
                return Ok(None);
            }
            let Some((name, number, file_type)) = level.names.pop() else {
                continue;
            };
            if !level.last.is_empty() && level.last >= name {
                return Err(bad(level.number, "is a folder whose names are not sorted"));
            }
            level.last.clone_from(&name);
            let is_folder = file_type == directory::file_type(0o040_000);
            let own = match &*name {
                b"." => &mut level.own[0],
                b".." => &mut level.own[1],
                name if name.contains(&b'/') => {
                    return Err(bad(level.number, "is a folder with a bad name"));
                }
                _ => {
                    level.folders += u32::from(is_folder);
                    return Ok(Some((name, number, file_type)));
                }
            };
            *own = is_folder.then_some(number);
        }
    }

    /// Reads the names of the folder's next block; returns whether there was one.
    fn fill(&mut self, level: &mut Level) -> Result<bool, Error> {
        let left = level.place.size - level.at;
        if left == 0 {
            return Ok(false);
        }
        let len = left.min(BLOCK);
        self.charge(level.number, len)?;
        let block = self.read(&level.place, level.at, len)?;
        level.at += len;
        let names = directory::decode(&block)
            .ok_or_else(|| bad(level.number, "is a folder with a bad block"))?;
        let names = names.into_iter().rev();
        level.names = names
            .map(|entry| (entry.name.to_vec(), entry.number, entry.file_type))
            .collect();
        Ok(true)
    }

    /// Checks a folder whose names have all been visited.
    fn leave(&self, level: &Level, above: u64) -> Result<(), Error> {
        let links = self.seen.get(&level.number).map(|seen| seen.links);
        if level.own != [Some(level.number), Some(above)] {
            return Err(bad(level.number, "is a folder whose own entries are wrong"));
        }
        match links == Some(level.folders.saturating_add(2)) {
            true => Ok(()),
            false => Err(bad(
                level.number,
                "is a folder with a wrong number of links",
            )),
        }
    }

    fn finish(self) -> Result<(), Error> {
        let folder = directory::file_type(0o040_000);
        for (&number, seen) in &self.seen {
            if seen.file_type != folder && seen.links != seen.names {
                return Err(bad(number, "has a wrong number of links"));
            }
        }
        match self.seen.len() as u64 == self.reader.superblock.inodes {
            true => Ok(()),
            false => Err(Error::Superblock),
        }
    }
}
