//! Input from a descriptor that other processes may have open too.
//!
//! Reading never waits: another process that reads from the same pipe or terminal may have taken the bytes that were there a
//! moment ago.

#![allow(
    unsafe_code,
    reason = "reading without waiting from a file that others have open too has no safe interface in std"
)]

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::thread;

use minivm_vmm::InputSource;

/// The device number of `/dev/ptmx`, the other end of a terminal: opening it again makes another terminal.
const TERMINAL_MULTIPLEXER: libc::dev_t = libc::makedev(5, 2);

/// The source of a serial port's input, or of a session's.
///
/// ```
/// use minivm_machine::Input;
///
/// let terminal = Input::from(std::os::fd::OwnedFd::from(std::io::pipe()?.0));
/// let bytes = Input::from_reader(std::io::Cursor::new(b"echo hello\n"))?;
/// # std::io::Result::Ok(())
/// ```
pub struct Input {
    source: File,
    way: Way,
    /// The descriptor that `source` was opened anew from. It stays open: a pipe that is open for writing too has no end.
    given: Option<File>,
}

/// The way to read from a source without waiting.
enum Way {
    /// A plain read: of a file, or of a pipe or terminal that was opened for this process alone, as non-blocking.
    Plain,
    /// A read with a flag against waiting: of a source that others have open too, and whose own flags stay as they are.
    Asking,
}

impl From<OwnedFd> for Input {
    /// Makes an input of a descriptor: a terminal, a pipe, a socket or a file. The descriptor is read only when it has
    /// something and the guest takes it, so that all that the guest doesn't take stays where it is.
    fn from(source: OwnedFd) -> Self {
        let given = File::from(source);
        let way = match given.metadata() {
            Ok(metadata) if metadata.is_file() => Way::Plain,
            _ => Way::Asking,
        };
        match opened_anew(&given) {
            Some(source) => Input {
                source,
                way: Way::Plain,
                given: Some(given),
            },
            None => Input {
                source: given,
                way,
                given: None,
            },
        }
    }
}

/// Opens a pipe or terminal once more, as non-blocking and for this process alone. Returns `None` where the descriptor is
/// something else, or belongs to another user.
fn opened_anew(given: &File) -> Option<File> {
    let metadata = given.metadata().ok()?;
    let terminal = given.is_terminal() && metadata.rdev() != TERMINAL_MULTIPLEXER;
    if !metadata.file_type().is_fifo() && !terminal {
        return None;
    }
    let path = format!("/proc/self/fd/{}", given.as_raw_fd());
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let options = File::options().read(true).custom_flags(flags).open(path);
    options.ok()
}

impl AsFd for Input {
    /// Returns the descriptor to watch for input.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl Input {
    /// Makes an input of any reader. A thread named `input` reads from it, and ends when the reader or the machine does.
    ///
    /// # Errors
    ///
    /// The operating system's, where the host has no descriptor or thread left.
    pub fn from_reader(mut reader: impl Read + Send + 'static) -> io::Result<Self> {
        let (ours, mut theirs) = io::pipe()?;
        thread::Builder::new().name("input".into()).spawn(move || {
            // An error means no more than an end does: no input comes any more.
            let _ = io::copy(&mut reader, &mut theirs);
        })?;
        Ok(Input::from(OwnedFd::from(ours)))
    }
}

impl InputSource for Input {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let read = match self.way {
            Way::Plain => (&self.source).read(buffer),
            Way::Asking => read_now(&self.source, buffer),
        };
        match read {
            Ok(len) => Ok(Some(len)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let given = self.given.iter().map(AsFd::as_fd);
        given.chain([self.source.as_fd()]).collect()
    }
}

/// Reads the bytes that are there now (preadv2(2), RWF_NOWAIT). For devices and kernels without that flag, poll(2) comes before
/// a plain read; another reader that takes the bytes in between would make this one wait.
fn read_now(source: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: the one part is `buffer`, which may be written to. -1 stands for the file's position.
    let read =
        unsafe { libc::preadv2(source.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
    if let Ok(len) = usize::try_from(read) {
        return Ok(len);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
            let mut watched = libc::pollfd {
                fd: source.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: it is one structure, which may be written to.
            match unsafe { libc::poll(&raw mut watched, 1, 0) } {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                1 => { source }.read(buffer),
                _ => Err(io::Error::last_os_error()),
            }
        }
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    /// A terminal's two ends.
    fn terminal() -> (File, File) {
        let (mut ours, mut theirs) = (0, 0);
        let none = std::ptr::null_mut();
        // SAFETY: both places may be written to; nothing else is asked for.
        let opened = unsafe {
            libc::openpty(
                &raw mut ours,
                &raw mut theirs,
                none,
                none.cast(),
                none.cast(),
            )
        };
        assert_eq!(opened, 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptors are new, and each becomes one file's.
        let file = |descriptor| unsafe { File::from_raw_fd(descriptor) };
        (file(ours), file(theirs))
    }

    fn fifo(folder: &Path) -> File {
        let path = folder.join("fifo");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the name ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// Returns whether reading an open file waits.
    fn waits(file: impl AsFd) -> bool {
        // SAFETY: it has no condition.
        let flags = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETFL) };
        flags & libc::O_NONBLOCK == 0
    }

    #[test]
    fn bytes_that_another_reader_took_are_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, pipes_writer) = io::pipe().unwrap();
        let (socket, sockets_writer) = UnixStream::pair().unwrap();
        let (terminals_writer, terminal) = terminal();
        let fifo = fifo(folder.path());
        let fifos_writer = fifo.try_clone().unwrap();
        let sources: [(&str, OwnedFd, OwnedFd); 4] = [
            ("a pipe", pipe.into(), pipes_writer.into()),
            ("a socket", socket.into(), sockets_writer.into()),
            ("a terminal", terminal.into(), terminals_writer.into()),
            ("a FIFO", fifo.into(), fifos_writer.into()),
        ];
        for (name, source, writer) in sources {
            let other = File::from(source.try_clone().unwrap());
            let mut writer = File::from(writer);
            let input = Input::from(source);
            let mut buffer = [0; 16];
            assert_eq!(input.try_read(&mut buffer).unwrap(), None, "{name}");
            writer.write_all(b"taken\n").unwrap();
            assert_eq!((&other).read(&mut buffer).unwrap(), 6, "{name}");
            assert_eq!(input.try_read(&mut buffer).unwrap(), None, "{name}");
            writer.write_all(b"ours\n").unwrap();
            let read = (0..1000).find_map(|_| {
                thread::yield_now();
                input.try_read(&mut buffer).unwrap()
            });
            assert_eq!(read, Some(5), "{name}");
            assert_eq!(&buffer[..5], b"ours\n", "{name}");
            assert!(waits(&other), "{name} has become non-blocking for others");
        }
    }

    #[test]
    fn a_file_is_read_to_its_end_from_where_it_stands() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"skipped read").unwrap();
        io::Seek::seek(&mut file, io::SeekFrom::Start(8)).unwrap();
        let input = Input::from(OwnedFd::from(file));
        let mut buffer = [0; 16];
        assert_eq!(input.try_read(&mut buffer).unwrap(), Some(4));
        assert_eq!(&buffer[..4], b"read");
        assert_eq!(input.try_read(&mut buffer).unwrap(), Some(0));
    }
}
