//! Outputs that are looked at afterwards.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

/// Memory as a writer. Clones write to the same.
#[derive(Clone, Debug, Default)]
pub struct Shared(pub Arc<Mutex<Vec<u8>>>);

impl Shared {
    /// All that was written so far.
    ///
    /// # Panics
    ///
    /// If a thread panicked while it wrote.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("writing doesn't panic").clone()
    }

    /// All that was written so far, with what isn't UTF-8 replaced.
    ///
    /// # Panics
    ///
    /// If a thread panicked while it wrote.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .map_err(|_| io::ErrorKind::Other)?
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that passes every byte on, as long as there is a receiver.
pub struct Tap(Sender<u8>);

/// Returns a writer, and the receiver of its bytes.
pub fn tap() -> (Tap, Receiver<u8>) {
    let (sender, receiver) = channel();
    (Tap(sender), receiver)
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = bytes.iter().try_for_each(|byte| self.0.send(*byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output that is text.
///
/// # Panics
///
/// If it isn't UTF-8.
pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the output is UTF-8")
}
