//! The memory that an interpreter allocates, counted.
//!
//! The interpreter itself compares two numbers with its limit, every few hundred instructions and before whatever it knows to
//! be large; somebody else has to keep these numbers, and only the program's allocator can. [`Allocator`] does. It is switched
//! off until the first limit is asked for: everybody else pays one read of a flag for each allocation.

#![allow(
    unsafe_code,
    reason = "an allocator is unsafe to write; this one passes everything on to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use monty_types::{BASELINE_MEMORY, LIVE_MEMORY};

use super::order::OVER;

/// Where counting begins: what was allocated before that may be freed later, and the number must not fall below zero.
const START: usize = 1 << 40;

static COUNTING: AtomicBool = AtomicBool::new(false);
/// Counted bytes at which the process ends.
static CEILING: AtomicUsize = AtomicUsize::new(usize::MAX);
/// What is done before.
static BEFORE_END: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();
/// Held by who has a limit.
static CLAIMED: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether it is this thread, which would wait for itself.
    static HOLDS: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, which counts what it gives while somebody has asked for that.
///
/// A program that wants limits on the memory of [`InProcess`](super::InProcess) has it as its own:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: minivm_sandbox::monty::Allocator = minivm_sandbox::monty::Allocator;
/// # fn main() {}
/// ```
pub struct Allocator;

// SAFETY: every call goes to the system's allocator as it came, and what that returns goes back as it is.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: the caller has promised what is asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        refund(layout.size());
        // SAFETY: the caller has promised what is asked for here: all pointers come from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: the caller has promised what is asked for here.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match size.checked_sub(layout.size()) {
            Some(more) => charge(more),
            None => refund(layout.size() - size),
        }
        // SAFETY: the caller has promised what is asked for here: all pointers come from the system's allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Counts, and ends the process beyond the ceiling: there is no way to fail that wouldn't allocate.
#[inline]
fn charge(size: usize) {
    if !COUNTING.load(Relaxed) {
        return;
    }
    let live = LIVE_MEMORY.fetch_add(size, Relaxed).saturating_add(size);
    if live > CEILING.load(Relaxed) {
        if let Some(last) = BEFORE_END.get() {
            last();
        }
        // SAFETY: it takes no pointer, and runs nothing of ours any more.
        unsafe { libc::_exit(i32::from(OVER)) }
    }
}

#[inline]
fn refund(size: usize) {
    if COUNTING.load(Relaxed) {
        LIVE_MEMORY.fetch_sub(size, Relaxed);
    }
}

/// Who has a limit, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim(#[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

impl Drop for Claim {
    fn drop(&mut self) {
        HOLDS.set(false);
    }
}

/// Memory is counted from here on, for one interpreter at a time, as what all threads allocate is counted.
///
/// # Errors
///
/// Why it can't be.
pub(super) fn claim() -> Result<Claim, &'static str> {
    if HOLDS.get() {
        return Err("a function that such a task has called cannot start another one");
    }
    let lock = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    if !COUNTING.load(Relaxed) {
        LIVE_MEMORY.store(START, Relaxed);
        COUNTING.store(true, Relaxed);
        let byte = black_box(Box::new(0_u8));
        let counted = LIVE_MEMORY.load(Relaxed) != START;
        drop(byte);
        if !counted {
            COUNTING.store(false, Relaxed);
            return Err("minivm_sandbox::monty::Allocator is not its global allocator");
        }
    }
    BASELINE_MEMORY.store(LIVE_MEMORY.load(Relaxed), Relaxed);
    HOLDS.set(true);
    Ok(Claim(lock))
}

/// What is to be done before the process ends beyond the ceiling. It should not allocate: whatever it allocates is beyond, too,
/// so that it is called again.
pub(super) fn before_end(last: impl Fn() + Send + Sync + 'static) {
    // There is one, of one worker.
    let _ = BEFORE_END.set(Box::new(last));
}

/// The process ends where it would allocate so many bytes more than when they were claimed.
pub(super) fn end_process_beyond(bytes: usize) {
    CEILING.store(BASELINE_MEMORY.load(Relaxed).saturating_add(bytes), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_counted_where_the_programs_allocator_is_another() {
        let why = claim().unwrap_err();
        assert!(why.contains("not its global allocator"), "{why}");
        assert!(!COUNTING.load(Relaxed));
    }
}
