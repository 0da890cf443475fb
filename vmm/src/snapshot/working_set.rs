//! The working set: the pages that a clone touches, so that the next clone has them before it runs.
//!
//! A page that a clone reads for the first time costs an exit to KVM, which looks it up; one that it writes to costs a copy as
//! well. All clones of a snapshot begin in the same way, and touch nearly the same pages. So the pages of one clone are
//! recorded, and the others get them in a few calls, if need be ahead of time ("REAP", ASPLOS 2021, has it for Firecracker).

#![allow(
    unsafe_code,
    reason = "advice on a range of memory, and a call of KVM's that kvm-ioctls hasn't yet"
)]

use std::io;
use std::ops::Range;

use kvm_bindings::kvm_pre_fault_memory;
use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::sparse::{self, Present};
use crate::memory::{GuestRam, Memory};
use crate::vcpu::Vcpu;

ioctl_iowr_nr!(
    KVM_PRE_FAULT_MEMORY,
    kvm_bindings::KVMIO,
    0xd5,
    kvm_pre_fault_memory
);

/// Pages that a clone of a snapshot has touched, by guest-physical address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    written: Vec<Range<u64>>,
    read: Vec<Range<u64>>,
}

impl WorkingSet {
    /// Returns the pages of a clone's memory that have been touched so far: all that it has used, if it has ended.
    ///
    /// # Errors
    ///
    /// The operating system's, where `/proc/self/pagemap` can't be read.
    pub fn of(memory: &Memory) -> io::Result<WorkingSet> {
        let mut set = WorkingSet::default();
        let pagemap = memory.ram().pagemap()?;
        for (base, size, host) in memory.ram().regions() {
            let within = |part: Range<u64>| base.0 + part.start..base.0 + part.end;
            let written = sparse::touched(&pagemap, host, size, Present::Own)?;
            set.written.extend(written.into_iter().map(within));
            let read = sparse::touched(&pagemap, host, size, Present::Shared)?;
            set.read.extend(read.into_iter().map(within));
        }
        Ok(set)
    }

    /// Returns how many bytes were written to, and how many only read.
    pub fn bytes(&self) -> (u64, u64) {
        let bytes = |parts: &[Range<u64>]| {
            parts
                .iter()
                .fold(0, |sum: u64, part| sum.saturating_add(size(part)))
        };
        (bytes(&self.written), bytes(&self.read))
    }

    /// Makes the pages present before the guest asks for them. A set of another machine, or a host's kernel that is too old
    /// for it, costs time and nothing else.
    pub(crate) fn prefault(&self, ram: &GuestRam, vcpu: &Vcpu) {
        let touched: Vec<_> = self.written.iter().chain(&self.read).cloned().collect();
        // An empty set is of no clone.
        if !touched.is_empty() {
            ram.use_huge_pages_beside(&touched);
        }
        for part in &self.written {
            copy(ram, part);
        }
        // A page that is this machine's own by now is entered as one that can be written to.
        for part in self.written.iter().chain(&self.read) {
            if enter(part, vcpu).is_err() {
                return;
            }
        }
    }
}

/// Returns a range's bytes. A set is read from a file, and may hold any range.
fn size(part: &Range<u64>) -> u64 {
    part.end.saturating_sub(part.start)
}

/// Makes this process's copies of a file's pages (madvise(2), MADV_POPULATE_WRITE, from Linux 5.14 on).
fn copy(ram: &GuestRam, part: &Range<u64>) {
    let length = usize::try_from(size(part)).unwrap_or(0);
    let Ok(slice) = ram.map().get_slice(GuestAddress(part.start), length) else {
        return;
    };
    let address = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the range is guest memory, as was just looked up. The advice changes what it is backed with, not what it holds.
    unsafe { libc::madvise(address.cast(), length, libc::MADV_POPULATE_WRITE) };
}

/// Enters present pages into the tables by which the processor finds the guest's memory, on which the guest would exit else
/// (KVM API 4.143, KVM_PRE_FAULT_MEMORY, from Linux 6.11 on).
fn enter(part: &Range<u64>, vcpu: &Vcpu) -> io::Result<()> {
    let mut range = kvm_pre_fault_memory {
        gpa: part.start,
        size: size(part),
        ..Default::default()
    };
    while range.size > 0 {
        // SAFETY: it reads and writes a `kvm_pre_fault_memory`, which this is. The next call continues where it was interrupted.
        let result = unsafe { ioctl_with_mut_ref(&vcpu.fd, KVM_PRE_FAULT_MEMORY(), &mut range) };
        if result < 0 {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            }
        }
    }
    Ok(())
}
