//! Files and folders that the guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::abi::Result;
use super::host::Key;

/// An open file or folder.
pub(super) struct Open {
    pub(super) fd: OwnedFd,
    pub(super) node: u64,
    pub(super) key: Key,
    pub(super) is_folder: bool,
    /// Held by the request that reads a folder, from its seek on.
    pub(super) listing: Mutex<()>,
}

/// The open files by their numbers, which aren't used again.
pub(super) struct Opens {
    opens: HashMap<u64, Arc<Open>>,
    next: u64,
    max: usize,
}

impl Opens {
    pub(super) fn new(max: usize) -> Self {
        Opens {
            opens: HashMap::new(),
            next: 1,
            max,
        }
    }

    /// Checks that one more may be opened.
    ///
    /// # Errors
    ///
    /// ENFILE if it may not.
    pub(super) fn check(&self) -> Result<()> {
        if self.opens.len() < self.max {
            Ok(())
        } else {
            Err(Errno::NFILE)
        }
    }

    pub(super) fn insert(&mut self, open: Arc<Open>) -> Result<u64> {
        self.check()?;
        let number = self.next;
        self.next += 1;
        self.opens.insert(number, open);
        Ok(number)
    }

    /// Returns the open file or folder of a number.
    ///
    /// # Errors
    ///
    /// EBADF if the number isn't one of the node, or is for the other kind.
    pub(super) fn get(&self, number: u64, node: u64, is_folder: bool) -> Result<Arc<Open>> {
        let open = self.opens.get(&number).ok_or(Errno::BADF)?;
        if open.node != node || open.is_folder != is_folder {
            return Err(Errno::BADF);
        }
        Ok(Arc::clone(open))
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Arc<Open>> {
        self.opens.remove(&number)
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.opens.values().any(|open| open.key == *key)
    }

    pub(super) fn clear(&mut self) {
        self.opens.clear();
    }
}
