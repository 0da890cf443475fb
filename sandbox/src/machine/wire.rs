//! The host's end of the control channel: two streams of frames, whether they go through guest memory or through COM2.
//!
//! Everything that comes from the guest may be a lie. What it can do with one is to end its own conversation: a position in
//! a ring that can't be is an error, bells are counted by nobody, and what it doesn't take waits with it.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use minivm_guest::channel::frame::{self, Decoder};
use minivm_guest::channel::ring::{Consumer, Producer};
use minivm_guest::channel::{MAGIC, ToHost};
use minivm_vmm::Memory;

use super::rings::{self, Ring};

/// The longest hello in bytes, with room for what it may become.
const HELLO_MAX: usize = 256;
/// What a kernel may write to COM2 before init does.
const NOISE_MAX: usize = 64 << 10;
/// A byte on COM2 that means "look".
const BELL: [u8; 1] = [0];

/// What the two directions share.
struct Shared {
    /// What the guest reads on COM2. It never blocks in ring mode.
    com2: PipeWriter,
    /// The ring to the guest, once the guest has said that it has one.
    output: OnceLock<Mutex<Producer<Ring>>>,
    /// How many bells have come, and whether the machine has ended.
    bells: Mutex<(u64, bool)>,
    rung: Condvar,
}

impl Shared {
    fn ring(&self) {
        // A pipe that is full holds bells enough.
        let _ = (&self.com2).write(&BELL);
    }

    fn bells(&self) -> MutexGuard<'_, (u64, bool)> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, ended: bool) {
        let mut bells = self.bells();
        bells.0 += 1;
        bells.1 |= ended;
        self.rung.notify_all();
    }
}

/// The frames that the guest sends. They end with the machine.
pub(super) struct FromGuest {
    com2: PipeReader,
    memory: Memory,
    shared: Arc<Shared>,
    state: State,
    /// Bytes of frames that were read on the way.
    pending: Vec<u8>,
}

enum State {
    /// Waiting for what init says first.
    Noise,
    Uart,
    Rings(Consumer<Ring>),
    Ended,
}

/// The frames for the guest. It is to be used when the guest's hello has come, not before.
pub(super) struct ToGuest(Arc<Shared>);

/// Makes both ends out of what the machine's COM2 is connected to: what comes out of it, and what goes into it.
pub(super) fn wire(from: PipeReader, to: PipeWriter, memory: Memory) -> (FromGuest, ToGuest) {
    let shared = Arc::new(Shared {
        com2: to,
        output: OnceLock::new(),
        bells: Mutex::new((0, false)),
        rung: Condvar::new(),
    });
    let reader = FromGuest {
        com2: from,
        memory,
        shared: shared.clone(),
        state: State::Noise,
        pending: Vec::new(),
    };
    (reader, ToGuest(shared))
}

impl FromGuest {
    /// Reads up to and with the hello, and finds the rings that it tells of.
    fn start(&mut self) -> io::Result<()> {
        let mut seen = Vec::new();
        let mut looked = 0;
        let start = loop {
            if let Some(at) = find(&seen[looked..], &MAGIC) {
                break looked + at + MAGIC.len();
            }
            // Its beginning may be there.
            looked = seen.len().saturating_sub(MAGIC.len() - 1);
            if seen.len() > NOISE_MAX {
                return Err(bad("the guest writes to COM2 what is no message"));
            }
            if !self.read_more(&mut seen)? {
                self.end();
                return Ok(());
            }
        };
        self.pending = seen.split_off(start);
        let rings = loop {
            let mut decoder = Decoder::default();
            decoder.extend(&self.pending);
            if let Some((tag, body)) = decoder.next().map_err(bad)? {
                let hello = match ToHost::decode(tag, body).map_err(bad)? {
                    ToHost::Hello(hello) => hello,
                    _ => return Err(bad("the guest's first message is no hello")),
                };
                if hello.rings.is_some() {
                    // What follows on COM2 are bells.
                    let end = frame::HEADER + body.len();
                    self.pending.truncate(end);
                }
                break hello.rings;
            }
            if self.pending.len() > HELLO_MAX {
                return Err(bad("the guest's first message is no hello"));
            }
            let mut more = Vec::new();
            if !self.read_more(&mut more)? {
                self.end();
                return Ok(());
            }
            self.pending.append(&mut more);
        };
        self.state = match rings {
            None => State::Uart,
            Some(directory) => {
                let (input, output) = rings::find(&self.memory, directory).map_err(bad)?;
                rustix::io::ioctl_fionbio(&self.shared.com2, true)?;
                // It is set once, for this is called once.
                let _ = self.shared.output.set(Mutex::new(Producer::new(output)));
                State::Rings(Consumer::new(input))
            }
        };
        Ok(())
    }

    fn read_more(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let len = read(&mut self.com2, &mut buffer)?;
        into.extend_from_slice(&buffer[..len]);
        Ok(len > 0)
    }

    fn end(&mut self) {
        self.state = State::Ended;
        self.shared.note(true);
    }
}

impl Read for FromGuest {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.pending.is_empty() {
                let len = (&self.pending[..]).read(buffer)?;
                self.pending.drain(..len);
                return Ok(len);
            }
            match &mut self.state {
                State::Noise => self.start()?,
                State::Uart => {
                    let len = read(&mut self.com2, buffer)?;
                    if len == 0 {
                        self.end();
                    }
                    return Ok(len);
                }
                State::Rings(input) => {
                    let moved = input.pop(buffer).map_err(bad)?;
                    if moved.bell {
                        self.shared.ring();
                    }
                    if moved.bytes > 0 {
                        return Ok(moved.bytes);
                    }
                    if !input.sleep().map_err(bad)? {
                        continue;
                    }
                    if read(&mut self.com2, &mut [0; 64])? == 0 {
                        self.last(buffer.len())?;
                    }
                    self.shared.note(false);
                }
                State::Ended => return Ok(0),
            }
        }
    }
}

impl FromGuest {
    /// The machine has ended: takes what is left in the ring, which nobody changes any more.
    fn last(&mut self, chunk: usize) -> io::Result<()> {
        if let State::Rings(input) = &mut self.state {
            let mut buffer = vec![0; chunk.max(1)];
            loop {
                let len = input.pop(&mut buffer).map_err(bad)?.bytes;
                if len == 0 {
                    break;
                }
                self.pending.extend_from_slice(&buffer[..len]);
            }
        }
        self.end();
        Ok(())
    }
}

impl Drop for FromGuest {
    /// Who waits for the guest to make room waits in vain when nobody listens to it any more.
    fn drop(&mut self) {
        self.shared.note(true);
    }
}

impl Write for ToGuest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shared = &self.0;
        let Some(output) = shared.output.get() else {
            return (&shared.com2).write(bytes);
        };
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let before = shared.bells().0;
            let moved = output.push(bytes).map_err(bad)?;
            if moved.bell {
                shared.ring();
            }
            if moved.bytes > 0 || bytes.is_empty() {
                return Ok(moved.bytes);
            }
            if !output.sleep().map_err(bad)? {
                continue;
            }
            let mut bells = shared.bells();
            while bells.0 == before && !bells.1 {
                bells = shared
                    .rung
                    .wait(bells)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if bells.1 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(from: &mut PipeReader, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn bad(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
