//! Names that go, or come to another place.

use rustix::fs::{AtFlags, RenameFlags, renameat_with, unlinkat};
use rustix::io::Errno;

use super::abi::{Args, Result};
use super::host::{Kind, Stat, step};
use super::lock;
use super::lookup::place;
use super::make::{new_place, path};
use super::mount::{Mount, Parent};
use super::name::Name;
use super::nodes::Stop;

/// One end of a rename: a name in a folder, and what it leads to.
struct End {
    parent: Parent,
    name: Name,
    there: Option<(std::os::fd::OwnedFd, Stat)>,
}

impl End {
    /// Returns the way to what is there, or would be.
    fn place(&self) -> Vec<Stop> {
        match &self.there {
            Some((_, stat)) => place(&self.parent.route, &self.name, stat),
            None => new_place(&self.parent.route, &self.name),
        }
    }
}

impl Mount {
    /// Removes a name (UNLINK, RMDIR).
    pub(super) fn remove(&self, folder: u64, mut args: Args<'_>, is_folder: bool) -> Result<()> {
        let name = args.name()?;
        let _names = self.change_names();
        let end = self.end(folder, name)?;
        let (fd, stat) = end.there.as_ref().ok_or(Errno::NOENT)?;
        self.check_end(&end, stat)?;
        let flags = if is_folder {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        unlinkat(&end.parent.held, end.name.as_os_str(), flags)?;
        self.left(&end, fd, stat);
        if is_folder && end.name.is(".git") {
            lock(&self.repositories).retain(|repository| *repository != path(&end.parent.route));
        }
        Ok(())
    }

    fn end(&self, folder: u64, name: Name) -> Result<End> {
        let parent = self.find_folder(folder)?;
        let there = match step(&parent.held, &name) {
            Ok(fd) => {
                let stat = Stat::of(&fd)?;
                Some((fd, stat))
            }
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        Ok(End {
            parent,
            name,
            there,
        })
    }

    /// Checks that what is at an end may go from there.
    fn check_end(&self, end: &End, stat: &Stat) -> Result<()> {
        let verdict = self.judge(&end.place(), stat.kind(), true);
        self.allow(verdict.max(self.judge_links(stat)?), true)
    }

    /// Counts a name as gone, and the file if that was its last.
    fn left(&self, end: &End, fd: &std::os::fd::OwnedFd, stat: &Stat) {
        let key = stat.key();
        lock(&self.nodes).unname(&key, end.parent.node, &end.name);
        let is_gone =
            stat.kind() == Kind::Folder || Stat::of(fd).is_ok_and(|stat| stat.links() == 0);
        if !is_gone {
            self.growth.unlinked(&key);
        } else if !lock(&self.opens).has(&key) {
            self.growth.gone(&key);
        }
    }

    /// Renames (RENAME, RENAME2 with RENAME_NOREPLACE or RENAME_EXCHANGE).
    pub(super) fn rename(
        &self,
        folder: u64,
        new_folder: u64,
        flags: u32,
        mut args: Args<'_>,
    ) -> Result<()> {
        let (name, new_name) = (args.name()?, args.name()?);
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let exchanges = flags.contains(RenameFlags::EXCHANGE);
        let _names = self.change_names();
        let from = self.end(folder, name)?;
        let to = self.end(new_folder, new_name)?;
        let (_, stat) = from.there.as_ref().ok_or(Errno::NOENT)?;
        self.check_move(&from, &to)?;
        match &to.there {
            Some(_) if exchanges => self.check_move(&to, &from)?,
            Some((_, stat)) => self.check_end(&to, stat)?,
            None => {}
        }
        renameat_with(
            &from.parent.held,
            from.name.as_os_str(),
            &to.parent.held,
            to.name.as_os_str(),
            flags,
        )?;
        // Two names of one file: the kernel leaves both.
        if let Some((_, other)) = &to.there
            && other.key() == stat.key()
        {
            return Ok(());
        }
        let mut nodes = lock(&self.nodes);
        nodes.unname(&stat.key(), from.parent.node, &from.name);
        if let (Some((_, other)), true) = (&to.there, exchanges) {
            nodes.unname(&other.key(), to.parent.node, &to.name);
            nodes.name(&other.key(), from.parent.node, &from.name);
        }
        nodes.name(&stat.key(), to.parent.node, &to.name);
        drop(nodes);
        if let (Some((fd, other)), false) = (&to.there, exchanges) {
            self.left(&to, fd, other);
        }
        self.move_repositories(&from, &to, exchanges);
        Ok(())
    }

    /// Checks that what is at one end may be moved to the other: itself, its new place, and all that is below it.
    fn check_move(&self, from: &End, to: &End) -> Result<()> {
        let (fd, stat) = from.there.as_ref().ok_or(Errno::NOENT)?;
        self.check_end(from, stat)?;
        let new_place = place(&to.parent.route, &to.name, stat);
        self.allow(self.judge(&new_place, stat.kind(), false), true)?;
        if stat.kind() == Kind::Folder {
            self.check_below(fd, &from.place(), &new_place)?;
        }
        Ok(())
    }

    /// Keeps the paths of new repositories right.
    fn move_repositories(&self, from: &End, to: &End, exchanges: bool) {
        let (old, new) = (path(&from.place()), path(&to.place()));
        let mut repositories = lock(&self.repositories);
        for repository in repositories.iter_mut() {
            if let Ok(below) = repository.strip_prefix(&old) {
                *repository = new.join(below);
            } else if let Ok(below) = repository.strip_prefix(&new)
                && exchanges
            {
                *repository = old.join(below);
            }
        }
        if from.name.is(".git") && !exchanges {
            repositories.retain(|repository| *repository != path(&from.parent.route));
        }
        drop(repositories);
        self.note_repository(&to.parent.route, &to.name);
        if exchanges {
            self.note_repository(&from.parent.route, &from.name);
        }
    }
}
