//! The command's side of a kept lab: asks its keeper for a machine, or to end.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use minivm_image::io_error::cannot;

use super::{KEEPER_COMMAND, connect_to, folder, is_socket, socket};
use crate::lab;
use crate::lab::channel::{self, Answer};
use crate::lab::frame::{self, Kind};
use crate::last_words::LastWords;
use crate::templates::Recipe;
use crate::templates::background::background;
use crate::{Ended, Error, Link, StopOnDrop};

/// How often a connection is tried while a keeper starts or ends.
const POLL: Duration = Duration::from_millis(20);
/// How long a keeper whose lab is in use is asked again to end.
const STOP_RETRIES: Duration = Duration::from_secs(1);
/// How long a keeper may take to answer or end when it is asked to end.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// How long `template create` waits for a lab that is starting.
const START_WAIT_REQUIRED: Duration = Duration::from_secs(150);
/// How long `run` waits for a lab that is starting before it boots a machine instead: several times what either takes on an idle host.
const START_WAIT_OPTIONAL: Duration = Duration::from_secs(10);

/// Returns a machine of this template from its lab, which waits for its request. Returns `None` where the lab has none free or takes too
/// long to start; where there is no lab, starts one for later runs as well.
///
/// # Errors
///
/// [`Error::Host`] where a thread or a pipe can't be made.
pub(in crate::templates) fn connect(
    recipe: &Recipe,
    key: &str,
    cache: &Path,
) -> Result<Option<Link>, Error> {
    let Ok(stream) = connect_to(&socket(cache, key)) else {
        if let Err(error) = background(KEEPER_COMMAND, recipe) {
            log::debug!("cannot start a lab for the next run: {error}");
        }
        return Ok(None);
    };
    match begin(&stream, START_WAIT_OPTIONAL) {
        Ok(()) => link(stream).map(Some),
        Err(why) => {
            log::debug!("the kept lab has no machine for this run: {why}");
            Ok(None)
        }
    }
}

/// Returns a machine of this template from its lab, which is started if needed.
///
/// # Errors
///
/// [`Error::NoTemplate`] where the lab can't have the template, has no machine free or takes too long; [`Error::Host`] where the keeper
/// can't be started or reached.
pub(in crate::templates) fn connect_or_start(
    recipe: &Recipe,
    key: &str,
    cache: &Path,
) -> Result<Link, Error> {
    let began = Instant::now();
    loop {
        let stream = reach(recipe, &socket(cache, key), began)?;
        match begin(&stream, START_WAIT_REQUIRED) {
            Ok(()) => return link(stream),
            // Its lab took too long to start, or is being ended. Another keeper can start one as soon as this one has ended.
            Err(Refused::KeeperEnded) if began.elapsed() < START_WAIT_REQUIRED => {
                thread::sleep(POLL)
            }
            Err(refused) => return Err(Error::NoTemplate(refused.to_string())),
        }
    }
}

/// Connects to the template's keeper, which is started if needed. A keeper that finds another one ends with success; where the other one
/// was just about to end, one more is started.
fn reach(recipe: &Recipe, socket: &Path, began: Instant) -> Result<UnixStream, Error> {
    let mut keeper: Option<Child> = None;
    loop {
        let error = match connect_to(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let ended = keeper.as_mut().map(Child::try_wait);
        let failed = matches!(ended, Some(Ok(Some(status))) if !status.success());
        if began.elapsed() > START_WAIT_REQUIRED || failed {
            return Err(cannot("reach the template's lab")(error).into());
        }
        if matches!(ended, None | Some(Ok(Some(_)))) {
            let started = background(KEEPER_COMMAND, recipe);
            keeper = Some(started.map_err(cannot("start a lab"))?);
        }
        thread::sleep(POLL);
    }
}

/// Why the keeper gives a command no machine.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// The keeper has hung up without a reason.
    #[error("its keeper has ended")]
    KeeperEnded,
    /// For this reason.
    #[error("{0}")]
    Because(String),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Refused::Because("its lab is still starting".into()),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Refused::KeeperEnded,
            _ => Refused::Because(error.to_string()),
        }
    }
}

/// Asks the keeper for a machine and waits for it. The answer has the reason why the lab runs outside a jail, if it does.
fn begin(stream: &UnixStream, patience: Duration) -> Result<(), Refused> {
    stream.set_read_timeout(Some(patience))?;
    frame::send(Kind::Attach, &[], stream)?;
    let mut payload = Vec::new();
    let kind = frame::receive(stream, &mut payload)?;
    let why = String::from_utf8_lossy(&payload).into_owned();
    match kind {
        Some(Kind::Started) => {}
        Some(Kind::Failed) => return Err(Refused::Because(why)),
        _ => return Err(Refused::KeeperEnded),
    }
    if !why.is_empty() {
        lab::set_unjailed(why);
    }
    Ok(stream.set_read_timeout(None)?)
}

/// Makes a link to the machine at the other end of the stream. Its hello was read before it was saved.
fn link(stream: UnixStream) -> Result<Link, Error> {
    let pipe = || io::pipe().map_err(cannot("create a pipe"));
    let ((input, to_guest), (from_guest, mut output)) = (pipe()?, pipe()?);
    let (folders, theirs) = UnixStream::pair().map_err(cannot("create a socket"))?;
    let stopped = stream.try_clone().map_err(cannot("duplicate a socket"))?;
    let folders_stopped = theirs.try_clone().map_err(cannot("duplicate a socket"))?;
    let (mut stderr, said) = LastWords::to(io::stderr(), true);
    let serve = move || {
        let input = Some(OwnedFd::from(input));
        channel::serve(&stream, input, Some(&theirs), &mut output, &mut stderr)
    };
    let serving = thread::Builder::new()
        .name("lab".into())
        .spawn(serve)
        .map_err(cannot("start a thread"))?;
    let end = move || {
        let (orderly, how) = match serving.join() {
            Ok(Ok(Answer::Exit(0))) => (true, "the machine ended".to_owned()),
            Ok(Ok(Answer::Exit(code))) => (false, said.why(code)),
            Ok(Ok(Answer::Failed(why))) => (false, why),
            _ => (false, "its lab ended".to_owned()),
        };
        said.pass_on();
        Ok(Ended {
            orderly,
            how,
            host_memory: None,
        })
    };
    Ok(Link {
        greeted: true,
        walls: None,
        from_guest: Box::new(from_guest),
        to_guest: Box::new(to_guest),
        folders: Some(folders),
        stop: StopOnDrop::boxed(move || {
            // It fails where the keeper has hung up already.
            let _ = stopped.shutdown(std::net::Shutdown::Both);
            // A folder server that takes no more must not hold the frames up.
            let _ = folders_stopped.shutdown(std::net::Shutdown::Both);
        }),
        end: Box::new(end),
    })
}

/// Ends all kept labs that no command uses, and returns how many there were.
///
/// # Errors
///
/// Those of reading the folder with their sockets, and of the sockets.
pub fn stop_all(cache: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(folder(cache)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut stopped = 0;
    for entry in entries {
        let path = entry?.path();
        if is_socket(&path) && stop(&path)? {
            stopped += 1;
        }
    }
    Ok(stopped)
}

/// Ends the lab of the template with this key, and returns whether there was one that no command uses.
pub(crate) fn stop_one(key: &str, cache: &Path) -> io::Result<bool> {
    stop(&socket(cache, key))
}

/// Asks the keeper at a socket to end its lab, which it does unless a command uses it, and waits until it has. Returns whether it has.
fn stop(socket: &Path) -> io::Result<bool> {
    let began = Instant::now();
    let mut asked = false;
    while let Ok(stream) = connect_to(socket) {
        // A command that has just ended still counts as a user for a moment, so the keeper is asked again.
        if began.elapsed() > STOP_RETRIES {
            return Ok(false);
        }
        asked = true;
        stream.set_read_timeout(Some(STOP_WAIT))?;
        if frame::send(Kind::Shutdown, &[], &stream).is_ok() {
            // The connection ends with the keeper, or at once where the lab is in use.
            let _ = io::copy(&mut &stream, &mut io::sink());
        }
        thread::sleep(POLL);
    }
    Ok(asked)
}
