//! What a guest has added to a folder: its files and bytes, which have a limit.
//!
//! A file counts by its growth since the guest first changed it: in size, so that a huge file with holes counts, or on the disk, so that
//! filling the holes of one does; whichever is more. What the guest has made counts a block more, so that empty files count too. Room
//! comes back when the guest's own additions go, not when it removes what was there before.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use rustix::io::Errno;

use super::abi::Result;
use super::host::{Key, Stat};
use super::lock;

/// Bytes that a name counts, whatever is in it.
const MADE: u64 = 4096;

struct Change {
    size_before: u64,
    on_disk_before: u64,
    grown: u64,
    /// Whether the guest has made it.
    made: bool,
    /// Further names that the guest has given it.
    links: u64,
}

impl Change {
    /// A file that the guest hasn't changed yet.
    fn before(stat: &Stat) -> Self {
        Change {
            size_before: stat.size(),
            on_disk_before: stat.on_disk(),
            grown: 0,
            made: false,
            links: 0,
        }
    }

    fn growth(&self, size: u64, on_disk: u64) -> u64 {
        let size = size.saturating_sub(self.size_before);
        let on_disk = on_disk.saturating_sub(self.on_disk_before);
        let names = self.links + u64::from(self.made);
        size.max(on_disk).saturating_add(names.saturating_mul(MADE))
    }
}

#[derive(Default)]
struct State {
    /// All growth, and what is promised to operations under way.
    total: u64,
    changes: HashMap<Key, Change>,
}

/// Room that an operation has until it is settled.
#[must_use]
pub(super) struct Room(u64);

/// The growth of a folder, and its limit.
pub(super) struct Growth {
    limit: u64,
    state: Mutex<State>,
}

impl Growth {
    pub(super) fn new(limit: u64) -> Self {
        Growth {
            limit,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes room for a name.
    ///
    /// # Errors
    ///
    /// ENOSPC if the folder may not grow by it.
    pub(super) fn take_name(&self) -> Result<Room> {
        self.take(&mut self.state(), MADE)
    }

    /// Takes room for writing `len` bytes at an offset of a file, or for making it that long.
    ///
    /// # Errors
    ///
    /// ENOSPC if there isn't enough.
    pub(super) fn take_bytes(&self, stat: &Stat, offset: u64, len: u64) -> Result<Room> {
        let mut state = self.state();
        let (size, on_disk) = (stat.size(), stat.on_disk());
        let change = state.changes.entry(stat.key());
        let change = change.or_insert_with(|| Change::before(stat));
        let end = offset.saturating_add(len);
        let full = size.max(end).div_ceil(4096).saturating_mul(4096);
        let filled = match on_disk >= size && end <= size {
            true => on_disk,
            // It may fill holes, with a block more at each end.
            false => on_disk.saturating_add(len).saturating_add(8192).min(full),
        };
        let expected = change.growth(size.max(end), filled);
        let more = expected.saturating_sub(change.grown);
        self.take(&mut state, more)
    }

    fn take(&self, state: &mut State, more: u64) -> Result<Room> {
        if more > 0 && state.total.saturating_add(more) > self.limit {
            return Err(Errno::NOSPC);
        }
        state.total += more;
        Ok(Room(more))
    }

    /// Gives room back that wasn't used.
    pub(super) fn give(&self, room: Room) {
        let mut state = self.state();
        state.total = state.total.saturating_sub(room.0);
    }

    /// Counts what was made in the room for a name.
    pub(super) fn made(&self, room: Room, key: Key) {
        let change = Change {
            size_before: 0,
            on_disk_before: 0,
            grown: room.0,
            made: true,
            links: 0,
        };
        let mut state = self.state();
        if let Some(old) = state.changes.insert(key, change) {
            state.total = state.total.saturating_sub(old.grown);
        }
    }

    /// Counts a further name of a file, in the room for it.
    pub(super) fn linked(&self, room: Room, stat: &Stat) {
        let mut state = self.state();
        let change = state.changes.entry(stat.key());
        let change = change.or_insert_with(|| Change::before(stat));
        change.links += 1;
        change.grown += room.0;
    }

    /// Frees the room of one of a file's further names.
    pub(super) fn unlinked(&self, key: &Key) {
        let mut state = self.state();
        let Some(change) = state.changes.get_mut(key).filter(|change| change.links > 0) else {
            return;
        };
        change.links -= 1;
        change.grown = change.grown.saturating_sub(MADE);
        state.total = state.total.saturating_sub(MADE);
    }

    /// Counts what has become of a file, in place of the room that was taken for it.
    pub(super) fn settle(&self, room: Room, stat: &Stat) {
        let mut state = self.state();
        state.total = state.total.saturating_sub(room.0);
        let Some(change) = state.changes.get_mut(&stat.key()) else {
            return;
        };
        let before = change.grown;
        change.grown = change.growth(stat.size(), stat.on_disk());
        let grown = change.grown;
        state.total = state.total.saturating_sub(before).saturating_add(grown);
    }

    /// Frees the room of what has no name and isn't open any more.
    pub(super) fn gone(&self, key: &Key) {
        let mut state = self.state();
        if let Some(change) = state.changes.remove(key) {
            state.total = state.total.saturating_sub(change.grown);
        }
    }

    /// Whether the guest has made it.
    pub(super) fn is_made(&self, key: &Key) -> bool {
        self.state()
            .changes
            .get(key)
            .is_some_and(|change| change.made)
    }

    /// Bytes that it may have, and those that it may still grow.
    pub(super) fn limit_and_room(&self) -> (u64, u64) {
        let total = self.state().total;
        (self.limit, self.limit.saturating_sub(total))
    }
}
