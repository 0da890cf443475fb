//! A handle that ends a lab from another thread.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A handle that ends a lab before its command does. Clones end the same lab.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    channel: Option<UnixStream>,
}

impl Stop {
    /// Ends the lab now, or as soon as it starts. [`LabRequest::run`](super::LabRequest::run) then returns
    /// [`Error::Stopped`](super::Error::Stopped), unless the lab has answered before.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        if let Some(channel) = &state.channel {
            cut(channel);
        }
    }

    /// Returns whether [`stop`](Self::stop) was called.
    pub(super) fn was_called(&self) -> bool {
        self.lock().stopped
    }

    /// Sets the lab's channel. The lab ends when the channel does.
    pub(super) fn set_channel(&self, channel: UnixStream) {
        let mut state = self.lock();
        if state.stopped {
            cut(&channel);
        }
        state.channel = Some(channel);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cut(channel: &UnixStream) {
    // It fails where the lab has just ended.
    let _ = channel.shutdown(Shutdown::Both);
}
