//! Background processes: this program, started to make something for later runs, and outliving the process that starts it.

#![allow(
    unsafe_code,
    reason = "closing a new process's files has no safe interface"
)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::Recipe;

/// The first file descriptor after the standard streams.
const FIRST: libc::c_uint = 3;

/// Starts this program with a recipe on its stdin, as a process that outlives this one. It inherits no open files: a program that waits
/// for the end of this command's output, or for its locks, doesn't wait for the background process.
pub(super) fn background(command: &str, recipe: &Recipe) -> io::Result<Child> {
    let mut process = Command::new("/proc/self/exe");
    process
        .arg(command)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let close = || {
        // At exec, so that the standard library can still use its own. Before Linux 5.11 the flag is unknown and they stay open.
        // The crate libc has the call itself for one C library only.
        // SAFETY: the call takes numbers, and closes nothing before this process becomes another program.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                FIRST,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called; this is one system call.
    unsafe { process.pre_exec(close) };
    let mut child = process.spawn()?;
    let mut stdin = child.stdin.take().expect("it is piped");
    serde_json::to_writer(&mut stdin, recipe)?;
    Ok(child)
}

/// Reads a background process's recipe from stdin, and moves the process to a session of its own, so that Ctrl-C in the terminal of its
/// parent doesn't end it.
///
/// # Errors
///
/// Those of reading stdin; `InvalidData` or `UnexpectedEof` where it has no recipe.
pub fn recipe_of_background() -> io::Result<Recipe> {
    // It fails for the leader of a process group, which has a group of its own already.
    let _ = rustix::process::setsid();
    Ok(serde_json::from_reader(io::stdin().lock())?)
}
