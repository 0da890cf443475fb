//! Signals that minivm gets while a command runs: they go to the command, until a user who repeats them ends the sandbox.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use minivm_machine::Warning;
use minivm_machine::output::Pending;
use minivm_machine::session::Event;
use minivm_machine::signal::TERM;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use super::terminal;

/// Time for a sandbox to end before this process does.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// Time in which a second signal ends the sandbox instead of being passed on.
const INSISTS: Duration = Duration::from_secs(10);

/// Set when the sandbox has ended: a signal then ends this process.
static OVER: AtomicBool = AtomicBool::new(false);

/// The command and its sandbox have ended: what asks for an end from now on ends this process, whatever it waits for.
pub(super) fn end_at_once() {
    OVER.store(true, Ordering::SeqCst);
}

/// Hands signals on. The second one of those by which users end programs ends the machine. What was ignored before, as
/// `nohup` does it, stays ignored.
pub(super) fn listen(events: Sender<Event>, pending: Pending) -> io::Result<()> {
    let mut signals =
        unless_ignored(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH])?;
    let listen = move || {
        let mut user = User::default();
        for signal in signals.forever() {
            let number = u8::try_from(signal).expect("a signal's number is small");
            if OVER.load(Ordering::SeqCst) && asks_for_an_end(signal) {
                std::process::exit(128 + signal);
            }
            let event = match signal {
                SIGWINCH => Event::Window(terminal::window()),
                _ if user.insists(signal, Instant::now()) => {
                    let told = "its end was not waited for: output may have been dropped";
                    end(&events, number, told);
                }
                _ => Event::Signal(number),
            };
            // The receiver is gone where the run is over.
            let _ = events.send(event);
            if signal == SIGTERM {
                end_if_stalled(events.clone(), pending.clone());
            }
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(listen)?;
    Ok(())
}

/// Ends the machine as if by this signal, and then this process.
fn end(events: &Sender<Event>, signal: u8, told: &str) -> ! {
    let _ = events.send(Event::Stop(signal));
    // It has ended by then, unless its output has a reader that takes nothing.
    thread::sleep(GRACE);
    terminal::leave(vec![told.into()], 128 + signal)
}

/// Ends the machine, and this process, as soon as one write to an output has lasted for a second: a command that has ended since it was
/// sent SIGTERM has no other way to end what waits for its output's reader.
fn end_if_stalled(events: Sender<Event>, pending: Pending) {
    let watch = move || {
        loop {
            let before = pending.count();
            thread::sleep(GRACE);
            if OVER.load(Ordering::SeqCst) {
                return;
            }
            if pending.is_set() && pending.count() == before {
                end(&events, TERM, &Warning::NotTaken.to_string());
            }
        }
    };
    // Where there is no thread for it, a second signal does the same.
    let _ = thread::Builder::new().name("stalled".into()).spawn(watch);
}

/// What is done before a signal ends this process, in this order.
static CLEAN_UPS: Mutex<Vec<CleanUp>> = Mutex::new(Vec::new());

type CleanUp = Box<dyn FnOnce() + Send>;

/// Set when a signal is about to end this process, before anything is cleaned up for it.
static DYING: AtomicBool = AtomicBool::new(false);

/// Returns if no signal is about to end this process: a thread whose work a clean-up has ended must not end the process before the signal
/// does.
pub(super) fn wait_for_death() {
    while DYING.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Does `clean_up` when a signal is about to end this process, as it then does. What was ignored before stays ignored. Several of them are
/// done one after the other.
pub(super) fn before_death(clean_up: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut clean_ups = CLEAN_UPS.lock().unwrap_or_else(PoisonError::into_inner);
    if clean_ups.is_empty() {
        clean_up_at_the_first_signal()?;
    }
    clean_ups.push(Box::new(clean_up));
    Ok(())
}

fn clean_up_at_the_first_signal() -> io::Result<()> {
    let mut signals = unless_ignored(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                DYING.store(true, Ordering::SeqCst);
                let all =
                    std::mem::take(&mut *CLEAN_UPS.lock().unwrap_or_else(PoisonError::into_inner));
                all.into_iter().for_each(|clean_up| clean_up());
                // Ends the process as the signal would have done.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        })?;
    Ok(())
}

/// Listens to those of the signals that this process doesn't ignore.
fn unless_ignored(all: &[i32]) -> io::Result<Signals> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Signals::new(all.iter().filter(|signal| !is_ignored(&status, **signal)))
}

/// Whether a process with this `/proc/PID/status` ignores the signal.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Whether programs end by the signal, as a rule because it was asked for.
fn asks_for_an_end(signal: i32) -> bool {
    matches!(signal, SIGHUP | SIGINT | SIGQUIT | SIGTERM)
}

/// The user's wish to end the sandbox, as far as signals show it.
#[derive(Default)]
struct User {
    /// When the command was last asked to end.
    asked: Option<Instant>,
}

impl User {
    /// Whether the signal asks for an end a second time, soon after the first. A terminal that is gone, or what a program
    /// sends for reasons of its own, asks for none.
    fn insists(&mut self, signal: i32, now: Instant) -> bool {
        if !matches!(signal, SIGINT | SIGQUIT | SIGTERM) {
            return false;
        }
        let insists = self.asked.is_some_and(|asked| now - asked <= INSISTS);
        self.asked = Some(now);
        insists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_insists_by_asking_twice_within_seconds() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut user = User::default();
        assert!(!user.insists(SIGHUP, at(0)));
        assert!(!user.insists(SIGTERM, at(1)), "a hangup asks for nothing");
        assert!(!user.insists(SIGUSR1, at(2)) && !user.insists(SIGHUP, at(2)));
        assert!(!user.insists(SIGTERM, at(3600)), "that was long ago");
        assert!(user.insists(SIGINT, at(3605)));
    }

    #[test]
    fn what_was_ignored_is_known_from_the_status() {
        let status = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, SIGHUP));
        assert!(!is_ignored(status, SIGINT) && !is_ignored("", SIGHUP));
    }
}
