//! The steps of a new process between fork and exec, before it becomes QEMU or a jail's first program.

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

/// Steps of a new process before exec, and the descriptors that its program inherits.
#[derive(Default)]
pub struct Entry {
    /// The first step, with this process's rights. It makes system calls only: it must not allocate or take a lock.
    pub first: Option<Box<dyn FnMut() -> io::Result<()> + Send + Sync>>,
    /// The user to become, where minivm is root.
    pub descent: Option<Descent>,
    /// The limit on the processes and threads of its user (RLIMIT_NPROC).
    pub processes: Option<u64>,
    /// Descriptors that the program inherits under their numbers.
    pub inherited: Vec<OwnedFd>,
    /// A separate stderr for the program itself.
    pub runtime_stderr: Option<RuntimeStderr>,
}

impl Entry {
    /// Installs the steps as the command's `pre_exec`. The new process is also bound to the life of the calling thread, and
    /// leaves no core dump. The command keeps this process's copies of the inherited descriptors until it is dropped: until then a
    /// pipe among them doesn't reach its end.
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
        lower_limit(Resource::Nproc, processes)?;
    }
    lower_limit(Resource::Core, 0)?;
    // After the change of user: it clears the parent-death signal.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended since the fork.
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

/// Lowers a resource limit to `most`, if it is higher.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn lower_limit(resource: Resource, most: u64) -> io::Result<()> {
    let now = getrlimit(resource);
    let lower = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
    let limit = Rlimit {
        current: lower(now.current),
        maximum: lower(now.maximum),
    };
    Ok(setrlimit(resource, limit)?)
}
