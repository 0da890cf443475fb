//! The count of an interpreter's allocated memory.
//!
//! The interpreter compares two global numbers with its limit, every few hundred instructions and before allocations that it knows
//! to be large. Only the program's allocator can keep these numbers: [`Allocator`] does. It doesn't count before the first task
//! with a limit; until then an allocation costs one more read of a flag.

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

use super::task::OVER;

/// The count's first value. Memory that was allocated before may be freed later, and the count must not fall below zero.
const START: usize = 1 << 40;

static COUNTING: AtomicBool = AtomicBool::new(false);
/// Counted bytes at which the process ends.
static CEILING: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The function that is called before the process ends.
static BEFORE_END: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();
/// The lock that the task with a limit holds.
static CLAIMED: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether this thread holds [`CLAIMED`], and would wait for itself.
    static HOLDS: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, with a count of allocated bytes from the first task with a memory limit on.
///
/// A program that limits the memory of [`InProcess`](super::InProcess) tasks sets it as its global allocator:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: minivm_sandbox::monty::Allocator = minivm_sandbox::monty::Allocator;
/// # fn main() {}
/// ```
pub struct Allocator;

// SAFETY: every call goes to the system's allocator unchanged, and its result is returned unchanged.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: the caller upholds this function's contract, which is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        refund(layout.size());
        // SAFETY: the caller upholds this function's contract, which is the system allocator's: all pointers come from it.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: the caller upholds this function's contract, which is the system allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match size.checked_sub(layout.size()) {
            Some(more) => charge(more),
            None => refund(layout.size() - size),
        }
        // SAFETY: the caller upholds this function's contract, which is the system allocator's: all pointers come from it.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Counts an allocation, and ends the process beyond the ceiling: any way to return the failure would allocate.
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
        // SAFETY: it takes no pointer, and runs no more code of this process.
        unsafe { libc::_exit(i32::from(OVER)) }
    }
}

#[inline]
fn refund(size: usize) {
    if COUNTING.load(Relaxed) {
        LIVE_MEMORY.fetch_sub(size, Relaxed);
    }
}

/// The right to count memory, held until it is dropped.
#[derive(Debug)]
pub(super) struct Claim(#[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

impl Drop for Claim {
    fn drop(&mut self) {
        HOLDS.set(false);
    }
}

/// Starts counting memory for one interpreter, and waits while another one counts: the count includes all threads.
///
/// # Errors
///
/// The reason, where this thread counts already or [`Allocator`] isn't the program's.
pub(super) fn claim() -> Result<Claim, &'static str> {
    if HOLDS.get() {
        return Err("a function that a task with a memory limit calls cannot start another one");
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

/// Sets the function that is called before the process ends beyond the ceiling. It should not allocate: an allocation is beyond the
/// ceiling, too, and calls it again.
pub(super) fn before_end(last: impl Fn() + Send + Sync + 'static) {
    // A worker sets it once.
    let _ = BEFORE_END.set(Box::new(last));
}

/// Sets the ceiling: the process ends where it would allocate so many bytes more than at the last [`claim`].
pub(super) fn end_process_beyond(bytes: usize) {
    CEILING.store(BASELINE_MEMORY.load(Relaxed).saturating_add(bytes), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_not_counted_under_another_allocator() {
        let why = claim().unwrap_err();
        assert!(why.contains("not its global allocator"), "{why}");
        assert!(!COUNTING.load(Relaxed));
    }
}
