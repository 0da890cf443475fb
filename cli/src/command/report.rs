//! What `minivm run` says of how it went: an exit code, lines on stderr, or one JSON object.

use std::cell::OnceCell;
use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minivm_guest::channel::{Exit, Status};
use minivm_machine::output::{self, Kept};
use minivm_machine::session::End;
use minivm_machine::streams;
use minivm_machine::{Place, Report};
use minivm_sandbox::{self, Exception, Finished};
use serde::Serialize;

use super::{EXIT_ERROR, EXIT_TIMEOUT, hint};

/// The command can't be executed.
const EXIT_NOT_EXECUTABLE: u8 = 126;
/// It isn't there.
const EXIT_NOT_FOUND: u8 = 127;
/// What is added to a signal's number.
const EXIT_SIGNAL: u8 = 128;
/// As if by SIGKILL, which is what the kernel sends.
const EXIT_OUT_OF_MEMORY: u8 = EXIT_SIGNAL + 9;

/// What is told where output was over the limit.
const CUT: &str = "output was cut at --max-output";

/// What is kept for a report of a run that may fail: its outputs, and where its machine ran.
pub(super) struct Captured {
    pub(super) stdout: Kept,
    pub(super) stderr: Kept,
    /// Where each of them was cut, if it was.
    limit: Option<u64>,
    ran: OnceCell<(Place, Option<bool>)>,
}

impl Captured {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Captured {
            stdout: Kept::default(),
            stderr: Kept::default(),
            limit,
            ran: OnceCell::new(),
        }
    }

    /// Notes where the machine runs, and whether it goes on from a template, where that may be.
    pub(super) fn note(&self, place: &Place, warm: Option<bool>) {
        let _ = self.ran.set((place.clone(), warm));
    }

    /// Whether one of them has come to the limit.
    fn is_full(&self) -> bool {
        let full = |kept: &Kept| Some(kept.bytes().len() as u64) >= self.limit;
        self.limit.is_some() && (full(&self.stdout) || full(&self.stderr))
    }
}

/// How long what took that is not the session's.
pub(super) struct Phases {
    /// From minivm's start until the image's archive was there.
    pub(super) image: Duration,
    /// And until the machine ran.
    pub(super) machine: Duration,
    /// To the very end.
    pub(super) total: Duration,
}

/// A report as it is printed. Times are in seconds, memory in bytes.
#[derive(Default, Serialize)]
pub(super) struct Printed {
    pub(super) exit_code: u8,
    /// The command's own, which `exit_code` isn't where something failed after it.
    command_exit_code: Option<u8>,
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
    #[serde(skip)]
    copy_failed: bool,
    wall_time: f64,
    user_time: Option<f64>,
    system_time: Option<f64>,
    /// The command's, in the guest.
    peak_memory: Option<u64>,
    /// The whole sandbox's, on this host.
    pub(super) host_memory: Option<u64>,
    pub(super) exception: Option<Exception>,
    /// What gave the machine its virtualization, `kvm` or `lab`; null where there was none.
    pub(super) accel: Option<&'static str>,
    /// Whether the machine went on from a template; null where there was none.
    pub(super) warm: Option<bool>,
    phases: PrintedPhases,
}

/// The phases, in the order in which they come. They add up to `total`.
#[derive(Default, Serialize)]
struct PrintedPhases {
    /// Finding the image, and making its archive.
    image: f64,
    /// Building the machine.
    build: f64,
    /// The kernel's start up to init's first instruction.
    boot: f64,
    /// Init's own start: file systems, the channel.
    init: Option<f64>,
    /// From there to the command's start.
    setup: f64,
    /// The command.
    run: f64,
    /// The machine's end.
    end: f64,
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
            End::NotFound(what) => Some(hint::not_found(what)),
            End::NotExecutable(what) => Some(hint::not_executable(what)),
            End::TimedOut => Some("the time limit was reached".into()),
            End::Stopped(_) => Some("the machine was stopped".into()),
            End::OutputClosed | End::Exited(_) => None,
        };
        Printed {
            exit_code: exit_code(report),
            command_exit_code: exit.map(command_exit_code),
            signal: exit.and_then(|exit| match exit.status {
                Status::Signal(signal) => Some(signal),
                Status::Code(_) => None,
            }),
            timed_out: report.end == End::TimedOut,
            truncated: report.truncated,
            oom: exit.is_some_and(|exit| exit.out_of_memory),
            error,
            warnings: report.warnings.clone(),
            copy_failed: report.copy_failed,
            wall_time: report.run.as_secs_f64(),
            user_time: exit.map(|exit| micros(exit.user_time)),
            system_time: exit.map(|exit| micros(exit.system_time)),
            peak_memory: exit.map(|exit| exit.peak_memory),
            host_memory: None,
            exception: None,
            warm: None,
            phases: PrintedPhases::new(report, phases, exit),
            ..Printed::default()
        }
        .with_loss()
        .with_outputs(captured)
    }

    /// Of a run in another sandbox than a microVM.
    pub(super) fn of_backend(
        finished: &Finished,
        opened: Duration,
        total: Duration,
        captured: Option<&Captured>,
    ) -> Self {
        use minivm_sandbox::End;
        let error = match &finished.end {
            End::NotFound(what) => Some(hint::not_found(what)),
            End::NotExecutable(what) => Some(hint::not_executable(what)),
            End::TimedOut => Some("the time limit was reached".into()),
            End::OutOfMemory => Some("the memory limit was reached".into()),
            End::Stopped(_) => Some("the sandbox was stopped".into()),
            End::Exited(_) | End::Signal(_) | End::OutputClosed | End::Suspended { .. } => None,
        };
        let (code, signal) = match finished.end {
            End::Exited(code) => (Some(code), None),
            End::Signal(signal) => (Some(EXIT_SIGNAL.saturating_add(signal)), Some(signal)),
            _ => (None, None),
        };
        let usage = &finished.usage;
        let time = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        Printed {
            exit_code: backend_exit_code(&finished.end),
            command_exit_code: code,
            signal,
            timed_out: finished.end == End::TimedOut,
            truncated: finished.truncated,
            oom: finished.end == End::OutOfMemory,
            error,
            warnings: finished.warnings.clone(),
            wall_time: usage.total.as_secs_f64(),
            user_time: time(usage.user_time),
            system_time: time(usage.system_time),
            host_memory: usage.peak_memory,
            exception: finished.exception.clone(),
            phases: PrintedPhases {
                image: opened.as_secs_f64(),
                run: usage.total.as_secs_f64(),
                end: total.saturating_sub(opened + usage.total).as_secs_f64(),
                total: total.as_secs_f64(),
                ..PrintedPhases::default()
            },
            ..Printed::default()
        }
        .with_loss()
        .with_outputs(captured)
    }

    /// With what it means that output was dropped: a run that loses some has not gone well, whatever its command says.
    fn with_loss(mut self) -> Self {
        if self.truncated && self.exit_code == 0 {
            self.exit_code = EXIT_ERROR;
            self.error = self.losses().into_iter().next();
        }
        self
    }

    /// What tells of output that was dropped, if some was.
    fn losses(&self) -> Vec<String> {
        let told = self.warnings.iter();
        let told: Vec<_> = told
            .filter(|told| output::tells_of_a_loss(told))
            .cloned()
            .collect();
        match (self.truncated, &*told) {
            (true, []) => vec![CUT.into()],
            _ => told,
        }
    }

    /// With the outputs that were kept.
    fn with_outputs(mut self, captured: Option<&Captured>) -> Self {
        let Some(captured) = captured else {
            return self;
        };
        let texts = |kept: &Kept| {
            let bytes = kept.bytes();
            let full = |limit| bytes.len() as u64 >= limit;
            text(&bytes, captured.limit.is_some_and(full) && self.truncated)
        };
        let (stdout, stderr) = (texts(&captured.stdout), texts(&captured.stderr));
        (self.stdout, self.stdout_base64) = stdout;
        (self.stderr, self.stderr_base64) = stderr;
        self
    }

    /// With where the machine ran.
    pub(super) fn at(mut self, place: &Place) -> Self {
        self.accel = Some(place.accel());
        self.warnings.extend(place.warning());
        self
    }

    /// Of a run that minivm itself has failed at, with the outputs that had come by then.
    pub(super) fn failed(error: String, total: Duration, captured: &Captured) -> Self {
        let printed = Printed {
            exit_code: EXIT_ERROR,
            error: Some(error),
            truncated: captured.is_full(),
            phases: PrintedPhases {
                total: total.as_secs_f64(),
                ..PrintedPhases::default()
            },
            ..Printed::default()
        };
        let printed = printed.with_outputs(Some(captured));
        match captured.ran.get() {
            Some((place, warm)) => Printed {
                warm: *warm,
                ..printed.at(place)
            },
            None => printed,
        }
    }

    /// Writes it to stdout, as an object in a line.
    pub(super) fn write(&self) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        streams::write_all(&mut io::stdout().lock(), &line)
    }

    /// Says on stderr what the user has to know.
    pub(super) fn tell(&self, quiet: bool, verbose: bool, timeout: Option<Duration>) {
        self.say(self.lines(quiet, verbose, timeout.unwrap_or_default()));
    }

    /// Says on stderr, beside the object, that output was lost.
    pub(super) fn tell_losses(&self) {
        self.say(self.losses());
    }

    /// Says lines on stderr. Where a limit was reached, or a reader has taken nothing by the end, it may be stderr that has such
    /// a reader: then it isn't waited for.
    fn say(&self, lines: Vec<String>) {
        match self.timed_out || self.warnings.iter().any(|told| told == output::NOT_TAKEN) {
            true => streams::tell_soon(lines),
            false => lines.iter().for_each(|line| streams::tell(line)),
        }
    }

    fn lines(&self, quiet: bool, verbose: bool, timeout: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        let losses = self.losses();
        // Files that could not be copied are an error, and told like one; output that was dropped is told below.
        if !quiet || self.copy_failed {
            let others = self.warnings.iter().filter(|told| !losses.contains(told));
            lines.extend(others.cloned());
        }
        let error = self.error.clone().filter(|error| !losses.contains(error));
        if self.timed_out {
            lines.push(time_limit_reached(timeout));
        } else {
            lines.extend(error.clone());
        }
        if self.oom && error.is_none() && !quiet {
            lines.push("the guest ran out of memory; more -m/--memory helps".into());
        }
        lines.extend(losses);
        lines.extend(verbose.then(|| self.phases.line()));
        lines
    }
}

impl PrintedPhases {
    fn line(&self) -> String {
        format!(
            "image {:.3} s, build {:.3} s, boot {:.3} s, setup {:.3} s, run {:.3} s, end {:.3} s, total {:.3} s",
            self.image,
            self.build,
            self.boot + self.init.unwrap_or_default(),
            self.setup,
            self.run,
            self.end,
            self.total
        )
    }

    fn new(report: &Report, phases: &Phases, exit: Option<&Exit>) -> Self {
        let init = exit.map(|exit| {
            let nanos = exit.times.hello.saturating_sub(exit.times.init);
            // The guest says so; it can't have been longer than the whole.
            Duration::from_nanos(nanos).min(report.boot)
        });
        let ended = phases.machine + report.boot + report.setup + report.run;
        PrintedPhases {
            image: phases.image.as_secs_f64(),
            build: phases.machine.saturating_sub(phases.image).as_secs_f64(),
            boot: (report.boot - init.unwrap_or_default()).as_secs_f64(),
            init: init.map(|init| init.as_secs_f64()),
            setup: report.setup.as_secs_f64(),
            run: report.run.as_secs_f64(),
            end: phases.total.saturating_sub(ended).as_secs_f64(),
            total: phases.total.as_secs_f64(),
        }
    }
}

fn exit_code(report: &Report) -> u8 {
    match &report.end {
        // These are why files were not copied, where they weren't.
        End::TimedOut => EXIT_TIMEOUT,
        End::Stopped(signal) => EXIT_SIGNAL.saturating_add(*signal),
        // As if by SIGPIPE.
        End::OutputClosed => EXIT_SIGNAL + 13,
        _ if report.copy_failed => EXIT_ERROR,
        End::Exited(exit) => command_exit_code(exit),
        End::NotFound(_) => EXIT_NOT_FOUND,
        End::NotExecutable(_) => EXIT_NOT_EXECUTABLE,
    }
}

fn backend_exit_code(end: &minivm_sandbox::End) -> u8 {
    use minivm_sandbox::End;
    match end {
        End::Exited(code) => *code,
        End::Signal(signal) | End::Stopped(signal) => EXIT_SIGNAL.saturating_add(*signal),
        End::TimedOut => EXIT_TIMEOUT,
        End::OutOfMemory => EXIT_OUT_OF_MEMORY,
        // As if by SIGPIPE.
        End::OutputClosed => EXIT_SIGNAL + 13,
        End::NotFound(_) => EXIT_NOT_FOUND,
        End::NotExecutable(_) => EXIT_NOT_EXECUTABLE,
        End::Suspended { .. } => EXIT_ERROR,
    }
}

fn command_exit_code(exit: &Exit) -> u8 {
    match exit.status {
        Status::Code(code) => code,
        Status::Signal(9) if exit.out_of_memory => EXIT_OUT_OF_MEMORY,
        Status::Signal(signal) => EXIT_SIGNAL.saturating_add(signal),
    }
}

/// What is said at the command's time limit.
pub(super) fn time_limit_reached(limit: Duration) -> String {
    format!("time limit of {limit:?} reached")
}

/// How short text is in JSON at any rate.
const SHORT: usize = 4096;

/// Text as it is, and anything else in base64. Text that was cut within a character ends before it.
fn text(bytes: &[u8], cut: bool) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        _ if is_binary(bytes) => (None, Some(STANDARD.encode(bytes))),
        Ok(text) => (Some(text.into()), None),
        Err(error) if cut && error.error_len().is_none() => {
            text(&bytes[..error.valid_up_to()], false)
        }
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// Whether it is so full of control characters that it was hardly meant as text: JSON has six bytes for each.
fn is_binary(bytes: &[u8]) -> bool {
    let is_text = |byte: &&u8| matches!(byte, b'\t' | b'\n' | 0x0c | b'\r' | 0x08 | b' '..);
    let text = bytes.iter().filter(is_text).count();
    bytes.len() > SHORT && bytes.len() - text > bytes.len() / 4
}

fn micros(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_guest::channel::Times;
    use std::io::Write;

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
        for (end, code) in [(End::TimedOut, 124), (End::Stopped(15), 143)] {
            failed.end = end;
            assert_eq!(exit_code(&failed), code, "it is why files are missing");
        }
    }

    #[test]
    fn what_is_no_text_is_in_base64() {
        assert_eq!(text("4\n".as_bytes(), false), (Some("4\n".into()), None));
        assert_eq!(text(&[0xff, 0], true), (None, Some("/wA=".into())));
    }

    #[test]
    fn what_is_full_of_control_characters_is_in_base64_unless_it_is_short() {
        let zeros = vec![0; SHORT + 1];
        let (text_of, encoded) = text(&zeros, false);
        assert_eq!((text_of, encoded.unwrap().len()), (None, 5464));
        let coloured = "\x1b[31mred\x1b[0m\r\n\t".repeat(1000);
        assert_eq!(text(coloured.as_bytes(), false), (Some(coloured), None));
        assert!(text(&zeros[1..], false).0.is_some());
    }

    #[test]
    fn text_that_was_cut_within_a_character_is_still_text() {
        let half = &"aä".as_bytes()[..2];
        assert_eq!(text(half, true), (Some("a".into()), None));
        assert_eq!(text(half, false), (None, Some("YcM=".into())));
        let captured = Captured::new(Some(2));
        captured.stdout.clone().write_all(half).unwrap();
        captured.stderr.clone().write_all(&half[1..]).unwrap();
        let mut cut = report(exited(Status::Code(0), false));
        cut.truncated = true;
        let printed = Printed::new(&cut, &phases(), Some(&captured));
        assert_eq!(printed.stdout.as_deref(), Some("a"));
        assert_eq!(printed.stderr, None, "this one was not cut");
    }

    fn phases() -> Phases {
        Phases {
            image: Duration::from_millis(1),
            machine: Duration::from_millis(3),
            total: Duration::from_millis(64),
        }
    }

    #[test]
    fn the_phases_add_up() {
        let mut report = report(exited(Status::Code(0), false));
        report.boot = Duration::from_millis(4);
        report.setup = Duration::from_millis(8);
        report.run = Duration::from_millis(16);
        if let End::Exited(exit) = &mut report.end {
            // More than the whole boot.
            exit.times.hello = 10_000_000;
        }
        let printed = PrintedPhases::new(
            &report,
            &phases(),
            match &report.end {
                End::Exited(exit) => Some(exit),
                _ => None,
            },
        );
        assert_eq!((printed.boot, printed.init), (0.0, Some(0.004)));
        let sum = [
            printed.image,
            printed.build,
            printed.boot,
            printed.init.unwrap(),
            printed.setup,
            printed.run,
            printed.end,
        ];
        assert!((sum.iter().sum::<f64>() - printed.total).abs() < 1e-9);
        assert!((printed.build - 0.002).abs() < 1e-9 && (printed.end - 0.033).abs() < 1e-9);
    }

    #[test]
    fn quiet_means_no_warnings_and_all_errors() {
        let lines = |report: &Report, quiet| {
            Printed::new(report, &phases(), None).lines(quiet, false, Duration::from_secs(5))
        };
        let mut warned = report(exited(Status::Code(0), true));
        warned.warnings = vec!["careful".into()];
        warned.truncated = true;
        assert_eq!(lines(&warned, true), [CUT]);
        assert_eq!(lines(&warned, false).len(), 3);
        warned.copy_failed = true;
        assert_eq!(lines(&warned, true), ["careful", CUT]);
        assert_eq!(
            lines(&report(End::TimedOut), true),
            ["time limit of 5s reached"]
        );
        assert_eq!(
            lines(&report(End::NotFound("x".into())), true),
            ["no such command: x"]
        );
    }

    #[test]
    fn lost_output_is_an_error_where_the_command_knows_of_none() {
        let printed = |code, warnings: &[&str]| {
            let mut lost = report(exited(Status::Code(code), false));
            lost.truncated = true;
            lost.warnings = warnings.iter().map(ToString::to_string).collect();
            Printed::new(&lost, &phases(), None)
        };
        let cut = printed(0, &["careful"]);
        assert_eq!((cut.exit_code, cut.command_exit_code), (125, Some(0)));
        assert_eq!(cut.error.as_deref(), Some(CUT));
        assert_eq!(cut.lines(true, false, Duration::ZERO), [CUT]);
        let slow = printed(0, &[output::NOT_TAKEN]);
        assert_eq!(slow.lines(true, false, Duration::ZERO), [output::NOT_TAKEN]);
        let own = printed(3, &[]);
        assert_eq!((own.exit_code, own.error.as_ref()), (3, None));
        assert_eq!(own.lines(true, false, Duration::ZERO), [CUT]);
    }

    #[test]
    fn a_failure_has_the_outputs_that_came_before_it() {
        let captured = Captured::new(Some(3));
        captured.stdout.clone().write_all(b"abc").unwrap();
        let printed = Printed::failed("it died".into(), Duration::ZERO, &captured);
        assert_eq!(printed.stdout.as_deref(), Some("abc"));
        assert_eq!(printed.stderr.as_deref(), Some(""));
        assert!(printed.truncated, "nobody can tell any more");
        let captured = Captured::new(Some(4));
        captured.stdout.clone().write_all(b"abc").unwrap();
        assert!(!Printed::failed(String::new(), Duration::ZERO, &captured).truncated);
    }

    #[test]
    fn a_failed_copy_leaves_the_commands_own_code_in_the_report() {
        let mut failed = report(exited(Status::Code(3), false));
        failed.copy_failed = true;
        let printed = Printed::new(&failed, &phases(), None);
        assert_eq!(
            (printed.exit_code, printed.command_exit_code),
            (125, Some(3))
        );
    }
}
