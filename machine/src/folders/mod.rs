//! The folder server: serves folders of the host to a guest, in FUSE's own messages.
//!
//! [`Server::new`] opens folders (or single files), and [`Server::answer`] takes a request as the guest's kernel writes it and returns the
//! reply, from several threads at a time. Nothing is sent or received here, and nothing is mounted: the guest's Linux has FUSE, and its
//! messages come byte by byte from a guest that may have written them itself. All that a guest gets by a lie is an error for its own
//! programs.
//!
//! # What keeps a guest inside
//!
//! A request names a node and *one* name: no `/`, no NUL, neither `.` nor `..` (`name`). Each step from a folder to a name is one
//! `openat2(2)` that goes down, through no link, and into no other file system (`host`); where nodes are by now is found out by such
//! steps from the root, each time (`nodes`). Links are made, renamed and read with any target, and never followed. A server that joins a
//! guest's name to a path of the host's can be led out: Kata's runtime could, by a `FUSE_SYMLINK` whose *name* was an absolute path
//! (CVE-2026-47243).
//!
//! The one thing that is opened by what looks like a path is `/proc/self/fd/N`, for a descriptor `N` of this process: the kernel takes it
//! for that very file, so what a name leads to can't change between the check and the opening.
//!
//! # Which requests
//!
//! | requests | rules |
//! |---|---|
//! | LOOKUP, FORGET, BATCH_FORGET | counts that lie lose the guest its own nodes |
//! | GETATTR, SETATTR, ACCESS | permissions and times are kept on both sides, but no set-ID or sticky bits; all files that belong to this user belong to the guest's one, and others to 65534; owners that are set are ignored |
//! | READLINK, SYMLINK | any target |
//! | MKNOD, MKDIR, CREATE, LINK, UNLINK, RMDIR, RENAME, RENAME2 | regular files and folders; RENAME_NOREPLACE and RENAME_EXCHANGE; hard links within the folder |
//! | OPEN, READ, WRITE, FSYNC, FALLOCATE, LSEEK, RELEASE | regular files alone: devices, FIFOs and sockets are shown by their kind, and never opened |
//! | OPENDIR, READDIR, READDIRPLUS, FSYNCDIR, RELEASEDIR | offsets are the host's, and hold while a folder changes |
//! | INIT, DESTROY, STATFS | `df` shows what the folder may grow by |
//! | all others | ENOSYS: the guest's kernel locks by itself, copies by reading and writing, and has no extended attributes here |
//!
//! What the host has replaced or moved is ESTALE for the node that the guest knows, and its kernel then looks the name up anew. A file
//! stays usable while it is open, whether it has a name or not. A file system that is mounted below a folder isn't shared: its name is
//! listed, and opening it is EXDEV. A single file is its own root; one that the host puts in its place isn't seen.
//!
//! # What a guest may not change, or see
//!
//! Patterns as in `.gitignore`, in any case of letters, are matched on the place that each name has below the root (`rules`). What is
//! hidden isn't there for any request. What is protected can be read; changing it, renaming it or a folder above it, and giving it another
//! name is EROFS, and so is making what would be protected, unless it comes into a folder that the guest has made: a new
//! repository may have its hooks, and [`Server::repositories`] tells the user of it. A file that had several names when the guest came,
//! one of them protected, is protected by all (`scan`). [`PROTECTED`] is for what the host runs later; hooks that a repository at the
//! top has elsewhere are found as well (`git`). Not recognized are: settings that protected ones include through a further file, a
//! repository without a `.git`, and scripts that the guest may change and the user then starts.
//!
//! # What it may cost
//!
//! [`Limits`] bounds nodes, open files, and growth (`growth`); a request is at most [`REQUEST_MAX`] bytes, a reply [`REPLY_MAX`]. A node
//! takes some 200 bytes and no descriptor; an open file takes one, and where the host has no more the guest gets EMFILE or ENFILE.
//!
//! # Before it serves
//!
//! The process may have any umask and wall itself in after [`Server::new`]. It needs `openat2`, `statx`, `faccessat2` and `pwritev2`
//! (Linux 5.8), and `/proc` when it starts.
//!
//! # A process of its own
//!
//! A program whose `main` begins with [`answer`] has a guest's folders served by another process, `minivm folders`, which [`Running`]
//! starts. Without that, threads of the program's own serve them.
//!
//! ```text
//!  minivm run                                       minivm folders
//!  ──────────                                       ──────────────
//!  job: the folders, a stream ────────────────────▶ opens the folders, and reads nothing of them
//!                                                   walls
//!  ◀─────────────────────────────────────── ready   eight threads
//!  the stream's other end, to the machine
//!                        machine ◀── FUSE ────────▶ answers
//!  end: the socket's end ─────────────────────────▶
//!  ◀────────────── report: new repositories, a fault  ends
//! ```
//!
//! - `process`: the process as its parent has it; `serve`: its own side; `protocol`: their messages;
//! - `service`: the messages on the stream, in either process; `source`: the folders as they are opened.
//!
//! ```
//! use minivm_machine::folders::{Access, Folder, Server};
//!
//! let place = tempfile::tempdir()?;
//! let server = Server::new(&[Folder::new(place.path(), Access::ReadWrite)])?;
//! let mut reply = Vec::new();
//! server.answer(0, &[0; 40], &mut reply);
//! assert_eq!(reply.len(), 16); // a head with an error: the request's length is wrong
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod abi;
mod git;
mod growth;
mod host;
mod listing;
mod lookup;
mod make;
mod mount;
mod name;
mod nodes;
mod open;
mod opens;
mod process;
mod protocol;
mod remove;
mod rules;
mod scan;
mod serve;
mod service;
mod source;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use abi::{IN_HEADER, OUT_HEADER, Out, Request, opcode};
use mount::Mount;
use source::Sources;

use crate::child::Role;

pub use process::{Report, Running};
pub use rules::PROTECTED;

/// The argument with which this program serves folders.
pub const COMMAND: &str = "folders";
/// The process that serves folders as a child of this program.
const ROLE: Role = Role {
    command: c"folders",
    duty: "serves the folders",
    variables: &[],
    is_apart: true,
    has_stderr: false,
};

/// Whether this program answers as a process that serves folders.
static ANSWERS: AtomicBool = AtomicBool::new(false);

/// Serves folders in this process, if its command line says so, and returns its exit code then. Otherwise lets the folders of this
/// program's guests be served by processes of their own. A program's `main` calls it first, while it has one thread.
pub fn answer(command_line: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    if ROLE.is_named_by(command_line) {
        return Some(serve::serve());
    }
    ANSWERS.store(true, Ordering::Relaxed);
    None
}

/// Bytes of data in a request or reply.
const DATA_MAX: u32 = 128 << 10;
/// Bytes of a request, at most: its head, WRITE's arguments, and data.
pub const REQUEST_MAX: usize = IN_HEADER + 40 + DATA_MAX as usize;
/// Bytes of a reply, at most.
pub const REPLY_MAX: usize = OUT_HEADER + DATA_MAX as usize;
/// New repositories that are remembered.
const REPOSITORIES_MAX: usize = 1000;

/// What a guest may do with a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every change is EROFS.
    ReadOnly,
    /// Changes are made on the host at once.
    ReadWrite,
}

/// What a guest may take up with a folder.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files that its kernel knows: ENFILE beyond.
    pub nodes: usize,
    /// Files and folders that it has open: ENFILE beyond.
    pub open: usize,
    /// Bytes that the folder may grow by: ENOSPC beyond.
    pub growth: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            nodes: 1 << 20,
            open: 4096,
            growth: 4 << 30,
        }
    }
}

/// A folder to serve, or a single file.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Its path on the host, which is followed once.
    pub source: PathBuf,
    /// What the guest may do.
    pub access: Access,
    /// Patterns of what isn't there for the guest.
    pub hide: Vec<String>,
    /// Patterns of what it can read and not change.
    pub protect: Vec<String>,
    /// The user and group in the guest to whom this user's files belong.
    pub owner: (u32, u32),
    /// What the guest may take up.
    pub limits: Limits,
}

impl Folder {
    /// Describes a folder whose files belong to the guest's root. One that the guest may change has [`PROTECTED`] protected.
    pub fn new(source: impl Into<PathBuf>, access: Access) -> Self {
        let protect = match access {
            Access::ReadOnly => &[],
            Access::ReadWrite => PROTECTED,
        };
        Folder {
            source: source.into(),
            access,
            hide: Vec::new(),
            protect: protect
                .iter()
                .map(|pattern| (*pattern).to_owned())
                .collect(),
            owner: (0, 0),
            limits: Limits::default(),
        }
    }

    /// Checks that the folder can be shared: that its source is a folder or a file that this user can read, and that its patterns are valid.
    ///
    /// # Errors
    ///
    /// As [`Server::new`].
    pub fn check(&self) -> Result<(), Error> {
        source::check(self)
    }
}

/// A folder, and its place in the guest.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The folder, or the single file.
    pub folder: Folder,
    /// Its absolute path in the guest.
    pub at: PathBuf,
}

/// Why folders can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system lacks something.
    #[error("cannot open /proc/self/fd: {0}; folders need /proc")]
    Proc(io::Error),
    /// The source can't be opened.
    #[error("cannot share {path}: {error}")]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The source is neither a folder nor a file.
    #[error("cannot share {0}: it is a device, FIFO or socket; share a folder or a file")]
    Kind(PathBuf),
    /// A pattern isn't valid.
    #[error("cannot share {path}: {error}")]
    Pattern {
        /// The folder's path.
        path: PathBuf,
        /// Which, and why.
        error: io::Error,
    },
    /// The source is a part of what is protected, and the guest could change it.
    #[error(
        "cannot share {0} to be changed: it is where this host's git, editors, shells or agents find what they run; share it with :ro, or with --no-protect"
    )]
    IsRun(PathBuf),
    /// There are more folders than numbers.
    #[error("cannot share {0} folders: at most 65536")]
    TooMany(usize),
    /// The process that serves them reports one of these, in its own words.
    #[error("{0}")]
    Reported(String),
    /// There is no process that serves them.
    #[error("cannot start the process that serves folders: {0}")]
    Process(io::Error),
    /// The folders were gone before their machine was.
    #[error("{0}")]
    Ended(String),
}

/// Serves folders to one guest.
pub struct Server {
    mounts: Vec<Mount>,
}

impl Server {
    /// Opens folders, which have the numbers 0, 1, and so on.
    ///
    /// # Errors
    ///
    /// If one can't be opened, or has a pattern that isn't valid.
    pub fn new(folders: &[Folder]) -> Result<Self, Error> {
        Server::of(Sources::open(folders)?, folders)
    }

    /// Serves folders whose sources are open. Nothing of these was read before.
    fn of(sources: Sources, folders: &[Folder]) -> Result<Self, Error> {
        let descriptors = Arc::new(sources.descriptors);
        let both = sources.sources.into_iter().zip(folders);
        let mounts = both.map(|(source, folder)| source.mount(folder, &descriptors));
        Ok(Server {
            mounts: mounts.collect::<Result<_, _>>()?,
        })
    }

    /// Sets the user and group in the guest to whom this user's files in a folder belong. It is ignored once the guest has mounted the
    /// folder, and for a folder that isn't there.
    pub fn set_owner(&self, folder: u16, owner: (u32, u32)) {
        if let Some(mount) = self.mounts.get(usize::from(folder)) {
            mount.set_owner(owner);
        }
    }

    /// Answers a request to a folder, on the calling thread; several may call at once. The reply replaces what the vector has, and stays empty where there is none:
    /// for the requests that forget, and for what is too short to have a number.
    ///
    /// Where the request opens a file that the host has changed since the guest's kernel was told of it, returns a notification, which
    /// the kernel is to have before the reply: what it has cached of the file is old. It may take the notification only once it has other
    /// replies.
    pub fn answer(&self, folder: u16, request: &[u8], reply: &mut Vec<u8>) -> Option<Vec<u8>> {
        reply.clear();
        let request = Request::parse(request)?;
        let mount = self.mounts.get(usize::from(folder));
        if let opcode::FORGET | opcode::BATCH_FORGET = request.opcode {
            if let Some(mount) = mount.filter(|_| request.is_whole) {
                mount.forget(request.opcode, request.node, request.args);
            }
            return None;
        }
        reply.resize(OUT_HEADER, 0);
        let (unique, opcode, node) = (request.unique, request.opcode, request.node);
        let done = match mount {
            None => Err(Errno::NODEV),
            Some(_) if !request.is_whole || request.args.0.len() > REQUEST_MAX - IN_HEADER => {
                Err(Errno::INVAL)
            }
            Some(mount) => mount.serve(request, &mut Out(reply)),
        };
        if done.is_err() {
            reply.truncate(OUT_HEADER);
        }
        let error = done.err().map_or(0, |errno| -errno.raw_os_error());
        let len = u32::try_from(reply.len()).unwrap_or(u32::MAX);
        reply[..4].copy_from_slice(&len.to_ne_bytes());
        reply[4..8].copy_from_slice(&error.to_ne_bytes());
        reply[8..OUT_HEADER].copy_from_slice(&unique.to_ne_bytes());
        let opened = mount.filter(|_| opcode == opcode::OPEN && error == 0)?;
        opened.has_changed(node).then(|| abi::is_old(node))
    }

    /// Returns where in a folder the guest has made repositories, as paths from its top: the top itself is an empty path.
    pub fn repositories(&self, folder: u16) -> Vec<PathBuf> {
        let mount = self.mounts.get(usize::from(folder));
        mount.map_or_else(Vec::new, |mount| lock(&mount.repositories).clone())
    }
}

/// Locks, whatever became of another thread that had it: what is locked here is right after each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
