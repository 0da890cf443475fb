//! Machines on this host's KVM.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use minivm_image::io_error::{HostError, cannot};
use minivm_vmm::{Builder, Control, Input, Memory, Observer, Outcome};

use super::console::Tail;
use super::wire::{self, FromGuest, ToGuest};
use super::{Ended, Error, Link, MachineSpec, StopOnDrop};
use crate::printable::Filter;

/// Builds the machine and starts the thread that runs it.
pub(super) fn start(
    machine: &MachineSpec,
    observer: Option<Arc<dyn Observer>>,
) -> Result<Link, Error> {
    let builder = observed(Builder::new(machine.config()), observer);
    launch(builder, machine.console, false, |from, to, memory| {
        Ok(wire::wire(from, to, memory))
    })
    .map(|(link, _)| link)
}

/// Lets the observer see the machine, if there is one.
pub(super) fn observed(builder: Builder, observer: Option<Arc<dyn Observer>>) -> Builder {
    match observer {
        Some(observer) => builder.observer(observer),
        None => builder,
    }
}

/// Builds a machine and starts the thread `machine`, which runs it. `console` says whether its console goes to stderr, else its last
/// lines are kept; `wire` makes the streams from its COM2; `greeted` becomes [`Link::greeted`].
pub(super) fn launch(
    builder: Builder,
    console: bool,
    greeted: bool,
    wire: impl FnOnce(PipeReader, PipeWriter, Memory) -> Result<(FromGuest, ToGuest), Error>,
) -> Result<(Link, Control), Error> {
    let tail = Tail::default();
    let console: Box<dyn Write + Send> = match console {
        true => Box::new(Filter::new(File::from(stderr()?))),
        false => Box::new(tail.clone()),
    };
    let pipe = || io::pipe().map_err(cannot("create a pipe"));
    let ((from, com2_output), (com2_input, to)) = (pipe()?, pipe()?);
    let machine = builder
        .console_output(console)
        .com2_output(com2_output)
        .com2_input(Input::from(OwnedFd::from(com2_input)))
        .build()?;
    let control = machine.control();
    let (from_guest, to_guest) = wire(from, to, machine.memory())?;
    let running = thread::Builder::new()
        .name("machine".into())
        .spawn(move || machine.run())
        .map_err(cannot("start a thread"))?;
    let end = move || {
        let outcome = running.join().unwrap_or_else(|_| {
            Err(minivm_vmm::Error::Output(io::Error::other(
                "the machine's thread panicked",
            )))
        });
        outcome
            .map(|outcome| ended(outcome, &tail))
            .map_err(Error::Monitor)
    };
    let stop = control.clone();
    let link = Link {
        greeted,
        from_guest: Box::new(from_guest),
        to_guest: Box::new(to_guest),
        stop: StopOnDrop::boxed(move || stop.stop()),
        end: Box::new(end),
    };
    Ok((link, control))
}

fn stderr() -> Result<OwnedFd, HostError> {
    io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map_err(cannot("use stderr"))
}

fn ended(outcome: Outcome, tail: &Tail) -> Ended {
    let orderly = outcome.is_orderly() || outcome == Outcome::Stopped;
    let how = match tail.text().filter(|_| !orderly) {
        Some(console) => format!("{outcome}; its console:\n{console}"),
        None => outcome.to_string(),
    };
    Ended { orderly, how }
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
    } = start(machine, observer)?;
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
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..len])?;
    }
}
