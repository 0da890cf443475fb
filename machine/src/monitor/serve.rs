//! The monitor's own side: it gets a job, opens what that names, puts walls around itself, and runs the machine.
//!
//! Until the walls are there the process has one thread, and reads no byte of a kernel, an initramfs or a snapshot. Behind them it can open
//! nothing any more.

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use minivm_image::io_error::cannot;
use minivm_vmm::{
    Builder, Config, Control, InputSource as _, Kernel, SaveFiles, SnapshotFiles, WorkingSet,
};

use super::protocol::{Code, Ending, Failure, Job, News, Order, Source, Wiring, path};
use super::{Hooks, Observation};
use crate::child::{Received, Stream};
use crate::local::{self, ChannelEnds, Greeted, Machine};
use crate::output::{Cut, Limited};
use crate::{Error, Input, Walls, confine, wire};

/// How long a machine may take from being built to its first instruction.
const START: Duration = Duration::from_secs(10);
/// How often is looked whether it has come there.
const LOOK: Duration = Duration::from_millis(1);

/// Runs this process as a monitor, whose socket is its stdin.
pub(super) fn run(hooks: Hooks) -> ExitCode {
    let (stream, Received { message, files }) = match super::ROLE.job() {
        Ok(job) => job,
        Err(code) => return code,
    };
    let stream = Arc::new(stream);
    match start(&stream, message, files, hooks) {
        Ok(Some(control)) => obey(&stream, &control),
        Ok(None) => {}
        Err(failure) => report(&stream, News::Failed(failure)),
    }
    ExitCode::SUCCESS
}

/// Starts the job's machine, and the threads that serve it; `None` where it was only to be looked at.
fn start(
    stream: &Arc<Stream>,
    job: Job,
    files: Vec<OwnedFd>,
    hooks: Hooks,
) -> Result<Option<Control>, Failure> {
    (hooks.log)(job.log);
    let now = Instant::now();
    let began = now.checked_sub(job.began).unwrap_or(now);
    let mut files = files.into_iter();
    let ends = Ends::take(job.wiring, &mut files)?;
    let events = match job.observed {
        true => Some(UnixStream::from(next(&mut files)?)),
        false => None,
    };
    let opened = Opened::open(job.source, ends.is_some())?;
    let walls = job.confined.then(|| {
        let mut keep = opened.descriptors();
        keep.push(stream.as_fd());
        keep.extend(events.as_ref().map(AsFd::as_fd));
        keep.extend(ends.iter().flat_map(Ends::descriptors));
        confine::monitor(&keep)
    });
    let walls = walls.transpose();
    let walls = walls.map_err(failed("put walls around the monitor"))?;
    let mut builder = opened.read()?;
    let Some(ends) = ends else {
        builder.check()?;
        report(stream, News::Built(walls));
        return Ok(None);
    };
    if walls.is_some() {
        builder = builder.vcpu_thread(confine::vcpu);
    }
    let observation = events
        .map(|events| (hooks.observe)(events, began))
        .transpose();
    let observation = observation.map_err(failed("observe the machine"))?;
    if let Some(observation) = &observation {
        builder = builder.observer(observation.observer.clone());
    }
    let cut = Cut::default();
    let (machine, frames) = ends.launch(builder, stream, walls, &cut)?;
    let control = machine.control.clone();
    let last = Last {
        stream: stream.clone(),
        rehearsal: job.rehearsal,
        machine,
        cut,
        observation,
    };
    let serving = match frames {
        Some(frames) => frames.serve(last),
        None => spawn("end", move || last.conclude()),
    };
    serving.map_err(failed("start a thread"))?;
    Ok(Some(control))
}

/// Takes orders until the process that has started this one ends, or sends what is not an order or not in order.
fn obey(stream: &Arc<Stream>, control: &Control) {
    while let Ok(Some(Received { message, files })) = stream.receive::<Order>() {
        match message {
            Order::Save(name) => save_beside(stream, control, name, files),
            Order::Resume => control.resume(),
            // It came before the machine did, and comes once.
            Order::Run => break,
            // The last thread reports the end.
            Order::Stop => control.stop(),
        }
    }
}

/// Saves the machine on a thread of its own: while its output waits for its reader it can't be paused, and is to be stopped.
fn save_beside(stream: &Arc<Stream>, control: &Control, name: String, files: Vec<OwnedFd>) {
    let (saver, control) = (stream.clone(), control.clone());
    let started = spawn("save", move || {
        let saved = save(&control, name, files);
        report(&saver, News::Saved(saved));
    });
    if let Err(error) = started {
        report(stream, News::Saved(Err(failed("start a thread")(error))));
    }
}

/// Pauses the machine, and saves it in the files. It stays paused.
fn save(control: &Control, name: String, files: Vec<OwnedFd>) -> Result<(), Failure> {
    let mut files = files.into_iter();
    let files = SaveFiles {
        state: next(&mut files)?.into(),
        memory: next(&mut files)?.into(),
        name,
    };
    let began = Instant::now();
    loop {
        // It does nothing as long as the machine is on its way to its first instruction.
        control.pause();
        match control.snapshot_into(&files) {
            Err(minivm_vmm::Error::NotPaused)
                if !control.has_ended() && began.elapsed() < START =>
            {
                thread::sleep(LOOK);
            }
            saved => return saved.map_err(Failure::Machine),
        }
    }
}

/// The recipe for the machine, with open files of which nothing has been read.
enum Opened {
    Boot(Box<Builder>),
    Snapshot(SnapshotFiles, Option<WorkingSet>),
}

impl Opened {
    /// Opens the files, and `/dev/kvm` where the machine is to be made.
    fn open(source: Source, with_kvm: bool) -> Result<Opened, Failure> {
        Ok(match source {
            Source::Boot {
                kernel,
                initramfs,
                pmem,
                cmdline,
                memory,
                cpus,
                com3,
            } => {
                let config = Config {
                    kernel: match kernel {
                        Code::File(bytes) => Kernel::File(path(bytes)),
                        Code::Bare(code) => Kernel::Code(code),
                    },
                    initramfs: initramfs.map(path),
                    pmem: pmem.map(path),
                    cmdline,
                    memory,
                    cpus,
                    com3,
                };
                let builder = Builder::new(config);
                Opened::Boot(Box::new(match with_kvm {
                    true => builder.open()?,
                    false => builder.open_files()?,
                }))
            }
            Source::Snapshot {
                folder,
                pmem,
                pages,
            } => {
                let folder = path(folder);
                let files = match with_kvm {
                    true => SnapshotFiles::open(folder)?,
                    false => SnapshotFiles::in_folder(folder)?,
                };
                let files = match pmem.map(path) {
                    Some(file) => files.pmem(file)?,
                    None => files,
                };
                Opened::Snapshot(files, pages)
            }
        })
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Opened::Boot(builder) => builder.descriptors(),
            Opened::Snapshot(files, _) => files.descriptors(),
        }
    }

    fn read(self) -> Result<Builder, Failure> {
        Ok(match self {
            Opened::Boot(builder) => *builder,
            Opened::Snapshot(files, pages) => {
                let builder = Builder::restore(&files.read()?);
                match pages {
                    Some(pages) => builder.working_set(&pages),
                    None => builder,
                }
            }
        })
    }
}

/// The ends of the machine's serial ports that came with the job.
enum Ends {
    Console {
        input: Input,
        output: File,
        limit: Option<u64>,
    },
    Channels {
        frames: UnixStream,
        folders: UnixStream,
        console: bool,
        greeted: Option<Greeted>,
    },
}

impl Ends {
    fn take(
        wiring: Wiring,
        files: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<Option<Ends>, Failure> {
        Ok(Some(match wiring {
            Wiring::Nothing => return Ok(None),
            Wiring::Console { limit } => Ends::Console {
                // Opens a pipe anew, which can't be done later.
                input: next(files)?.into(),
                output: next(files)?.into(),
                limit,
            },
            Wiring::Channels { console, greeted } => Ends::Channels {
                frames: next(files)?.into(),
                folders: next(files)?.into(),
                console,
                greeted,
            },
        }))
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Ends::Console { input, output, .. } => {
                let mut all = input.descriptors();
                all.push(output.as_fd());
                all
            }
            Ends::Channels {
                frames, folders, ..
            } => vec![frames.as_fd(), folders.as_fd()],
        }
    }

    /// Builds the machine with its ports, and starts the thread that runs it. `cut` is set where a console's output is dropped.
    fn launch(
        self,
        builder: Builder,
        news: &Stream,
        walls: Option<Walls>,
        cut: &Cut,
    ) -> Result<(Machine, Option<Relay>), Failure> {
        match self {
            Ends::Console {
                input,
                output,
                limit,
            } => {
                let output = Limited::new(output, limit, cut);
                let builder = builder.console_output(output).console_input(input);
                let machine = builder.build()?;
                report(news, News::Built(walls));
                let is_to_run = until_run(news);
                if !is_to_run {
                    machine.control().stop();
                }
                Ok((Machine::start(machine, None)?, None))
            }
            Ends::Channels {
                frames,
                folders,
                console,
                greeted,
            } => {
                let (machine, ends) = local::launch(builder, console, greeted)?;
                report(news, News::Built(walls));
                Ok((
                    machine,
                    Some(Relay {
                        frames,
                        folders,
                        ends,
                    }),
                ))
            }
        }
    }
}

/// Waits for the order to run the machine; returns false where the order is to stop it.
fn until_run(stream: &Stream) -> bool {
    match stream.receive() {
        Ok(Some(Received {
            message: Order::Run,
            ..
        })) => true,
        Ok(Some(Received {
            message: Order::Stop,
            ..
        })) => false,
        // The other process has ended, or sends what isn't in order.
        _ => std::process::exit(1),
    }
}

/// The messages' way between the guest and the process that has started this one.
struct Relay {
    frames: UnixStream,
    folders: UnixStream,
    ends: ChannelEnds,
}

impl Relay {
    /// Starts the threads. That of the guest's frames comes to the machine's end.
    fn serve(self, last: Last) -> io::Result<()> {
        let Relay {
            frames: stream,
            folders: messages,
            ends:
                ChannelEnds {
                    mut from_guest,
                    mut to_guest,
                    folders,
                },
        } = self;
        folders.serve(messages)?;
        let mut incoming = stream.try_clone()?;
        spawn("to-guest", move || {
            // It ends with the other process, or with the guest, for which nothing is to come then.
            let _ = local::pass(&mut incoming, &mut to_guest);
            let _ = incoming.shutdown(Shutdown::Read);
        })?;
        spawn("from-guest", move || {
            let passed = pass(&mut from_guest, &stream);
            let why = passed.err().map(|error| error.to_string());
            report(&last.stream, News::FramesEnded(why));
            let _ = stream.shutdown(Shutdown::Write);
            // Where it ended early, the guest doesn't wait for a reader.
            drop(from_guest);
            last.conclude();
        })
    }
}

/// Copies the guest's frames until the machine ends, or nothing reads them any more. An error is the guest's.
fn pass(from_guest: &mut wire::FromGuest, stream: &UnixStream) -> io::Result<()> {
    let mut reader = Reader {
        stream,
        is_gone: false,
    };
    let passed = local::pass(from_guest, &mut reader);
    match reader.is_gone {
        true => Ok(()),
        false => passed,
    }
}

/// The process that reads a guest's frames.
struct Reader<'a> {
    stream: &'a UnixStream,
    /// Whether a write has failed: an error of the copying is this one then, and not the guest's.
    is_gone: bool,
}

impl Write for Reader<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes);
        self.is_gone = written
            .as_ref()
            .is_err_and(|error| error.kind() != io::ErrorKind::Interrupted);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the last thread reports from.
struct Last {
    stream: Arc<Stream>,
    rehearsal: bool,
    machine: Machine,
    /// Whether some of a console's output was dropped.
    cut: Cut,
    observation: Option<Observation>,
}

impl Last {
    /// Waits for the machine's end, and reports it. It ends this process once the last events are sent.
    fn conclude(self) {
        let memory = self.machine.memory.clone();
        let console = self.machine.console.clone();
        let outcome = self.machine.end();
        let touched = self
            .rehearsal
            .then(|| WorkingSet::of(&memory))
            .transpose()
            .map_err(failed("find which pages were touched"));
        let (outcome, touched) = match touched {
            Ok(touched) => (outcome.map_err(Failure::Machine), touched),
            Err(failure) => (Err(failure), None),
        };
        let ending = Ending {
            outcome,
            console: console.and_then(|tail| tail.text()),
            truncated: self.cut.is_set(),
            touched,
        };
        report(&self.stream, News::Ended(Box::new(ending)));
        // Without events the other process ends this one now.
        if let Some(observation) = self.observation {
            (observation.finish)();
            std::process::exit(0);
        }
    }
}

/// Sends news. Where that can't be done the other process has ended, or would wait for them for ever: this one ends.
fn report(stream: &Stream, news: News) {
    if stream.send(&news, &[]).is_err() {
        std::process::exit(1);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.into());
    thread.spawn(work).map(drop)
}

/// Returns the next descriptor that came with a message.
fn next(files: &mut impl Iterator<Item = OwnedFd>) -> Result<OwnedFd, Failure> {
    let next = files.next();
    next.ok_or_else(|| Failure::Other("a message to the monitor lacks a descriptor".into()))
}

/// Wraps an operating system's error; made to stand in a `map_err`.
fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::from(Error::from(cannot(what)(error)))
}

impl From<minivm_vmm::Error> for Failure {
    fn from(error: minivm_vmm::Error) -> Failure {
        Failure::Machine(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Monitor(error) => Failure::Machine(error),
            error => {
                let mut text = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(error) = cause {
                    text.push_str(&format!(": {error}"));
                    cause = error.source();
                }
                Failure::Other(text)
            }
        }
    }
}
