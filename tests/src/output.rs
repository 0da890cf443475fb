//! An output that is looked at afterwards.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

/// Memory as a writer. Clones write to the same.
#[derive(Clone, Debug, Default)]
pub struct Shared(pub Arc<Mutex<Vec<u8>>>);

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
