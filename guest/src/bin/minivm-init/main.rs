//! `minivm-init`: the guest's first process. It makes a container's surroundings out of a bare kernel and an image's files,
//! runs one command in them for the host, sends the command's end to the host, and ends the machine.
//!
//! 1. `mounts` mounts the kernel's file systems.
//! 2. `wire` opens COM2, lays out rings in memory, and sends their addresses to the host (`rings`, `register`).
//! 3. The host's request comes. `image` restores the image's files as the image has them, or `mapped` mounts them where they lie in
//!    memory, and `surroundings` makes the rest: host name, loopback, temporary folders.
//!    Where the host asks for it, all that doesn't depend on the request is done before it comes, up to a Python that has
//!    started (`interpreter`), and free memory is filled with zeros (`blank`): the machine can then be saved, and continue in
//!    clones. With its request each clone gets its identity (`identity`).
//!    `folders` mounts the host's folders, and starts the threads that pass their messages on.
//! 4. `command` starts the command as its user (`user`), on pipes or on a terminal.
//! 5. One loop moves bytes and signals until the command has ended (`session`). Another thread does nothing but wait for
//!    processes.
//! 6. The files that the host wants go out (`files`), then the command's end, and the machine is switched off. A host that draws a
//!    timeline gets the kernel's log before (`log`).
//!
//! Where the kernel's command line doesn't announce a host, `alone` runs the image's own command on the console.
//!
//! In a sandbox that is no machine, but has made a container's surroundings already, there are steps 3 and 4 alone (`contained`).
//!
//! Init never polls and never sleeps: it waits for descriptors.

mod alone;
mod blank;
mod command;
mod contained;
mod files;
mod folders;
mod identity;
mod image;
mod interpreter;
mod log;
mod mapped;
mod mounts;
mod register;
mod rings;
mod session;
mod surroundings;
mod user;
mod wire;

use std::fs;

use minivm_guest::inherited;
use rustix::process::Pid;
use rustix::system::RebootCommand;
use rustix::time::{ClockId, clock_gettime};

/// An error as one line of text.
type Error = Box<dyn std::error::Error>;

fn main() {
    let started = clock();
    inherited::signals();
    if rustix::process::getpid() != Pid::INIT {
        eprintln!(
            "minivm-init: this is the first process of a minivm guest, and does nothing else"
        );
        std::process::exit(125);
    }
    if std::env::args_os().nth(1).as_deref() == Some(contained::ARGUMENT.as_ref()) {
        contained::run();
    }
    if let Err(error) = run(started) {
        print(&error.to_string());
    }
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        print(&format!("cannot switch the power off: {error}"));
    }
    loop {
        std::thread::park();
    }
}

fn run(started: u64) -> Result<(), Error> {
    mounts::kernel_file_systems()?;
    let cmdline = fs::read("/proc/cmdline")?;
    let channel = cmdline
        .split(u8::is_ascii_whitespace)
        .filter_map(|word| word.strip_prefix(minivm_guest::channel::PARAMETER.as_bytes()))
        .next_back();
    match channel {
        None => alone::run(),
        Some(channel) => session::run(channel == b"rings", started),
    }
}

/// Prints a line on the console, as one of the kernel's own critical messages (`<2>`), which get through when nothing else
/// does.
fn print(line: &str) {
    let _ = fs::write("/dev/kmsg", format!("<2>minivm-init: {line}\n"));
}

/// Returns the nanoseconds since the kernel started its clock.
fn clock() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Returns a function that puts the attempt before an error: "cannot …: …".
fn cannot<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> Error {
    move |error| format!("cannot {what}: {error}").into()
}
