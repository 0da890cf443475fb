//! Input for a serial port: from a descriptor, as fast as the guest takes it.
//!
//! Reading never waits: another process that reads from the same pipe or terminal may have taken the bytes that were there a
//! moment ago. And nothing is read while the UART is locked, because its vCPU would wait for the lock.

#![allow(
    unsafe_code,
    reason = "reading without waiting from a file that others have open too has no safe interface in std"
)]

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::sync::{Arc, Mutex};
use std::thread;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use crate::devices::bus::lock;
use crate::devices::uart::{Room, Uart};

/// The device number of `/dev/ptmx`, the other end of a terminal: opening it again makes another terminal.
const TERMINAL_MULTIPLEXER: libc::dev_t = libc::makedev(5, 2);

/// The source of a serial port's input. Its end is not the guest's end.
///
/// ```
/// use minivm_vmm::Input;
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

    /// Reads the bytes that are there, without waiting. Returns their number, which is 0 at the end, or `None` where there is
    /// nothing to read now.
    ///
    /// # Errors
    ///
    /// The operating system's, where the source can't be read.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
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

    /// Returns the descriptors that the input needs open.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let given = self.given.iter().map(AsFd::as_fd);
        given.chain([self.source.as_fd()])
    }

    /// Connects the input to `uart`. As long as `intake` is locked, no byte is between the two.
    pub(crate) fn pump(self, uart: Arc<Mutex<Uart>>, intake: Arc<Mutex<()>>) -> Pump {
        let room = lock(&uart).room();
        Pump {
            source: Some(self),
            early: Vec::new(),
            watched: false,
            uart,
            intake,
            room,
        }
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

/// Moves input into a UART whenever there is some and the UART has room.
pub(crate) struct Pump {
    /// `None` after the input's end.
    source: Option<Input>,
    /// Bytes that were read and then found no room: the driver had asked for input, and switched it off again.
    early: Vec<u8>,
    /// Whether the event loop watches the source.
    watched: bool,
    uart: Arc<Mutex<Uart>>,
    intake: Arc<Mutex<()>>,
    room: Arc<Room>,
}

impl Pump {
    /// Returns the descriptor that becomes readable when the UART has room: the event loop watches it.
    pub(crate) fn room(&self) -> RawFd {
        self.room.event().as_raw_fd()
    }

    /// Moves as much as the UART takes, once. Where the source isn't watched afterwards, the next room is awaited; the UART is
    /// locked from the look at it until then, so that none is missed.
    fn fill(&mut self) -> io::Result<Filled> {
        let intake = self.intake.clone();
        let _taking = lock(&intake);
        let Some(source) = &self.source else {
            return Ok(Filled::NoRoom);
        };
        let capacity = {
            let mut uart = lock(&self.uart);
            let capacity = uart.capacity();
            if capacity == 0 {
                uart.await_room();
                return Ok(Filled::NoRoom);
            }
            capacity
        };
        if self.early.is_empty() {
            let mut buffer = [0; 64];
            let most = capacity.min(buffer.len());
            match source.try_read(&mut buffer[..most])? {
                None => return Ok(Filled::Some),
                Some(0) => return Ok(Filled::End),
                Some(len) => self.early.extend(&buffer[..len]),
            }
        }
        let mut uart = lock(&self.uart);
        let taken = uart.capacity().min(self.early.len());
        if taken == 0 {
            uart.await_room();
            return Ok(Filled::NoRoom);
        }
        let early: Vec<_> = self.early.drain(..taken).collect();
        if !(self.watched && self.early.is_empty()) {
            uart.await_room();
        }
        uart.receive(&early).map(|()| Filled::Some)
    }

    /// Watches the source again, now that there is room. A regular file can't be watched; it is always ready.
    fn watch(&mut self, ops: &mut EventOps) {
        if !self.early.is_empty() {
            self.advance(ops);
        }
        let Some(source) = self.source.as_ref().filter(|_| self.early.is_empty()) else {
            return;
        };
        if self.watched {
            return;
        }
        match ops.add(Events::new(&source.source, EventSet::IN)) {
            Ok(()) => self.watched = true,
            // A regular file.
            Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EPERM => {
                self.advance(ops);
            }
            Err(error) => {
                log::warn!("a serial port's input ends, because it cannot be watched: {error}");
                self.close(ops);
            }
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if let Some(source) = self.source.as_ref().filter(|_| self.watched) {
            let _ = ops.remove(Events::new(&source.source, EventSet::IN));
        }
        self.watched = false;
    }

    fn advance(&mut self, ops: &mut EventOps) {
        match self.fill() {
            Ok(Filled::Some) => {}
            Ok(Filled::NoRoom) => self.unwatch(ops),
            Ok(Filled::End) => self.close(ops),
            Err(error) => {
                log::warn!("a serial port's input ends, because it cannot be read: {error}");
                self.close(ops);
            }
        }
    }

    fn close(&mut self, ops: &mut EventOps) {
        self.unwatch(ops);
        self.source = None;
    }
}

/// The result of an attempt to move input.
enum Filled {
    Some,
    NoRoom,
    End,
}

impl MutEventSubscriber for Pump {
    fn init(&mut self, _ops: &mut EventOps) {}

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.room.event().as_raw_fd() {
            let _ = self.room.event().read();
            self.watch(ops);
        } else {
            self.advance(ops);
        }
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
