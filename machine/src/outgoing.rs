//! Sending to the guest: messages from several threads, and input, as much of it as the guest has asked for.
//!
//! The thread that reads from the guest never sends: a send can wait until the guest makes room, which only the reader would notice.

use std::io::{self, PipeReader, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use minivm_guest::channel::{STDIN_WINDOW, ToGuest};
use minivm_vmm::InputSource as _;
use rustix::event::{PollFd, PollFlags, poll};

use crate::Input;

/// The most bytes of input or files in one message.
pub(super) const CHUNK: usize = 64 << 10;

/// The sending end of a session, which its threads share.
pub(super) struct Outgoing {
    /// `None` when the machine has ended.
    to_guest: Mutex<Option<Box<dyn Write + Send>>>,
    /// How many bytes of input the guest takes; `None` when the session is over.
    allowance: Mutex<Option<u32>>,
    changed: Condvar,
    progress: Mutex<Progress>,
    moved: Condvar,
}

struct Progress {
    stage: Stage,
    /// Whether the guest waits for the time.
    asks_time: bool,
}

/// The stages of a session. Threads wait for the one in which they may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The guest's init has not sent its hello.
    Booting,
    /// Its init waits for the request.
    Greeted,
    /// The command runs.
    Started,
    /// The command has ended, and its files come.
    Ended,
    /// The session has ended: nothing is sent any more.
    Over,
}

impl Outgoing {
    pub(super) fn new(to_guest: Box<dyn Write + Send>) -> Self {
        Outgoing {
            to_guest: Mutex::new(Some(to_guest)),
            allowance: Mutex::new(Some(0)),
            changed: Condvar::new(),
            progress: Mutex::new(Progress {
                stage: Stage::Booting,
                asks_time: false,
            }),
            moved: Condvar::new(),
        }
    }

    /// Enters a stage, and wakes the threads that wait for it.
    pub(super) fn reach(&self, stage: Stage) {
        self.progress().stage = stage;
        self.moved.notify_all();
    }

    /// Returns whether the command has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.progress().stage >= Stage::Ended
    }

    /// Notes that the guest asks for the time.
    pub(super) fn ask_time(&self) {
        self.progress().asks_time = true;
        self.moved.notify_all();
    }

    /// Waits for a stage; returns `false` where the session is over.
    pub(super) fn wait_for(&self, wanted: Stage) -> bool {
        self.wait_while(|progress| progress.stage < wanted).stage < Stage::Over
    }

    /// Waits until the guest asks for the time; returns `false` where the command has started instead, or the session is over.
    pub(super) fn wait_for_question(&self) -> bool {
        let mut progress =
            self.wait_while(|progress| progress.stage < Stage::Started && !progress.asks_time);
        progress.stage < Stage::Started && std::mem::take(&mut progress.asks_time)
    }

    fn wait_while(&self, waits: impl Fn(&Progress) -> bool) -> MutexGuard<'_, Progress> {
        let waited = self
            .moved
            .wait_while(self.progress(), |progress| waits(progress));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a whole message.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` where the machine has ended, else the stream's own.
    pub(super) fn send(&self, message: &ToGuest) -> io::Result<()> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let mut to_guest = self.to_guest.lock().unwrap_or_else(PoisonError::into_inner);
        let to_guest = to_guest.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        to_guest.write_all(&bytes).and_then(|()| to_guest.flush())
    }

    /// Drops the stream to the machine, which has ended, and so the machine's memory. Other threads may hold this for longer.
    pub(super) fn hang_up(&self) {
        *self.to_guest.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Lets `bytes` more of input be sent, up to one window, however much the guest asks for.
    pub(super) fn allow(&self, bytes: u32) {
        if let Some(allowance) = &mut *self.allowance() {
            *allowance = allowance.saturating_add(bytes).min(STDIN_WINDOW);
        }
        self.changed.notify_all();
    }

    /// Ends the session for all threads that send.
    pub(super) fn close(&self) {
        *self.allowance() = None;
        self.changed.notify_all();
        self.reach(Stage::Over);
    }

    /// Sends input until its end, until the guest takes no more, or until the other end of `quit` is closed.
    pub(super) fn feed(&self, input: &Input, quit: &PipeReader) {
        let mut buffer = vec![0; CHUNK];
        while let Some(allowed) = self.wait_for_allowance() {
            let mut both = [
                PollFd::new(quit, PollFlags::IN),
                PollFd::new(input, PollFlags::IN),
            ];
            if poll(&mut both, None).is_err() {
                continue;
            }
            // Input that comes when the session is over is left for the next reader of the stream.
            if !both[0].revents().is_empty() || self.allowance().is_none() {
                return;
            }
            let most = CHUNK.min(allowed as usize);
            // A stream that can't be read looks to the command like one that has ended.
            let Some(len) = input.try_read(&mut buffer[..most]).unwrap_or(Some(0)) else {
                continue;
            };
            // Before it is sent: the guest may have read it, and asked for more, before this thread runs again.
            let spent = u32::try_from(len).expect("at most a chunk");
            if let Some(allowance) = &mut *self.allowance() {
                *allowance = allowance.saturating_sub(spent);
            }
            if self.send(&ToGuest::Stdin(&buffer[..len])).is_err() || len == 0 {
                return;
            }
        }
    }

    fn wait_for_allowance(&self) -> Option<u32> {
        let mut allowance = self.allowance();
        while *allowance == Some(0) {
            allowance = self
                .changed
                .wait(allowance)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *allowance
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allowance(&self) -> MutexGuard<'_, Option<u32>> {
        self.allowance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A writer whose bytes go to the guest as pieces of files.
pub(super) struct FileWriter<'a> {
    outgoing: &'a Outgoing,
    /// Whether a piece could not be sent.
    pub(super) broken: bool,
}

impl<'a> FileWriter<'a> {
    pub(super) fn new(outgoing: &'a Outgoing) -> Self {
        FileWriter {
            outgoing,
            broken: false,
        }
    }
}

impl Write for FileWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(CHUNK)];
        if !part.is_empty() {
            let sent = self.outgoing.send(&ToGuest::Files(part));
            self.broken |= sent.is_err();
            sent?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, OnceLock};

    /// A guest that has read all that it was sent, and asks for as much again, before `send` returns.
    struct Prompt(Arc<OnceLock<Arc<Outgoing>>>);

    impl Write for Prompt {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = u32::try_from(bytes.len() - minivm_guest::channel::frame::HEADER).unwrap();
            self.0.get().unwrap().allow(len);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_guest_that_asks_for_more_during_a_send_gets_its_whole_window() {
        let guest = Arc::new(OnceLock::new());
        let outgoing = Arc::new(Outgoing::new(Box::new(Prompt(guest.clone()))));
        assert!(guest.set(outgoing.clone()).is_ok());
        outgoing.allow(STDIN_WINDOW);
        let (input, mut bytes) = io::pipe().unwrap();
        let (quit, _running) = io::pipe().unwrap();
        let writing = std::thread::spawn(move || bytes.write_all(&vec![7; 1 << 20]).unwrap());
        outgoing.feed(&Input::from(OwnedFd::from(input)), &quit);
        writing.join().unwrap();
        assert_eq!(*outgoing.allowance(), Some(STDIN_WINDOW));
    }
}
