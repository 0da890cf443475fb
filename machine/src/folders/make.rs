//! New names: files, folders, links, and further names of files.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, mkdirat, symlinkat};
use rustix::io::Errno;

use super::abi::{Args, Out, Result};
use super::growth::Room;
use super::host::{Key, Kind, Stat, make_file, step};
use super::lock;
use super::mount::{Mount, Parent};
use super::name::Name;
use super::nodes::Stop;

/// Bytes of a link's target, at most (PATH_MAX with its NUL).
const TARGET_MAX: usize = 4095;
/// How often a file is opened or made anew, where others remove and make it meanwhile.
const TRIES: usize = 8;

impl Mount {
    /// Checks that something may be made.
    ///
    /// # Errors
    ///
    /// EROFS or ENOENT if the place is protected or hidden.
    pub(super) fn check_new(&self, parent: &Parent, name: &Name, kind: Kind) -> Result<()> {
        self.allow(
            self.judge(&new_place(&parent.route, name), kind, false),
            true,
        )
    }

    /// Remembers a repository that the guest has made, for the caller's report.
    pub(super) fn note_repository(&self, route: &[Stop], name: &Name) {
        if self.rules.mind_repositories() && name.is(".git") {
            let mut repositories = lock(&self.repositories);
            let place = path(route);
            if repositories.len() < super::REPOSITORIES_MAX && !repositories.contains(&place) {
                repositories.push(place);
            }
        }
    }

    /// Gives a new file or folder the permissions that were asked for, whatever this process's umask has left of them.
    fn permit(&self, fd: &impl AsFd, mode: u32) -> Result<Stat> {
        let stat = Stat::of(fd)?;
        if stat.mode() & 0o777 == mode & 0o777 {
            return Ok(stat);
        }
        let kept = if stat.kind() == Kind::Folder {
            stat.mode() & 0o7000
        } else {
            0
        };
        self.descriptors.set_mode(fd, mode & 0o777 | kept)?;
        Stat::of(fd)
    }

    pub(super) fn mkdir(&self, folder: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let mode = args.u32()?;
        args.skip(4)?;
        let name = args.name()?;
        let _names = self.keep_names();
        let parent = self.find_folder(folder)?;
        self.check_new(&parent, &name, Kind::Folder)?;
        let room = self.growth.take_name()?;
        let made = mkdirat(
            &parent.held,
            name.as_os_str(),
            Mode::from_raw_mode(mode & 0o777),
        )
        .and_then(|()| step(&parent.held, &name))
        .and_then(|fd| match Stat::of(&fd)?.kind() {
            Kind::Folder => self.permit(&fd, mode),
            _ => Err(Errno::STALE),
        });
        let node = self.finish(made, &parent, &name, room)?;
        out.entry(node.0, &node.1, &self.owner);
        Ok(())
    }

    /// Counts what was made, or gives its room back.
    fn finish(
        &self,
        made: Result<Stat>,
        parent: &Parent,
        name: &Name,
        room: Room,
    ) -> Result<(u64, Stat)> {
        match made {
            Ok(stat) => {
                self.growth.made(room, stat.key());
                self.note_repository(&parent.route, name);
                let node = lock(&self.nodes).found(parent.node, name, &stat)?;
                Ok((node, stat))
            }
            Err(error) => {
                self.growth.give(room);
                Err(self.unless_hidden(error, parent, name))
            }
        }
    }

    /// Returns ENOENT in place of EEXIST for what is hidden: of another kind than what was to be made, for which the rules may differ.
    fn unless_hidden(&self, error: Errno, parent: &Parent, name: &Name) -> Errno {
        if error == Errno::EXIST && self.look(parent, name).err() == Some(Errno::NOENT) {
            return Errno::NOENT;
        }
        error
    }

    /// Makes an empty file. Devices, FIFOs and sockets are EPERM.
    pub(super) fn mknod(&self, folder: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let mode = args.u32()?;
        args.skip(12)?;
        let name = args.name()?;
        let file_type = FileType::from_raw_mode(mode);
        if mode & 0o170_000 != 0 && file_type != FileType::RegularFile {
            return Err(Errno::PERM);
        }
        let _names = self.keep_names();
        let parent = self.find_folder(folder)?;
        let (_, node, stat) = self.new_file(&parent, &name, OFlags::WRONLY, mode)?;
        out.entry(node, &stat, &self.owner);
        Ok(())
    }

    fn new_file(
        &self,
        parent: &Parent,
        name: &Name,
        flags: OFlags,
        mode: u32,
    ) -> Result<(OwnedFd, u64, Stat)> {
        self.check_new(parent, name, Kind::File)?;
        let room = self.growth.take_name()?;
        let mut file = None;
        let made = make_file(&parent.held, name, flags, Mode::from_raw_mode(mode & 0o777))
            .and_then(|fd| {
                let stat = self.permit(&fd, mode);
                file = Some(fd);
                stat
            });
        let (node, stat) = self.finish(made, parent, name, room)?;
        Ok((file.ok_or(Errno::IO)?, node, stat))
    }

    /// Makes a file and opens it, or opens the one that is there (`struct fuse_create_in`).
    pub(super) fn create(&self, folder: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let flags = OFlags::from_bits_retain(args.u32()?);
        let mode = args.u32()?;
        args.skip(8)?;
        let name = args.name()?;
        let _names = self.keep_names();
        lock(&self.opens).check()?;
        let parent = self.find_folder(folder)?;
        for _ in 0..TRIES {
            match self.look(&parent, &name) {
                Ok(_) if flags.contains(OFlags::EXCL) => return Err(Errno::EXIST),
                Ok(stat) => {
                    let node = lock(&self.nodes).found(folder, &name, &stat)?;
                    return match self.open_node(node, flags) {
                        Ok(handle) => {
                            out.entry(node, &stat, &self.owner);
                            out.open(handle);
                            Ok(())
                        }
                        Err(error) => {
                            lock(&self.nodes).forget(node, 1);
                            Err(error)
                        }
                    };
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            match self.new_file(&parent, &name, flags & OFlags::RWMODE, mode) {
                Ok((fd, node, stat)) => {
                    let handle = self.add_open(fd, node, stat.key(), false)?;
                    out.entry(node, &stat, &self.owner);
                    out.open(handle);
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::AGAIN)
    }

    /// Makes a link with any target: nothing here ever follows it.
    pub(super) fn symlink(&self, folder: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let name = args.name()?;
        let target = args.text()?;
        if target.is_empty() {
            return Err(Errno::NOENT);
        }
        if target.len() > TARGET_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let _names = self.keep_names();
        let parent = self.find_folder(folder)?;
        self.check_new(&parent, &name, Kind::Link)?;
        let room = self.growth.take_name()?;
        let made = symlinkat(target, &parent.held, name.as_os_str())
            .and_then(|()| step(&parent.held, &name))
            .and_then(Stat::of);
        let (node, stat) = self.finish(made, &parent, &name, room)?;
        out.entry(node, &stat, &self.owner);
        Ok(())
    }

    /// Gives a file another name (`struct fuse_link_in`), unless it is protected: the name would be a way to change it.
    pub(super) fn link(&self, folder: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let old = args.u64()?;
        let name = args.name()?;
        let _names = self.keep_names();
        let (file, stat) = self.find(old)?;
        self.check(old, &stat, true)?;
        if !matches!(stat.kind(), Kind::File | Kind::Link) {
            return Err(Errno::PERM);
        }
        let parent = self.find_folder(folder)?;
        self.check_new(&parent, &name, stat.kind())?;
        let room = self.growth.take_name()?;
        if let Err(error) = self.descriptors.link(&file, &parent.held, &name) {
            self.growth.give(room);
            return Err(self.unless_hidden(error, &parent, &name));
        }
        self.growth.linked(room, &stat);
        let stat = Stat::of(&file)?;
        self.note_repository(&parent.route, &name);
        let node = lock(&self.nodes).found(folder, &name, &stat)?;
        out.entry(node, &stat, &self.owner);
        Ok(())
    }
}

/// Returns the way to what isn't there yet.
pub(super) fn new_place(route: &[Stop], name: &Name) -> Vec<Stop> {
    let mut place = route.to_vec();
    place.push(Stop {
        name: name.clone(),
        key: Key::default(),
    });
    place
}

/// Returns a way as a path from the top of the folder.
pub(super) fn path(route: &[Stop]) -> PathBuf {
    route.iter().map(|stop| stop.name.as_os_str()).collect()
}
