//! The watch over a machine's exits, wherever the machine runs.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use minivm_vmm::Observer;

/// A function that returns the watch over a machine, once it is known where that runs.
pub type Watching = Box<dyn FnOnce(&crate::Accel) -> std::io::Result<Watch> + Send>;

/// The watch over a machine's exits.
pub enum Watch {
    /// The observer of a machine of this process's.
    Observer(Arc<dyn Observer>),
    /// The events of a machine in another process: a monitor, or one in the lab.
    Events(Events),
}

/// The way of the events of a machine in another process.
#[derive(Debug)]
pub struct Events {
    /// The stream whose other end gets them, as JSON lines.
    pub stream: UnixStream,
    /// When a monitor's times begin. Those of a lab begin there.
    pub began: Instant,
}

impl Watch {
    /// Returns the same watch once more, for a second attempt to start the machine.
    ///
    /// # Errors
    ///
    /// The operating system's, where it can't duplicate the stream.
    pub fn try_clone(&self) -> std::io::Result<Watch> {
        Ok(match self {
            Watch::Observer(observer) => Watch::Observer(observer.clone()),
            Watch::Events(Events { stream, began }) => Watch::Events(Events {
                stream: stream.try_clone()?,
                began: *began,
            }),
        })
    }

    /// Returns the way of another process's events.
    pub(crate) fn events(self) -> Option<Events> {
        match self {
            Watch::Observer(_) => None,
            Watch::Events(events) => Some(events),
        }
    }

    /// Splits a watch into the way of another process's events, and the observer of this process's machine.
    pub(crate) fn parts(watch: Option<Watch>) -> (Option<Events>, Option<Arc<dyn Observer>>) {
        match watch {
            None => (None, None),
            Some(Watch::Events(events)) => (Some(events), None),
            Some(Watch::Observer(observer)) => (None, Some(observer)),
        }
    }
}
