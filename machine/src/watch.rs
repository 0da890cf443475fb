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
    /// The events of a machine in another process, a monitor or one in the lab, as JSON lines.
    Events {
        /// The stream to which they are sent.
        stream: UnixStream,
        /// When a monitor's times begin. Those of a lab begin there.
        began: Instant,
    },
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
            Watch::Events { stream, began } => Watch::Events {
                stream: stream.try_clone()?,
                began: *began,
            },
        })
    }

    /// Splits a watch into the stream for another process's events, with their beginning, and the observer of this process's machine.
    pub(crate) fn parts(
        watch: Option<Watch>,
    ) -> (Option<(UnixStream, Instant)>, Option<Arc<dyn Observer>>) {
        match watch {
            None => (None, None),
            Some(Watch::Events { stream, began }) => (Some((stream, began)), None),
            Some(Watch::Observer(observer)) => (None, Some(observer)),
        }
    }

    /// Returns the stream for the events of a machine in the lab.
    pub(crate) fn events(self) -> Option<UnixStream> {
        match self {
            Watch::Observer(_) => None,
            Watch::Events { stream, .. } => Some(stream),
        }
    }
}
