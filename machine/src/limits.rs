//! A session's time limits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use minivm_image::io_error::cannot;

use super::Error;
use crate::output::Pending;

/// How long a session may take to end once its time is up. One that takes longer waits for a reader that doesn't take its output.
const GRACE: Duration = Duration::from_secs(1);

/// Why a machine was stopped before its command had ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Its init didn't start in time.
    NoInit,
    /// The command's time was up.
    TimedOut,
    /// The session was asked to stop, as if by this signal.
    Asked(u8),
}

/// Stops the machine, and remembers the first reason.
pub(super) struct Stopper {
    stop: Box<dyn Fn() + Send + Sync>,
    stopped: AtomicBool,
    why: Mutex<Option<Why>>,
    /// The session's outputs.
    pending: Pending,
    /// Whether one of them was being written when there was a reason to stop.
    stalled: AtomicBool,
}

impl Stopper {
    pub(super) fn new(stop: Box<dyn Fn() + Send + Sync>, pending: &Pending) -> Self {
        Stopper {
            stop,
            stopped: AtomicBool::new(false),
            why: Mutex::new(None),
            pending: pending.clone(),
            stalled: AtomicBool::new(false),
        }
    }

    pub(super) fn stop_because(&self, why: Why) {
        self.remember(why);
        // While an output waits for its reader, the guest's pipes fill: what is in them goes with the machine.
        self.stalled
            .fetch_or(self.pending.is_set(), Ordering::SeqCst);
        self.stop();
    }

    /// Notes a reason to stop the machine soon.
    fn remember(&self, why: Why) {
        self.why
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(why);
    }

    /// Stops the machine, whose command has ended.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        (self.stop)();
    }

    /// Whether the machine was stopped: nothing is to be done for it any more.
    pub(super) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Whether output was on its way when there was a reason to stop: some of it may never come.
    pub(super) fn has_stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst)
    }

    pub(super) fn why(&self) -> Option<Why> {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a machine gets when the command's time is up.
pub(super) struct Grace {
    /// Time to send files in.
    pub(super) time: Duration,
    /// Ends the command, without waiting for that.
    pub(super) end_command: Box<dyn FnOnce() + Send>,
}

/// Stops the machine when its time is up.
pub(super) struct Watchdog {
    limit: Sender<Option<Duration>>,
    watching: JoinHandle<()>,
}

impl Watchdog {
    /// Gives the machine `boot` until the command starts, and `grace` after the command's limit. `overdue` is called where the
    /// session isn't over a second after that because an output is being written: whatever else it does then has an end.
    pub(super) fn start(
        stopper: Arc<Stopper>,
        boot: Duration,
        grace: Option<Grace>,
        overdue: Option<Box<dyn FnOnce() + Send>>,
    ) -> Result<Self, Error> {
        let (limit, limits) = mpsc::channel();
        let watch = move || {
            let mut why = Why::NoInit;
            let mut left = Some(boot);
            loop {
                let next = match left {
                    Some(left) => limits.recv_timeout(left),
                    None => limits.recv().map_err(|_| RecvTimeoutError::Disconnected),
                };
                match next {
                    Ok(limit) => (why, left) = (Why::TimedOut, limit),
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
            if let Some(grace) = grace.filter(|_| why == Why::TimedOut) {
                stopper.remember(why);
                (grace.end_command)();
                if limits.recv_timeout(grace.time) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
            stopper.stop_because(why);
            let Some(overdue) = overdue.filter(|_| why == Why::TimedOut) else {
                return;
            };
            while limits.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
                if stopper.pending.is_set() {
                    return overdue();
                }
            }
        };
        let watching = thread::Builder::new()
            .name("watchdog".into())
            .spawn(watch)
            .map_err(cannot("start a thread"))?;
        Ok(Watchdog { limit, watching })
    }

    /// Starts the command's own limit: the command has started.
    pub(super) fn set(&self, limit: Option<Duration>) {
        // It has stopped listening where the time is up.
        let _ = self.limit.send(limit);
    }

    /// Ends the watchdog: the session is over.
    pub(super) fn end(self) {
        drop(self.limit);
        let _ = self.watching.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_tests::patience::PATIENCE;
    use std::sync::mpsc::channel;

    fn watchdog(stopper: &Arc<Stopper>, boot: Duration) -> Watchdog {
        Watchdog::start(stopper.clone(), boot, None, None).unwrap()
    }

    #[test]
    fn only_an_output_that_nobody_takes_after_the_commands_limit_is_overdue() {
        let overdue = |limit: Option<Duration>, writing: bool| {
            let pending = Pending::default();
            pending.set(writing);
            let stopper = Arc::new(Stopper::new(Box::new(|| {}), &pending));
            let (sender, called) = channel();
            let overdue = Box::new(move || sender.send(()).unwrap());
            let boot = match limit {
                Some(_) => Duration::from_secs(60),
                None => Duration::ZERO,
            };
            let watchdog = Watchdog::start(stopper, boot, None, Some(overdue)).unwrap();
            if limit.is_some() {
                watchdog.set(limit);
            }
            // One that must not come is waited for for a while.
            let expected = limit.is_some() && writing;
            let wait = if expected {
                PATIENCE
            } else {
                GRACE + GRACE / 2
            };
            let called = called.recv_timeout(wait);
            watchdog.end();
            called.is_ok()
        };
        assert!(overdue(Some(Duration::ZERO), true));
        assert!(!overdue(Some(Duration::ZERO), false), "it only takes long");
        assert!(!overdue(None, true), "the boot's limit");
    }

    #[test]
    fn the_first_reason_counts_and_the_machine_is_stopped() {
        let (sender, stops) = channel();
        let stopper = Arc::new(Stopper::new(
            Box::new(move || sender.send(()).unwrap()),
            &Pending::default(),
        ));
        let watchdog = watchdog(&stopper, Duration::from_secs(60));
        watchdog.set(Some(Duration::from_millis(1)));
        stops.recv_timeout(PATIENCE).unwrap();
        stopper.stop_because(Why::Asked(2));
        assert_eq!(stopper.why(), Some(Why::TimedOut));
        watchdog.end();
    }

    #[test]
    fn an_output_that_waits_for_its_reader_at_a_stop_is_remembered() {
        for waits in [false, true] {
            let pending = Pending::default();
            let stopper = Stopper::new(Box::new(|| {}), &pending);
            pending.set(waits);
            stopper.stop_because(Why::Asked(15));
            pending.set(false);
            assert_eq!(stopper.has_stalled(), waits);
        }
    }

    #[test]
    fn a_session_that_ends_in_time_is_left_alone() {
        let stopper = Arc::new(Stopper::new(
            Box::new(|| panic!("it must not be stopped")),
            &Pending::default(),
        ));
        let watchdog = watchdog(&stopper, Duration::from_secs(60));
        watchdog.set(None);
        watchdog.end();
        assert_eq!(stopper.why(), None);
    }
}
