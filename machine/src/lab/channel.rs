//! The host's end of the channel: sends the command's input, writes its output, waits for its exit code.

use std::io::{self, BufReader, PipeReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::thread;

use minivm_vmm::InputSource as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::streams;

use super::frame::{self, Buffer, Kind, MAX_PAYLOAD};

/// The exit code of a program that SIGPIPE ended.
const BROKEN_PIPE: i32 = 128 + 13;

/// The longest time without an interrupt for the lab.
///
/// QEMU's emulation of SVM changes the processor's pending interrupts without a lock at a VM exit: another one that comes in the same
/// few nanoseconds, a timer's, is lost, and where the processor then halts, it does so until the next (QEMU 7.2,
/// target/i386/tcg/sysemu/svm_helper.c, `do_vmexit`). Any other interrupt wakes it.
const PING_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// The lab's answer.
pub(crate) enum Answer {
    /// The command ended, with this code.
    Exit(i32),
    /// This output of the command's could not be written.
    NotWritten(&'static str, io::Error),
    /// The command could not be started, for this reason.
    Failed(String),
    /// This lab can't start the command, for this reason; another one may.
    Retry(String),
    /// No answer: the lab was killed or died.
    None,
}

/// Waits for a lab's first frame; returns `None` where the command starts, else the lab's only answer. Until then no input is sent to the
/// lab, for it may have to go to another one.
pub(super) fn begin(channel: &UnixStream) -> io::Result<Option<Answer>> {
    let mut payload = Vec::new();
    // A QEMU that was killed may leave half a frame.
    let Ok(Some(kind)) = frame::receive(channel, &mut payload) else {
        return Ok(Some(Answer::None));
    };
    let why = String::from_utf8_lossy(&payload).into_owned();
    match kind {
        Kind::Started => Ok(None),
        Kind::Failed => Ok(Some(Answer::Failed(why))),
        Kind::Retry => Ok(Some(Answer::Retry(why))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Carries input and output until the lab answers or ends, and the messages of a kept lab's machine's folders.
pub(crate) fn serve(
    channel: &UnixStream,
    input: Option<OwnedFd>,
    folders: Option<&UnixStream>,
    stdout: &mut (dyn Write + Send),
    stderr: &mut (dyn Write + Send),
) -> io::Result<Answer> {
    let (stop, running) = io::pipe()?;
    let to_lab = Mutex::new(channel);
    thread::scope(|scope| {
        // Input fails where the lab has ended, which `listen` finds out, or where its stream has.
        scope.spawn(|| feed(&to_lab, input, &stop));
        if let Some(folders) = folders {
            scope.spawn(|| pass_folders(folders, &to_lab));
        }
        let answer = listen(channel, folders, stdout, stderr);
        // Ends the other threads' waits for input and messages, or for the lab to take them.
        drop(running);
        // They fail where they were shut down already, see `stop`.
        let _ = channel.shutdown(Shutdown::Both);
        let _ = folders.map(|folders| folders.shutdown(Shutdown::Both));
        answer
    })
}

/// Sends one frame on a channel that several threads send on.
pub(crate) fn send(
    buffer: &mut Buffer,
    kind: Kind,
    length: usize,
    to: &Mutex<impl Write>,
) -> io::Result<()> {
    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
    buffer.send(kind, length, &mut *to)
}

/// Passes messages of a machine's folders on as frames, up to their end.
pub(crate) fn pass_folders(mut folders: &UnixStream, to: &Mutex<impl Write>) -> io::Result<()> {
    let mut buffer = Buffer::new();
    loop {
        let length = folders.read(&mut buffer.payload()[..MAX_PAYLOAD])?;
        send(&mut buffer, Kind::Folders, length, to)?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// Passes a frame with messages of a machine's folders on, or their end. What takes no more has ended.
pub(crate) fn take_folders(mut folders: &UnixStream, payload: &[u8]) {
    let _ = match payload {
        [] => folders.shutdown(Shutdown::Write),
        messages => folders.write_all(messages),
    };
}

/// Sends `input` until its end, and pings, until the other end of `stop` is closed.
fn feed(channel: &Mutex<impl Write>, input: Option<OwnedFd>, stop: &PipeReader) -> io::Result<()> {
    let mut buffer = Buffer::new();
    let mut input = input.map(crate::Input::from);
    if input.is_none() {
        send(&mut buffer, Kind::Stdin, 0, channel)?;
    }
    loop {
        let mut ready = vec![PollFd::new(stop, PollFlags::IN)];
        ready.extend(input.iter().map(|input| PollFd::new(input, PollFlags::IN)));
        let quiet = match poll(&mut ready, Some(&PING_INTERVAL)) {
            Err(Errno::INTR) => continue,
            ready => ready? == 0,
        };
        if !ready[0].revents().is_empty() {
            return Ok(());
        }
        match &input {
            Some(open) if !quiet => {
                // A stream that can't be read looks to the command like one that has ended.
                let length = open.try_read(&mut buffer.payload()[..MAX_PAYLOAD]);
                let Some(length) = length.unwrap_or(Some(0)) else {
                    continue;
                };
                send(&mut buffer, Kind::Stdin, length, channel)?;
                if length == 0 {
                    input = None;
                }
            }
            _ => send(&mut buffer, Kind::Ping, 0, channel)?,
        }
    }
}

/// Writes output as it comes, and returns the lab's answer.
fn listen(
    channel: &UnixStream,
    folders: Option<&UnixStream>,
    stdout: &mut (dyn Write + Send),
    stderr: &mut (dyn Write + Send),
) -> io::Result<Answer> {
    let mut channel = BufReader::with_capacity(2 * MAX_PAYLOAD, channel);
    let mut payload = Vec::new();
    let mut dropped = None;
    loop {
        // A QEMU that was killed may leave half a frame.
        let Ok(Some(kind)) = frame::receive(&mut channel, &mut payload) else {
            return Ok(Answer::None);
        };
        match kind {
            Kind::Started => {}
            Kind::Stdout => match streams::write_all(stdout, &payload) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(Answer::Exit(BROKEN_PIPE));
                }
                Err(error) => return Ok(Answer::NotWritten("stdout", error)),
            },
            // As with any program, messages that have lost their reader are dropped. A full disk is reported.
            Kind::Stderr if dropped.is_none() => match streams::write_all(stderr, &payload) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => dropped = Some(error),
                _ => {}
            },
            Kind::Stderr => {}
            Kind::Folders => {
                let folders = folders.ok_or(io::ErrorKind::InvalidData)?;
                take_folders(folders, &payload);
            }
            Kind::Exit => {
                let code = payload
                    .try_into()
                    .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                return Ok(match (i32::from_le_bytes(code), dropped) {
                    (0, Some(error)) => Answer::NotWritten("stderr", error),
                    (code, _) => Answer::Exit(code),
                });
            }
            Kind::Failed => {
                return Ok(Answer::Failed(
                    String::from_utf8_lossy(&payload).into_owned(),
                ));
            }
            Kind::Stdin
            | Kind::Ping
            | Kind::Hangup
            | Kind::Retry
            | Kind::Attach
            | Kind::Shutdown => {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}
