//! Machines on this host's KVM.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use minivm_image::io_error::{HostError, cannot};
use minivm_vmm::{Builder, Control, Memory, Observer, Outcome};
use serde::{Deserialize, Serialize};

use super::console::Tail;
use super::lab::FOLDERS_PORT;
use super::wire::{self, FromGuest, ToGuest};
use super::{Ended, Error, Input, Link, MachineSpec, StopOnDrop, Watch, monitor, peak_memory};
use crate::jail::CpuGroup;
use crate::printable::Filter;

/// Starts a machine that boots, in a monitor if this program has any. A machine with an observer of this process's runs in this process.
pub(super) fn start(machine: &MachineSpec, watch: Option<Watch>) -> Result<Link, Error> {
    let (events, observer) = Watch::parts(watch);
    if monitor::is_there() && observer.is_none() {
        let spec = monitor::Spec::boot(machine.config()).events(events);
        let spec = spec.cpu_quota(machine.cpu_quota);
        return Ok(spec.start_session(machine.console, None)?.0);
    }
    CpuGroup::refuse_here(machine.cpu_quota)?;
    start_here(machine, observer)
}

/// Starts a machine that boots, in this process.
pub(super) fn start_here(
    machine: &MachineSpec,
    observer: Option<Arc<dyn Observer>>,
) -> Result<Link, Error> {
    let builder = observed(Builder::new(machine.config()), observer);
    let (machine, ends) = launch(builder, machine.console, None)?;
    machine.link(ends, false)
}

/// Lets the observer see the machine, if there is one.
pub(super) fn observed(builder: Builder, observer: Option<Arc<dyn Observer>>) -> Builder {
    match observer {
        Some(observer) => builder.observer(observer),
        None => builder,
    }
}

/// The state of a guest that was greeted before its machine was saved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Greeted {
    /// The address of its ring directory, if it has one.
    pub(crate) rings: Option<u64>,
}

/// A machine of this process's, which a thread runs.
pub(crate) struct Machine {
    pub(crate) control: Control,
    pub(crate) memory: Memory,
    /// The console's last lines, where they are kept.
    pub(crate) console: Option<Tail>,
    running: JoinHandle<minivm_vmm::Result<Outcome>>,
}

/// The host's ends of a machine's channels.
pub(crate) struct ChannelEnds {
    pub(crate) from_guest: FromGuest,
    pub(crate) to_guest: ToGuest,
    pub(crate) folders: FolderEnds,
}

/// The host's ends of the folders' channel.
pub(crate) struct FolderEnds {
    from_guest: FromGuest,
    to_guest: ToGuest,
}

impl FolderEnds {
    /// Starts the thread `folders`, which passes the guest's messages on to `stream`; and once some have come, `from-folders`, which
    /// passes those of the stream on to the guest. Both end with the machine, or with the stream.
    ///
    /// # Errors
    ///
    /// The operating system's, where there can't be another thread or descriptor.
    pub(crate) fn serve(self, stream: UnixStream) -> io::Result<()> {
        let FolderEnds {
            mut from_guest,
            mut to_guest,
        } = self;
        let mut incoming = stream.try_clone()?;
        let thread = thread::Builder::new().name("folders".into());
        let serve = move || {
            let mut buffer = vec![0; 64 << 10];
            let first = from_guest.read(&mut buffer).unwrap_or(0);
            if first > 0 {
                let answers = thread::Builder::new().name("from-folders".into());
                let started = answers.spawn(move || {
                    let _ = pass(&mut incoming, &mut to_guest);
                    let _ = incoming.shutdown(Shutdown::Both);
                });
                let mut outgoing = &stream;
                if started.is_ok() && outgoing.write_all(&buffer[..first]).is_ok() {
                    // It ends with the guest, whose error it may be, or with the stream.
                    let _ = pass(&mut from_guest, &mut outgoing);
                }
            }
            let _ = stream.shutdown(Shutdown::Both);
            drop((buffer, stream));
            from_guest.ignore();
        };
        thread.spawn(serve).map(drop)
    }
}

impl Machine {
    /// Starts the thread `machine`, which runs the machine.
    pub(crate) fn start(
        machine: minivm_vmm::Machine,
        console: Option<Tail>,
    ) -> Result<Machine, Error> {
        let (control, memory) = (machine.control(), machine.memory());
        let running = thread::Builder::new()
            .name("machine".into())
            .spawn(move || machine.run())
            .map_err(cannot("start a thread"))?;
        Ok(Machine {
            control,
            memory,
            console,
            running,
        })
    }

    /// Waits for the machine's end.
    pub(crate) fn end(self) -> minivm_vmm::Result<Outcome> {
        self.running.join().unwrap_or_else(|_| {
            Err(minivm_vmm::Error::Output(io::Error::other(
                "the machine's thread panicked",
            )))
        })
    }

    /// Makes a link of the machine and its channels. `greeted` becomes [`Link::greeted`].
    pub(super) fn link(self, ends: ChannelEnds, greeted: bool) -> Result<Link, Error> {
        let ChannelEnds {
            from_guest,
            to_guest,
            folders,
        } = ends;
        let (ours, theirs) = UnixStream::pair().map_err(cannot("create a socket"))?;
        folders.serve(theirs).map_err(cannot("start a thread"))?;
        let stop = self.control.clone();
        let end = move || {
            let tail = self.console.clone();
            let outcome = self.end()?;
            let console = tail.and_then(|tail| tail.text());
            Ok(Ended::of(
                outcome,
                console,
                peak_memory("/proc/self/status"),
            ))
        };
        Ok(Link {
            greeted,
            walls: None,
            from_guest: Box::new(from_guest),
            to_guest: Box::new(to_guest),
            folders: Some(ours),
            stop: StopOnDrop::boxed(move || stop.stop()),
            end: Box::new(end),
        })
    }
}

/// Builds a machine and starts the thread that runs it. `console` says whether its console goes to stderr, else its last lines are kept;
/// `greeted` is for a guest that was greeted before its machine was saved.
pub(crate) fn launch(
    builder: Builder,
    console: bool,
    greeted: Option<Greeted>,
) -> Result<(Machine, ChannelEnds), Error> {
    let tail = (!console).then(Tail::default);
    let console: Box<dyn Write + Send> = match &tail {
        None => Box::new(Filter::new(File::from(stderr()?))),
        Some(tail) => Box::new(tail.clone()),
    };
    let pipe = || io::pipe().map_err(cannot("create a pipe"));
    let ((from, com2_output), (com2_input, to)) = (pipe()?, pipe()?);
    let ((from_folders, com3_output), (com3_input, to_folders)) = (pipe()?, pipe()?);
    let machine = builder
        .console_output(console)
        .com2_output(com2_output)
        .com2_input(Input::from(OwnedFd::from(com2_input)))
        .com3_output(com3_output)
        .com3_input(Input::from(OwnedFd::from(com3_input)))
        .build()?;
    let control = wire::control((from, to), machine.memory(), greeted);
    let (from_guest, to_guest) = control.map_err(Error::Protocol)?;
    let (from_folders, to_folders) = from_guest.folders((from_folders, to_folders));
    let machine = Machine::start(machine, tail)?;
    let ends = ChannelEnds {
        from_guest,
        to_guest,
        folders: FolderEnds {
            from_guest: from_folders,
            to_guest: to_folders,
        },
    };
    Ok((machine, ends))
}

fn stderr() -> Result<OwnedFd, HostError> {
    io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map_err(cannot("use stderr"))
}

/// Runs a machine whose frames come from stdin and go to stdout: the lab's side of `remote`. The end of stdin stops the machine. An
/// observer sees its exits.
///
/// # Errors
///
/// As [`MachineSpec::start`]'s; [`Error::Protocol`] where the guest's frames can't be read or passed on; [`Error::Monitor`] where the machine
/// fails while it runs.
pub fn relay(machine: &MachineSpec, observer: Option<Arc<dyn Observer>>) -> Result<Ended, Error> {
    let Link {
        mut from_guest,
        mut to_guest,
        folders,
        stop,
        end,
        ..
    } = start_here(machine, observer)?;
    if let Some(folders) = folders {
        relay_folders(folders)?;
    }
    let mut stdin = File::from(
        io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(cannot("use stdin"))?,
    );
    thread::Builder::new()
        .name("to-guest".into())
        .spawn(move || {
            // It ends with stdin or with the machine; either way the machine is to stop.
            let _ = pass(&mut stdin, &mut to_guest);
            stop();
        })
        .map_err(cannot("start a thread"))?;
    let mut stdout = File::from(
        io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(cannot("use stdout"))?,
    );
    pass(&mut from_guest, &mut stdout).map_err(Error::Protocol)?;
    end()
}

/// Passes the folders' messages on between the machine and the lab's port for them. Where that isn't there, its guest gets no answers.
fn relay_folders(mut from_machine: UnixStream) -> Result<(), Error> {
    let port = File::options().read(true).write(true).open(FOLDERS_PORT);
    let mut to_host = port.map_err(cannot(format!("open {FOLDERS_PORT}")))?;
    let duplicated = cannot("duplicate a descriptor");
    let (mut to_machine, mut from_host) = from_machine
        .try_clone()
        .and_then(|machine| Ok((machine, to_host.try_clone()?)))
        .map_err(duplicated)?;
    let spawn = |work: Box<dyn FnOnce() -> io::Result<()> + Send>| {
        // It ends with the machine, and this process with that; or with the host's end, and the guest gets no more answers.
        let spawned = thread::Builder::new().spawn(move || drop(work()));
        spawned.map_err(cannot("start a thread"))
    };
    spawn(Box::new(move || pass(&mut from_machine, &mut to_host)))?;
    spawn(Box::new(move || pass(&mut from_host, &mut to_machine)))?;
    Ok(())
}

/// Copies bytes as they come, until the end of `from`.
pub(crate) fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..len])?;
    }
}
