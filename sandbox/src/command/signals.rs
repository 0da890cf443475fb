//! Signals that minivm gets while a command runs: the command's, until the user means it.

use std::io;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use minivm::machine::session::Event;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use super::{run, terminal};

/// How long a machine that is to end may take.
const GRACE: Duration = Duration::from_secs(1);

/// Hands signals on. The second one of those that end programs ends the machine.
pub(super) fn listen(events: Sender<Event>, stop_signal: u8) -> io::Result<()> {
    let all = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH];
    let mut signals = Signals::new(all)?;
    let listen = move || {
        let mut asked = false;
        for signal in signals.forever() {
            let number = u8::try_from(signal).expect("a signal's number is small");
            let event = match signal {
                SIGWINCH => Event::Window(run::window()),
                SIGUSR1 | SIGUSR2 => Event::Signal(number),
                _ if asked => {
                    let _ = events.send(Event::Stop(number));
                    // It has ended by then, unless nobody takes its output.
                    thread::sleep(GRACE);
                    terminal::restore();
                    std::process::exit(128 + signal);
                }
                _ => {
                    asked = true;
                    let number = if signal == SIGTERM {
                        stop_signal
                    } else {
                        number
                    };
                    Event::Signal(number)
                }
            };
            if events.send(event).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(listen)?;
    Ok(())
}

/// A signal by its name, with or without SIG, or by its number. None is SIGTERM.
pub(super) fn number(name: &str) -> anyhow::Result<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if name.is_empty() {
        return Ok(15);
    }
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = (1..).zip(NAMES).find(|(_, known)| *known == short);
    match (known, name.parse()) {
        (Some((number, _)), _) => Ok(number),
        (None, Ok(number @ 1..=64)) => Ok(number),
        _ => bail!("the image's stop signal {name:?} is none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, expected) in [
            ("", 15),
            ("SIGINT", 2),
            ("quit", 3),
            ("SIGSYS", 31),
            ("9", 9),
            ("SIGUSR2", 12),
        ] {
            assert_eq!(number(name).unwrap(), expected, "{name}");
        }
        for wrong in ["SIGNOTHING", "0", "65", "-1"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }
}
