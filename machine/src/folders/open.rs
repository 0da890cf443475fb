//! Open files: their bytes.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fdatasync, fsync, seek};
use rustix::io::{Errno, ReadWriteFlags, pread, pwritev2};

use super::abi::{Args, Out, Result};
use super::host::{Key, Kind, Stat};
use super::mount::{Held, Mount};
use super::opens::Open;
use super::{DATA_MAX, lock};

/// The bit of `fuse_write_in.write_flags` for pages that are written back: where they belong, whatever the file was opened for.
const WRITE_CACHE: u32 = 1;
/// The bit of `fuse_fsync_in.fsync_flags` for data alone.
const FDATASYNC: u32 = 1;

impl Mount {
    /// Opens a file to write to it, without the bits that give privileges. The kernel takes them from a file only where another user
    /// than root writes.
    pub(super) fn open_to_write(&self, held: &Held, stat: &Stat, flags: OFlags) -> Result<OwnedFd> {
        if stat.mode() & 0o6000 != 0 {
            self.descriptors.set_mode(held, stat.mode() & 0o777)?;
        }
        self.descriptors.reopen(held, flags)
    }

    pub(super) fn open(&self, node: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let flags = OFlags::from_bits_retain(args.u32()?);
        let _names = self.keep_names();
        out.open(self.open_node(node, flags)?);
        Ok(())
    }

    /// Returns whether a file that was just opened isn't what the guest's kernel was told any more, and still holds for true.
    pub(super) fn has_changed(&self, node: u64) -> bool {
        let found = self.find_open(node);
        found.is_ok_and(|(_, stat)| lock(&self.nodes).has_changed(node, stat.version()))
    }

    /// Opens a file. Of the flags, those for reading, writing and truncation count; the guest's kernel does the rest.
    pub(super) fn open_node(&self, node: u64, flags: OFlags) -> Result<u64> {
        lock(&self.opens).check()?;
        let (held, stat) = match self.find(node) {
            // The guest has removed it and has it open: its /proc can open it again. What the host has put another file in the place of
            // still has its name here, which is to be looked up anew.
            Err(Errno::STALE) if lock(&self.nodes).routes(node)?.is_empty() => {
                self.find_open(node)?
            }
            found => found?,
        };
        match stat.kind() {
            Kind::File => {}
            Kind::Folder => return Err(Errno::ISDIR),
            Kind::Link => return Err(Errno::LOOP),
            Kind::Other => return Err(Errno::ACCESS),
        }
        let access = flags & OFlags::RWMODE;
        let truncates = flags.contains(OFlags::TRUNC);
        let writes = access != OFlags::RDONLY || truncates;
        self.check(node, &stat, writes)?;
        let fd = if !writes {
            self.descriptors.reopen(&held, access)?
        } else if truncates {
            let room = self.growth.take_bytes(&stat, 0, 0)?;
            let fd = self.open_to_write(&held, &stat, access | OFlags::TRUNC);
            self.growth.settle(room, &Stat::of(&held)?);
            fd?
        } else {
            self.open_to_write(&held, &stat, access)?
        };
        self.add_open(fd, node, stat.key(), false)
    }

    pub(super) fn add_open(
        &self,
        fd: OwnedFd,
        node: u64,
        key: Key,
        is_folder: bool,
    ) -> Result<u64> {
        let open = Arc::new(Open {
            fd,
            node,
            key,
            is_folder,
            listing: Mutex::new(()),
        });
        if !is_folder {
            lock(&self.nodes).opened(&open);
        }
        let number = lock(&self.opens).insert(Arc::clone(&open));
        if number.is_err() {
            lock(&self.nodes).closed(&open);
        }
        number
    }

    fn opened(&self, number: u64, node: u64) -> Result<Arc<Open>> {
        lock(&self.opens).get(number, node, false)
    }

    /// Reads (`struct fuse_read_in`), fewer bytes than asked for only at the end.
    pub(super) fn read(&self, node: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let open = self.opened(handle, node)?;
        let start = out.0.len();
        out.zeros(usize::try_from(size.min(DATA_MAX)).map_err(|_| Errno::INVAL)?);
        let mut filled = start;
        while filled < out.0.len() {
            let at = offset
                .checked_add((filled - start) as u64)
                .ok_or(Errno::INVAL)?;
            match pread(&open.fd, &mut out.0[filled..], at) {
                Ok(0) => break,
                Ok(len) => filled += len,
                Err(Errno::INTR) => {}
                Err(_) if filled > start => break,
                Err(error) => return Err(error),
            }
        }
        out.0.truncate(filled);
        Ok(())
    }

    /// Writes (`struct fuse_write_in`), at the file's end where the guest's program has asked for that.
    pub(super) fn write(&self, node: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let (handle, offset) = (args.u64()?, args.u64()?);
        let (size, write_flags) = (args.u32()?, args.u32()?);
        args.skip(8)?;
        let flags = OFlags::from_bits_retain(args.u32()?);
        args.skip(4)?;
        if size > DATA_MAX {
            return Err(Errno::INVAL);
        }
        let data = args.bytes(usize::try_from(size).map_err(|_| Errno::INVAL)?)?;
        let open = self.opened(handle, node)?;
        let appends = flags.contains(OFlags::APPEND) && write_flags & WRITE_CACHE == 0;
        let stat = Stat::of(&open.fd)?;
        let at = if appends { stat.size() } else { offset };
        if i64::try_from(offset).is_err() {
            return Err(Errno::INVAL);
        }
        let room = self.growth.take_bytes(&stat, at, size.into())?;
        let written = write_all(&open.fd, data, offset, appends);
        self.growth.settle(room, &Stat::of(&open.fd)?);
        lock(&self.nodes).tell(node, None);
        let written = u32::try_from(written?).map_err(|_| Errno::IO)?;
        out.u32(written);
        out.u32(0);
        Ok(())
    }

    pub(super) fn fsync(&self, node: u64, mut args: Args<'_>, is_folder: bool) -> Result<()> {
        let (handle, flags) = (args.u64()?, args.u32()?);
        let open = lock(&self.opens).get(handle, node, is_folder)?;
        match flags & FDATASYNC {
            0 => fsync(&open.fd),
            _ => fdatasync(&open.fd),
        }
    }

    /// Gives a file room, or takes it (`struct fuse_fallocate_in`). Room behind its end that leaves its size as it is, is EOPNOTSUPP.
    pub(super) fn fallocate(&self, node: u64, mut args: Args<'_>) -> Result<()> {
        let (handle, offset, len) = (args.u64()?, args.u64()?, args.u64()?);
        let mode = FallocateFlags::from_bits_retain(args.u32()?);
        let open = self.opened(handle, node)?;
        let stat = Stat::of(&open.fd)?;
        let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
        let punches = mode == FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let fills = [
            FallocateFlags::empty(),
            FallocateFlags::KEEP_SIZE,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        ];
        let is_inside = !mode.contains(FallocateFlags::KEEP_SIZE) || end <= stat.size();
        let is_allowed = punches || fills.contains(&mode) && is_inside;
        if !is_allowed {
            return Err(Errno::OPNOTSUPP);
        }
        let room = if punches {
            self.growth.take_bytes(&stat, 0, 0)?
        } else {
            self.growth.take_bytes(&stat, offset, len)?
        };
        let done = fallocate(&open.fd, mode, offset, len);
        self.growth.settle(room, &Stat::of(&open.fd)?);
        lock(&self.nodes).tell(node, None);
        done
    }

    /// Looks for data and holes (`struct fuse_lseek_in`); all other seeks are the guest's own.
    pub(super) fn lseek(&self, node: u64, mut args: Args<'_>, out: &mut Out<'_>) -> Result<()> {
        let (handle, offset, whence) = (args.u64()?, args.u64()?, args.u32()?);
        let open = self.opened(handle, node)?;
        let place = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        out.u64(seek(&open.fd, place)?);
        Ok(())
    }

    /// Closes a file or folder. What it took comes back if it has no name any more.
    pub(super) fn release(&self, mut args: Args<'_>) -> Result<()> {
        let handle = args.u64()?;
        let open = lock(&self.opens).remove(handle).ok_or(Errno::BADF)?;
        lock(&self.nodes).closed(&open);
        let is_gone = Stat::of(&open.fd).is_ok_and(|stat| stat.links() == 0);
        if is_gone && !lock(&self.opens).has(&open.key) {
            self.growth.gone(&open.key);
        }
        Ok(())
    }
}

/// Writes all of some bytes, or as many as can be.
fn write_all(fd: &OwnedFd, data: &[u8], offset: u64, appends: bool) -> Result<usize> {
    let flags = if appends {
        ReadWriteFlags::APPEND
    } else {
        ReadWriteFlags::empty()
    };
    let mut written = 0;
    while written < data.len() {
        let at = offset.checked_add(written as u64).ok_or(Errno::FBIG)?;
        let piece = [std::io::IoSlice::new(&data[written..])];
        match pwritev2(fd, &piece, at, flags) {
            Ok(0) => break,
            Ok(len) => written += len,
            Err(Errno::INTR) => {}
            Err(_) if written > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
