//! A machine that is saved when it is ready for a request, and machines that go on from there.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{Preparation, Refusal, ToGuest, ToHost, VERSION};
use minivm_vmm::{Builder, Prepared, Snapshot};

use super::limits::{Stopper, Watchdog, Why};
use super::session::BOOT_LIMIT;
use super::{Error, Link, Machine, local, wire};
use crate::output::Pending;
use crate::printable::printable;

/// How long a machine that has said that it is ready is left alone before it is saved, so that it waits when it goes on and
/// has nothing left to do.
const SETTLING: Duration = Duration::from_millis(50);
/// The most characters of a guest's text that are shown.
const TEXT_MAX: usize = 500;

/// What has to be known of a saved machine beside its snapshot: where its rings are in its memory, if it has any.
pub type Rings = Option<u64>;

/// Boots the machine on this host's KVM up to where it waits for a request, and saves it in `folder`.
pub(super) fn save(
    machine: &Machine,
    preparation: Preparation,
    folder: &Path,
) -> Result<Rings, Error> {
    let builder = Builder::new(machine.config());
    let (link, control) = local::launch(builder, machine.console, |from, to, memory| {
        Ok(wire::wire(from, to, memory))
    })?;
    let Link {
        mut from_guest,
        mut to_guest,
        stop,
        end,
    } = link;
    let stopper = Arc::new(Stopper::new(stop));
    let watchdog = Watchdog::start(stopper.clone(), BOOT_LIMIT, Pending::default(), None)?;
    let ready = until_ready(&mut from_guest, &mut to_guest, preparation);
    watchdog.end();
    let saved = match (ready, stopper.why()) {
        (Ok(Some(rings)), None) => {
            thread::sleep(SETTLING);
            control.pause();
            control
                .snapshot(folder)
                .map(|()| rings)
                .map_err(Error::Monitor)
        }
        (_, Some(Why::NoInit)) => Err(Error::NoInit(BOOT_LIMIT)),
        (Err(error), _) => Err(error),
        (Ok(_), _) => {
            stopper.stop();
            return Err(Error::Died(end()?.how));
        }
    };
    stopper.stop();
    let _ = io::copy(&mut from_guest, &mut io::sink());
    drop(from_guest);
    end()?;
    saved
}

/// Talks to the guest until it is ready; `None` where it ends before.
fn until_ready(
    from_guest: &mut dyn io::Read,
    to_guest: &mut dyn io::Write,
    preparation: Preparation,
) -> Result<Option<Rings>, Error> {
    let broken = |what: &str| Error::Protocol(io::Error::new(io::ErrorKind::InvalidData, what));
    let mut preparation = Some(preparation);
    let mut rings = None;
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let len = from_guest.read(&mut buffer).map_err(Error::Protocol)?;
        if len == 0 {
            return Ok(None);
        }
        decoder.extend(&buffer[..len]);
        while let Some((tag, body)) = decoder.next().map_err(|error| broken(&error.to_string()))? {
            let message = ToHost::decode(tag, body).map_err(|error| broken(&error.to_string()))?;
            match (message, preparation.take()) {
                (ToHost::Hello(hello), Some(_)) if hello.version != VERSION => {
                    return Err(Error::Version {
                        theirs: hello.version,
                        ours: VERSION,
                    });
                }
                (ToHost::Hello(hello), Some(preparation)) => {
                    rings = hello.rings;
                    let mut bytes = Vec::new();
                    ToGuest::Prepare(preparation).encode(&mut bytes);
                    to_guest.write_all(&bytes).map_err(Error::Protocol)?;
                }
                (ToHost::Ready, None) => return Ok(Some(rings)),
                (ToHost::Refused(Refusal::Failed(why)), None) => {
                    return Err(Error::Refused(printable(&why, TEXT_MAX)));
                }
                _ => return Err(broken("a message out of order before it is ready")),
            }
        }
    }
}

/// A clone of a saved machine, waiting for its request.
///
/// # Errors
///
/// As [`Builder::build`].
pub fn resume(snapshot: &Snapshot, rings: Rings, console: bool) -> Result<Link, Error> {
    local::resume(Builder::restore(snapshot), rings, console)
}

/// The same from a machine that was made ahead of time.
///
/// # Errors
///
/// As [`Builder::build`].
pub fn resume_prepared(prepared: Prepared, rings: Rings) -> Result<Link, Error> {
    local::resume(Builder::restore_prepared(prepared), rings, false)
}
