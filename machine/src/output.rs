//! Writers for a command's output: one with a limit, and one that keeps all in memory.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::streams;

/// A mark that is set while an output is being written. Clones share it.
///
/// The mark counts the beginnings and ends of writes, so that one long write differs from many short ones.
#[derive(Clone, Default)]
pub struct Pending(Arc<AtomicU64>);

impl Pending {
    /// Returns whether an output is being written.
    pub fn is_set(&self) -> bool {
        self.count() % 2 == 1
    }

    /// Notes that an output is being written, or no longer is.
    pub fn set(&self, pending: bool) {
        if self.is_set() != pending {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Returns how many writes have begun and ended. An odd number that is still the same later means that one write has lasted
    /// all the while.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A writer that keeps all in memory. Clones share the memory, which can be read while it is written to.
#[derive(Clone, Debug, Default)]
pub struct CaptureBuffer(Arc<Mutex<Vec<u8>>>);

impl CaptureBuffer {
    /// Returns what was written so far. Writers wait while the guard is held.
    pub fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what was written so far as text, with U+FFFD for what is not valid UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

impl Write for CaptureBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A mark that is set once an output has dropped something. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cut(Arc<AtomicBool>);

impl Cut {
    /// Returns whether something was dropped.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A console's writer that passes on a limited number of bytes and drops the rest. Errors are the caller's, an interruption too: a machine
/// that is stopped waits for no reader.
pub struct Limited<W> {
    out: W,
    left: u64,
    cut: Cut,
}

impl<W: Write> Limited<W> {
    /// Makes a writer that passes on `limit` bytes, without a limit all, and sets `cut` when it drops one.
    pub fn new(out: W, limit: Option<u64>, cut: &Cut) -> Self {
        Limited {
            out,
            left: limit.unwrap_or(u64::MAX),
            cut: cut.clone(),
        }
    }
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        if room == 0 {
            self.cut.0.store(true, Ordering::SeqCst);
            return Ok(bytes.len());
        }
        let written = self.out.write(&bytes[..bytes.len().min(room)])?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// An output that takes a limited number of bytes and drops the rest.
pub struct Capped {
    out: Box<dyn Write + Send>,
    pending: Pending,
    left: Option<u64>,
    /// Whether something was dropped.
    pub truncated: bool,
    /// The error after which it takes no more, where that doesn't end the command.
    pub failed: Option<io::Error>,
}

impl Capped {
    /// Makes an output that takes `limit` bytes, if there is a limit, and sets `pending` while it is written to.
    pub fn new(out: Box<dyn Write + Send>, limit: Option<u64>, pending: &Pending) -> Self {
        Capped {
            out,
            pending: pending.clone(),
            left: limit,
            truncated: false,
            failed: None,
        }
    }

    /// Writes messages. Where they can't be written any more, they are dropped from there on, and the command goes on: its exit
    /// code is worth more.
    ///
    /// # Errors
    ///
    /// Where their reader has closed its end.
    pub fn write_or_drop(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.failed.is_some() {
            return Ok(());
        }
        match self.write(bytes) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                self.truncated = true;
                self.failed = Some(error);
                Ok(())
            }
            written => written,
        }
    }

    /// Writes as much as the limit still allows, and drops the rest.
    ///
    /// # Errors
    ///
    /// Where that can't be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = self.left.map_or(usize::MAX, |left| {
            usize::try_from(left).unwrap_or(usize::MAX)
        });
        let taken = &bytes[..bytes.len().min(room)];
        self.truncated |= taken.len() < bytes.len();
        if let Some(left) = &mut self.left {
            *left -= taken.len() as u64;
        }
        if taken.is_empty() {
            return Ok(());
        }
        self.pending.set(true);
        let written = streams::write_all(&mut *self.out, taken);
        self.pending.set(false);
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Warning;
    use minivm_tests::output::Shared;

    #[test]
    fn what_is_over_the_limit_is_dropped_and_noted() {
        let out = Shared::default();
        let mut capped = Capped::new(Box::new(out.clone()), Some(5), &Pending::default());
        capped.write(b"hello").unwrap();
        assert!(!capped.truncated);
        capped.write(b" world").unwrap();
        assert!(capped.truncated);
        assert_eq!(*out.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn a_console_passes_on_its_limit_and_marks_what_it_drops() {
        let cut = Cut::default();
        let mut limited = Limited::new(Vec::new(), Some(5), &cut);
        limited.write_all(b"hello").unwrap();
        limited.write_all(b"").unwrap();
        assert!(!cut.is_set());
        limited.write_all(b" world").unwrap();
        assert!(cut.is_set());
        assert_eq!(limited.out, b"hello");
        let mut limited = Limited::new(Vec::new(), Some(3), &Cut::default());
        limited.write_all(b"hello").unwrap();
        assert_eq!(limited.out, b"hel");
    }

    #[test]
    fn messages_to_a_full_disk_are_dropped_and_noted_and_those_to_a_closed_pipe_an_error() {
        let full =
            || -> Box<dyn Write + Send> { Box::new(std::fs::File::create("/dev/full").unwrap()) };
        let mut capped = Capped::new(full(), None, &Pending::default());
        assert!(capped.write(b"x").is_err() && !capped.truncated);
        let mut capped = Capped::new(full(), None, &Pending::default());
        capped.write_or_drop(b"x").unwrap();
        capped.write_or_drop(b"y").unwrap();
        assert!(capped.truncated);
        let told = Warning::not_written(capped.failed.as_ref().unwrap());
        assert!(told.to_string().contains("No space left on device") && told.is_loss());
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut capped = Capped::new(Box::new(writer), None, &Pending::default());
        let error = capped.write_or_drop(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
