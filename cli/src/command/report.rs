//! The report of a run: an exit code, and lines on stderr or one JSON object.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minivm_machine::Accel;
use minivm_machine::output::CaptureBuffer;
use minivm_machine::signal::KILL;
use minivm_machine::streams;
use minivm_sandbox::{End, Exception, Finished, MachineRun, Warning};
use serde::Serialize;

use super::{EXIT_ERROR, hint};

/// The line about output over the limit.
pub(super) const CUT: &str = "output was cut at --max-output";

/// Outputs of a run, kept for its report, and where its machine ran: a run that fails is reported, too.
pub(super) struct Captured {
    pub(super) stdout: CaptureBuffer,
    pub(super) stderr: CaptureBuffer,
    /// Bytes at which each output is cut.
    limit: Option<u64>,
    ran: OnceLock<(Accel, bool)>,
}

impl Captured {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Captured {
            stdout: CaptureBuffer::default(),
            stderr: CaptureBuffer::default(),
            limit,
            ran: OnceLock::new(),
        }
    }

    /// Notes where the machine runs, and whether it was resumed from a template.
    pub(super) fn note(&self, accel: &Accel, warm: bool) {
        let _ = self.ran.set((accel.clone(), warm));
    }

    /// Returns whether one of the outputs has come to the limit.
    fn is_full(&self) -> bool {
        let full = |kept: &CaptureBuffer| Some(kept.bytes().len() as u64) >= self.limit;
        self.limit.is_some() && (full(&self.stdout) || full(&self.stderr))
    }
}

/// A report as it is printed. Times are in seconds, memory in bytes.
#[derive(Default, Serialize)]
pub(super) struct RunReport {
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
    warnings: Vec<Warning>,
    #[serde(skip)]
    copy_failed: bool,
    wall_time: f64,
    user_time: Option<f64>,
    system_time: Option<f64>,
    /// The command's, in the guest.
    peak_memory: Option<u64>,
    /// The whole sandbox's, on this host.
    host_memory: Option<u64>,
    exception: Option<Exception>,
    /// The machine's accelerator, `kvm` or `lab`; null where there was no machine.
    accel: Option<&'static str>,
    /// What the walls around the machine's monitor lack on this host, each with the reason; null where there are no walls. Those around
    /// the fetcher lack no more.
    missing_walls: Option<Vec<String>>,
    /// Whether the machine was resumed from a template; null where there was no machine.
    warm: Option<bool>,
    phases: ReportPhases,
}

/// The phases, in the order in which they come. They add up to `total`.
#[derive(Default, Serialize)]
struct ReportPhases {
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

impl RunReport {
    /// The report of a run that took `opened` until there was a sandbox, and `total` in all.
    pub(super) fn new(
        finished: &Finished,
        opened: Duration,
        total: Duration,
        captured: Option<&Captured>,
    ) -> Self {
        let (usage, machine) = (&finished.usage, finished.machine.as_ref());
        let (command_exit_code, signal) = match finished.end {
            End::Exited(_) => (finished.end.exit_code(), None),
            End::Signal(signal) => (finished.end.exit_code(), Some(signal)),
            // That is how a kernel does it, and a guest's reports it.
            End::OutOfMemory if machine.is_some() => (finished.end.exit_code(), Some(KILL)),
            _ => (None, None),
        };
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        let copy_failed = machine.is_some_and(|machine| machine.copy_failed);
        RunReport {
            exit_code: exit_code(&finished.end, copy_failed),
            command_exit_code,
            signal,
            timed_out: finished.end == End::TimedOut,
            truncated: finished.truncated,
            oom: finished.end == End::OutOfMemory
                || machine.is_some_and(|machine| machine.out_of_memory),
            error: error(&finished.end, machine.is_some()),
            warnings: finished.warnings.clone(),
            copy_failed,
            wall_time: machine
                .map_or(usage.total, |machine| machine.run)
                .as_secs_f64(),
            user_time: seconds(usage.user_time),
            system_time: seconds(usage.system_time),
            peak_memory: machine.and_then(|machine| machine.peak_memory),
            host_memory: usage.peak_memory,
            exception: finished.exception.clone(),
            accel: machine.map(|machine| machine.accel.name()),
            missing_walls: machine.and_then(|machine| {
                let missing = &machine.walls.as_ref()?.missing;
                Some(missing.iter().map(ToString::to_string).collect())
            }),
            warm: machine.map(|machine| machine.warm),
            phases: match machine {
                Some(machine) => ReportPhases::of_machine(machine, opened, total),
                None => ReportPhases {
                    image: opened.as_secs_f64(),
                    run: usage.total.as_secs_f64(),
                    end: total.saturating_sub(opened + usage.total).as_secs_f64(),
                    total: total.as_secs_f64(),
                    ..ReportPhases::default()
                },
            },
            ..RunReport::default()
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

    /// The lines about dropped output, if some was dropped.
    fn losses(&self) -> Vec<String> {
        let losses = self.warnings.iter().filter(|warning| warning.is_loss());
        let losses: Vec<_> = losses.map(ToString::to_string).collect();
        match (self.truncated, &*losses) {
            (true, []) => vec![CUT.into()],
            _ => losses,
        }
    }

    /// With the outputs that were kept.
    fn with_outputs(mut self, captured: Option<&Captured>) -> Self {
        let Some(captured) = captured else {
            return self;
        };
        let texts = |kept: &CaptureBuffer| {
            let bytes = kept.bytes();
            let full = |limit| bytes.len() as u64 >= limit;
            text(&bytes, captured.limit.is_some_and(full) && self.truncated)
        };
        let (stdout, stderr) = (texts(&captured.stdout), texts(&captured.stderr));
        (self.stdout, self.stdout_base64) = stdout;
        (self.stderr, self.stderr_base64) = stderr;
        self
    }

    /// Of a run that minivm itself has failed at, with the outputs that had come by then.
    pub(super) fn failed(error: String, total: Duration, captured: &Captured) -> Self {
        let printed = RunReport {
            exit_code: EXIT_ERROR,
            error: Some(error),
            truncated: captured.is_full(),
            phases: ReportPhases {
                total: total.as_secs_f64(),
                ..ReportPhases::default()
            },
            ..RunReport::default()
        };
        let printed = printed.with_outputs(Some(captured));
        match captured.ran.get() {
            Some((accel, warm)) => RunReport {
                accel: Some(accel.name()),
                warm: Some(*warm),
                warnings: accel.warning().map(Warning::Other).into_iter().collect(),
                ..printed
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
        match self.timed_out || self.warnings.contains(&Warning::NotTaken) {
            true => streams::tell_soon(lines),
            false => lines.iter().for_each(|line| streams::tell(line)),
        }
    }

    fn lines(&self, quiet: bool, verbose: bool, timeout: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        let losses = self.losses();
        // Files that could not be copied are an error, and printed like one; dropped output comes below.
        if !quiet || self.copy_failed {
            let others = self.warnings.iter().filter(|warning| !warning.is_loss());
            lines.extend(others.map(ToString::to_string));
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

impl ReportPhases {
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

    fn of_machine(machine: &MachineRun, opened: Duration, total: Duration) -> Self {
        let init = machine.init.unwrap_or_default();
        let ended = opened + machine.build + machine.boot + init + machine.setup + machine.run;
        ReportPhases {
            image: opened.as_secs_f64(),
            build: machine.build.as_secs_f64(),
            boot: machine.boot.as_secs_f64(),
            init: machine.init.map(|init| init.as_secs_f64()),
            setup: machine.setup.as_secs_f64(),
            run: machine.run.as_secs_f64(),
            end: total.saturating_sub(ended).as_secs_f64(),
            total: total.as_secs_f64(),
        }
    }
}

/// minivm's exit code after this end: the command's own where it has one, unless its files could not be copied.
pub(super) fn exit_code(end: &End, copy_failed: bool) -> u8 {
    match (end, end.exit_code()) {
        // These are why files were not copied, where they weren't.
        (End::TimedOut | End::Stopped(_) | End::OutputClosed, Some(code)) => code,
        (_, Some(code)) if !copy_failed => code,
        _ => EXIT_ERROR,
    }
}

/// The error that an end is, if it is one.
fn error(end: &End, in_machine: bool) -> Option<String> {
    let what = if in_machine { "machine" } else { "sandbox" };
    match end {
        End::NotFound(what) => Some(hint::not_found(what)),
        End::NotExecutable(what) => Some(hint::not_executable(what)),
        End::TimedOut => Some("the time limit was reached".into()),
        End::OutOfMemory if !in_machine => Some("the memory limit was reached".into()),
        End::Stopped(_) => Some(format!("the {what} was stopped")),
        End::Exited(_)
        | End::Signal(_)
        | End::OutOfMemory
        | End::OutputClosed
        | End::Suspended { .. } => None,
    }
}

/// The line about the command's time limit.
pub(super) fn time_limit_reached(limit: Duration) -> String {
    format!("time limit of {limit:?} reached")
}

/// The most bytes of text that are short in JSON, whatever they are.
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

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_sandbox::Usage;
    use std::io::Write;

    const MILLI: Duration = Duration::from_millis(1);

    fn finished(end: End) -> Finished {
        Finished {
            end,
            exception: None,
            truncated: false,
            warnings: Vec::new(),
            usage: Usage::default(),
            machine: Some(MachineRun {
                accel: Accel::Kvm,
                warm: false,
                walls: None,
                copy_failed: false,
                out_of_memory: false,
                peak_memory: None,
                build: Duration::ZERO,
                boot: Duration::ZERO,
                init: None,
                setup: Duration::ZERO,
                run: Duration::ZERO,
            }),
        }
    }

    fn change(finished: &mut Finished, change: impl FnOnce(&mut MachineRun)) {
        change(finished.machine.as_mut().unwrap());
    }

    fn printed(finished: &Finished) -> RunReport {
        RunReport::new(finished, MILLI, 64 * MILLI, None)
    }

    #[test]
    fn files_that_were_not_copied_are_an_error_unless_the_end_is_why() {
        for (end, code) in [
            (End::Exited(0), 125),
            (End::Exited(3), 125),
            (End::TimedOut, 124),
            (End::Stopped(15), 143),
            (End::OutputClosed, 141),
        ] {
            assert_eq!(exit_code(&end, true), code, "{end:?}");
        }
        assert_eq!(exit_code(&End::Exited(3), false), 3);
    }

    #[test]
    fn the_memory_limit_is_an_error_of_its_own_outside_a_machine_alone() {
        let mut killed = finished(End::OutOfMemory);
        let inside = printed(&killed);
        assert_eq!(
            (inside.exit_code, inside.signal, inside.oom),
            (137, Some(9), true)
        );
        assert_eq!((inside.error, inside.command_exit_code), (None, Some(137)));
        killed.machine = None;
        let outside = printed(&killed);
        assert_eq!(
            (outside.exit_code, outside.signal, outside.oom),
            (137, None, true)
        );
        assert_eq!(
            outside.error.as_deref(),
            Some("the memory limit was reached")
        );
        assert_eq!((outside.warm, outside.accel), (None, None));
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
        let mut cut = finished(End::Exited(0));
        cut.truncated = true;
        let printed = RunReport::new(&cut, MILLI, MILLI, Some(&captured));
        assert_eq!(printed.stdout.as_deref(), Some("a"));
        assert_eq!(printed.stderr, None, "this one was not cut");
    }

    #[test]
    fn the_phases_add_up() {
        let mut ended = finished(End::Exited(0));
        change(&mut ended, |machine| {
            machine.build = 2 * MILLI;
            machine.init = Some(4 * MILLI);
            machine.setup = 8 * MILLI;
            machine.run = 16 * MILLI;
        });
        let phases = printed(&ended).phases;
        let sum = [
            phases.image,
            phases.build,
            phases.boot,
            phases.init.unwrap(),
            phases.setup,
            phases.run,
            phases.end,
        ];
        assert!((sum.iter().sum::<f64>() - phases.total).abs() < 1e-9);
        assert!((phases.build - 0.002).abs() < 1e-9 && (phases.end - 0.033).abs() < 1e-9);
    }

    #[test]
    fn quiet_means_no_warnings_and_all_errors() {
        let lines = |finished: &Finished, quiet| {
            printed(finished).lines(quiet, false, Duration::from_secs(5))
        };
        let mut warned = finished(End::Exited(0));
        change(&mut warned, |machine| machine.out_of_memory = true);
        warned.warnings = vec![Warning::Other("careful".into())];
        warned.truncated = true;
        assert_eq!(lines(&warned, true), [CUT]);
        assert_eq!(lines(&warned, false).len(), 3);
        change(&mut warned, |machine| machine.copy_failed = true);
        assert_eq!(lines(&warned, true), ["careful", CUT]);
        assert_eq!(
            lines(&finished(End::TimedOut), true),
            ["time limit of 5s reached"]
        );
        assert_eq!(
            lines(&finished(End::NotFound("x".into())), true),
            ["no such command: x"]
        );
    }

    #[test]
    fn lost_output_is_an_error_where_the_command_knows_of_none() {
        let lost = |code, warnings: &[Warning]| {
            let mut lost = finished(End::Exited(code));
            lost.truncated = true;
            lost.warnings = warnings.to_vec();
            printed(&lost)
        };
        // A guest chooses the texts of its warnings.
        let forged = Warning::Other(Warning::NotTaken.to_string());
        let cut = lost(0, &[forged]);
        assert_eq!((cut.exit_code, cut.command_exit_code), (125, Some(0)));
        assert_eq!(cut.error.as_deref(), Some(CUT));
        assert_eq!(cut.lines(true, false, Duration::ZERO), [CUT]);
        let slow = lost(0, &[Warning::NotTaken]);
        let line = Warning::NotTaken.to_string();
        assert_eq!(slow.lines(true, false, Duration::ZERO), [line]);
        let own = lost(3, &[]);
        assert_eq!((own.exit_code, own.error.as_ref()), (3, None));
        assert_eq!(own.lines(true, false, Duration::ZERO), [CUT]);
    }

    #[test]
    fn a_failure_has_the_outputs_that_came_before_it() {
        let captured = Captured::new(Some(3));
        captured.stdout.clone().write_all(b"abc").unwrap();
        let printed = RunReport::failed("it died".into(), Duration::ZERO, &captured);
        assert_eq!(printed.stdout.as_deref(), Some("abc"));
        assert_eq!(printed.stderr.as_deref(), Some(""));
        assert!(printed.truncated, "the report can't know better");
        let captured = Captured::new(Some(4));
        captured.stdout.clone().write_all(b"abc").unwrap();
        assert!(!RunReport::failed(String::new(), Duration::ZERO, &captured).truncated);
    }

    #[test]
    fn a_failed_copy_leaves_the_commands_own_code_in_the_report() {
        let mut failed = finished(End::Exited(3));
        change(&mut failed, |machine| machine.copy_failed = true);
        let printed = printed(&failed);
        assert_eq!(
            (printed.exit_code, printed.command_exit_code),
            (125, Some(3))
        );
    }
}
