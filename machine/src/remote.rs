//! Machines in the lab: `minivm` there runs one, and passes its frames on.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;

use minivm_image::io_error::cannot;

use super::last_words::LastWords;
use super::{Ended, Error, Link, MachineSpec, StopOnDrop};
use crate::lab::{Input, Output};
use crate::lab_machine::LabMachine;

/// Starts a lab that has the kernel and the initramfs and runs the machine, with nothing else of the host's.
pub(super) fn start(machine: &MachineSpec, program: PathBuf) -> Result<Link, Error> {
    let pipe = || io::pipe().map_err(cannot("create a pipe"));
    let ((input, to_guest), (from_guest, output)) = (pipe()?, pipe()?);
    let mut request = LabMachine::Session(machine.clone()).request(0)?;
    request.program = program;
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
        from_guest: Box::new(from_guest),
        to_guest: Box::new(to_guest),
        stop: StopOnDrop::boxed(move || stop.stop()),
        end: Box::new(end),
    })
}

fn good(how: &str) -> Ended {
    Ended {
        orderly: true,
        how: how.into(),
    }
}
