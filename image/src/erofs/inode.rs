//! Inodes, `struct erofs_inode_compact` and `struct erofs_inode_extended`.

use super::{get, put, xattr};
use crate::rootfs::Time;

/// Bytes of each form.
const COMPACT: usize = 32;
const EXTENDED: usize = 64;

/// The layouts of an inode's data that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `EROFS_INODE_FLAT_PLAIN`
    Plain = 0,
    /// `EROFS_INODE_FLAT_INLINE`
    Inline = 2,
    /// `EROFS_INODE_CHUNK_BASED`
    Chunked = 4,
}

/// An inode's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) layout: Layout,
    /// Bytes of the extended attributes behind it.
    pub(super) xattrs: u32,
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) size: u64,
    /// The first block, the device's number, or the kind of chunks (`union erofs_inode_i_u`).
    pub(super) place: u32,
    /// The number that 32-bit programs see.
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
}

impl Fields {
    /// Returns the fields' bytes; the compact form has `time`.
    pub(super) fn encode(&self, time: Time) -> Vec<u8> {
        match self.compact(time) {
            Some(bytes) => bytes.to_vec(),
            None => self.extended().to_vec(),
        }
    }

    /// Returns the bytes that [`encode`](Self::encode) will return.
    pub(super) fn len(&self, time: Time) -> u64 {
        self.compact(time).map_or(EXTENDED, |bytes| bytes.len()) as u64
    }

    /// Returns the compact form, if it can hold them.
    fn compact(&self, time: Time) -> Option<[u8; COMPACT]> {
        let short = |number: u32| u16::try_from(number).ok().map(u16::to_le_bytes);
        let size = u32::try_from(self.size)
            .ok()
            .filter(|_| self.mtime == time)?;
        let mut bytes = [0; COMPACT];
        self.begin(&mut bytes, 0);
        put(&mut bytes, 6, short(self.links)?);
        put(&mut bytes, 8, size.to_le_bytes());
        put(&mut bytes, 24, short(self.uid)?);
        put(&mut bytes, 26, short(self.gid)?);
        Some(bytes)
    }

    fn extended(&self) -> [u8; EXTENDED] {
        let mut bytes = [0; EXTENDED];
        self.begin(&mut bytes, 1);
        put(&mut bytes, 8, self.size.to_le_bytes());
        put(&mut bytes, 24, self.uid.to_le_bytes());
        put(&mut bytes, 28, self.gid.to_le_bytes());
        put(&mut bytes, 32, self.mtime.seconds.to_le_bytes());
        put(&mut bytes, 40, self.mtime.nanoseconds.to_le_bytes());
        put(&mut bytes, 44, self.links.to_le_bytes());
        bytes
    }

    /// Sets what both forms have in the same places.
    fn begin(&self, bytes: &mut [u8], form: u16) {
        let format = form | (self.layout as u16) << 1;
        put(bytes, 0, format.to_le_bytes());
        put(bytes, 2, xattr::count(self.xattrs).to_le_bytes());
        // The type and the permissions have 16 bits in every mode.
        let [low, high, ..] = self.mode.to_le_bytes();
        put(bytes, 4, [low, high]);
        put(bytes, 16, self.place.to_le_bytes());
        put(bytes, 20, self.number.to_le_bytes());
    }

    /// Returns the length of the inode that starts with these bytes; `None` where it has neither form.
    pub(super) fn len_of(start: &[u8; COMPACT]) -> Option<usize> {
        match u16::from_le_bytes(get(start, 0)) {
            format if format > 0xf => None,
            format if format & 1 == 0 => Some(COMPACT),
            _ => Some(EXTENDED),
        }
    }

    /// Reads an inode of this length; `None` where it has another layout, or an invalid time. The compact form has `time`.
    pub(super) fn parse(bytes: &[u8], time: Time) -> Option<Fields> {
        let short = |at| u16::from_le_bytes(get(bytes, at));
        let long = |at| u32::from_le_bytes(get(bytes, at));
        let layout = match short(0) >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            4 => Layout::Chunked,
            _ => return None,
        };
        let fields = Fields {
            layout,
            xattrs: xattr::len(short(2)),
            mode: short(4).into(),
            links: short(6).into(),
            size: long(8).into(),
            place: long(16),
            number: long(20),
            uid: short(24).into(),
            gid: short(26).into(),
            mtime: time,
        };
        if bytes.len() == COMPACT {
            return Some(fields);
        }
        let mtime = Time {
            seconds: i64::from_le_bytes(get(bytes, 32)),
            nanoseconds: long(40),
        };
        (mtime.nanoseconds < 1_000_000_000).then_some(Fields {
            links: long(44),
            size: u64::from_le_bytes(get(bytes, 8)),
            uid: long(24),
            gid: long(28),
            mtime,
            ..fields
        })
    }
}

/// Returns a device's number as inodes have it: 12 bits of the major number within the minor one's 20 (`new_encode_dev` in
/// `include/linux/kdev_t.h`); `None` where it doesn't fit.
pub(crate) fn device(major: u32, minor: u32) -> Option<u32> {
    let fits = major < 1 << 12 && minor < 1 << 20;
    fits.then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// Returns the major and the minor number.
pub(super) fn numbers(device: u32) -> (u32, u32) {
    (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00)
}
