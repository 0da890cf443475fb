//! The host's end of the control channel: two streams of frames, whether they go through guest memory or through COM2.
//!
//! Everything that comes from the guest may be a lie. What it can do with one is to end its own conversation: a position in
//! a ring that can't be is an error, bells only wake who waits, and what it doesn't take waits with it.

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
    bells: Mutex<Bells>,
    rung: Condvar,
}

/// What has been heard on COM2 in ring mode.
struct Bells {
    /// How many have come.
    count: u64,
    /// Whether the machine has ended, or nobody listens to it any more.
    ended: bool,
    /// Whether somebody listens right now, for all who wait.
    listening: bool,
    /// What the guest writes to COM2; `None` when nobody listens any more, so that the guest doesn't wait for it either.
    com2: Option<Arc<PipeReader>>,
}

impl Shared {
    fn ring(&self) {
        // A pipe that is full holds bells enough.
        let _ = (&self.com2).write(&BELL);
    }

    fn bells(&self) -> MutexGuard<'_, Bells> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for more bells than there were `before`. Whether there will be none any more.
    ///
    /// The first who waits listens for the others too: who takes what the guest sends may be busy for long, with an output
    /// that nobody reads, and who sends to the guest must hear of new room all the same.
    fn wait(&self, before: u64) -> io::Result<bool> {
        let mut bells = self.bells();
        loop {
            if bells.ended || bells.count != before {
                return Ok(bells.ended);
            }
            let Some(com2) = bells.com2.clone().filter(|_| !bells.listening) else {
                let waited = self.rung.wait(bells);
                bells = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            bells.listening = true;
            drop(bells);
            let heard = read(&mut &*com2, &mut [0; 64]);
            bells = self.bells();
            bells.listening = false;
            bells.count += 1;
            bells.ended |= !matches!(heard, Ok(1..));
            self.rung.notify_all();
            heard?;
        }
    }

    /// Nobody listens to the guest any more, or there is nothing to be heard.
    fn end(&self) {
        let mut bells = self.bells();
        bells.ended = true;
        bells.com2 = None;
        self.rung.notify_all();
    }
}

/// The frames that the guest sends. They end with the machine.
pub(super) struct FromGuest {
    com2: Arc<PipeReader>,
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

/// Makes both ends of a machine that was saved when its init waited for a request, with its rings, if it had any, at this
/// address. Its hello was read before it was saved, and does not come again.
pub(super) fn resume(
    from: PipeReader,
    to: PipeWriter,
    memory: Memory,
    rings: Option<u64>,
) -> io::Result<(FromGuest, ToGuest)> {
    let (mut from_guest, to_guest) = wire(from, to, memory);
    from_guest.attach(rings)?;
    Ok((from_guest, to_guest))
}

/// Makes both ends out of what the machine's COM2 is connected to: what comes out of it, and what goes into it.
pub(super) fn wire(from: PipeReader, to: PipeWriter, memory: Memory) -> (FromGuest, ToGuest) {
    let from = Arc::new(from);
    let shared = Arc::new(Shared {
        com2: to,
        output: OnceLock::new(),
        bells: Mutex::new(Bells {
            count: 0,
            ended: false,
            listening: false,
            com2: Some(from.clone()),
        }),
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
        self.attach(rings)
    }

    /// From now on everything comes through the rings, if there are any.
    fn attach(&mut self, rings: Option<u64>) -> io::Result<()> {
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
        let len = read(&mut &*self.com2, &mut buffer)?;
        into.extend_from_slice(&buffer[..len]);
        Ok(len > 0)
    }

    fn end(&mut self) {
        self.state = State::Ended;
        self.shared.end();
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
                    let len = read(&mut &*self.com2, buffer)?;
                    if len == 0 {
                        self.end();
                    }
                    return Ok(len);
                }
                State::Rings(input) => {
                    let before = self.shared.bells().count;
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
                    if self.shared.wait(before)? {
                        self.drain(buffer.len())?;
                    }
                }
                State::Ended => return Ok(0),
            }
        }
    }
}

impl FromGuest {
    /// The machine has ended: takes what is left in the ring, which nobody changes any more.
    fn drain(&mut self, chunk: usize) -> io::Result<()> {
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
        self.shared.end();
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
            let before = shared.bells().count;
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
            if shared.wait(before)? {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
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
