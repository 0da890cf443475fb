//! The walls that a monitor would have on this host.

#![allow(
    unsafe_code,
    reason = "a process that only tries its walls is a fork, which has no safe interface"
)]

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;

use rustix::process::{Pid, WaitOptions, waitpid};

use super::{CALLS, Missing, Walls, monitor};

/// Returns the walls that [`monitor`] has on this host, as a child process finds them.
pub fn survey() -> Walls {
    attempt().unwrap_or_else(|error| Walls {
        missing: vec![Missing::of(CALLS, "seccomp")(error)],
    })
}

fn attempt() -> io::Result<Walls> {
    let (answer, reporter) = io::pipe()?;
    // SAFETY: the C library's fork leaves a child of which it can allocate memory; the child takes no lock of this program's, and never
    // returns.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => enter(reporter),
        child => {
            drop(reporter);
            result(answer, Pid::from_raw(child))
        }
    }
}

/// The child: raises the walls and reports what it found.
fn enter(mut reporter: PipeWriter) -> ! {
    let found = monitor(&[reporter.as_fd()]).map_err(|error| error.to_string());
    let sent = serde_json::to_vec(&found).is_ok_and(|json| reporter.write_all(&json).is_ok());
    // SAFETY: it ends this process, and runs nothing of what its parent has left to run at its own end.
    unsafe { libc::_exit(i32::from(!sent)) }
}

/// Reads what the child reports, and waits for its end.
fn result(mut answer: PipeReader, child: Option<Pid>) -> io::Result<Walls> {
    let mut json = Vec::new();
    let read = answer.read_to_end(&mut json);
    let status = rustix::io::retry_on_intr(|| waitpid(child, WaitOptions::empty()))?;
    read?;
    let ended = status.map(|(_, status)| status);
    if let Some(signal) = ended.and_then(|status| status.terminating_signal()) {
        return Err(io::Error::other(format!(
            "a process behind its walls was killed by signal {signal}"
        )));
    }
    let found: Result<Walls, String> = serde_json::from_slice(&json)?;
    found.map_err(io::Error::other)
}
