//! Machines in the lab: `minivm` there runs one, and passes its frames on.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use minivm_image::io_error::cannot;

use super::last_words::LastWords;
use super::{Ended, Error, Link, MachineSpec, StopOnDrop};
use crate::lab::{Input, Output, Processor, Stop};
use crate::lab_machine::LabMachine;

/// How long a watched machine may take to end.
const LAST_EVENTS: Duration = Duration::from_secs(10);

/// Starts a lab that has the kernel and the initramfs and runs the machine, with nothing else of the host's. The machine's events go to
/// `events`.
pub(super) fn start(
    machine: &MachineSpec,
    program: PathBuf,
    processor: Processor,
    events: Option<UnixStream>,
) -> Result<Link, Error> {
    let (from_guest, output) = io::pipe().map_err(cannot("create a pipe"))?;
    // A socket, whose end can be sent while a write waits.
    let (input, to_guest) = UnixStream::pair().map_err(cannot("create a socket"))?;
    let input_end = to_guest.try_clone().map_err(cannot("duplicate a socket"))?;
    let (folders, theirs) = UnixStream::pair().map_err(cannot("create a socket"))?;
    let watched = events.is_some();
    let mut request = LabMachine::Session(machine.clone()).request(0)?;
    (request.program, request.processor) = (program, processor);
    request.folders_to(theirs);
    if let Some(events) = events {
        request.trace_to(events);
    }
    request.stdin = Input::From(OwnedFd::from(input));
    request.stdout = Output::To(Box::new(output));
    let (stderr, said) = LastWords::to(io::stderr(), !machine.console);
    request.stderr = Output::To(Box::new(stderr));
    let stop = request.stop.clone();
    // QEMU ends with the thread that started it.
    let running = thread::Builder::new()
        .name("lab".into())
        .spawn(move || request.run())
        .map_err(cannot("start a thread"))?;
    let end = move || {
        let ended = match running.join() {
            Ok(Ok(finished)) if finished.code != 0 => {
                let how = said.why(finished.code);
                return Ok(Ended {
                    orderly: false,
                    how,
                    host_memory: None,
                });
            }
            Ok(Ok(_)) => Ok(good("the machine ended")),
            Ok(Err(crate::lab::Error::Stopped)) => Ok(good("the machine was stopped")),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Error::Died("the lab's thread panicked".into())),
        };
        said.pass_on();
        ended
    };
    Ok(Link {
        greeted: false,
        walls: None,
        from_guest: Box::new(from_guest),
        to_guest: Box::new(to_guest),
        folders: Some(folders),
        stop: match watched {
            false => StopOnDrop::boxed(move || stop.stop()),
            true => StopOnDrop::boxed(move || stop_machine(&input_end, &stop)),
        },
        end: Box::new(end),
    })
}

/// Stops a watched machine, and with it the lab, which sends the last events before. A lab that hangs is ended.
fn stop_machine(input: &UnixStream, lab: &Stop) {
    // It fails where the lab has ended.
    let _ = input.shutdown(Shutdown::Write);
    let lab = lab.clone();
    let end = move || {
        thread::sleep(LAST_EVENTS);
        lab.stop();
    };
    // Where there is no thread for it, the time limit or the user ends the lab.
    let _ = thread::Builder::new().spawn(end);
}

fn good(how: &str) -> Ended {
    Ended {
        orderly: true,
        how: how.into(),
        host_memory: None,
    }
}
