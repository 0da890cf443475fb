//! Open folders: what is in them.

use std::mem::MaybeUninit;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::abi::{Args, DIRENT, ENTRY, Out, Result};
use super::host::{Kind, Stat, step};
use super::make::new_place;
use super::mount::{Mount, Parent};
use super::name::Name;
use super::rules::Verdict;
use super::{DATA_MAX, lock};

/// Bytes of a folder that are read at a time: at least one entry.
const PIECE_MIN: usize = 1024;
const PIECE_MAX: usize = 32 << 10;

impl Mount {
    pub(super) fn opendir(&self, node: u64, out: &mut Out<'_>) -> Result<()> {
        let _names = self.keep_names();
        lock(&self.opens).check()?;
        let (held, stat) = self.find(node)?;
        self.check(node, &stat, false)?;
        if stat.kind() != Kind::Folder {
            return Err(Errno::NOTDIR);
        }
        let fd = self
            .descriptors
            .reopen(&held, OFlags::RDONLY | OFlags::DIRECTORY)?;
        out.open(self.add_open(fd, node, stat.key(), true)?);
        Ok(())
    }

    /// Lists (`struct fuse_read_in`) from an offset on. Offsets are those of the host's file system, which hold while a folder changes.
    ///
    /// With `plus`, each entry is looked up. Where that fails, it has its name alone.
    pub(super) fn readdir(
        &self,
        node: u64,
        mut args: Args<'_>,
        plus: bool,
        out: &mut Out<'_>,
    ) -> Result<()> {
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let size = usize::try_from(size.min(DATA_MAX)).map_err(|_| Errno::INVAL)?;
        let open = lock(&self.opens).get(handle, node, true)?;
        let _names = self.keep_names();
        // It may have been removed since: then it has no entries, and no rules.
        let found = self.find_folder(node).ok();
        let end = out.0.len() + size;
        let piece = if plus { size / 4 } else { size };
        let mut buffer = vec![MaybeUninit::uninit(); piece.clamp(PIECE_MIN, PIECE_MAX)];
        let _listing = lock(&open.listing);
        seek(&open.fd, SeekFrom::Start(offset))?;
        let mut entries = RawDir::new(&open.fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let head = if plus { ENTRY + DIRENT } else { DIRENT };
            if out.0.len() + (head + name.len()).next_multiple_of(8) > end {
                break;
            }
            let is_self = matches!(name, b"." | b"..");
            let (Some(parent), false) = (&found, is_self) else {
                if is_self {
                    out.zeros(if plus { ENTRY } else { 0 });
                    out.name(
                        entry.ino(),
                        entry.next_entry_cookie(),
                        FileType::Directory,
                        name,
                    );
                }
                continue;
            };
            let Ok(valid) = Name::new(name) else { continue };
            let kind = self.kind_of(parent, &valid, entry.file_type());
            if self.is_hidden(parent, &valid, kind.into(), entry.ino()) {
                continue;
            }
            if plus {
                match self.look_up(parent, &valid) {
                    Ok((node, stat)) => out.entry(node, &stat, &self.owner),
                    Err(Errno::NOENT) => continue,
                    Err(_) => out.zeros(ENTRY),
                }
            }
            out.name(entry.ino(), entry.next_entry_cookie(), kind, name);
        }
        Ok(())
    }

    /// Returns what an entry is, which some file systems don't list.
    fn kind_of(&self, parent: &Parent, name: &Name, listed: FileType) -> FileType {
        match listed {
            FileType::Unknown => step(&parent.held, name)
                .and_then(Stat::of)
                .map_or(FileType::Unknown, |stat| {
                    FileType::from_raw_mode(stat.type_bits())
                }),
            known => known,
        }
    }

    fn is_hidden(&self, parent: &Parent, name: &Name, kind: Kind, number: u64) -> bool {
        if self.rules.is_empty() {
            return false;
        }
        if self.judge(&new_place(&parent.route, name), kind, true) == Verdict::Hidden {
            return true;
        }
        // Another name of a hidden file, once they are known.
        let linked = lock(&self.linked);
        let Some(linked) = linked.as_ref().filter(|linked| !linked.is_empty()) else {
            return false;
        };
        let device = Stat::of(&parent.held).map(|stat| stat.key().device);
        device.is_ok_and(|device| linked.get(&(device, number)) == Some(&Verdict::Hidden))
    }
}

impl Out<'_> {
    /// Appends a name and its kind (`struct fuse_dirent`), with the offset of what comes behind it.
    fn name(&mut self, number: u64, next: u64, file_type: FileType, name: &[u8]) {
        self.u64(number);
        self.u64(next);
        self.u32(u32::try_from(name.len()).unwrap_or(0));
        // d_type is the file's type where a mode has it.
        self.u32(match file_type {
            FileType::Unknown => 0,
            known => known.as_raw_mode() >> 12,
        });
        self.0.extend_from_slice(name);
        let padding = name.len().next_multiple_of(8) - name.len();
        self.zeros(padding);
    }
}
