//! Copies of a test's process with one thread, in which a test does what can't be undone.

#![allow(unsafe_code, reason = "a fork has no safe interface")]

use std::any::Any;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::patience::PATIENCE;

/// Whether this process is a copy.
static IS_COPY: AtomicBool = AtomicBool::new(false);

/// The end of a forked process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It returned this text, or the message of its panic.
    Returned(String),
    /// A signal of this number killed it.
    Killed(i32),
}

/// Forks this process, calls `act` in the copy, and returns how that ended. `act` gets the descriptor through which its text is
/// returned, which it must not close.
///
/// Other threads don't exist in the copy, and what they held locked stays locked. So one test at a time forks, and `act` doesn't use
/// what the test harness may hold, which is stdout.
///
/// # Panics
///
/// If there is no process left, or it takes longer than [`PATIENCE`].
pub fn forked(act: impl FnOnce(BorrowedFd<'_>) -> String) -> Ended {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // A copy inherits the lock as it was when it was made, and has one thread.
    let _alone = (!IS_COPY.load(Ordering::Relaxed))
        .then(|| ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner));
    let (answer, reporter) = io::pipe().expect("a pipe");
    // SAFETY: the C library's fork leaves a copy that can allocate memory; other locks are the caller's care, as said above.
    match unsafe { libc::fork() } {
        0 => child(reporter, act),
        child => {
            drop(reporter);
            ended(answer, Pid::from_raw(child).expect("a process"))
        }
    }
}

fn child(mut reporter: PipeWriter, act: impl FnOnce(BorrowedFd<'_>) -> String) -> ! {
    IS_COPY.store(true, Ordering::Relaxed);
    let acted = catch_unwind(AssertUnwindSafe(|| act(reporter.as_fd())));
    let text = acted.unwrap_or_else(|panic| format!("panicked: {}", message(&*panic)));
    let sent = reporter.write_all(text.as_bytes());
    // SAFETY: it ends this process, without what the test's process does at its end.
    unsafe { libc::_exit(i32::from(sent.is_err())) }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("?")
}

fn ended(mut answer: PipeReader, child: Pid) -> Ended {
    let limit = Timespec {
        tv_sec: PATIENCE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut readable = [PollFd::new(&answer, PollFlags::IN)];
    let in_time = rustix::io::retry_on_intr(|| poll(&mut readable, Some(&limit)));
    if in_time != Ok(1) {
        let _ = kill_process(child, Signal::KILL);
    }
    let mut text = String::new();
    let _ = answer.read_to_string(&mut text);
    let waited = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    assert_eq!(in_time, Ok(1), "a forked process hangs");
    let (_, status) = waited.expect("a child").expect("it has ended");
    match status.terminating_signal() {
        Some(signal) => Ended::Killed(signal),
        None => Ended::Returned(text),
    }
}
