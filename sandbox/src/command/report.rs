//! What `minivm run` says of how it went: an exit code, lines on stderr, or one JSON object.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minivm::machine::Report;
use minivm::machine::session::End;
use minivm_guest::channel::{Exit, Status};
use serde::Serialize;

use super::{EXIT_ERROR, EXIT_TIMEOUT};

/// The command can't be executed.
const EXIT_NOT_EXECUTABLE: u8 = 126;
/// It isn't there.
const EXIT_NOT_FOUND: u8 = 127;
/// What is added to a signal's number.
const EXIT_SIGNAL: u8 = 128;
/// As if by SIGKILL, which is what the kernel sends.
const EXIT_OUT_OF_MEMORY: u8 = EXIT_SIGNAL + 9;

/// Outputs that are kept for a report.
#[derive(Default)]
pub(super) struct Captured {
    pub(super) stdout: Arc<Mutex<Vec<u8>>>,
    pub(super) stderr: Arc<Mutex<Vec<u8>>>,
}

/// Memory as a writer.
pub(super) struct Memory(pub(super) Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long what took that is not the session's.
pub(super) struct Phases {
    /// From minivm's start until the image's archive was there.
    pub(super) image: Duration,
    /// To the very end.
    pub(super) total: Duration,
}

/// A report as it is printed. Times are in seconds, memory in bytes.
#[derive(Serialize)]
pub(super) struct Printed {
    pub(super) exit_code: u8,
    signal: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_base64: Option<String>,
    timed_out: bool,
    truncated: bool,
    oom: bool,
    error: Option<String>,
    warnings: Vec<String>,
    wall_time: f64,
    user_time: Option<f64>,
    system_time: Option<f64>,
    peak_memory: Option<u64>,
    phases: PrintedPhases,
}

/// The phases, in the order in which they come.
#[derive(Serialize)]
struct PrintedPhases {
    /// Finding the image, and making its archive.
    image: f64,
    /// Building the machine, and the kernel's start up to init's first instruction.
    boot: f64,
    /// Init's own start: file systems, the channel.
    init: Option<f64>,
    /// From there to the command's start.
    setup: f64,
    /// The command.
    run: f64,
    /// All of it.
    total: f64,
}

impl Printed {
    pub(super) fn new(report: &Report, phases: &Phases, captured: Option<&Captured>) -> Self {
        let exit = match &report.end {
            End::Exited(exit) => Some(exit),
            _ => None,
        };
        let error = match &report.end {
            End::NotFound(what) => Some(format!("no such command: {what}")),
            End::NotExecutable(what) => Some(format!("cannot execute {what}")),
            End::TimedOut => Some("the time limit was reached".into()),
            End::Stopped(_) => Some("the machine was stopped".into()),
            End::OutputClosed | End::Exited(_) => None,
        };
        let texts = |which: fn(&Captured) -> &Arc<Mutex<Vec<u8>>>| match captured {
            Some(captured) => text(
                &which(captured)
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            ),
            None => (None, None),
        };
        let (stdout, stdout_base64) = texts(|captured| &captured.stdout);
        let (stderr, stderr_base64) = texts(|captured| &captured.stderr);
        Printed {
            exit_code: exit_code(report),
            signal: exit.and_then(|exit| match exit.status {
                Status::Signal(signal) => Some(signal),
                Status::Code(_) => None,
            }),
            stdout,
            stdout_base64,
            stderr,
            stderr_base64,
            timed_out: report.end == End::TimedOut,
            truncated: report.truncated,
            oom: exit.is_some_and(|exit| exit.out_of_memory),
            error,
            warnings: report.warnings.clone(),
            wall_time: report.run.as_secs_f64(),
            user_time: exit.map(|exit| micros(exit.user_time)),
            system_time: exit.map(|exit| micros(exit.system_time)),
            peak_memory: exit.map(|exit| exit.peak_memory),
            phases: PrintedPhases::new(report, phases, exit),
        }
    }

    /// Says on stderr what the user has to know.
    pub(super) fn tell(&self, quiet: bool, verbose: bool, timeout: Option<Duration>) {
        let say = |line: &str| eprintln!("minivm: {line}");
        self.warnings.iter().for_each(|warning| say(warning));
        if self.timed_out {
            say(&format!(
                "time limit of {:?} reached",
                timeout.unwrap_or_default()
            ));
        } else if let Some(error) = &self.error {
            say(error);
        }
        if self.oom && !quiet {
            say("the guest ran out of memory; more -m/--memory helps");
        }
        if self.truncated && !quiet {
            say("output was cut at --max-output");
        }
        if verbose {
            let phases = &self.phases;
            say(&format!(
                "image {:.3} s, boot {:.3} s, setup {:.3} s, run {:.3} s, total {:.3} s",
                phases.image, phases.boot, phases.setup, phases.run, phases.total
            ));
        }
    }
}

impl PrintedPhases {
    fn new(report: &Report, phases: &Phases, exit: Option<&Exit>) -> Self {
        let init = exit.map(|exit| {
            let nanos = exit.times.hello.saturating_sub(exit.times.init);
            Duration::from_nanos(nanos).as_secs_f64()
        });
        PrintedPhases {
            image: phases.image.as_secs_f64(),
            boot: (report.boot.as_secs_f64() - init.unwrap_or(0.0)).max(0.0),
            init,
            setup: report.setup.as_secs_f64(),
            run: report.run.as_secs_f64(),
            total: phases.total.as_secs_f64(),
        }
    }
}

fn exit_code(report: &Report) -> u8 {
    match &report.end {
        _ if report.copy_failed => EXIT_ERROR,
        End::Exited(exit) => match exit.status {
            Status::Code(code) => code,
            Status::Signal(9) if exit.out_of_memory => EXIT_OUT_OF_MEMORY,
            Status::Signal(signal) => EXIT_SIGNAL.saturating_add(signal),
        },
        End::NotFound(_) => EXIT_NOT_FOUND,
        End::NotExecutable(_) => EXIT_NOT_EXECUTABLE,
        End::TimedOut => EXIT_TIMEOUT,
        End::Stopped(signal) => EXIT_SIGNAL.saturating_add(*signal),
        // As if by SIGPIPE.
        End::OutputClosed => EXIT_SIGNAL + 13,
    }
}

/// Text as it is, and anything else in base64.
fn text(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.into()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

fn micros(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_guest::channel::Times;

    fn exited(status: Status, out_of_memory: bool) -> End {
        End::Exited(Exit {
            status,
            out_of_memory,
            user_time: 0,
            system_time: 0,
            peak_memory: 0,
            times: Times::default(),
        })
    }

    fn report(end: End) -> Report {
        Report {
            end,
            truncated: false,
            warnings: Vec::new(),
            copy_failed: false,
            boot: Duration::ZERO,
            setup: Duration::ZERO,
            run: Duration::ZERO,
        }
    }

    #[test]
    fn exit_codes_are_those_that_shells_know() {
        for (end, code) in [
            (exited(Status::Code(42), false), 42),
            (exited(Status::Code(1), true), 1),
            (exited(Status::Signal(9), true), 137),
            (exited(Status::Signal(11), false), 139),
            (End::NotFound(String::new()), 127),
            (End::NotExecutable(String::new()), 126),
            (End::TimedOut, 124),
            (End::Stopped(2), 130),
            (End::Stopped(15), 143),
            (End::OutputClosed, 141),
        ] {
            assert_eq!(exit_code(&report(end.clone())), code, "{end:?}");
        }
        let mut failed = report(exited(Status::Code(0), false));
        failed.copy_failed = true;
        assert_eq!(exit_code(&failed), 125);
    }

    #[test]
    fn what_is_no_text_is_in_base64() {
        assert_eq!(text("4\n".as_bytes()), (Some("4\n".into()), None));
        assert_eq!(text(&[0xff, 0]), (None, Some("/wA=".into())));
    }
}
