//! The process around the measured one: starts it next to KVM, and takes its timeline.

use std::error::Error as _;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use minivm_vmm::Builder;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use minivm_image::io_error::cannot;

use super::{COMMAND, Job, Subject, Timeline};
use crate::lab::{Input, Output};
use crate::lab_machine::LabMachine;
use crate::last_words::LastWords;
use crate::output::CaptureBuffer;
use crate::template::Rings;
use crate::{Accel, Error};

/// The longest answer of a lab's, in bytes. The exits and the log of a timeline are a few MB at most.
const ANSWER_MAX: usize = 32 << 20;
/// The lab's folder for a template, in its memory.
const LAB_FOLDER: &str = "/run";

/// A job, and what the process around has done for it.
#[derive(Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) job: Job,
    /// The folder of the machine that was saved for a warm one, and its rings.
    pub(super) template: Option<(PathBuf, Rings)>,
    /// `CLOCK_MONOTONIC` just before the process was started, in nanoseconds. The clock is the same in all processes.
    pub(super) started: u64,
}

/// A timeline, or the reason why the machine could not be measured.
type Answer = Result<Timeline, String>;

/// Measures a machine where `accel` lets machines run. A machine that is resumed on this host's KVM is saved in `folder` before; that is the
/// caller's to remove where this process is killed.
///
/// # Errors
///
/// As [`MachineSpec::start`](crate::MachineSpec::start)'s for a file that can't be read; [`Error::Measured`] where the measured process
/// or its machine fails; [`Error::NoTemplate`] where a machine to resume can't be made; [`Error::Lab`] for the lab's own errors.
pub fn measure(job: &Job, accel: &Accel, folder: &Path) -> Result<Timeline, Error> {
    match accel {
        Accel::Kvm => beside_kvm(job, folder),
        Accel::Lab { program, .. } => in_lab(job, program),
    }
}

/// Measures a machine in this lab and writes the answer to stdout: the lab's side of [`measure`].
///
/// # Errors
///
/// [`Error::Host`] where stdout can't be written to.
pub fn answer(job: &Job) -> Result<(), Error> {
    write(&beside_kvm(job, Path::new(LAB_FOLDER)))
}

/// Writes an answer to stdout.
pub(super) fn write(measured: &Result<Timeline, Error>) -> Result<(), Error> {
    let answer: Result<&Timeline, String> = measured.as_ref().map_err(whole);
    let text = serde_json::to_vec(&answer).map_err(io::Error::from);
    let written = text.and_then(|text| io::stdout().lock().write_all(&text));
    Ok(written.map_err(cannot("write the timeline to stdout"))?)
}

/// Returns an error with its sources, in a line.
fn whole(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn beside_kvm(job: &Job, folder: &Path) -> Result<Timeline, Error> {
    let Subject::Warm(recipe, _) = &job.subject else {
        return run_beside(job, None);
    };
    // It must not be there yet.
    let saved = folder.join("template");
    let made = recipe.save(&saved);
    let measured = made.and_then(|rings| run_beside(job, Some((saved.clone(), rings))));
    // What is left is in a folder that is removed.
    let _ = fs::remove_dir_all(&saved);
    measured
}

/// Runs the process that is measured.
fn run_beside(job: &Job, template: Option<(PathBuf, Rings)>) -> Result<Timeline, Error> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(COMMAND);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let started = clock_gettime(ClockId::Monotonic);
    let starting = || cannot("start the process that is measured");
    let mut child = command.spawn().map_err(starting())?;
    let task = Task {
        job: job.clone(),
        template,
        started: nanos(started),
    };
    let text = serde_json::to_vec(&task).map_err(io::Error::from);
    let sent = text.and_then(|text| match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(&text),
        None => Ok(()),
    });
    let output = child.wait_with_output().map_err(starting())?;
    // Where it ended before it read, its end says more.
    match parse(&output.stdout) {
        Some(answer) => answer,
        None => Err(match sent {
            Err(error) => starting()(error).into(),
            Ok(()) => Error::Measured(format!(
                "the process that is measured ended with {}",
                output.status
            )),
        }),
    }
}

/// Returns a time in nanoseconds.
pub(super) fn nanos(time: rustix::time::Timespec) -> u64 {
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0) * 1_000_000_000 + nanos.unwrap_or(0)
}

/// Reads an answer; `None` where it isn't a whole one.
fn parse(bytes: &[u8]) -> Option<Result<Timeline, Error>> {
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    Some(answer.map_err(Error::Measured))
}

/// Keeps an answer that is no longer than any true one: a hostile guest may be in the lab.
struct Bounded(CaptureBuffer);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.bytes().len() + bytes.len() > ANSWER_MAX {
            return Err(io::Error::other("the timeline is longer than any"));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn in_lab(job: &Job, program: &Path) -> Result<Timeline, Error> {
    // Checked here as well: an error of the lab's would name the files as the lab does.
    let config = match &job.subject {
        Subject::Raw(config) => config.clone(),
        Subject::Cold(machine, _) => machine.config(),
        Subject::Warm(recipe, _) => recipe.machine.config(),
    };
    Builder::new(config).check()?;
    let mut request = LabMachine::Timeline(job.clone()).request(0)?;
    let answer = CaptureBuffer::default();
    let (stderr, said) = LastWords::to(io::stderr(), false);
    request.program = program.to_owned();
    request.stdin = Input::Null;
    request.stdout = Output::To(Box::new(Bounded(answer.clone())));
    request.stderr = Output::To(Box::new(stderr));
    let finished = request.run()?;
    match parse(&answer.bytes()) {
        Some(answer) => {
            said.pass_on();
            answer
        }
        None => Err(Error::Measured(said.why(finished.code))),
    }
}
