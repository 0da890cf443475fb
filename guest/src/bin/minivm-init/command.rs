//! The command: its streams, its surroundings, its start.

#![allow(
    unsafe_code,
    reason = "what happens between fork and exec has no safe interface"
)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use minivm_guest::channel::{COM2, Refusal, Request, Rlimit, Window};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::register::Register;
use crate::user::User;
use crate::{Error, cannot, mounts};

/// The search path for programs, where neither the image nor the user sets one.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The command's cgroup.
const CGROUP: &str = "/sys/fs/cgroup/command";

/// The descriptor of a file that a command gets beside its streams. No other file has it, neither the streams nor those that are
/// open between fork and exec.
pub(crate) const INHERITED: i32 = 100;

/// A running command and this side's ends of its streams.
pub(crate) struct Running {
    pub(crate) pid: Pid,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// The terminal, where the command has one; `stdin` and `stdout` are copies of it.
    pub(crate) terminal: Option<OwnedFd>,
}

/// The kind of a command's streams.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// Pipes; stdin is empty unless the request announces input.
    Pipes,
    /// A terminal of this size.
    Terminal(Window),
    /// This process's own.
    Inherited,
}

/// Starts the request's command as `user`, with `inherited`, if there is one, under the number [`INHERITED`].
pub(crate) fn start(
    request: &Request,
    user: &User,
    streams: Streams,
    inherited: Option<OwnedFd>,
) -> Result<Running, Refusal> {
    let (program, mut command) = prepare(request, user, streams)?;
    let terminal = match streams {
        Streams::Terminal(size) => Some(Terminal::open(size).map_err(failed)?),
        _ => None,
    };
    match &terminal {
        Some(terminal) => terminal.connect(&mut command).map_err(failed)?,
        None if streams == Streams::Pipes => {
            let input = if request.stdin {
                Stdio::piped()
            } else {
                Stdio::null()
            };
            command
                .stdin(input)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
        }
        None => {}
    }
    before_exec(&mut command, request, user, streams, inherited);
    let mut child = command.spawn().map_err(|error| refusal(program, &error))?;
    // The terminal's other end must not stay open here, or its end would never show.
    drop(command);
    let pid = Pid::from_child(&child);
    let (stdin, stdout) = match &terminal {
        Some(terminal) => (
            Some(terminal.copy().map_err(failed)?),
            Some(terminal.copy().map_err(failed)?),
        ),
        None => (
            child.stdin.take().map(Into::into),
            child.stdout.take().map(Into::into),
        ),
    };
    if let Some(stdin) = &stdin {
        rustix::io::ioctl_fionbio(stdin, true)
            .map_err(|errno| Refusal::Failed(errno.to_string()))?;
    }
    let terminal = terminal.map(|Terminal { ours, .. }| ours);
    Ok(Running {
        pid,
        stdin,
        stdout,
        stderr: child.stderr.take().map(Into::into),
        terminal,
    })
}

/// Starts the request's command as `user` in a container, which has all limits that it needs. The command's stdin is this
/// process's, its outputs are pipes.
pub(crate) fn start_contained(request: &Request, user: &User) -> Result<Running, Refusal> {
    let (program, mut command) = prepare(request, user, Streams::Pipes)?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let limits: Vec<_> = request.rlimits.iter().map(limit).collect();
    let user = user.clone();
    let become_it = move || {
        // Else a signal to its process group would be one to this process.
        rustix::process::setsid()?;
        set_limits(&limits)?;
        for output in 1..3 {
            own(output, &user)?;
        }
        become_user(&user)
    };
    // SAFETY: between fork and exec it makes system calls and nothing else; this process has one thread at this time.
    unsafe { command.pre_exec(become_it) };
    let mut child = command.spawn().map_err(|error| refusal(program, &error))?;
    Ok(Running {
        pid: Pid::from_child(&child),
        stdin: None,
        stdout: child.stdout.take().map(Into::into),
        stderr: child.stderr.take().map(Into::into),
        terminal: None,
    })
}

/// Returns the program and the command, without its streams and the steps before its exec.
fn prepare<'a>(
    request: &'a Request,
    user: &User,
    streams: Streams,
) -> Result<(&'a OsStr, Command), Refusal> {
    let (program, arguments) = request
        .argv
        .split_first()
        .ok_or_else(|| Refusal::Failed("there is no command to run".into()))?;
    let program = OsStr::from_bytes(program);
    let mut command = Command::new(program);
    command
        .args(arguments.iter().map(|argument| OsStr::from_bytes(argument)))
        .env_clear()
        .envs(environment(request, user, streams))
        .current_dir(working_folder(&request.cwd).map_err(failed)?);
    Ok((program, command))
}

fn failed(error: Error) -> Refusal {
    Refusal::Failed(error.to_string())
}

/// Returns the refusal for a failed start. As in a shell, a missing program (127) differs from one that can't be executed (126).
fn refusal(program: &OsStr, error: &io::Error) -> Refusal {
    let text = format!("{}: {error}", program.display());
    match error.kind() {
        ErrorKind::NotFound => Refusal::NotFound(text),
        _ => Refusal::NotExecutable(text),
    }
}

/// Returns the request's environment, and the variables that every command has.
pub(crate) fn environment(
    request: &Request,
    user: &User,
    streams: Streams,
) -> Vec<(OsString, OsString)> {
    let mut all: Vec<Vec<u8>> = vec![
        PATH.into(),
        [b"HOME=", &*user.home].concat(),
        format!("HOSTNAME={}", request.hostname).into(),
    ];
    if streams != Streams::Pipes {
        all.push("TERM=xterm".into());
    }
    // The later wins.
    all.extend(request.env.iter().cloned());
    all.into_iter()
        .filter_map(|entry| {
            let equals = entry.iter().position(|&byte| byte == b'=')?;
            let (name, value) = entry.split_at(equals);
            (!name.is_empty()).then(|| {
                (
                    OsString::from_vec(name.to_vec()),
                    OsString::from_vec(value[1..].to_vec()),
                )
            })
        })
        .collect()
}

/// Returns the working folder, which is created where it isn't there.
pub(crate) fn working_folder(cwd: &[u8]) -> Result<&Path, Error> {
    let folder = match cwd {
        [] => Path::new("/"),
        cwd => Path::new(OsStr::from_bytes(cwd)),
    };
    mounts::make_folder(folder, 0o755)?;
    Ok(folder)
}

/// A pseudo-terminal.
struct Terminal {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Terminal {
    fn open(size: Window) -> Result<Self, Error> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).map_err(cannot("open a terminal"))?;
        grantpt(&ours)
            .and_then(|()| unlockpt(&ours))
            .map_err(cannot("unlock a terminal"))?;
        let theirs =
            ioctl_tiocgptpeer(&ours, flags).map_err(cannot("open a terminal's other end"))?;
        set_size(&ours, size);
        Ok(Terminal { ours, theirs })
    }

    fn connect(&self, command: &mut Command) -> Result<(), Error> {
        command
            .stdin(self.theirs.try_clone()?)
            .stdout(self.theirs.try_clone()?)
            .stderr(self.theirs.try_clone()?);
        Ok(())
    }

    fn copy(&self) -> Result<OwnedFd, Error> {
        Ok(self.ours.try_clone()?)
    }
}

/// Sets a terminal's size; its programs get SIGWINCH for it.
pub(crate) fn set_size(terminal: &OwnedFd, size: Window) {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // A terminal that is gone has no size.
    let _ = tcsetwinsize(terminal, size);
}

/// Adds the steps that the new process takes before it executes the command.
fn before_exec(
    command: &mut Command,
    request: &Request,
    user: &User,
    streams: Streams,
    inherited: Option<OwnedFd>,
) {
    let cgroup = cgroup();
    let limits: Vec<_> = request.rlimits.iter().map(limit).collect();
    let user = user.clone();
    let privileged = request.privileged;
    // Not shared files: an empty stdin is /dev/null, and the console is the machine's.
    let own_streams = match streams {
        Streams::Terminal(_) => 0..3,
        Streams::Pipes if request.stdin => 0..3,
        Streams::Pipes => 1..3,
        Streams::Inherited => 0..0,
    };
    let prepare = move || {
        if let Some(cgroup) = &cgroup {
            rustix::io::write(cgroup, b"0")?;
        }
        rustix::process::setsid()?;
        if let Some(inherited) = &inherited {
            // SAFETY: it takes numbers. No file of this process's has the number that it may close.
            check(unsafe { libc::dup2(inherited.as_raw_fd(), INHERITED) })?;
        }
        if streams != Streams::Pipes {
            // SAFETY: the call takes a number, no pointer. A console need not be a terminal, and then has no keys that
            // send signals.
            unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
        }
        set_limits(&limits)?;
        // A kernel without such permissions has none to take away.
        let _ = Register::forbid(COM2);
        for stream in own_streams.clone() {
            own(stream, &user)?;
        }
        become_user(&user)?;
        if !privileged {
            // SAFETY: this one takes numbers only.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called, for another thread may have held a lock at the fork.
    // The closure makes system calls, directly, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

fn set_limits(limits: &[(u32, libc::rlimit)]) -> io::Result<()> {
    for (resource, limit) in limits {
        // The type of the number differs between C libraries.
        // SAFETY: it reads a `rlimit`, which lives in `limits`.
        check(unsafe { libc::setrlimit(*resource as _, limit) })?;
    }
    Ok(())
}

/// Gives the user a stream. A user other than root could not open its own output by its name, `/dev/stdout`, else.
fn own(stream: i32, user: &User) -> io::Result<()> {
    // SAFETY: it takes numbers.
    check(unsafe { libc::fchown(stream, user.uid, libc::gid_t::MAX) })
}

fn become_user(user: &User) -> io::Result<()> {
    // SAFETY: it reads `len` group numbers, which the slice has.
    check(unsafe { libc::setgroups(user.groups.len(), user.groups.as_ptr()) })?;
    // SAFETY: these take numbers.
    check(unsafe { libc::setgid(user.gid) })?;
    // SAFETY: as above. It comes last: other users than root can't do the others.
    check(unsafe { libc::setuid(user.uid) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn limit(limit: &Rlimit) -> (u32, libc::rlimit) {
    let values = libc::rlimit {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    (limit.resource, values)
}

/// Makes the command's cgroup; a process that writes to the descriptor is in it. Kernels without cgroups have none.
fn cgroup() -> Option<OwnedFd> {
    let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
    fs::create_dir(CGROUP).ok()?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(format!("{CGROUP}/cgroup.procs"), flags, Mode::empty()).ok()
}

/// Returns the most memory that the command and its children had at one time, in bytes, where the kernel counts it.
pub(crate) fn peak_memory() -> Option<u64> {
    fs::read_to_string(format!("{CGROUP}/memory.peak"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Returns whether the kernel killed a process for want of memory: of the command's cgroup, or any.
pub(crate) fn out_of_memory() -> bool {
    [format!("{CGROUP}/memory.events"), "/proc/vmstat".into()]
        .iter()
        .any(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            text.lines().any(|line| {
                line.strip_prefix("oom_kill ")
                    .is_some_and(|count| count.trim() != "0")
            })
        })
}

/// Returns user and system time of all processes that were waited for in microseconds, and the largest one's memory in bytes.
pub(crate) fn usage() -> (u64, u64, u64) {
    // SAFETY: zeros are a value of this structure of numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: it writes a `rusage`, which this is. It can only fail for other arguments.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    let micros = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
            + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    let peak = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    (micros(usage.ru_utime), micros(usage.ru_stime), peak)
}
