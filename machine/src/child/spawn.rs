//! The start of a child: this program once more, with few variables of the environment, and in namespaces of its own where its role has
//! some.
//!
//! Only a process that makes a child can put it into a new PID namespace, and only root, or the root of a user namespace, may. So the
//! child is made by clone(2), in both at once where minivm isn't root; where the kernel refuses that, without them. Between that and exec
//! the child makes system calls and nothing else, for another thread may have held a lock at the fork.

#![allow(
    unsafe_code,
    reason = "no safe interface makes a process in new namespaces"
)]

use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr::{null, null_mut};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, fcntl_setfd, retry_on_intr};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getegid, geteuid, kill_process,
    set_parent_process_death_signal, waitid, waitpid,
};

use super::Role;
use crate::jail::CpuGroup;
use crate::peak_memory;

/// This program's file, whatever has become of its name.
const PROGRAM: &CStr = c"/proc/self/exe";
/// Signals by which users and their terminals end programs, or stop them: the parent gets them as well, and decides.
const IGNORED: [libc::c_int; 6] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGTSTP,
    libc::SIGTTOU,
];

/// A child process, which ends with the thread that started it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Child(Pid);

/// What the new process needs, made before it is there: it may not allocate.
struct Birth<'a> {
    command: &'static CStr,
    /// The environment: pointers to the strings of `variables`, and a null pointer.
    environment: Vec<*const c_char>,
    has_stderr: bool,
    socket: BorrowedFd<'a>,
    file: Option<BorrowedFd<'a>>,
    nothing: File,
    /// The lines for `uid_map` and `gid_map`, where it gets a user namespace.
    maps: Option<[String; 2]>,
}

impl Child {
    /// Starts this program in a role, with `socket` as its stdin.
    ///
    /// # Errors
    ///
    /// The operating system's, where there can't be another process.
    pub(crate) fn start(role: &Role, socket: BorrowedFd<'_>) -> io::Result<Child> {
        Child::start_with(role, socket, None)
    }

    /// Starts this program in a role as [`start`](Self::start), with a file more, which has the same number there.
    ///
    /// # Errors
    ///
    /// The operating system's, where there can't be another process.
    pub(crate) fn start_with(
        role: &Role,
        socket: BorrowedFd<'_>,
        file: Option<BorrowedFd<'_>>,
    ) -> io::Result<Child> {
        let nothing = File::options().write(true).open("/dev/null")?;
        let variables = variables(role.variables);
        let environment = variables.iter().map(|variable| variable.as_ptr());
        let mut birth = Birth {
            command: role.command,
            environment: environment.chain([null()]).collect(),
            has_stderr: role.has_stderr,
            socket,
            file,
            nothing,
            maps: None,
        };
        if !role.is_apart {
            return birth.start(0);
        }
        if geteuid().is_root()
            && let Ok(child) = birth.start(libc::CLONE_NEWPID)
        {
            return Ok(child);
        }
        let own = |id: u32| format!("0 {id} 1");
        birth.maps = Some([own(geteuid().as_raw()), own(getegid().as_raw())]);
        birth
            .start(libc::CLONE_NEWPID | libc::CLONE_NEWUSER)
            .or_else(|_| {
                birth.maps = None;
                birth.start(0)
            })
    }

    /// Kills the process. It has to be called before [`wait`](Self::wait) has returned.
    pub(crate) fn kill(&self) {
        // It fails where the process has ended.
        let _ = kill_process(self.0, Signal::KILL);
    }

    /// Moves the process, which has one thread, into a control group.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn enter(&self, group: &CpuGroup) -> io::Result<()> {
        group.enter(self.0.as_raw_nonzero().get().cast_unsigned())
    }

    /// Returns the most bytes of memory that the process has held at a time, as long as it runs.
    pub(crate) fn memory(&self) -> Option<u64> {
        peak_memory(&format!("/proc/{}/status", self.0.as_raw_nonzero()))
    }

    /// Waits for the process's end, and describes it. From then on another process may have its ID.
    pub(crate) fn wait(&self) -> String {
        match retry_on_intr(|| waitpid(Some(self.0), WaitOptions::empty())) {
            Ok(waited) => described(waited.map_or(0, |(_, status)| status.as_raw())),
            // Another part of this program has waited for it.
            Err(error) => error.to_string(),
        }
    }

    /// Returns whether the process has ended, and leaves its status for [`wait`](Self::wait).
    pub(crate) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.0), options), Ok(None))
    }

    /// Waits until the process has ended, and leaves its status for [`wait`](Self::wait).
    pub(crate) fn until_ended(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        // It fails where another part of this program has waited for it, which `wait` reports.
        let _ = retry_on_intr(|| waitid(WaitId::Pid(self.0), options));
    }
}

impl Birth<'_> {
    fn start(&self, namespaces: libc::c_int) -> io::Result<Child> {
        let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
        let none = null_mut::<libc::c_void>();
        // SAFETY: it is a fork, possibly of a process with other threads: the child makes system calls and nothing else.
        let child = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
        if child == 0 {
            // It returns at an error only: exec has put the program in its place otherwise.
            let _ = self.execute();
            // SAFETY: it ends this process and nothing else.
            unsafe { libc::_exit(127) };
        }
        let child = i32::try_from(child).ok().filter(|child| *child > 0);
        let child = child.and_then(Pid::from_raw);
        child.map(Child).ok_or_else(io::Error::last_os_error)
    }

    /// In the new process: takes the steps before exec, and executes the program.
    fn execute(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if let Some([users, groups]) = &self.maps {
            // Where a security module forbids it, the process gets no rights in its namespace, and can't make others.
            let _ = write(c"/proc/self/setgroups", "deny")
                .and_then(|()| write(c"/proc/self/uid_map", users))
                .and_then(|()| write(c"/proc/self/gid_map", groups));
        }
        for signal in IGNORED {
            // SAFETY: the signal has no handler from now on.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let arguments = [c"minivm".as_ptr(), self.command.as_ptr(), null()];
        if let Some(file) = self.file {
            // It fails where the user has named a file that isn't open.
            let _ = fcntl_setfd(file, FdFlags::empty());
        }
        rustix::stdio::dup2_stdin(self.socket)?;
        rustix::stdio::dup2_stdout(self.nothing.as_fd())?;
        if !self.has_stderr {
            rustix::stdio::dup2_stderr(self.nothing.as_fd())?;
        }
        let mut mask = MaybeUninit::uninit();
        // SAFETY: it may be written to, and is a set from then on.
        unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
        // SAFETY: the set was made above, and the old one isn't asked for.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask.as_ptr(), null_mut()) };
        // SAFETY: the path and the arguments are C strings, and both arrays end with a null pointer.
        unsafe {
            libc::execve(
                PROGRAM.as_ptr(),
                arguments.as_ptr(),
                self.environment.as_ptr(),
            )
        };
        Err(io::Error::last_os_error())
    }
}

/// Returns those of these variables that this process has, as `NAME=value`.
fn variables(names: &[&str]) -> Vec<CString> {
    let variable = |name: &&str| {
        let value = std::env::var_os(name)?;
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    names.iter().filter_map(variable).collect()
}

/// Describes the end of a process that had reported none.
fn described(status: i32) -> String {
    let status = ExitStatus::from_raw(status);
    match status.signal() {
        Some(libc::SIGSYS) => {
            "it made a system call that its filter refuses (SIGSYS), which is minivm's fault or an attack"
                .into()
        }
        Some(libc::SIGKILL) => "it was killed, perhaps because this host has no memory left".into(),
        _ => format!("{status}"),
    }
}

fn write(path: &CStr, text: &str) -> rustix::io::Result<()> {
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes()).map(drop)
}
