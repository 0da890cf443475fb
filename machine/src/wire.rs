//! The host's ends of the control channel and of the folders' channel: two streams each, whether they go through guest memory or, those of
//! the control channel, through COM2.
//!
//! Everything that comes from the guest may be a lie, with which it can only end its own conversation: an impossible position in a
//! ring is an error, a bell wakes a thread and carries nothing, and a guest that takes no frames holds up only those that wait for it.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use minivm_guest::channel::frame::{self, Decoder};
use minivm_guest::channel::ring::{Consumer, DIRECTORY_FOLDERS, Producer};
use minivm_guest::channel::{MAGIC, ToHost};
use minivm_vmm::Memory;

use super::local::Greeted;
use super::rings::{self, Ring};

/// The longest hello in bytes, with room for what it may become.
const HELLO_MAX: usize = 256;
/// The most bytes that a kernel may write to COM2 before init does.
const NOISE_MAX: usize = 64 << 10;
/// A byte on the UART that means: look at the rings.
const BELL: [u8; 1] = [0];

/// The address of the control channel's ring directory, from the guest's hello on, if it has rings.
type Directory = Arc<OnceLock<u64>>;

/// The state that the two directions share.
struct Shared {
    /// The pipe that the guest reads as its UART. Writes to it never block in ring mode.
    uart: PipeWriter,
    /// The ring to the guest, once its hello has said where that is.
    output: OnceLock<Mutex<Producer<Ring>>>,
    bells: Mutex<Bells>,
    rung: Condvar,
}

/// The bells on the UART in ring mode.
struct Bells {
    /// How many reads have returned bells.
    count: u64,
    /// Whether the machine has ended, or its reader is dropped.
    ended: bool,
    /// Whether a thread reads the UART right now, for all threads that wait.
    listening: bool,
    /// What the guest writes to its UART; `None` when the reader is dropped, so that the guest doesn't wait for it either.
    uart: Option<Arc<PipeReader>>,
}

impl Shared {
    fn ring(&self) {
        // A pipe that is full holds bells enough.
        let _ = (&self.uart).write(&BELL);
    }

    fn bells(&self) -> MutexGuard<'_, Bells> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for more bells than there were `before`; returns whether no more will come.
    ///
    /// The first thread that waits reads the UART for the others too: the thread that reads the guest's frames may be busy for long, with
    /// an output whose reader takes nothing, and a thread that sends to the guest must notice new room all the same.
    fn wait(&self, before: u64) -> io::Result<bool> {
        let mut bells = self.bells();
        loop {
            if bells.ended || bells.count != before {
                return Ok(bells.ended);
            }
            let Some(uart) = bells.uart.clone().filter(|_| !bells.listening) else {
                let waited = self.rung.wait(bells);
                bells = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            bells.listening = true;
            drop(bells);
            let heard = read(&mut &*uart, &mut [0; 64]);
            bells = self.bells();
            bells.listening = false;
            bells.count += 1;
            bells.ended |= !matches!(heard, Ok(1..));
            self.rung.notify_all();
            heard?;
        }
    }

    /// Ends the channel: the guest's reader is dropped, or the machine has ended.
    fn end(&self) {
        let mut bells = self.bells();
        bells.ended = true;
        bells.uart = None;
        self.rung.notify_all();
    }
}

/// A stream of bytes from the guest. It ends with the machine.
pub(super) struct FromGuest {
    uart: Arc<PipeReader>,
    memory: Memory,
    shared: Arc<Shared>,
    directory: Directory,
    state: State,
    /// Bytes that are read from the UART or the ring, and not by the caller yet.
    pending: Vec<u8>,
}

enum State {
    /// Init's hello is still to come, after what the kernel may write.
    Noise,
    /// The first bell of the folders' is still to come, after what the kernel may write.
    Silent,
    Uart,
    Rings(Consumer<Ring>),
    Ended,
}

/// A stream of bytes to the guest. Only after the guest's hello is it known which way the control channel's go.
pub(super) struct ToGuest(Arc<Shared>);

/// Makes both streams of the control channel, from the pipes that COM2 is connected to.
///
/// `greeted` is for a machine that was saved when its init waited for a request: the hello was read before, and does not come again.
///
/// # Errors
///
/// `InvalidData` where the guest's rings aren't where it was told.
pub(super) fn control(
    pipes: Pipes,
    memory: Memory,
    greeted: Option<Greeted>,
) -> io::Result<(FromGuest, ToGuest)> {
    let directory = Directory::default();
    let (mut from_guest, to_guest) = streams(pipes, memory, State::Noise, directory);
    if let Some(Greeted { rings }) = greeted {
        from_guest.attach_control(rings)?;
    }
    Ok((from_guest, to_guest))
}

impl FromGuest {
    /// Makes both streams of the folders' channel of the machine whose control channel this is, from the pipes that COM3 is connected to.
    /// Bytes can be sent once some have come.
    pub(super) fn folders(&self, pipes: Pipes) -> (FromGuest, ToGuest) {
        let directory = self.directory.clone();
        streams(pipes, self.memory.clone(), State::Silent, directory)
    }
}

/// The pipes that a UART is connected to: what the guest writes, and what it reads.
pub(super) type Pipes = (PipeReader, PipeWriter);

fn streams(
    (from, to): Pipes,
    memory: Memory,
    state: State,
    directory: Directory,
) -> (FromGuest, ToGuest) {
    let from = Arc::new(from);
    let shared = Arc::new(Shared {
        uart: to,
        output: OnceLock::new(),
        bells: Mutex::new(Bells {
            count: 0,
            ended: false,
            listening: false,
            uart: Some(from.clone()),
        }),
        rung: Condvar::new(),
    });
    let reader = FromGuest {
        uart: from,
        memory,
        shared: shared.clone(),
        directory,
        state,
        pending: Vec::new(),
    };
    (reader, ToGuest(shared))
}

impl FromGuest {
    /// Reads up to and with the hello, and finds the rings whose directory it names.
    fn start(&mut self) -> io::Result<()> {
        let mut seen = Vec::new();
        let mut looked = 0;
        let start = loop {
            if let Some(at) = find(&seen[looked..], &MAGIC) {
                break looked + at + MAGIC.len();
            }
            // The last bytes may be its beginning.
            looked = seen.len().saturating_sub(MAGIC.len() - 1);
            if seen.len() > NOISE_MAX {
                let why = format!("the guest sent no hello in its first {NOISE_MAX} bytes on COM2");
                return Err(bad(why));
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
                    _ => return Err(bad("the guest's first message is not a hello")),
                };
                if hello.rings.is_some() {
                    // The bytes that follow on COM2 are bells.
                    let end = frame::HEADER + body.len();
                    self.pending.truncate(end);
                }
                break hello.rings;
            }
            if self.pending.len() > HELLO_MAX {
                return Err(bad("the guest's first message is not a hello"));
            }
            let mut more = Vec::new();
            if !self.read_more(&mut more)? {
                self.end();
                return Ok(());
            }
            self.pending.append(&mut more);
        };
        self.attach_control(rings)
    }

    /// Switches both directions of the control channel to the rings, if there are any.
    fn attach_control(&mut self, rings: Option<u64>) -> io::Result<()> {
        match rings {
            None => self.state = State::Uart,
            Some(directory) => {
                self.attach(directory)?;
                // It is never set before, for this is called once.
                let _ = self.directory.set(directory);
            }
        }
        Ok(())
    }

    /// Switches both directions to the rings of this directory.
    fn attach(&mut self, directory: u64) -> io::Result<()> {
        let (input, output) = rings::find(&self.memory, directory).map_err(bad)?;
        rustix::io::ioctl_fionbio(&self.shared.uart, true)?;
        // It is never set before, for this is called once.
        let _ = self.shared.output.set(Mutex::new(Producer::new(output)));
        self.state = State::Rings(Consumer::new(input));
        Ok(())
    }

    /// Waits for the first bell of the folders', and finds their rings by the control channel's directory. What comes before that has an
    /// address is no bell: the kernel may have written it.
    fn listen(&mut self) -> io::Result<()> {
        let mut address = [0; 8];
        let mut noise = Vec::new();
        while address == [0; 8] {
            if noise.len() > NOISE_MAX {
                let why =
                    format!("the guest named no rings in its first {NOISE_MAX} bytes on COM3");
                return Err(bad(why));
            }
            if !self.read_more(&mut noise)? {
                self.end();
                return Ok(());
            }
            if let Some(control) = self.directory.get() {
                let place = control + DIRECTORY_FOLDERS as u64;
                self.memory.read(place, &mut address).map_err(bad)?;
            }
        }
        self.attach(u64::from_le_bytes(address))
    }

    fn read_more(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let len = read(&mut &*self.uart, &mut buffer)?;
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
                State::Silent => self.listen()?,
                State::Uart => {
                    let len = read(&mut &*self.uart, buffer)?;
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
    /// Takes bells until the machine's end, and does nothing: a guest that rings must not wait for ever, or end by it.
    pub(super) fn ignore(self) {
        let uart = self.uart.clone();
        drop(self);
        while matches!(read(&mut &*uart, &mut [0; 64]), Ok(1..)) {}
    }

    /// Reads what is left in the ring of a machine that has ended, and so no longer changes it.
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
    /// Ends the waits for room in the guest: without a reader, none would be noticed.
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Write for ToGuest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shared = &self.0;
        let Some(output) = shared.output.get() else {
            return (&shared.uart).write(bytes);
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
