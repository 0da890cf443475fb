//! The guest's end of the channel: messages out and in, through the rings or through the UART.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{COM2, Hello, MAGIC, MARK, Moment, ToGuest, ToHost, VERSION};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::register::Register;
use crate::rings::Rings;
use crate::{Error, cannot, clock, print};

/// Linux's device file for COM2.
const TTY: &str = "/dev/ttyS1";
/// The most bytes that are taken off the wire at once.
const CHUNK: usize = 64 << 10;

/// The channel to the host.
pub(crate) struct Wire {
    tty: OwnedFd,
    com2: Option<Register>,
    rings: Option<Rings>,
    /// Bytes to send that did not fit yet.
    backlog: Vec<u8>,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Wire {
    /// Opens the channel, and sends the hello.
    pub(crate) fn open(with_rings: bool) -> Result<Wire, Error> {
        let tty = open_raw(TTY, OFlags::NONBLOCK).map_err(cannot(format!("open {TTY}")))?;
        let rings = match with_rings.then(Rings::new) {
            Some(Ok(rings)) => Some(rings),
            Some(Err(error)) => {
                print(&format!("cannot use rings, but the UART alone: {error}"));
                None
            }
            None => None,
        };
        let mut wire = Wire {
            tty,
            com2: Register::permitted(COM2),
            rings: None,
            backlog: MAGIC.to_vec(),
            decoder: Decoder::default(),
            buffer: vec![0; CHUNK],
        };
        wire.send(&ToHost::Hello(Hello {
            version: VERSION,
            rings: rings.as_ref().map(|rings| rings.directory),
        }))?;
        wire.flush_all()?;
        // From here on, a byte on COM2 is only a bell, in both directions.
        wire.rings = rings;
        if let Some(rings) = &mut wire.rings {
            rings.input.sleep()?;
        }
        Ok(wire)
    }

    /// Returns the channel's rings, if it has some.
    pub(crate) fn rings(&self) -> Option<&Rings> {
        self.rings.as_ref()
    }

    /// Returns the descriptor to wait for: it is readable when [`receive`](Self::receive) is to be called.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.tty.as_fd()
    }

    /// Returns whether bytes still wait for the host to make room. A caller that has more to send should wait, too.
    pub(crate) fn is_full(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Sends a message, or keeps it until there is room.
    pub(crate) fn send(&mut self, message: &ToHost) -> Result<(), Error> {
        message.encode(&mut self.backlog);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Error> {
        let sent = match &mut self.rings {
            None => self.write_uart()?,
            Some(rings) => {
                let mut sent = 0;
                let mut bell = false;
                while sent < self.backlog.len() {
                    let moved = rings.output.push(&self.backlog[sent..])?;
                    sent += moved.bytes;
                    bell |= moved.bell;
                    if moved.bytes == 0 && rings.output.sleep()? {
                        break;
                    }
                }
                if bell {
                    self.ring()?;
                }
                sent
            }
        };
        self.backlog.drain(..sent);
        Ok(())
    }

    /// Waits until all bytes are sent.
    pub(crate) fn flush_all(&mut self) -> Result<(), Error> {
        self.flush()?;
        while self.is_full() {
            // Bells that announce room; other messages are of no interest any more.
            self.wait()?;
            self.take_bells()?;
            self.flush()?;
        }
        Ok(())
    }

    /// Rings the host's bell.
    fn ring(&mut self) -> Result<(), Error> {
        match &self.com2 {
            Some(com2) => com2.write(&[0]),
            None => write_all(&self.tty, &[0])?,
        }
        Ok(())
    }

    /// Writes [`MARK`] to COM2. Returns when; `None` where a byte on COM2 is a part of a frame, or the kernel's driver would write it at
    /// a time of its own.
    pub(crate) fn mark(&self) -> Option<Moment> {
        let com2 = self.com2.as_ref().filter(|_| self.rings.is_some())?;
        let before = clock();
        com2.write(&[MARK]);
        let after = clock();
        Some(Moment { before, after })
    }

    fn write_uart(&self) -> Result<usize, Error> {
        match &self.com2 {
            Some(com2) => com2.write(&self.backlog),
            None => write_all(&self.tty, &self.backlog)?,
        }
        Ok(self.backlog.len())
    }

    /// Takes the messages that have come, one by one, without waiting.
    pub(crate) fn receive(
        &mut self,
        mut take: impl FnMut(ToGuest) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.take_bells()?;
        self.flush()?;
        loop {
            let more = self.pull()?;
            while let Some((tag, body)) = self.decoder.next()? {
                take(ToGuest::decode(tag, body)?)?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Waits for one message.
    pub(crate) fn receive_one<T>(
        &mut self,
        mut take: impl FnMut(ToGuest) -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            if let Some((tag, body)) = self.decoder.next()? {
                return take(ToGuest::decode(tag, body)?);
            }
            if !self.pull()? {
                self.wait()?;
                self.take_bells()?;
            }
        }
    }

    /// Moves bytes from the ring to the decoder. Returns whether there may be more; if not, the host will ring when there are.
    fn pull(&mut self) -> Result<bool, Error> {
        let Some(rings) = &mut self.rings else {
            return Ok(false);
        };
        let moved = rings.input.pop(&mut self.buffer)?;
        self.decoder.extend(&self.buffer[..moved.bytes]);
        let more = moved.bytes > 0 || !rings.input.sleep()?;
        if moved.bell {
            self.ring()?;
        }
        Ok(more)
    }

    /// Reads the UART's bytes: bells, or the messages themselves where there are no rings.
    fn take_bells(&mut self) -> Result<(), Error> {
        loop {
            match rustix::io::read(&self.tty, &mut self.buffer) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(len) if self.rings.is_none() => self.decoder.extend(&self.buffer[..len]),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(cannot(format!("read {TTY}"))(errno)),
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        poll(&mut [PollFd::new(&self.tty, PollFlags::IN)], None)?;
        Ok(())
    }
}

/// Opens a UART's device file, so that its bytes come and go as they are.
pub(crate) fn open_raw(path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let tty = rustix::fs::open(path, flags, Mode::empty())?;
    let mut raw = tcgetattr(&tty)?;
    raw.make_raw();
    tcsetattr(&tty, OptionalActions::Now, &raw)?;
    Ok(tty)
}

/// Writes through the kernel's driver, which takes as much as its buffer holds.
pub(crate) fn write_all(tty: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(tty, bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::AGAIN | Errno::INTR) => {
                poll(&mut [PollFd::new(tty, PollFlags::OUT)], None)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
