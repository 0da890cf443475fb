//! A container that is no machine: its runtime has made the surroundings and has the streams, and ends all processes when this
//! one ends. Init puts files in their places and runs the command, whose outputs are pipes that it copies to its own outputs.

#![allow(unsafe_code, reason = "open files are inherited by their numbers")]

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::thread::{self, JoinHandle};

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{Refusal, Request, ToGuest, ToHost};
pub(crate) use minivm_guest::contained::ARGUMENT;
use minivm_guest::contained::{ANSWER, FILES, REQUEST};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, WaitOptions, WaitStatus};

use crate::command::Running;
use crate::user::User;
use crate::{Error, command, files, session, surroundings, user};

/// The most bytes that are copied at once.
const CHUNK: usize = 64 << 10;
/// The number that is added to that of the signal that has ended the command.
const SIGNAL: i32 = 128;

/// Runs the command, and ends as it does. Where the command can't be run, init answers with the reason and ends.
pub(crate) fn run() -> ! {
    let mut answer = File::from(inherited(ANSWER));
    // The command must not answer.
    let closed = rustix::io::fcntl_setfd(&answer, FdFlags::CLOEXEC);
    let prepared = closed.map_err(Into::into).and_then(|()| prepare());
    let refusal = match prepared {
        Ok((request, user)) => {
            // The command runs also where the reader of the answer is gone.
            let _ = send(&mut answer, &ToHost::Started);
            match command::start_contained(&request, &user).and_then(to_end) {
                Ok(code) => std::process::exit(code),
                Err(refusal) => refusal,
            }
        }
        Err(error) => Refusal::Failed(error.to_string()),
    };
    let _ = send(&mut answer, &ToHost::Refused(refusal));
    std::process::exit(1)
}

/// Copies the command's outputs until it has ended and they are at their ends. Returns its exit code.
fn to_end(running: Running) -> Result<i32, Refusal> {
    let failed = |error: io::Error| Refusal::Failed(error.to_string());
    let Running {
        pid,
        stdout,
        stderr,
        ..
    } = running;
    let passing = [
        pass_on(stdout, io::stdout()).map_err(failed)?,
        pass_on(stderr, io::stderr()).map_err(failed)?,
    ];
    let code = wait_for(pid);
    // The command's other processes end with it: until the last of them is gone the pipes have no end.
    loop {
        session::kill_all();
        if matches!(
            rustix::process::wait(WaitOptions::empty()),
            Err(Errno::CHILD)
        ) {
            break;
        }
    }
    for thread in passing.into_iter().flatten() {
        let _ = thread.join();
    }
    Ok(code)
}

/// Waits for the command, and for all processes that lose their parents meanwhile. Returns the command's exit code.
fn wait_for(command: Pid) -> i32 {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == command => return code(status),
            Ok(_) | Err(Errno::INTR) => {}
            // The command is a child of this process, so there is one to wait for.
            Err(_) => return 1,
        }
    }
}

/// Returns the exit code that a shell has for a status.
fn code(status: WaitStatus) -> i32 {
    let killed = status.terminating_signal().map(|signal| SIGNAL + signal);
    status.exit_status().or(killed).unwrap_or(1)
}

/// Copies an output, on a thread of its own. Where it can't be written any more, the pipe is closed.
fn pass_on(from: Option<OwnedFd>, to: impl AsFd) -> io::Result<Option<JoinHandle<()>>> {
    let Some(from) = from else { return Ok(None) };
    let to = File::from(to.as_fd().try_clone_to_owned()?);
    let pass = move || {
        let (mut from, mut to) = (File::from(from), to);
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(len) if to.write_all(&buffer[..len]).is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    };
    thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(pass)
        .map(Some)
}

/// Reads the request, and puts the files in their places.
fn prepare() -> Result<(Request, User), Error> {
    let mut bytes = Vec::new();
    File::from(inherited(REQUEST)).read_to_end(&mut bytes)?;
    let mut decoder = Decoder::default();
    decoder.extend(&bytes);
    let Some((tag, body)) = decoder.next()? else {
        return Err("there is no request".into());
    };
    let ToGuest::Request(request) = ToGuest::decode(tag, body)? else {
        return Err("expected a request, and got another message".into());
    };
    surroundings::write_names(&request.hostname);
    let user = user::find(&request.user)?;
    if request.copy_in {
        files::unpack(BufReader::new(File::from(inherited(FILES))), &user)?;
    }
    Ok((request, user))
}

fn send(answer: &mut File, message: &ToHost) -> io::Result<()> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    answer.write_all(&bytes)
}

/// Takes a file that is open under this number from the start.
fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the runtime that starts init with this argument has opened the files; each is taken once, before anything else
    // is opened that could have its number.
    unsafe { OwnedFd::from_raw_fd(number) }
}
