//! Input for a serial port: from a source, as fast as the guest takes it.
//!
//! The source is read only when it has something and the guest takes it, so that all that the guest doesn't take stays where it
//! is. Nothing is read while the UART is locked, because its vCPU would wait for the lock.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use crate::devices::bus::lock;
use crate::devices::uart::{Room, Uart};

/// The source of a serial port's input. Its end is not the guest's end.
///
/// A [`File`] is one: a regular file, or a pipe, socket or terminal that is non-blocking, or that nothing else reads from.
pub trait InputSource: AsFd + Send {
    /// Reads the bytes that are there, without waiting. Returns their number, which is 0 at the end, or `None` where there is
    /// nothing to read now.
    ///
    /// # Errors
    ///
    /// The operating system's, where the source can't be read.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Returns the descriptors that the source needs open.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.as_fd()]
    }
}

impl InputSource for File {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match { self }.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            read => read.map(Some),
        }
    }
}

/// Moves input into a UART whenever there is some and the UART has room.
pub(crate) struct Pump {
    /// `None` after the input's end.
    source: Option<Box<dyn InputSource>>,
    /// Bytes that were read and then found no room: the driver had asked for input, and switched it off again.
    early: Vec<u8>,
    /// Whether the event loop watches the source.
    watched: bool,
    uart: Arc<Mutex<Uart>>,
    intake: Arc<Mutex<()>>,
    room: Arc<Room>,
}

impl Pump {
    /// Connects the source to `uart`. As long as `intake` is locked, no byte is between the two.
    pub(crate) fn new(
        source: Box<dyn InputSource>,
        uart: Arc<Mutex<Uart>>,
        intake: Arc<Mutex<()>>,
    ) -> Self {
        let room = lock(&uart).room();
        Pump {
            source: Some(source),
            early: Vec::new(),
            watched: false,
            uart,
            intake,
            room,
        }
    }

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
        match ops.add(input_of(&**source)) {
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
            let _ = ops.remove(input_of(&**source));
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

fn input_of(source: &dyn InputSource) -> Events {
    Events::new_raw(source.as_fd().as_raw_fd(), EventSet::IN)
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
