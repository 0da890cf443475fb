//! The lab's end of the channel while the command runs: one thread for each of the command's streams.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::frame::{self, Buffer, Kind, MAX_PAYLOAD};

/// The threads that send the command's outputs.
pub(super) struct Relay {
    outputs: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Starts the threads of a command whose streams are pipes.
    pub(super) fn start(channel: &File, child: &mut Child) -> io::Result<Relay> {
        if let Some(stdin) = child.stdin.take() {
            let channel = channel.try_clone()?;
            thread::Builder::new().spawn(move || deliver(channel, stdin))?;
        }
        let shared = Arc::new(Mutex::new(channel.try_clone()?));
        let mut outputs = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let channel = Arc::clone(&shared);
            outputs.push(
                thread::Builder::new().spawn(move || collect(stdout, Kind::Stdout, &channel))?,
            );
        }
        if let Some(stderr) = child.stderr.take() {
            outputs.push(
                thread::Builder::new().spawn(move || collect(stderr, Kind::Stderr, &shared))?,
            );
        }
        Ok(Relay { outputs })
    }

    /// Waits until all output is sent: until the last process that could write some has ended.
    pub(super) fn finish(self) {
        for output in self.outputs {
            // A thread that panicked has printed that on the console.
            let _ = output.join();
        }
    }
}

/// Writes the host's input to the command's stdin until its end. Where the command has closed its stdin, input is still read from the
/// channel, and dropped.
fn deliver(channel: File, stdin: ChildStdin) {
    let mut channel = BufReader::with_capacity(2 * MAX_PAYLOAD, channel);
    let (mut stdin, mut payload) = (Some(stdin), Vec::new());
    while let Ok(Some(kind @ (Kind::Stdin | Kind::Ping))) =
        frame::receive(&mut channel, &mut payload)
    {
        if kind == Kind::Ping {
            continue;
        }
        let delivered = stdin
            .as_mut()
            .is_some_and(|stdin| stdin.write_all(&payload).is_ok());
        if payload.is_empty() || !delivered {
            stdin = None;
        }
    }
}

/// Sends output as it comes, until its end or until the channel is closed.
fn collect(mut output: impl Read, kind: Kind, channel: &Mutex<File>) {
    let mut buffer = Buffer::new();
    while let Ok(length @ 1..) = output.read(&mut buffer.payload()[..MAX_PAYLOAD]) {
        let channel = channel.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.send(kind, length, &*channel).is_err() {
            return;
        }
    }
}
