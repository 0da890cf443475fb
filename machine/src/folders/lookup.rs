//! Names, attributes and links: what is asked about files before they are opened.

use std::os::fd::AsFd;

use rustix::fs::{
    Access as Allowed, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fstatvfs, ftruncate,
    readlinkat,
};
use rustix::io::Errno;

use super::abi::{Args, Out, Result};
use super::host::{Kind, Stat, set_times, step};
use super::lock;
use super::mount::{Held, Mount, Parent};
use super::name::{NAME_MAX, Name};
use super::nodes::Stop;
use super::{Access, abi};

/// Bits of `fuse_setattr_in.valid`: what is set. Owners, 2 and 4, are not.
mod valid {
    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const FH: u32 = 1 << 6;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
}

/// The bit of `fuse_getattr_in.getattr_flags` that says that an open file is meant.
const GETATTR_FH: u32 = 1;
/// Bytes of a block, as a guest counts its disk.
const BLOCK: u64 = 4096;

impl Mount {
    /// Finds what has a name in a folder.
    pub(super) fn look(&self, parent: &Parent, name: &Name) -> Result<Stat> {
        let stat = Stat::of(step(&parent.held, name)?)?;
        let place = place(&parent.route, name, &stat);
        let verdict = self.judge(&place, stat.kind(), true);
        self.allow(verdict.max(self.judge_links(&stat)?), false)?;
        Ok(stat)
    }

    /// Finds what has a name in a folder, and counts it as looked up.
    pub(super) fn look_up(&self, parent: &Parent, name: &Name) -> Result<(u64, Stat)> {
        let stat = self.look(parent, name)?;
        let node = lock(&self.nodes).found(parent.node, name, &stat)?;
        Ok((node, stat))
    }

    pub(super) fn lookup(&self, folder: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let name = args.name()?;
        let _names = self.keep_names();
        let (node, stat) = self.look_up(&self.find_folder(folder)?, &name)?;
        out.entry(node, &stat, &self.owner);
        Ok(())
    }

    /// Takes back lookups of one node, or of several (`struct fuse_batch_forget_in`). What is too short ends it.
    pub(super) fn forget(&self, opcode: u32, node: u64, mut args: Args<'_>) {
        let mut nodes = lock(&self.nodes);
        if opcode == abi::opcode::FORGET {
            if let Ok(lookups) = args.u64() {
                nodes.forget(node, lookups);
            }
        } else if let Ok(count) = args.u64() {
            for _ in 0..count & 0xffff_ffff {
                let (Ok(node), Ok(lookups)) = (args.u64(), args.u64()) else {
                    return;
                };
                nodes.forget(node, lookups);
            }
        }
    }

    pub(super) fn getattr(&self, node: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let flags = args.u32()?;
        args.skip(4)?;
        let handle = args.u64()?;
        let _names = self.keep_names();
        let stat = if flags & GETATTR_FH == 0 {
            self.find_open(node)?.1
        } else {
            Stat::of(&lock(&self.opens).get(handle, node, false)?.fd)?
        };
        self.check(node, &stat, false)?;
        lock(&self.nodes).tell(node, Some(stat.version()));
        out.attributes(&stat, &self.owner);
        Ok(())
    }

    /// Sets attributes (`struct fuse_setattr_in`): size, permissions, times. Owners stay as they are, without an error: archives are
    /// unpacked and trees copied with owners that this user can't give.
    pub(super) fn setattr(&self, node: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let valid = args.u32()?;
        args.skip(4)?;
        let handle = args.u64()?;
        let size = args.u64()?;
        args.skip(8)?;
        let (atime, mtime) = (args.u64()?, args.u64()?);
        args.skip(8)?;
        let (atime_nanos, mtime_nanos) = (args.u32()?, args.u32()?);
        args.skip(4)?;
        let mode = args.u32()?;

        let _names = self.keep_names();
        let (held, stat) = self.find_open(node)?;
        self.check(node, &stat, true)?;
        if stat.kind() == Kind::Other {
            return Err(Errno::PERM);
        }
        if valid & valid::SIZE != 0 {
            let handle = (valid & valid::FH != 0).then_some(handle);
            self.truncate(node, &held, &stat, handle, size)?;
        }
        if valid & valid::MODE != 0 {
            self.set_mode(&held, &stat, mode)?;
        }
        if valid & (valid::ATIME | valid::MTIME) != 0 {
            let time = |bit: u32, now: u32, seconds: u64, nanos: u32| match valid {
                _ if valid & now != 0 => special(UTIME_NOW),
                _ if valid & bit != 0 => Timespec {
                    tv_sec: seconds.cast_signed(),
                    tv_nsec: nanos.into(),
                },
                _ => special(UTIME_OMIT),
            };
            let times = Timestamps {
                last_access: time(valid::ATIME, valid::ATIME_NOW, atime, atime_nanos),
                last_modification: time(valid::MTIME, valid::MTIME_NOW, mtime, mtime_nanos),
            };
            set_times(&held, &times)?;
        }
        let stat = Stat::of(&held)?;
        lock(&self.nodes).tell(node, Some(stat.version()));
        out.attributes(&stat, &self.owner);
        Ok(())
    }

    fn truncate(
        &self,
        node: u64,
        held: &Held,
        stat: &Stat,
        handle: Option<u64>,
        size: u64,
    ) -> Result<()> {
        match stat.kind() {
            Kind::File => {}
            Kind::Folder => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        let room = self.growth.take_bytes(stat, size, 0)?;
        let cut = match handle {
            Some(handle) => lock(&self.opens)
                .get(handle, node, false)
                .and_then(|open| ftruncate(&open.fd, size)),
            None => self
                .open_to_write(held, stat, OFlags::WRONLY)
                .and_then(|fd| ftruncate(fd, size)),
        };
        self.growth.settle(room, &Stat::of(held)?);
        cut
    }

    /// Sets permissions. Set-ID and sticky bits aren't the guest's to set; a folder keeps those that the host has given it, a file doesn't.
    fn set_mode(&self, held: &Held, stat: &Stat, mode: u32) -> Result<()> {
        let kept = match stat.kind() {
            Kind::File => 0,
            Kind::Folder => stat.mode() & 0o7000,
            _ => return Err(Errno::OPNOTSUPP),
        };
        self.descriptors.set_mode(held, mode & 0o777 | kept)
    }

    pub(super) fn readlink(&self, node: u64, out: &mut Out<'_>) -> Result<()> {
        let _names = self.keep_names();
        let (held, stat) = self.find(node)?;
        self.check(node, &stat, false)?;
        if stat.kind() != Kind::Link {
            return Err(Errno::INVAL);
        }
        let target = readlinkat(held.as_fd(), "", Vec::new())?;
        out.0.extend_from_slice(target.as_bytes());
        Ok(())
    }

    pub(super) fn access(&self, node: u64, mut args: Args<'_>) -> Result<()> {
        let mask = args.u32()?;
        let asked = Allowed::from_bits(mask).ok_or(Errno::INVAL)?;
        let _names = self.keep_names();
        let (held, stat) = self.find_open(node)?;
        let writes = asked.contains(Allowed::WRITE_OK);
        // On a folder, writing is making names in it, which have rules of their own.
        self.check(node, &stat, writes)?;
        match stat.kind() {
            Kind::File | Kind::Folder => self.descriptors.access(&held, asked),
            Kind::Link => Ok(()),
            Kind::Other if writes => Err(Errno::ACCESS),
            Kind::Other => Ok(()),
        }
    }

    /// Returns `struct fuse_statfs_out`: what the folder may grow by, if the disk has as much.
    pub(super) fn statfs(&self, out: &mut Out<'_>) -> Result<()> {
        let host = fstatvfs(&*self.root)?;
        let unit = host.f_frsize.max(1);
        let free = host.f_bavail.saturating_mul(unit);
        let (all, free) = match self.access {
            Access::ReadOnly => (host.f_blocks.saturating_mul(unit), 0),
            Access::ReadWrite => {
                let (limit, room) = self.growth.limit_and_room();
                (limit, free.min(room))
            }
        };
        out.u64(all / BLOCK);
        out.u64(free / BLOCK);
        out.u64(free / BLOCK);
        out.u64(host.f_files);
        out.u64(host.f_favail);
        out.u32(4096);
        out.u32(u32::try_from(NAME_MAX).unwrap_or(255));
        out.u32(4096);
        out.zeros(4 + 24);
        Ok(())
    }
}

/// Returns the way to what is in a folder.
pub(super) fn place(route: &[Stop], name: &Name, stat: &Stat) -> Vec<Stop> {
    let mut place = route.to_vec();
    place.push(Stop {
        name: name.clone(),
        key: stat.key(),
    });
    place
}

fn special(nanos: rustix::fs::Nsecs) -> Timespec {
    Timespec {
        tv_sec: 0,
        tv_nsec: nanos,
    }
}
