//! Machines on this host's KVM.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use minivm_image::io_error::{HostError, cannot};
use minivm_vmm::{Builder, Control, Memory, Observer, Outcome};
use serde::{Deserialize, Serialize};

use super::console::Tail;
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
    let (machine, ends) = launch(builder, machine.console, |from, to, memory| {
        Ok(wire::wire(from, to, memory))
    })?;
    Ok(machine.link(ends, false))
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

/// The host's ends of a machine's control channel.
pub(crate) struct FrameEnds {
    pub(crate) from_guest: FromGuest,
    pub(crate) to_guest: ToGuest,
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

    /// Makes a link of the machine and its channel. `greeted` becomes [`Link::greeted`].
    pub(super) fn link(self, ends: FrameEnds, greeted: bool) -> Link {
        let FrameEnds {
            from_guest,
            to_guest,
        } = ends;
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
        Link {
            greeted,
            walls: None,
            from_guest: Box::new(from_guest),
            to_guest: Box::new(to_guest),
            stop: StopOnDrop::boxed(move || stop.stop()),
            end: Box::new(end),
        }
    }
}

/// Builds a machine and starts the thread that runs it. `console` says whether its console goes to stderr, else its last lines are kept;
/// `wire` makes the streams from its COM2.
pub(crate) fn launch(
    builder: Builder,
    console: bool,
    wire: impl FnOnce(PipeReader, PipeWriter, Memory) -> Result<(FromGuest, ToGuest), Error>,
) -> Result<(Machine, FrameEnds), Error> {
    let tail = (!console).then(Tail::default);
    let console: Box<dyn Write + Send> = match &tail {
        None => Box::new(Filter::new(File::from(stderr()?))),
        Some(tail) => Box::new(tail.clone()),
    };
    let pipe = || io::pipe().map_err(cannot("create a pipe"));
    let ((from, com2_output), (com2_input, to)) = (pipe()?, pipe()?);
    let machine = builder
        .console_output(console)
        .com2_output(com2_output)
        .com2_input(Input::from(OwnedFd::from(com2_input)))
        .build()?;
    let (from_guest, to_guest) = wire(from, to, machine.memory())?;
    let machine = Machine::start(machine, tail)?;
    Ok((
        machine,
        FrameEnds {
            from_guest,
            to_guest,
        },
    ))
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
        stop,
        end,
        ..
    } = start_here(machine, observer)?;
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
