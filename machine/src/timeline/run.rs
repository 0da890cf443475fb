//! The measured process: makes the machine, runs it to its end, and writes its timeline.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use minivm_guest::channel::Request;
use minivm_image::io_error::cannot;
use minivm_vmm::{Builder, Config, Control};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::time::{ClockId, clock_gettime};

use super::model::{Nanos, Start, Timeline};
use super::phases::{self, Assembled, Process};
use super::process::{Task, nanos, write};
use super::record::{Console, Recorder, since};
use super::{Job, Subject, kernel};
use crate::template::{ResumeOptions, Saved};
use crate::{End, Error, Link, MachineSpec, Report, Session, Watch, local};

/// Runs the machine that is described on stdin, and writes its timeline to stdout.
///
/// # Errors
///
/// [`Error::Host`] where stdin doesn't have such a description, or stdout can't be written to. What else fails is written to stdout.
pub fn run_measured() -> Result<(), Error> {
    let main = Instant::now();
    // When the `minivm timeline` that waits for the answer has ended, this process and its machine end.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut text = Vec::new();
    let reading =
        || cannot("read which machine to measure, which `minivm timeline` writes to stdin");
    io::stdin().read_to_end(&mut text).map_err(reading())?;
    let task: Task = serde_json::from_slice(&text)
        .map_err(io::Error::from)
        .map_err(reading())?;
    write(&run(&task, main))
}

fn run(task: &Task, main: Instant) -> Result<Timeline, Error> {
    let ago = nanos(clock_gettime(ClockId::Monotonic)).saturating_sub(task.started);
    let now = Instant::now();
    let origin = now.checked_sub(Duration::from_nanos(ago)).unwrap_or(now);
    let measured = Measured {
        origin,
        main,
        recorder: Arc::new(Recorder::new(origin)),
    };
    let Job { subject, timeout } = &task.job;
    match (subject, &task.template) {
        (Subject::Raw(config), _) => measured.raw(config, *timeout),
        (Subject::Cold(machine, request), _) => {
            let link = measured.boot(machine)?;
            measured.session(link, request, *timeout, Start::Cold)
        }
        (Subject::Warm(recipe, request), Some((folder, rings))) => {
            let saved = Saved::open(folder, recipe.machine.image.as_deref(), *rings)?;
            let link = saved.resume(ResumeOptions {
                watch: Some(Watch::Observer(measured.recorder.clone())),
                ..ResumeOptions::default()
            })?;
            measured.session(link, request, *timeout, Start::Warm)
        }
        (Subject::Warm(..), None) => Err(Error::NoTemplate("it was not saved".into())),
    }
}

/// A measurement while it is made.
struct Measured {
    origin: Instant,
    main: Instant,
    recorder: Arc<Recorder>,
}

impl Measured {
    fn boot(&self, machine: &MachineSpec) -> Result<Link, Error> {
        local::start_here(machine, Some(self.recorder.clone()))
    }

    fn session(
        &self,
        link: Link,
        request: &Request,
        timeout: Duration,
        start: Start,
    ) -> Result<Timeline, Error> {
        let session = Session {
            timeout: Some(timeout),
            ..Session::new(Request {
                timeline: true,
                ..request.clone()
            })
        };
        let report = session.run(link)?;
        let process = self.process();
        let end = end(&report)?;
        let recorded = self.recorder.take();
        let warm = start == Start::Warm;
        let assembled = phases::of_session(process, &recorded, &report, warm);
        let timed_out = report.end == End::TimedOut;
        Ok(timeline(assembled, start, end, timed_out, &recorded))
    }

    fn raw(&self, config: &Config, timeout: Duration) -> Result<Timeline, Error> {
        let console = Console::new(self.origin);
        let builder = Builder::new(config.clone()).console_output(console.clone());
        let machine = builder.observer(self.recorder.clone()).build()?;
        let limit = Limit::start(machine.control(), timeout)?;
        let outcome = machine.run()?;
        let process = self.process();
        let timed_out = limit.end();
        let recorded = self.recorder.take();
        let assembled = phases::of_raw(process, &recorded, console.lines());
        let end = outcome.to_string();
        Ok(timeline(assembled, Start::Raw, end, timed_out, &recorded))
    }

    /// Ends the measurement.
    fn process(&self) -> Process {
        Process {
            origin: self.origin,
            main: since(self.origin, self.main),
            over: since(self.origin, Instant::now()),
        }
    }
}

fn timeline(
    assembled: Assembled,
    start: Start,
    end: String,
    timed_out: bool,
    recorded: &super::record::Recorded,
) -> Timeline {
    let phases = assembled.phases;
    Timeline {
        start,
        kernel: kernel::name(&assembled.lines),
        end,
        timed_out,
        total: phases.last().map_or(Nanos(0), super::Phase::end),
        phases,
        guest_error: assembled.guest.map(|offset| Nanos(offset.error())),
        log_error: assembled.log.map(|offset| Nanos(offset.error())),
        exits: recorded.exits(),
        lost_exits: recorded.lost,
        log: assembled.lines,
    }
}

/// Returns how the command ended, in words.
fn end(report: &Report) -> Result<String, Error> {
    Ok(match &report.end {
        End::Exited(code) => format!("the command ended with exit code {code}"),
        End::Signal(signal) => format!("signal {signal} killed the command"),
        End::OutOfMemory => "the guest ran out of memory".into(),
        End::TimedOut => "the time limit ended the command".into(),
        End::NotFound(what) => return Err(Error::Measured(format!("no such command: {what}"))),
        End::NotExecutable(what) => {
            return Err(Error::Measured(format!(
                "cannot execute the command: {what}"
            )));
        }
        // There is no one to stop it, and its outputs have no reader.
        End::Stopped(_) | End::OutputClosed | End::Suspended { .. } => {
            "the machine was stopped".into()
        }
    })
}

/// The thread that stops a raw machine at its time limit.
struct Limit {
    over: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
    reached: Arc<AtomicBool>,
}

impl Limit {
    fn start(control: Control, timeout: Duration) -> Result<Limit, Error> {
        let (over, is_over) = mpsc::channel();
        let reached = Arc::new(AtomicBool::new(false));
        let reach = reached.clone();
        let wait = move || {
            if is_over.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                reach.store(true, Ordering::Relaxed);
                control.stop();
            }
        };
        let thread = thread::Builder::new().name("watchdog".into()).spawn(wait);
        let thread = thread.map_err(cannot("start a thread"))?;
        Ok(Limit {
            over,
            thread,
            reached,
        })
    }

    /// Ends the thread; returns whether it has stopped the machine.
    fn end(self) -> bool {
        drop(self.over);
        let _ = self.thread.join();
        self.reached.load(Ordering::Relaxed)
    }
}
