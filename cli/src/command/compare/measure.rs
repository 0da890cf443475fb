//! One sandbox: a few runs of an empty program, as many of the code, and what it can reach.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::ProgressBar;
use minivm_machine::Accel;
use minivm_machine::output::CaptureBuffer;
use minivm_machine::printable::printable;
use minivm_sandbox::reach::{self, Probe, Reach, Secret};
use minivm_sandbox::{Backend, End, Error, Exception, Finished, Host, Sandbox, Task};
use serde::Serialize;

/// How much of each output is kept.
const OUTPUT_MAX: u64 = 64 << 10;
/// What an empty program is.
const EMPTY: &str = "pass";

/// What is to be done.
pub(super) struct Plan<'a> {
    pub(super) code: &'a str,
    pub(super) runs: u32,
    pub(super) limit: Duration,
    /// The image's name, where the warm microVM is measured, too.
    pub(super) warm: Option<String>,
    /// Needed to try what can be reached.
    pub(super) secret: Option<Secret<'a>>,
}

impl Plan<'_> {
    /// How many things are done in these sandboxes.
    pub(super) fn steps(&self, backends: &[Backend]) -> u64 {
        let warm = backends
            .iter()
            .filter(|&&backend| self.warm(backend).is_some());
        (backends.len() + warm.count()) as u64 * self.steps_of_one()
    }

    fn steps_of_one(&self) -> u64 {
        let probes = self.secret.map_or(0, |_| Probe::ALL.len() as u64);
        2 * u64::from(self.runs) + probes
    }

    fn warm(&self, backend: Backend) -> Option<&String> {
        self.warm.as_ref().filter(|_| backend == Backend::Microvm)
    }
}

/// What came of one sandbox. Times are in seconds, memory in bytes.
#[derive(Serialize)]
pub(super) struct Row {
    #[serde(serialize_with = "as_name")]
    pub(super) backend: Backend,
    /// What stands between the code and the host.
    pub(super) boundary: Option<&'static str>,
    /// What gave the machine its virtualization, `kvm` or `lab`; null where there was none.
    accel: Option<&'static str>,
    /// In the lab, times are those of an emulated processor.
    pub(super) in_lab: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) exit_code: Option<u8>,
    pub(super) exception: Option<Exception>,
    pub(super) timed_out: bool,
    pub(super) oom: bool,
    /// The median of `start_ups`.
    pub(super) start_up: Option<f64>,
    /// The median of `totals`.
    pub(super) total: Option<f64>,
    start_ups: Vec<f64>,
    totals: Vec<f64>,
    /// The most of all runs.
    pub(super) peak_memory: Option<u64>,
    pub(super) reach: BTreeMap<Probe, Reach>,
    /// The row of the warm microVM.
    pub(super) warm: Option<Box<Row>>,
    /// Why it could not be run.
    pub(super) error: Option<String>,
    #[serde(skip)]
    is_warm: bool,
    #[serde(skip)]
    unavailable: bool,
}

fn as_name<S: serde::Serializer>(backend: &Backend, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(backend.name())
}

impl Row {
    fn new(backend: Backend, host: &Host) -> Row {
        Row {
            backend,
            boundary: None,
            accel: (backend == Backend::Microvm).then(|| host.accel.name()),
            in_lab: backend == Backend::Microvm && host.accel != Accel::Kvm,
            stdout: String::new(),
            stderr: String::new(),
            exit_code: None,
            exception: None,
            timed_out: false,
            oom: false,
            start_up: None,
            total: None,
            start_ups: Vec::new(),
            totals: Vec::new(),
            peak_memory: None,
            reach: BTreeMap::new(),
            warm: None,
            error: None,
            is_warm: false,
            unavailable: false,
        }
    }

    /// The name in tables.
    pub(super) fn name(&self) -> &'static str {
        match self.is_warm {
            true => "microvm, warm",
            false => self.backend.name(),
        }
    }

    /// This one, and the warm one where there is one.
    pub(super) fn both(&self) -> impl Iterator<Item = &Row> {
        std::iter::once(self).chain(self.warm.as_deref())
    }

    /// Whether it is there at all.
    pub(super) fn is_available(&self) -> bool {
        !self.unavailable
    }

    /// Whether it has run the code, whatever that did.
    pub(super) fn has_run(&self) -> bool {
        self.error.is_none()
    }

    /// What the code printed, or why it didn't, in a line.
    pub(super) fn answer(&self) -> String {
        let text = match (&self.error, &self.exception) {
            (Some(error), _) => error.clone(),
            (None, Some(exception)) => format!("{}: {}", exception.kind, exception.message),
            (None, None) if self.timed_out => "timed out".to_owned(),
            (None, None) if self.oom => "out of memory".to_owned(),
            (None, None) => match (self.stdout.trim_end(), self.exit_code) {
                ("", Some(code)) if code != 0 => format!("exit code {code}"),
                (text, _) => text.to_owned(),
            },
        };
        printable(&text, 200)
    }

    /// Where nothing else shows progress.
    pub(super) fn line(&self) -> String {
        match self.total {
            Some(total) => format!("{}: {total:.3} s for the code", self.name()),
            None => format!("{}: {}", self.name(), self.answer()),
        }
    }

    fn failed(mut self, error: &Error) -> Row {
        self.unavailable = matches!(error, Error::Unavailable { .. });
        self.error = Some(match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        });
        self
    }

    fn take(&mut self, finished: &Finished) {
        self.exit_code = finished.end.exit_code();
        self.timed_out = finished.end == End::TimedOut;
        self.oom = finished.end == End::OutOfMemory;
        self.exception.clone_from(&finished.exception);
        self.totals.push(finished.usage.total.as_secs_f64());
        self.total = median(&self.totals);
    }
}

/// Runs all of it. What can't be done is in the row.
pub(super) fn measure(host: &Host, backend: Backend, plan: &Plan<'_>, bar: &ProgressBar) -> Row {
    let mut row = fill(Row::new(backend, host), plan, bar, || host.open(backend));
    if let (Some(image), true) = (plan.warm(backend), row.has_run()) {
        let mut warm = Row::new(backend, host);
        warm.is_warm = true;
        bar.set_message("microvm: making a template");
        let open = || {
            let microvm = host.microvm()?.warm(image.clone(), &host.cache)?;
            // In the lab, other clones are still being made when the first one is there.
            run_once(&microvm, EMPTY, plan.limit)?;
            Ok(Box::new(microvm) as Box<dyn Sandbox>)
        };
        row.warm = Some(Box::new(fill(warm, plan, bar, open)));
    } else if plan.warm(backend).is_some() {
        bar.inc(plan.steps_of_one());
    }
    row
}

fn fill(
    mut row: Row,
    plan: &Plan<'_>,
    bar: &ProgressBar,
    open: impl FnOnce() -> Result<Box<dyn Sandbox>, Error>,
) -> Row {
    let before = bar.position();
    let done = open().and_then(|sandbox| {
        sandbox.check()?;
        row.boundary = Some(sandbox.boundary());
        run_all(&*sandbox, plan, bar, &mut row)
    });
    bar.set_position(before + plan.steps_of_one());
    match done {
        Ok(()) => row,
        Err(error) => row.failed(&error),
    }
}

fn run_all(
    sandbox: &dyn Sandbox,
    plan: &Plan<'_>,
    bar: &ProgressBar,
    row: &mut Row,
) -> Result<(), Error> {
    let backend = row.name();
    for run in 1..=plan.runs {
        bar.set_message(format!(
            "{backend}: an empty program, {run} of {}",
            plan.runs
        ));
        let (finished, _, _) = run_once(sandbox, EMPTY, plan.limit)?;
        row.start_ups.push(finished.usage.total.as_secs_f64());
        row.start_up = median(&row.start_ups);
        bar.inc(1);
    }
    for run in 1..=plan.runs {
        bar.set_message(format!("{backend}: the code, {run} of {}", plan.runs));
        let (finished, stdout, stderr) = run_once(sandbox, plan.code, plan.limit)?;
        row.take(&finished);
        row.peak_memory = row.peak_memory.max(finished.usage.peak_memory);
        (row.stdout, row.stderr) = (stdout, stderr);
        bar.inc(1);
    }
    for probe in plan.secret.iter().flat_map(|_| Probe::ALL) {
        let Some(secret) = plan.secret else { break };
        bar.set_message(format!("{backend}: can it reach a {}?", probe.name()));
        row.reach
            .insert(probe, reach::reach(sandbox, probe, secret)?);
        bar.inc(1);
    }
    Ok(())
}

fn run_once(
    sandbox: &dyn Sandbox,
    code: &str,
    limit: Duration,
) -> Result<(Finished, String, String), Error> {
    let (stdout, stderr) = (CaptureBuffer::default(), CaptureBuffer::default());
    let mut task = Task::code(code);
    task.limits.time = Some(limit);
    task.limits.output = Some(OUTPUT_MAX);
    task.stdout = Box::new(stdout.clone());
    task.stderr = Box::new(stderr.clone());
    // The microVM's memory is this process's, whose highest so far was another run's (proc(5), "clear_refs").
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let finished = sandbox.run(task)?;
    Ok((finished, stdout.text(), stderr.text()))
}

/// The middle one, or between the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }
}
