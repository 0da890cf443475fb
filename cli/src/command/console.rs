//! A machine with the terminal as its console: one that boots a kernel, or resumes a snapshot.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::Context;
use minivm_machine::Input;
use minivm_machine::monitor::{Monitor, Spec};
use minivm_machine::streams;
use minivm_vmm::{Builder, Control, Error, Outcome};

use super::accel::explain;
use super::control::{Name, Server, Socket};
use super::report::CUT;
use super::terminal::{self, RawMode};
use super::{EXIT_ERROR, signals};

/// The guest crashed.
const EXIT_CRASHED: u8 = 1;
/// Nobody reads stdout any more: the code of a program that was killed by SIGPIPE.
pub(super) const EXIT_BROKEN_PIPE: u8 = 128 + 13;

/// Runs the machine to its end, in a monitor. If a path is given, a socket there takes requests meanwhile.
pub(super) fn run(
    machine: Spec,
    socket: Option<&Path>,
    started: Instant,
) -> anyhow::Result<ExitCode> {
    let socket = socket.map(bind).transpose()?;
    if machine.is_bounded() {
        let stopper = machine.stopper();
        let clean_up = move || {
            terminal::restore();
            stopper.kill();
        };
        signals::before_death(clean_up).context("cannot listen to signals")?;
    }
    let running = Arc::new(OnceLock::<Monitor>::new());
    let input = stdin(running.clone(), Monitor::stop)?;
    let monitor = machine.start_console(input, stdout()?.into())?;
    log_step("the machine is there", started);
    let _ = running.set(monitor.clone());
    // Only now: whatever failed before was printed to a terminal in order.
    let raw = raw_mode(socket.is_none())?;
    monitor.run();
    let server = socket
        .map(|socket| Server::start(socket, monitor.clone()))
        .transpose()
        .context("cannot serve the control socket")?;
    let end = monitor.end();
    // A clean-up may have killed it.
    signals::wait_for_death();
    log_step("the machine is gone", started);
    drop(server);
    drop(raw);
    let cut = end.as_ref().is_ok_and(|end| end.truncated);
    let code = report(end.and_then(|end| end.outcome))?;
    Ok(ExitCode::from(with_loss(code, cut)))
}

/// Returns a machine's exit code. Where some of its output was dropped, prints that: then the machine has not gone well.
pub(super) fn with_loss(code: u8, cut: bool) -> u8 {
    if cut {
        streams::tell(CUT);
    }
    match (cut, code) {
        (true, 0) => EXIT_ERROR,
        _ => code,
    }
}

/// Runs the machine to its end, in this process: in a lab.
pub(super) fn run_here(builder: Builder) -> anyhow::Result<ExitCode> {
    let running = Arc::new(OnceLock::<Control>::new());
    let input = stdin(running.clone(), Control::stop)?;
    let machine = builder
        .console_output(stdout()?)
        .console_input(Input::from(input))
        .build()?;
    let _ = running.set(machine.control());
    let raw = raw_mode(true)?;
    let outcome = machine.run();
    drop(raw);
    report(outcome.map_err(minivm_machine::Error::from)).map(ExitCode::from)
}

/// Logs a step of the machine's life, with the time since minivm's start.
pub(super) fn log_step(what: &str, started: Instant) {
    let micros = started.elapsed().as_micros();
    log::debug!("{what} after {micros} µs");
}

/// Switches the terminal to raw mode, if stdin is one. With `until_death` a signal that ends this process restores it.
pub(super) fn raw_mode(until_death: bool) -> anyhow::Result<Option<RawMode>> {
    let raw = RawMode::enter().context("cannot set the terminal to raw mode")?;
    if until_death && raw.is_some() {
        signals::before_death(terminal::restore).context("cannot listen to signals")?;
    }
    Ok(raw)
}

/// Makes the socket, which is gone again whatever ends this process, but for SIGKILL.
fn bind(path: &Path) -> anyhow::Result<Socket> {
    // A signal that comes while there is a socket without a name waits for the name.
    let bound = Arc::new(Mutex::new(None::<Arc<Name>>));
    let mut name = bound.lock().unwrap_or_else(PoisonError::into_inner);
    let to_remove = bound.clone();
    signals::before_death(move || {
        terminal::restore();
        let mut name = to_remove.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = name.take() {
            name.remove();
        }
    })
    .context("cannot listen to signals")?;
    let socket = Socket::bind(path)?;
    *name = Some(socket.name());
    drop(name);
    Ok(socket)
}

/// Not `io::stdout()`, which keeps a line until it is whole.
pub(super) fn stdout() -> anyhow::Result<File> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    Ok(File::from(stdout.context("cannot use stdout")?))
}

/// The guest's input: typed keys, or stdin itself where that is not a terminal. Ctrl-A x ends the machine.
fn stdin<T: Send + Sync + 'static>(
    running: Arc<OnceLock<T>>,
    stop: fn(&T),
) -> anyhow::Result<OwnedFd> {
    if !rustix::termios::isatty(io::stdin()) {
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        return stdin.context("cannot use stdin");
    }
    let end = move || {
        if let Some(machine) = running.get() {
            stop(machine);
        }
    };
    terminal::keys(end).context("cannot read the terminal")
}

/// Returns the exit code of an outcome, and prints why the machine failed, if it did.
fn report(outcome: Result<Outcome, minivm_machine::Error>) -> anyhow::Result<u8> {
    use minivm_machine::Error::Monitor;
    let outcome = match outcome {
        // The guest's doing, and not minivm's failure.
        Err(Monitor(error @ Error::Exit { .. })) => {
            eprintln!("minivm: {:#}", explain(error.into()));
            return Ok(EXIT_CRASHED);
        }
        // As for any program whose reader is gone.
        Err(Monitor(Error::Output(error))) if error.kind() == io::ErrorKind::BrokenPipe => {
            return Ok(EXIT_BROKEN_PIPE);
        }
        other => other?,
    };
    if outcome.is_orderly() || outcome == Outcome::Stopped {
        return Ok(0);
    }
    eprintln!("minivm: {outcome}");
    Ok(EXIT_CRASHED)
}
