//! FUSE's messages as bytes, after `include/uapi/linux/fuse.h` of Linux 6.12 (protocol 7.41).
//!
//! [`Args`] takes a request apart and [`Out`] puts a reply together. Numbers are in the machine's own order, since guest and host have the
//! same processor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::host::Stat;
use super::name::Name;

/// What an operation returns: the error is what the guest's program gets.
pub(super) type Result<T> = std::result::Result<T, Errno>;

/// The protocol's version.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 41;
/// The node of the folder itself, which the guest's kernel knows without a lookup.
pub(super) const ROOT: u64 = 1;
/// Bytes of a request before its arguments, and of a reply before its results.
pub(super) const IN_HEADER: usize = 40;
pub(super) const OUT_HEADER: usize = 16;
/// Bytes of an entry in a listing, without its name.
pub(super) const DIRENT: usize = 24;
/// Bytes of what a lookup returns.
pub(super) const ENTRY: usize = 128;

/// How long the guest's kernel takes names and attributes for known.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// The requests that are served (`enum fuse_opcode`). All others get ENOSYS, after which the kernel doesn't send most of them again.
pub(super) mod opcode {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const FORGET: u32 = 2;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const SETATTR: u32 = 4;
    pub(in super::super) const READLINK: u32 = 5;
    pub(in super::super) const SYMLINK: u32 = 6;
    pub(in super::super) const MKNOD: u32 = 8;
    pub(in super::super) const MKDIR: u32 = 9;
    pub(in super::super) const UNLINK: u32 = 10;
    pub(in super::super) const RMDIR: u32 = 11;
    pub(in super::super) const RENAME: u32 = 12;
    pub(in super::super) const LINK: u32 = 13;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const WRITE: u32 = 16;
    pub(in super::super) const STATFS: u32 = 17;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const FSYNC: u32 = 20;
    pub(in super::super) const INIT: u32 = 26;
    pub(in super::super) const OPENDIR: u32 = 27;
    pub(in super::super) const READDIR: u32 = 28;
    pub(in super::super) const RELEASEDIR: u32 = 29;
    pub(in super::super) const FSYNCDIR: u32 = 30;
    pub(in super::super) const ACCESS: u32 = 34;
    pub(in super::super) const CREATE: u32 = 35;
    pub(in super::super) const DESTROY: u32 = 38;
    pub(in super::super) const BATCH_FORGET: u32 = 42;
    pub(in super::super) const FALLOCATE: u32 = 43;
    pub(in super::super) const READDIRPLUS: u32 = 44;
    pub(in super::super) const RENAME2: u32 = 45;
    pub(in super::super) const LSEEK: u32 = 46;
}

/// What the kernel may do, of `FUSE_INIT`'s flags.
pub(super) mod init {
    pub(in super::super) const ASYNC_READ: u32 = 1 << 0;
    pub(in super::super) const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub(in super::super) const BIG_WRITES: u32 = 1 << 5;
    pub(in super::super) const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub(in super::super) const DO_READDIRPLUS: u32 = 1 << 13;
    pub(in super::super) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(in super::super) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(in super::super) const MAX_PAGES: u32 = 1 << 22;
    pub(in super::super) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// The head of a request (`struct fuse_in_header`). The user and the process that it names are the guest's, and mean nothing here.
pub(super) struct Request<'a> {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) args: Args<'a>,
    /// Whether the request is as long as it says, and has no extensions, which weren't agreed on.
    pub(super) is_whole: bool,
}

impl<'a> Request<'a> {
    /// Reads the head. Returns `None` for what has none, and so can't be replied to.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut head = Args(bytes.get(..IN_HEADER)?);
        let len = head.u32().ok()?;
        let opcode = head.u32().ok()?;
        let unique = head.u64().ok()?;
        let node = head.u64().ok()?;
        head.skip(12).ok()?;
        let extensions = head.u32().ok()? & 0xffff;
        Some(Request {
            opcode,
            unique,
            node,
            args: Args(&bytes[IN_HEADER..]),
            is_whole: usize::try_from(len) == Ok(bytes.len()) && extensions == 0,
        })
    }
}

/// The arguments of a request that aren't read yet. What is missing or wrong is EINVAL.
#[derive(Clone, Copy)]
pub(super) struct Args<'a>(pub(super) &'a [u8]);

impl<'a> Args<'a> {
    pub(super) fn u32(&mut self) -> Result<u32> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(u32::from_ne_bytes(*bytes))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(u64::from_ne_bytes(*bytes))
    }

    /// Leaves out bytes of padding, or those that don't matter here.
    pub(super) fn skip(&mut self, len: usize) -> Result<()> {
        self.0 = self.0.get(len..).ok_or(Errno::INVAL)?;
        Ok(())
    }

    /// Reads bytes up to a NUL.
    pub(super) fn text(&mut self) -> Result<&'a [u8]> {
        let len = self.0.iter().position(|&byte| byte == 0);
        let len = len.ok_or(Errno::INVAL)?;
        let text = &self.0[..len];
        self.0 = &self.0[len + 1..];
        Ok(text)
    }

    pub(super) fn name(&mut self) -> Result<Name> {
        Name::new(self.text()?)
    }

    /// Reads so many bytes, as they are in the request.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// The notification that all of a file's cached content and attributes are old (`struct fuse_out_header`, `struct
/// fuse_notify_inval_inode_out`).
pub(super) fn is_old(node: u64) -> Vec<u8> {
    const NOTIFY_INVAL_INODE: u32 = 2;
    const LEN: u32 = 16 + 24;
    let mut notice = Vec::new();
    let mut out = Out(&mut notice);
    out.u32(LEN);
    out.u32(NOTIFY_INVAL_INODE);
    out.u64(0); // it answers no request
    out.u64(node);
    out.zeros(8 + 8); // from the beginning to the end
    notice
}

/// A reply that is being made, behind room for its head.
pub(super) struct Out<'a>(pub(super) &'a mut Vec<u8>);

impl Out<'_> {
    pub(super) fn u16(&mut self, number: u16) {
        self.0.extend_from_slice(&number.to_ne_bytes());
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_ne_bytes());
    }

    pub(super) fn zeros(&mut self, len: usize) {
        self.0.resize(self.0.len() + len, 0);
    }

    /// Appends what a lookup returns (`struct fuse_entry_out`). Numbers of nodes aren't used again, so the generation is always 0.
    pub(super) fn entry(&mut self, node: u64, stat: &Stat, owner: &Owner) {
        self.u64(node);
        self.u64(0);
        self.u64(KNOWN_FOR.as_secs());
        self.u64(KNOWN_FOR.as_secs());
        self.u32(KNOWN_FOR.subsec_nanos());
        self.u32(KNOWN_FOR.subsec_nanos());
        self.attr(stat, owner);
    }

    /// Appends attributes, and how long they hold (`struct fuse_attr_out`).
    pub(super) fn attributes(&mut self, stat: &Stat, owner: &Owner) {
        self.u64(KNOWN_FOR.as_secs());
        self.u32(KNOWN_FOR.subsec_nanos());
        self.u32(0);
        self.attr(stat, owner);
    }

    /// Appends `struct fuse_attr`: without set-ID and sticky bits, and without the number of a device.
    fn attr(&mut self, stat: &Stat, owner: &Owner) {
        let found = stat.found();
        let times = [found.stx_atime, found.stx_mtime, found.stx_ctime];
        self.u64(found.stx_ino);
        self.u64(found.stx_size);
        self.u64(found.stx_blocks);
        for time in times {
            self.u64(time.tv_sec.cast_unsigned());
        }
        for time in times {
            self.u32(time.tv_nsec);
        }
        self.u32(stat.type_bits() | stat.mode() & 0o777);
        self.u32(found.stx_nlink);
        self.u32(owner.user(found.stx_uid));
        self.u32(owner.group(found.stx_gid));
        self.u32(0);
        self.u32(found.stx_blksize);
        self.u32(0);
    }

    /// Appends the number of an open file or folder (`struct fuse_open_out`).
    pub(super) fn open(&mut self, handle: u64) {
        self.u64(handle);
        self.u64(0);
    }
}

/// Whom files belong to, as the guest sees it.
#[derive(Debug)]
pub(super) struct Owner {
    /// The user and group that this process is on the host.
    host: (u32, u32),
    /// The same in the guest: the user in the upper half, the group in the lower.
    guest: AtomicU64,
}

/// The user and group of files that belong to others of the host's.
const OVERFLOW_ID: u32 = 65534;

impl Owner {
    pub(super) fn new(host: (u32, u32), guest: (u32, u32)) -> Self {
        let owner = Owner {
            host,
            guest: AtomicU64::default(),
        };
        owner.set_guest(guest);
        owner
    }

    pub(super) fn set_guest(&self, (user, group): (u32, u32)) {
        let both = u64::from(user) << 32 | u64::from(group);
        self.guest.store(both, Ordering::Relaxed);
    }

    fn guest(&self) -> (u32, u32) {
        let both = self.guest.load(Ordering::Relaxed);
        #[allow(clippy::cast_possible_truncation, reason = "each half is one of them")]
        ((both >> 32) as u32, both as u32)
    }

    fn user(&self, user: u32) -> u32 {
        if user == self.host.0 {
            self.guest().0
        } else {
            OVERFLOW_ID
        }
    }

    fn group(&self, group: u32) -> u32 {
        if group == self.host.1 {
            self.guest().1
        } else {
            OVERFLOW_ID
        }
    }
}
