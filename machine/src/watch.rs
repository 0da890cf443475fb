//! The watch over a machine's exits, wherever the machine runs.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use minivm_vmm::Observer;

/// A function that returns the watch over a machine, once it is known where that runs.
pub type Watching = Box<dyn FnOnce(&crate::Accel) -> std::io::Result<Watch> + Send>;

/// The watch over a machine's exits.
pub enum Watch {
    /// The observer of a machine of this process's.
    Observer(Arc<dyn Observer>),
    /// A stream whose other end gets the events of a machine in the lab, as JSON lines.
    Events(UnixStream),
}

impl Watch {
    /// Returns the observer of a machine of this process's.
    pub(crate) fn observer(self) -> Option<Arc<dyn Observer>> {
        match self {
            Watch::Observer(observer) => Some(observer),
            Watch::Events(_) => None,
        }
    }

    /// Returns the stream for the events of a machine in the lab.
    pub(crate) fn events(self) -> Option<UnixStream> {
        match self {
            Watch::Observer(_) => None,
            Watch::Events(stream) => Some(stream),
        }
    }
}
