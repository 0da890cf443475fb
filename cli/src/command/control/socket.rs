//! The socket's file: made for its owner alone, in place of one that a killed machine has left, and gone with its machine.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{Mode, OFlags, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Clients that may wait for their turn.
const BACKLOG: i32 = 16;
/// Time to wait for another process that makes a socket in the same folder.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A socket that listens.
pub(in super::super) struct Socket {
    // Dropped in this order: a process that finds a file without a listener would replace it.
    pub(super) file: SocketFile,
    pub(super) listener: UnixListener,
}

/// The socket's file, which goes when this is dropped.
pub(super) struct SocketFile(Arc<Name>);

/// Where it is, and what it is.
pub(in super::super) struct Name {
    path: PathBuf,
    /// Device and inode: another process may have made another file in its place.
    identity: (u64, u64),
}

impl Socket {
    /// Makes it, and its file, which only its owner may open.
    pub(in super::super) fn bind(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot listen at {}", path.display());
        let address = SocketAddrUnix::new(path).map_err(|errno| match errno {
            Errno::NAMETOOLONG => io::Error::other("a socket's path has at most 107 bytes"),
            other => other.into(),
        });
        let address = address.with_context(cannot)?;
        // Two that find the same leftover would remove each other's.
        let _lock = lock(path).with_context(cannot)?;
        make_room(path, &address)?;
        let socket = stream_socket(SocketFlags::empty()).with_context(cannot)?;
        // Linux gives the file that `bind` makes the mode of its socket, so there is no moment at which it has another.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).with_context(cannot)?;
        bind(&socket, &address).with_context(cannot)?;
        let metadata = fs::symlink_metadata(path).with_context(cannot)?;
        let file = SocketFile(Arc::new(Name {
            path: path.into(),
            identity: (metadata.dev(), metadata.ino()),
        }));
        listen(&socket, BACKLOG).with_context(cannot)?;
        Ok(Socket {
            file,
            listener: socket.into(),
        })
    }

    /// The socket's file, for a signal's handler, which must remove it without anything being dropped.
    pub(in super::super) fn name(&self) -> Arc<Name> {
        self.file.0.clone()
    }
}

impl Name {
    /// Removes the file, if it is still ours.
    pub(in super::super) fn remove(&self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.0.remove();
    }
}

fn stream_socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Keeps others of us from making a socket in the same folder meanwhile.
pub(super) fn lock(path: &Path) -> io::Result<File> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = File::from(rustix::fs::open(folder, flags, Mode::empty())?);
    let start = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process keeps its folder locked"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Removes what a machine that was killed has left, and nothing else.
fn make_room(path: &Path, address: &SocketAddrUnix) -> anyhow::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot look at {}", path.display()))?,
    };
    if !metadata.file_type().is_socket() {
        bail!(
            "{} is there and is no socket: name another path for --control",
            path.display()
        );
    }
    // It doesn't wait where the other's queue is full.
    let socket = stream_socket(SocketFlags::NONBLOCK)?;
    match connect(socket.as_fd(), address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path)
            .with_context(|| format!("cannot remove the old socket {}", path.display())),
        Ok(()) | Err(Errno::AGAIN) => bail!(
            "another machine listens at {}: name another path for --control",
            path.display()
        ),
        Err(errno) => {
            Err(errno).with_context(|| format!("cannot tell whether {} is in use", path.display()))
        }
    }
}
