//! Input by lines and output by blocks, for both kinds of hosts.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The longest line of input in bytes.
const LINE_MAX: u64 = 16 << 20;
/// The size at which output is written, in bytes.
const BLOCK: usize = 16 << 10;
/// The age at which output is written. A limit may end the code at any time, and output from before that must not be lost.
const FLUSH_AFTER: Duration = Duration::from_millis(2);

/// An input that is read by lines.
pub(super) struct Lines(BufReader<File>);

impl Lines {
    pub(super) fn new(input: OwnedFd) -> Self {
        Lines(BufReader::new(input.into()))
    }

    /// Reads a line with its line end; an empty string is the end of the input. Invalid UTF-8 is replaced, since the interpreter's
    /// text can't hold it.
    pub(super) fn next(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut limited = (&mut self.0).take(LINE_MAX);
        limited.read_until(b'\n', &mut line)?;
        if limited.limit() == 0 && line.last() != Some(&b'\n') {
            let why = format!("a line of the input is longer than {LINE_MAX} bytes");
            return Err(io::Error::other(why));
        }
        Ok(String::from_utf8(line)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }
}

/// A buffer of output, with the time of its first byte.
pub(super) struct Block {
    text: Vec<u8>,
    since: Instant,
}

impl Block {
    pub(super) fn new() -> Self {
        Block {
            text: Vec::new(),
            since: Instant::now(),
        }
    }

    pub(super) fn push(&mut self, text: &str) {
        if self.text.is_empty() {
            self.since = Instant::now();
        }
        self.text.extend_from_slice(text.as_bytes());
    }

    pub(super) fn is_full(&self) -> bool {
        self.text.len() >= BLOCK
    }

    pub(super) fn is_old(&self) -> bool {
        !self.text.is_empty() && self.since.elapsed() >= FLUSH_AFTER
    }

    /// Returns how much longer the buffer may wait; `None` where it is empty.
    fn time_left(&self) -> Option<Duration> {
        let held = self.since.elapsed();
        (!self.text.is_empty()).then(|| FLUSH_AFTER.saturating_sub(held))
    }

    /// Writes the buffer, and empties it.
    pub(super) fn flush(&mut self, write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        let written = write(&self.text);
        self.text.clear();
        written
    }
}

/// A buffered writer to a file. A thread writes the buffer when it is old enough, even while the interpreter is busy: a single
/// instruction may run into the time limit, which kills the process. Clones share the buffer.
#[derive(Clone)]
pub(super) struct BlockWriter(Arc<State>);

struct State {
    block: Mutex<Block>,
    /// Notified when the buffer is no longer empty.
    begun: Condvar,
    to: File,
}

impl BlockWriter {
    /// Starts the thread.
    pub(super) fn start(to: OwnedFd) -> io::Result<BlockWriter> {
        let writer = BlockWriter(Arc::new(State {
            block: Mutex::new(Block::new()),
            begun: Condvar::new(),
            to: to.into(),
        }));
        let moved = writer.clone();
        let thread = thread::Builder::new()
            .name("output".into())
            .stack_size(64 << 10);
        thread.spawn(move || moved.pass_on())?;
        Ok(writer)
    }

    pub(super) fn push(&self, text: &str) -> io::Result<()> {
        let mut block = self.block();
        if block.text.is_empty() {
            self.0.begun.notify_one();
        }
        block.push(text);
        match block.is_full() {
            true => self.flush_locked(&mut block),
            false => Ok(()),
        }
    }

    /// Writes the buffer.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.flush_locked(&mut self.block())
    }

    /// Writes the buffer of a process that is about to end: without waiting for the other thread, and without allocating.
    pub(super) fn flush_last(&self) {
        if let Ok(mut block) = self.0.block.try_lock() {
            let _ = self.flush_locked(&mut block);
        }
    }

    fn block(&self) -> MutexGuard<'_, Block> {
        self.0.block.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush_locked(&self, block: &mut Block) -> io::Result<()> {
        block.flush(|bytes| (&self.0.to).write_all(bytes))
    }

    fn pass_on(&self) {
        let mut block = self.block();
        loop {
            block = match block.time_left() {
                None => self.0.begun.wait(block),
                Some(Duration::ZERO) => {
                    // An error comes again at the interpreter's next write.
                    let _ = self.flush_locked(&mut block);
                    Ok(block)
                }
                Some(left) => match self.0.begun.wait_timeout(block, left) {
                    Ok((block, _)) => Ok(block),
                    Err(error) => Ok(error.into_inner().0),
                },
            }
            .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_machine::streams::in_memory;

    #[test]
    fn lines_come_with_their_ends_and_an_end_is_empty() {
        let mut lines = Lines::new(in_memory(b"a\n\xff\n\nlast").unwrap());
        let read: Vec<String> = (0..5).map(|_| lines.next().unwrap()).collect();
        assert_eq!(read, ["a\n", "\u{fffd}\n", "\n", "last", ""]);
    }

    #[test]
    fn buffered_output_is_written_without_a_flush() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = BlockWriter::start(writer.into()).unwrap();
        for text in ["first", "next"] {
            output.push(text).unwrap();
            let mut read = vec![0; text.len()];
            reader.read_exact(&mut read).unwrap();
            assert_eq!(read, text.as_bytes());
        }
        output.push("last").unwrap();
        output.flush_last();
        let mut read = [0; 4];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"last");
    }

    #[test]
    fn a_line_without_an_end_is_not_read_for_ever() {
        let zeros = File::open("/dev/zero").unwrap();
        let error = Lines::new(zeros.into()).next().unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }
}
