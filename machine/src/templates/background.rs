//! Processes of this program that make something for runs that come later, and outlive the one that has started them.

#![allow(
    unsafe_code,
    reason = "closing a new process's files has no safe interface"
)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::Recipe;

/// The first file that is not one of the standard streams.
const FIRST: libc::c_uint = 3;

/// Runs this program with a recipe, as a process that outlives this one and is not waited for. It has nothing of this one's:
/// whoever waits until a pipe is closed or a lock is free waits for the command, not for what is kept afterwards.
pub(super) fn background(command: &str, recipe: &Recipe) -> io::Result<Child> {
    let mut process = Command::new("/proc/self/exe");
    process
        .arg(command)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let close = || {
        // On exec, so that the standard library can still use its own. It fails before Linux 5.11; then they stay open.
        // SAFETY: it takes numbers, and closes nothing before this process becomes another program.
        unsafe { libc::close_range(FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called; this is one system call.
    unsafe { process.pre_exec(close) };
    let mut child = process.spawn()?;
    let mut stdin = child.stdin.take().expect("it is piped");
    serde_json::to_writer(&mut stdin, recipe)?;
    Ok(child)
}

/// What a process in the background was told, which leaves its terminal and its group: a key that ends the one that started it
/// is not for it.
///
/// # Errors
///
/// Where stdin has no recipe.
pub fn recipe_of_background() -> io::Result<Recipe> {
    // It fails for who leads a group, and has left by that.
    let _ = rustix::process::setsid();
    Ok(serde_json::from_reader(io::stdin().lock())?)
}
