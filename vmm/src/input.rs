//! Input for a serial port: from a descriptor, as fast as the guest takes it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::devices::bus::lock;
use crate::devices::uart::Uart;

/// Where a serial port's input comes from. Its end is not the guest's end.
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
}

impl From<OwnedFd> for Input {
    /// Reads from a descriptor: a terminal, a pipe, a socket or a file. It is read only when it has something and the
    /// guest takes it, so that what the guest doesn't take stays where it is.
    fn from(source: OwnedFd) -> Self {
        Input {
            source: source.into(),
        }
    }
}

impl Input {
    /// Reads from any reader, by a thread that ends when the reader or the machine does.
    ///
    /// # Errors
    ///
    /// Where the host has no descriptor or thread left.
    pub fn from_reader(mut reader: impl Read + Send + 'static) -> io::Result<Self> {
        let (ours, mut theirs) = io::pipe()?;
        thread::Builder::new().name("input".into()).spawn(move || {
            // Its end has no other meaning than that no input comes any more.
            let _ = io::copy(&mut reader, &mut theirs);
        })?;
        Ok(Input::from(OwnedFd::from(ours)))
    }

    /// Connects it to `uart`.
    pub(crate) fn pump(self, uart: Arc<Mutex<Uart>>) -> Pump {
        let room = lock(&uart).room();
        Pump {
            source: Some(self.source),
            watched: false,
            uart,
            room,
        }
    }
}

/// Moves input into a UART whenever there is some and the UART has room.
pub(crate) struct Pump {
    /// `None` when it has come to its end.
    source: Option<File>,
    /// Whether the event loop tells when the source has something.
    watched: bool,
    uart: Arc<Mutex<Uart>>,
    room: Arc<EventFd>,
}

impl Pump {
    /// Reads as much as the UART takes, once.
    fn fill(&mut self) -> io::Result<Filled> {
        let mut uart = lock(&self.uart);
        let mut buffer = [0; 64];
        let capacity = uart.capacity().min(buffer.len());
        let Some(source) = self.source.as_mut().filter(|_| capacity > 0) else {
            return Ok(Filled::NoRoom);
        };
        match source.read(&mut buffer[..capacity]) {
            Ok(0) => Ok(Filled::End),
            Ok(len) => uart.receive(&buffer[..len]).map(|()| Filled::Some),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                Ok(Filled::Some)
            }
            Err(error) => Err(error),
        }
    }

    /// Watches the source again, now that there is room. A regular file can't be watched; it is always ready.
    fn watch(&mut self, ops: &mut EventOps) {
        let Some(source) = &self.source else { return };
        if self.watched {
            return;
        }
        self.watched = ops.add(Events::new(source, EventSet::IN)).is_ok();
        if !self.watched {
            self.advance(ops);
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if let Some(source) = self.source.as_ref().filter(|_| self.watched) {
            let _ = ops.remove(Events::new(source, EventSet::IN));
        }
        self.watched = false;
    }

    fn advance(&mut self, ops: &mut EventOps) {
        match self.fill() {
            Ok(Filled::Some) => {}
            Ok(Filled::NoRoom) => self.unwatch(ops),
            Ok(Filled::End) => self.close(ops),
            Err(error) => {
                log::warn!("input ends: {error}");
                self.close(ops);
            }
        }
    }

    fn close(&mut self, ops: &mut EventOps) {
        self.unwatch(ops);
        self.source = None;
    }
}

/// How an attempt to move input went.
enum Filled {
    Some,
    NoRoom,
    End,
}

impl MutEventSubscriber for Pump {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&*self.room, EventSet::IN))
            .expect("an event descriptor can be watched");
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.room.as_raw_fd() {
            // More than one may have been counted; one look is enough.
            let _ = self.room.read();
            self.watch(ops);
        } else {
            self.advance(ops);
        }
    }
}
