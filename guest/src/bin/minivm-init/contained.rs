//! In a container: somebody else has made the surroundings and has the streams, and ends everything when this process ends.
//! What is left is to put files in their places, and to become the command.

#![allow(unsafe_code, reason = "open files are inherited by their numbers")]

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{Refusal, Request, ToGuest, ToHost};
pub(crate) use minivm_guest::contained::ARGUMENT;
use minivm_guest::contained::{ANSWER, FILES, REQUEST};
use rustix::io::FdFlags;

use crate::user::User;
use crate::{Error, command, files, surroundings, user};

/// Becomes the command. Where that can't be, it says why and ends.
pub(crate) fn run() -> ! {
    let mut answer = File::from(inherited(ANSWER));
    // The command must not answer.
    let closed = rustix::io::fcntl_setfd(&answer, FdFlags::CLOEXEC);
    let prepared = closed.map_err(Into::into).and_then(|()| prepare());
    let refusal = match prepared {
        Ok((request, user)) => {
            // Nobody who listens is no reason not to.
            let _ = say(&mut answer, &ToHost::Started);
            command::become_command(&request, &user)
        }
        Err(error) => Refusal::Failed(error.to_string()),
    };
    let _ = say(&mut answer, &ToHost::Refused(refusal));
    std::process::exit(1)
}

/// Reads what is wanted, and puts the files in their places.
fn prepare() -> Result<(Request, User), Error> {
    let mut bytes = Vec::new();
    File::from(inherited(REQUEST)).read_to_end(&mut bytes)?;
    let mut decoder = Decoder::default();
    decoder.extend(&bytes);
    let Some((tag, body)) = decoder.next()? else {
        return Err("there is no request".into());
    };
    let ToGuest::Request(request) = ToGuest::decode(tag, body)? else {
        return Err("the request is none".into());
    };
    surroundings::write_names(&request.hostname);
    let user = user::find(&request.user)?;
    if request.copy_in {
        files::unpack(BufReader::new(File::from(inherited(FILES))), &user)?;
    }
    Ok((request, user))
}

fn say(answer: &mut File, message: &ToHost) -> io::Result<()> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    answer.write_all(&bytes)
}

/// A file that is open under this number from the start.
fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: whoever runs this with its argument has opened the files; each is taken once, before anything else is opened
    // that could have its number.
    unsafe { OwnedFd::from_raw_fd(number) }
}
