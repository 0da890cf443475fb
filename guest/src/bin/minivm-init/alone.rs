//! A machine without a host that listens: it runs the image's own command, on the console.

use std::fs::File;
use std::io;

use minivm_guest::channel::Request;
use rustix::io::Errno;
use rustix::process::WaitOptions;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::command::{self, Streams};
use crate::{Error, cannot, identity, print, session, surroundings, user};

/// The machine's name.
const HOSTNAME: &str = "minivm";

/// Runs the image's command to its end.
pub(crate) fn run() -> Result<(), Error> {
    let (manifest, lost) = surroundings::make()?;
    identity::name_machine(HOSTNAME)?;
    identity::write_down(HOSTNAME);
    for line in lost {
        print(&line);
    }
    if manifest.argv.is_empty() {
        return Err(
            "the image names no command of its own: `minivm run IMAGE -- COMMAND` runs any".into(),
        );
    }
    take_console().map_err(cannot("use the console"))?;
    let request = Request {
        argv: manifest.argv,
        env: manifest.env,
        cwd: manifest.cwd,
        user: manifest.user,
        hostname: HOSTNAME.into(),
        ..Request::default()
    };
    let user = user::find(&request.user)?;
    let running = command::start(&request, &user, Streams::Inherited, None)
        .map_err(|refusal| format!("cannot run the image's command: {refusal}"))?;
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((ended, _))) if ended == running.pid => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    session::kill_all();
    Ok(())
}

/// Makes the console this process's standard streams, which the kernel could not where the archive has no `/dev/console`.
fn take_console() -> io::Result<()> {
    let console = File::options()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    Ok(())
}
