//! `--trace`: a machine's exits, explained, in a file or live on stderr, and how many there were at the end.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};
use minivm_image::Platform;
use minivm_machine::lab::{self, Finished, LabRequest};
use minivm_machine::monitor::{Observation, Spec};
use minivm_machine::output_path::Output;
use minivm_machine::{Events, Watch, streams};
use minivm_sandbox::Task;
use minivm_trace::meaning::Architecture;
use minivm_trace::output::{self, Form, Forward, Style};
use minivm_trace::symbols::KernelFile;
use minivm_trace::{Filter, Symbols, Trace, Tracer};
use minivm_vmm::Observer;

use super::{signals, terminal};

#[derive(Args)]
pub(super) struct TraceArgs {
    /// Trace the guest's exits, with what each means: to FILE, or live to stderr; at the end, count them on stderr
    ///
    /// FILE's ending chooses the format, see --trace-format.
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        hide_short_help = true,
        help_heading = "Trace"
    )]
    trace: Option<Option<PathBuf>>,
    /// Exits to show and count, such as com1,ioapic,vcpu=0
    ///
    /// A list of devices (com1, com2, com3, ioapic, acpi, keyboard, pmem, nothing, processor), kinds (io, mmio, out, in, mmio-write, mmio-read,
    /// shutdown, …), port=N or port=N-M, address=N or address=N-M, and vcpu=N. An exit has to be of one of the kinds, at one of the
    /// devices, ports and addresses, and of one of the vCPUs, as far as there are any in the list.
    #[arg(
        long,
        value_name = "LIST",
        requires = "trace",
        hide_short_help = true,
        help_heading = "Trace"
    )]
    trace_filter: Option<Filter>,
    /// Format of the trace [default: by FILE's ending: .jsonl or .ndjson, .json for chrome, else text]
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        requires = "trace",
        hide_short_help = true,
        help_heading = "Trace"
    )]
    trace_format: Option<Format>,
    /// The kernel's System.map, or its vmlinux with symbols [default: what lies beside the kernel]
    #[arg(
        long,
        value_name = "FILE",
        requires = "trace",
        hide_short_help = true,
        help_heading = "Trace"
    )]
    symbols: Option<PathBuf>,
}

/// A form of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for people
    Text,
    /// A JSON object a line
    Jsonl,
    /// Chrome's trace format, for Perfetto and chrome://tracing
    Chrome,
}

impl From<Format> for Form {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Form::Text,
            Format::Jsonl => Form::Lines,
            Format::Chrome => Form::Chrome,
        }
    }
}

impl TraceArgs {
    /// Returns whether a trace was asked for.
    pub(super) fn is_set(&self) -> bool {
        self.trace.is_some()
    }

    /// Reads the symbols and makes the trace's file. `kernel` is the file of the machine's kernel, where it has one.
    pub(super) fn open(&self, kernel: Option<&Path>) -> anyhow::Result<Tracing> {
        let Some(file) = &self.trace else {
            return Ok(Tracing(None));
        };
        let symbols = match (&self.symbols, kernel) {
            (Some(path), kernel) => Some(symbols(path, kernel)?),
            (None, Some(kernel)) => Symbols::beside(kernel),
            (None, None) => None,
        };
        let (out, form, name) = self.output(file.as_deref())?;
        let style = Style {
            colours: file.is_none() && has_colours(),
            terminal: file.is_none() && io::stderr().is_terminal(),
        };
        let form = self.trace_format.map_or(form, Form::from);
        let mut trace = Trace::new()
            .filter(self.trace_filter.clone().unwrap_or_default())
            .output(form.writer(out, style), move |error, exits| {
                streams::tell(&format!(
                    "the trace ends after {exits} exits, and the machine runs on: cannot write {name}: {error}"
                ));
            });
        if let Some(symbols) = symbols {
            trace = trace.symbols(symbols);
        }
        Ok(Tracing(Some(trace)))
    }

    /// Opens the output; returns it with the form that its name asks for, and its name for messages.
    fn output(&self, file: Option<&Path>) -> anyhow::Result<(Box<dyn Write + Send>, Form, String)> {
        let Some(path) = file else {
            let stderr = io::stderr().as_fd().try_clone_to_owned();
            let stderr = File::from(stderr.context("cannot use stderr")?);
            return Ok((
                Box::new(Patient(stderr)),
                Form::Text,
                "the trace to stderr".into(),
            ));
        };
        let name = format!("the trace to {}", path.display());
        let file = Output::growing(path).with_context(|| format!("cannot write {name}"))?;
        Ok((Box::new(file), Form::of(path), name))
    }
}

/// Reads symbols, and compares them with the kernel.
fn symbols(path: &Path, kernel: Option<&Path>) -> anyhow::Result<Symbols> {
    let symbols = Symbols::read(path)?;
    if let Some(kernel) = kernel {
        symbols.check(&KernelFile::read(kernel))?;
    }
    Ok(symbols)
}

fn has_colours() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// A stream that others may have made non-blocking.
struct Patient(File);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        streams::write_all(&mut self.0, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The trace of a machine that is about to run, if one was asked for.
pub(super) struct Tracing(Option<Trace>);

impl Tracing {
    /// Explains the exits as those of a platform's machine.
    pub(super) fn of(self, platform: &Platform) -> Self {
        let architecture = match &*platform.architecture {
            "arm64" => Architecture::Arm64,
            _ => Architecture::X86_64,
        };
        Tracing(self.0.map(|trace| trace.architecture(architecture)))
    }

    /// Runs a machine in a monitor with `run`, traces it, and prints the counts.
    pub(super) fn run<T>(
        self,
        machine: Spec,
        began: Instant,
        run: impl FnOnce(Spec) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let Some(trace) = self.0 else {
            return run(machine);
        };
        let (stream, recording) = Recording::start(trace).context("cannot read from a monitor")?;
        let (killed, stopper) = (recording.clone(), machine.stopper());
        let clean_up = move || {
            terminal::restore();
            // The last events come when the machine has ended.
            stopper.stop();
            killed.report_soon();
        };
        signals::before_death(clean_up).context("cannot listen to signals")?;
        let ended = run(machine.events(Some(Events { stream, began })));
        signals::wait_for_death();
        recording.report();
        ended
    }

    /// Runs a lab with a machine of which the lab sends the events, and traces it. The counts are printed when the second value is
    /// dropped.
    pub(super) fn run_in_lab(
        self,
        mut request: LabRequest,
    ) -> anyhow::Result<(Result<Finished, lab::Error>, ReportOnDrop)> {
        let counts = ReportOnDrop::default();
        if let Some(trace) = self.0 {
            let (events, recording) = Recording::start(trace).context("cannot read from a lab")?;
            request.trace_to(events);
            let _ = counts.0.set(recording);
        }
        Ok((request.run(), counts))
    }

    /// Returns whether there is a trace.
    pub(super) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Gives a task the watch over its machine, wherever that runs. The counts are printed when the value that this returns is dropped.
    pub(super) fn watch(self, task: &mut Task, began: Instant) -> Option<ReportOnDrop> {
        let trace = self.0?;
        let report = ReportOnDrop::default();
        let slot = report.0.clone();
        task.vm.watch = Some(Box::new(move |_| {
            let (stream, recording) = Recording::start(trace)?;
            let _ = slot.set(recording);
            Ok(Watch::Events(Events { stream, began }))
        }));
        Some(report)
    }
}

/// A trace that is being written: the thread that reads the events of a monitor's machine, or a lab's.
#[derive(Clone)]
struct Recording(Arc<Mutex<Option<JoinHandle<Trace>>>>);

impl Recording {
    /// Returns the stream to which the events are to be sent.
    fn start(mut trace: Trace) -> io::Result<(UnixStream, Self)> {
        let (ours, theirs) = UnixStream::pair()?;
        let reading = thread::Builder::new().name("trace".into()).spawn(move || {
            // A monitor or lab that was killed may leave half an event.
            let _ = output::read(ours, &mut trace);
            trace
        })?;
        Ok((theirs, Recording(Arc::new(Mutex::new(Some(reading))))))
    }

    /// Waits until the trace is written, and returns it the first time. A thread that panicked has printed that.
    fn finish(&self) -> Option<Trace> {
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reading.take()?.join().ok()
    }

    /// Reports for a moment at most: a reader of the trace that takes nothing keeps no signal from ending this process.
    fn report_soon(&self) {
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let recording = self.clone();
        let report = move || {
            recording.report();
            drop(done);
        };
        // Where there is no thread for it, the process ends without.
        let _ = thread::Builder::new().name("report".into()).spawn(report);
        let _ = is_done.recv_timeout(signals::GRACE);
    }

    /// Prints the counts, and what is wrong with the symbols, once.
    fn report(&self) {
        let Some(trace) = self.finish() else {
            return;
        };
        if let Some(warning) = trace.warning() {
            streams::tell(&warning);
        }
        let totals = trace.totals().to_string();
        let _ = streams::write_all(&mut io::stderr().lock(), totals.as_bytes());
    }
}

/// Prints the counts of a trace, if it was begun.
#[derive(Default)]
pub(super) struct ReportOnDrop(Arc<OnceLock<Recording>>);

impl Drop for ReportOnDrop {
    fn drop(&mut self) {
        if let Some(recording) = self.0.get() {
            recording.report();
        }
    }
}

/// In a monitor: sends the events of its machine to the stream.
pub(super) fn observe(events: UnixStream, began: Instant) -> io::Result<Observation> {
    let tracer = Tracer::start(Forward::new(events), began)?;
    Ok(Observation {
        observer: tracer.clone(),
        finish: Box::new(move || drop(tracer.finish())),
    })
}

/// In a lab: runs a machine with `run`, whose observer sends its events to the port, if there is one.
pub(super) fn forwarded<T>(
    port: Option<&Path>,
    run: impl FnOnce(Option<Arc<dyn Observer>>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let Some(port) = port else {
        return run(None);
    };
    let port = File::options().write(true).open(port);
    let port = port.context("cannot open the port for the trace")?;
    let tracer = Tracer::start(Forward::new(port), Instant::now());
    let tracer = tracer.context("cannot start a thread")?;
    let ended = run(Some(tracer.clone()));
    tracer.finish();
    ended
}
