//! The steps of a new process between fork and exec, before it becomes a program of ours or a jail's first.

#![allow(
    unsafe_code,
    reason = "between fork and exec only a few system calls are allowed"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::FdFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, setrlimit};

use super::RuntimeStderr;
use super::descent::Descent;

/// What a new process does, and takes with it into its program.
#[derive(Default)]
pub struct Entry {
    /// Is done first, with this process's rights. It makes system calls and nothing else: it allocates nothing and takes no lock.
    pub first: Option<Box<dyn FnMut() -> io::Result<()> + Send + Sync>>,
    /// How it becomes another user.
    pub descent: Option<Descent>,
    /// Its user's processes and threads, at the most.
    pub processes: Option<u64>,
    /// Open files that keep their numbers.
    pub inherited: Vec<OwnedFd>,
    /// Another stderr.
    pub runtime_stderr: Option<RuntimeStderr>,
}

impl Entry {
    /// Has the command's process do it, be bound to the life of this thread, and leave no core dump. Our own copies of what it
    /// inherits are closed when the command is dropped: until then the end of a pipe among them is not to be seen.
    pub fn install(mut self, command: &mut Command) {
        let parent = rustix::process::getpid();
        let enter = move || enter(parent, &mut self);
        // SAFETY: `enter` makes system calls and nothing else: it allocates nothing and takes no lock.
        unsafe { command.pre_exec(enter) };
    }
}

fn enter(parent: Pid, entry: &mut Entry) -> io::Result<()> {
    if let Some(first) = &mut entry.first {
        first()?;
    }
    if let Some(descent) = &entry.descent {
        descent.descend()?;
    }
    if let Some(processes) = entry.processes {
        hold(Resource::Nproc, processes)?;
    }
    hold(Resource::Core, 0)?;
    // Who becomes another user is not bound to its parent's life any more.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Between fork and now it may have ended.
    if rustix::process::getppid() != Some(parent) {
        return Err(rustix::io::Errno::SRCH.into());
    }
    for file in &entry.inherited {
        rustix::io::fcntl_setfd(file, FdFlags::empty())?;
    }
    if let Some(runtime) = &mut entry.runtime_stderr {
        rustix::io::dup2(rustix::stdio::stderr(), &mut runtime.stderr)?;
        rustix::stdio::dup2_stderr(&runtime.log)?;
    }
    Ok(())
}

/// Lowers a limit to this, if it is higher.
fn hold(resource: Resource, most: u64) -> io::Result<()> {
    let now = getrlimit(resource);
    let lower = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
    let limit = Rlimit {
        current: lower(now.current),
        maximum: lower(now.maximum),
    };
    Ok(setrlimit(resource, limit)?)
}
