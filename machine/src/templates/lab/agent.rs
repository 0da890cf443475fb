//! The agent: makes the template in the lab, and keeps a clone of it waiting at every port.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use minivm_image::io_error::failed;

use super::{AgentReport, PORTS};
use crate::Link;
use crate::lab::channel;
use crate::lab::frame::{self, Buffer, Kind, MAX_PAYLOAD};
use crate::template::{ResumeOptions, Saved};
use crate::templates::{Error, Recipe};

/// The folder of the template, in the lab's memory.
const TEMPLATE: &str = "/run/template";

/// Makes the template and serves the ports, until the lab ends. A line of JSON on stdout reports whether the template could be made.
///
/// # Errors
///
/// [`Error::Machine`] or [`Error::Snapshot`] where the template can't be made; [`Error::File`] where stdout can't be written to.
pub fn run(recipe: &Recipe) -> Result<(), Error> {
    let saved = make(recipe).inspect_err(|error| {
        let why = match error {
            Error::Machine(crate::Error::NoTemplate(why)) => why.clone(),
            error => error.to_string(),
        };
        // Where the keeper has gone, there is nothing to report to.
        let _ = report(&AgentReport::Failed(why));
    })?;
    thread::scope(|scope| {
        for number in 0..PORTS {
            let saved = &saved;
            scope.spawn(move || {
                if let Err(error) = serve(number, saved) {
                    eprintln!("minivm: port {number}: {error}");
                }
            });
        }
        report(&AgentReport::Ready)
    })
    .map_err(failed("write to", Path::new("stdout")))?;
    Ok(())
}

/// Makes the template in the lab's memory.
fn make(recipe: &Recipe) -> Result<Saved, Error> {
    let folder = Path::new(TEMPLATE);
    let rings = recipe.save(folder)?;
    let image = recipe.machine.image.as_deref();
    Ok(Saved::open(folder, image, rings)?)
}

fn report(report: &AgentReport) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut stdout = io::stdout();
    stdout.write_all(&line)?;
    stdout.flush()
}

/// Serves one session after another at a port.
fn serve(number: usize, saved: &Saved) -> Result<(), Error> {
    // The first port is the lab's own.
    let path = format!("/dev/vport0p{}", number + 2);
    let path = Path::new(&path);
    let port = File::options().read(true).write(true).open(path);
    let port = port.map_err(failed("open", path))?;
    // The next session's first frames may have been read with this one's last.
    let mut input = BufReader::with_capacity(2 * MAX_PAYLOAD, &port);
    loop {
        let link = saved.resume(ResumeOptions::default())?;
        session(link, &mut input, &port).map_err(failed("use", path))?;
    }
}

/// Runs one clone, from the first frame at the port to the last.
fn session(link: Link, input: &mut (impl Read + Send), port: &File) -> io::Result<()> {
    let Link {
        mut from_guest,
        mut to_guest,
        folders,
        stop,
        end,
        ..
    } = link;
    let folders = folders.ok_or(io::ErrorKind::NotConnected)?;
    let to_host = Mutex::new(port);
    thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let received = take_in(input, &mut to_guest, &folders);
            stop();
            received
        });
        let messages = scope.spawn(|| channel::pass_folders(&folders, &to_host));
        let passed = pass_out(&mut from_guest, &to_host);
        drop(from_guest);
        // They end with the machine.
        let _ = messages.join();
        let (code, how) = match end() {
            Ok(ended) if ended.orderly => (0, String::new()),
            Ok(ended) => (1, ended.how),
            Err(error) => (1, error.to_string()),
        };
        if !how.is_empty() {
            frame::send(Kind::Stderr, format!("minivm: {how}\n").as_bytes(), port)?;
        }
        frame::send(Kind::Exit, &i32::to_le_bytes(code), port)?;
        receiving
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))?;
        passed
    })
}

/// Passes the command's frames to the machine, until the keeper hangs up. A machine that has ended loses them.
fn take_in(
    input: &mut impl Read,
    to_guest: &mut impl Write,
    folders: &UnixStream,
) -> io::Result<()> {
    let mut payload = Vec::new();
    while let Some(kind) = frame::receive(&mut *input, &mut payload)? {
        match kind {
            Kind::Stdin => drop(to_guest.write_all(&payload)),
            Kind::Folders => channel::take_folders(folders, &payload),
            Kind::Hangup => return Ok(()),
            _ => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Passes the machine's frames to the port, until its end.
fn pass_out(from_guest: &mut impl Read, to_host: &Mutex<&File>) -> io::Result<()> {
    let mut buffer = Buffer::new();
    loop {
        // A guest that breaks the protocol only ends its own session.
        let Ok(len @ 1..) = from_guest.read(&mut buffer.payload()[..MAX_PAYLOAD]) else {
            return Ok(());
        };
        channel::send(&mut buffer, Kind::Stdout, len, to_host)?;
    }
}
