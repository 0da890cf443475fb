//! The state that a process inherits from its parent, put right before anything depends on it.
//!
//! Dispositions and masks of signals, limits, open files, the umask and variables all pass through `exec`, and a shell, a
//! service manager or a build tool may have left them in any state. [`put_right`] mends all that can be mended without a word,
//! at the start of a program and while it has one thread; the rest is an error with its remedy. Settings that users make on
//! purpose stay: the signals that `nohup` and shells let their children ignore, and limits that leave enough.

#![allow(
    unsafe_code,
    reason = "signals' dispositions, and changes of the environment, have no safe interface"
)]

use std::env;
use std::io;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::ptr;

use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};

/// Signals that get their default disposition: this process, or one that it starts, waits for children, counts on a window's
/// size or on a timer. Those by which users and shells end programs stay ignored, as `nohup` has them.
const DEFAULT: [libc::c_int; 8] = [
    libc::SIGCHLD,
    libc::SIGWINCH,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGURG,
    libc::SIGXCPU,
];
/// The first descriptor behind those of the standard streams.
const FIRST: libc::c_uint = 3;
/// The search path for programs where `PATH` is not set.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A limit of this process.
struct Limit {
    resource: Resource,
    /// The lowest limit with which anything works.
    least: u64,
    /// The value to which a lower soft limit is raised, as far as the hard one allows.
    enough: u64,
    what: &'static str,
    /// The shell's flag for it.
    flag: char,
}

const MIB: u64 = 1 << 20;
/// The limits that gVisor, Deno and Chromium need.
const RUNTIMES: [Limit; 4] = [
    Limit {
        resource: Resource::Nofile,
        least: 512,
        enough: 1024,
        what: "open files",
        flag: 'n',
    },
    Limit {
        resource: Resource::As,
        least: 1 << 47,
        enough: 1 << 47,
        what: "address space in bytes",
        flag: 'v',
    },
    Limit {
        resource: Resource::Data,
        least: 4096 * MIB,
        enough: 4096 * MIB,
        what: "data in bytes",
        flag: 'd',
    },
    // Of root's too: its jails have other users.
    Limit {
        resource: Resource::Nproc,
        least: 256,
        enough: 1024,
        what: "processes",
        flag: 'u',
    },
];
const LIMITS: [Limit; 5] = [
    Limit {
        resource: Resource::Nofile,
        least: 64,
        enough: 1024,
        what: "open files",
        flag: 'n',
    },
    Limit {
        resource: Resource::As,
        least: 256 * MIB,
        enough: 256 * MIB,
        what: "address space in bytes",
        flag: 'v',
    },
    Limit {
        resource: Resource::Data,
        least: 128 * MIB,
        enough: 128 * MIB,
        what: "data in bytes",
        flag: 'd',
    },
    Limit {
        resource: Resource::Stack,
        least: MIB,
        enough: 8 * MIB,
        what: "stack in bytes",
        flag: 's',
    },
    // A vCPU's thread is called out of its guest by a signal that is queued.
    Limit {
        resource: Resource::Sigpending,
        least: 16,
        enough: 1024,
        what: "pending signals",
        flag: 'i',
    },
];
/// The limit of processes, for other users than root, whose processes are not counted.
const PROCESSES: Limit = Limit {
    resource: Resource::Nproc,
    least: 32,
    enough: 4096,
    what: "processes and threads",
    flag: 'u',
};

/// An inherited state that can't be put right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// A limit is too low.
    #[error(
        "the limit of {what} is {is}, and at least {least} are needed: raise it (`ulimit -{flag}`)"
    )]
    Limit {
        /// The resource.
        what: &'static str,
        /// The limit.
        is: u64,
        /// The lowest limit with which anything works.
        least: u64,
        /// The shell's flag for it.
        flag: char,
    },
    /// Nothing can be written to stdout.
    #[error("stdout is not open for writing: open it so, or close it")]
    Stdout,
    /// `TMPDIR` is not a folder.
    #[error(
        "TMPDIR is not an absolute path of a folder: {}: set it to one, or unset it",
        .0.display()
    )]
    Temporary(PathBuf),
    /// `HOME` or `XDG_CACHE_HOME` is a relative path, which leads to another folder from each working folder.
    #[error("{name} is not an absolute path: {}: set it to one, or unset it", path.display())]
    Relative {
        /// The variable.
        name: &'static str,
        /// Its value.
        path: PathBuf,
    },
}

impl Refused {
    /// Returns whether the stack is so small that not much more can be done.
    pub fn is_of_the_stack(&self) -> bool {
        matches!(self, Refused::Limit { flag: 's', .. })
    }
}

/// Checks that the limits leave enough to programs that are whole systems themselves: a kernel in user space, V8, a browser.
/// They reserve address space by the terabyte and start processes by the dozen, and break without a message where they can't.
///
/// # Errors
///
/// [`Refused::Limit`], for the first limit that is too low.
pub fn check_for_runtimes() -> Result<(), Refused> {
    RUNTIMES.iter().try_for_each(Limit::check)
}

/// Puts right all that a program inherits from the user who starts it.
///
/// # Errors
///
/// [`Refused`] names the state that can't be put right.
pub fn put_right() -> Result<(), Refused> {
    signals();
    // A write beyond the limit of a file's size is then an error with a name, and doesn't kill the process without a message.
    // SAFETY: it takes numbers, and no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    descriptors();
    own_files_are_ours();
    limits()?;
    streams()?;
    environment()
}

/// Gives signals that this process may have inherited as ignored their default disposition, and unblocks all signals.
pub fn signals() {
    for signal in DEFAULT {
        // SAFETY: it takes numbers, and no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: it fills in the set, which it has the room for.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was filled in, and the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}

/// Keeps inherited open files from the processes that this one starts: all but the standard streams.
pub fn descriptors() {
    // It fails before Linux 5.11; then they stay open.
    // SAFETY: it takes numbers, and closes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}

/// Takes the owner's bits out of the umask, which would lock this process out of its own folders.
fn own_files_are_ours() {
    let owner = Mode::RWXU;
    let old = umask(owner | Mode::RWXG | Mode::RWXO);
    umask(old - owner);
}

fn limits() -> Result<(), Refused> {
    for limit in &LIMITS {
        limit.check()?;
    }
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => PROCESSES.check(),
    }
}

impl Limit {
    fn check(&self) -> Result<(), Refused> {
        let Rlimit { current, maximum } = getrlimit(self.resource);
        let Some(mut is) = current.filter(|is| *is < self.enough) else {
            return Ok(());
        };
        let raised = maximum.map_or(self.enough, |most| most.min(self.enough));
        let new = Rlimit {
            current: Some(raised),
            maximum,
        };
        if setrlimit(self.resource, new).is_ok() {
            is = raised;
        }
        if is >= self.least {
            return Ok(());
        }
        Err(Refused::Limit {
            what: self.what,
            is,
            least: self.least,
            flag: self.flag,
        })
    }
}

/// Makes the standard streams usable. Closed ones are open by now: Rust's library has opened `/dev/null` in their places.
fn streams() -> Result<(), Refused> {
    use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
    // `nohup` leaves a stdin from which nothing can be read.
    if let Some(stream) = instead(stdin(), OFlags::RDONLY, true) {
        let _ = dup2_stdin(stream);
    }
    if let Some(stream) = instead(stderr(), OFlags::WRONLY, true) {
        let _ = dup2_stderr(stream);
    }
    if let Some(stream) = instead(stdout(), OFlags::WRONLY, false) {
        let _ = dup2_stdout(stream);
    }
    // The program's results would be lost there.
    match is_open_for(flags_of(stdout()), OFlags::WRONLY) {
        true => Ok(()),
        false => Err(Refused::Stdout),
    }
}

fn flags_of(stream: BorrowedFd) -> OFlags {
    fcntl_getfl(stream).unwrap_or(OFlags::PATH)
}

fn is_open_for(flags: OFlags, wanted: OFlags) -> bool {
    let access = flags & OFlags::RWMODE;
    !flags.contains(OFlags::PATH) && (access == OFlags::RDWR || access == wanted)
}

/// Returns the file to put in a stream's place, if it needs one: `/dev/null` for a stream that can't be used, if `or_nothing`
/// allows it; the pipe or device itself, opened anew, where another process has made it non-blocking.
fn instead(stream: BorrowedFd, access: OFlags, or_nothing: bool) -> Option<OwnedFd> {
    let flags = flags_of(stream);
    let quiet = access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let open = |path: &str| rustix::fs::open(path, quiet, Mode::empty()).ok();
    let opened = if !is_open_for(flags, access) {
        or_nothing.then(|| open("/dev/null"))??
    } else if flags.contains(OFlags::NONBLOCK) {
        let kind = FileType::from_raw_mode(fstat(stream).ok()?.st_mode);
        match kind {
            FileType::Fifo | FileType::CharacterDevice => {
                open(&format!("/proc/self/fd/{}", stream.as_raw_fd()))?
            }
            // A socket can't be opened anew.
            FileType::Socket => {
                let _ = fcntl_setfl(stream, flags - OFlags::NONBLOCK);
                return None;
            }
            _ => return None,
        }
    } else {
        return None;
    };
    // The flag was for opening it only.
    fcntl_setfl(&opened, fcntl_getfl(&opened).ok()? - OFlags::NONBLOCK).ok()?;
    Some(opened)
}

fn environment() -> Result<(), Refused> {
    // It sizes the stacks of threads, and would let them overflow, or not be made at all.
    remove("RUST_MIN_STACK");
    if is_empty("PATH") {
        // SAFETY: this process has one thread yet.
        unsafe { env::set_var("PATH", PATH) };
    }
    match env::var_os("TMPDIR").map(PathBuf::from) {
        Some(folder) if folder.as_os_str().is_empty() => remove("TMPDIR"),
        Some(folder) if !folder.is_absolute() || !folder.is_dir() => {
            return Err(Refused::Temporary(folder));
        }
        _ => {}
    }
    for name in ["HOME", "XDG_CACHE_HOME"] {
        let path = env::var_os(name).map(PathBuf::from);
        let is_relative = |path: &PathBuf| !path.as_os_str().is_empty() && !path.is_absolute();
        if let Some(path) = path.filter(is_relative) {
            return Err(Refused::Relative { name, path });
        }
    }
    Ok(())
}

/// Returns whether a variable is empty or not set.
fn is_empty(name: &str) -> bool {
    env::var_os(name).is_none_or(|value| value.is_empty())
}

fn remove(name: &str) {
    if env::var_os(name).is_some() {
        // SAFETY: this process has one thread yet.
        unsafe { env::remove_var(name) };
    }
}

/// Returns the inherited limits that may be behind an error, in words, where there are any.
pub fn limit_behind(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    let mut number = None;
    while let (Some(error), None) = (cause, number) {
        number = error
            .downcast_ref()
            .and_then(io::Error::raw_os_error)
            .or_else(|| error.downcast_ref().map(rustix_number));
        cause = error.source();
    }
    const FILES: (Resource, &str, char) = (Resource::Nofile, "open files", 'n');
    const BYTES: (Resource, &str, char) = (Resource::Fsize, "a file's size", 'f');
    const ADDRESSES: (Resource, &str, char) = (Resource::As, "address space", 'v');
    const DATA: (Resource, &str, char) = (Resource::Data, "data", 'd');
    const THREADS: (Resource, &str, char) = (Resource::Nproc, "processes and threads", 'u');
    let limits: &[_] = match number? {
        libc::EFBIG => &[BYTES],
        libc::EMFILE => &[FILES],
        libc::ENOMEM => &[ADDRESSES, DATA],
        // A thread that can't be started, for one of these reasons.
        libc::EAGAIN => &[ADDRESSES, DATA, THREADS],
        _ => return None,
    };
    let root = rustix::process::geteuid().is_root();
    let set = limits.iter().filter_map(|(resource, what, flag)| {
        if root && *resource == Resource::Nproc {
            return None;
        }
        let is = getrlimit(*resource).current?;
        Some(format!(
            "the limit of {what} is {is} (`ulimit -{flag}` raises it)"
        ))
    });
    let set: Vec<_> = set.collect();
    (!set.is_empty()).then(|| set.join(", "))
}

fn rustix_number(errno: &rustix::io::Errno) -> i32 {
    errno.raw_os_error()
}
