//! A machine that is saved when it is ready for a request, and machines that go on from there.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{Preparation, Refusal, Request, ToGuest, ToHost};
use minivm_vmm::{Builder, Memory, Snapshot, WorkingSet};

use super::conversation::check_version;
use super::limits::{Stopper, Watchdog, Why};
use super::session::{BOOT_LIMIT, Session};
use super::{Error, Link, Machine, cannot, local, wire};
use crate::output::Pending;
use crate::printable::printable;

/// How long a machine that has said that it is ready is left alone before it is saved, so that it waits when it goes on and
/// has nothing left to do.
const SETTLING: Duration = Duration::from_millis(50);
/// The file with the pages that every clone touches.
const PAGES: &str = "pages";
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
    let (link, control) = local::launch(builder, machine.console, false, |from, to, memory| {
        Ok(wire::wire(from, to, memory))
    })?;
    let Link {
        mut from_guest,
        mut to_guest,
        stop,
        end,
        ..
    } = link;
    let stopper = Arc::new(Stopper::new(stop, &Pending::default()));
    let watchdog = Watchdog::start(stopper.clone(), BOOT_LIMIT, None, None)?;
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
        (_, Some(Why::NoInit)) => Err(Error::NoTemplate(format!(
            "it is not ready within {BOOT_LIMIT:?}: the code that warms it does not end, or its init did not start"
        ))),
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
                (ToHost::Hello(hello), Some(preparation)) => {
                    check_version(&hello)?;
                    rings = hello.rings;
                    let mut bytes = Vec::new();
                    ToGuest::Prepare(preparation).encode(&mut bytes);
                    to_guest.write_all(&bytes).map_err(Error::Protocol)?;
                }
                (ToHost::Ready, None) => return Ok(Some(rings)),
                (ToHost::Refused(Refusal::Failed(why)), None) => {
                    return Err(Error::NoTemplate(printable(&why, TEXT_MAX)));
                }
                _ => return Err(broken("a message out of order before it is ready")),
            }
        }
    }
}

/// A saved machine that is ready for a request.
pub struct Saved {
    snapshot: Snapshot,
    rings: Rings,
    pages: WorkingSet,
}

impl Saved {
    /// Opens what is saved in `folder`.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::open`].
    pub fn open(folder: &Path, rings: Rings) -> Result<Saved, minivm_vmm::Error> {
        let pages = fs::read(folder.join(PAGES)).ok();
        Ok(Saved {
            snapshot: Snapshot::open(folder)?,
            rings,
            // Without them it is only slower.
            pages: pages
                .and_then(|bytes| postcard::from_bytes(&bytes).ok())
                .unwrap_or_default(),
        })
    }

    /// A clone that waits for its request.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn resume(&self, console: bool) -> Result<Link, Error> {
        let builder = Builder::restore(&self.snapshot).working_set(&self.pages);
        self.launch(builder, console).map(|(link, _)| link)
    }

    fn launch(&self, builder: Builder, console: bool) -> Result<(Link, Option<Memory>), Error> {
        let mut kept = None;
        let (link, _) = local::launch(builder, console, true, |from, to, memory| {
            kept = Some(memory.clone());
            wire::resume(from, to, memory, self.rings).map_err(Error::Protocol)
        })?;
        Ok((link, kept))
    }

    /// Lets a clone serve `request`, and writes down which pages it touched: those that the others will touch too.
    pub(crate) fn rehearse(&self, request: Request, folder: &Path) -> Result<(), Error> {
        let pages = self.watch(request)?;
        let bytes = postcard::to_allocvec(&pages).expect("plain data can be written");
        fs::write(folder.join(PAGES), bytes).map_err(cannot("write the template"))
    }

    /// Which pages a clone touches that serves `request` to its end, and is given none ahead.
    ///
    /// # Errors
    ///
    /// Where it can't be run to its end, or the host doesn't tell.
    pub fn watch(&self, request: Request) -> Result<WorkingSet, Error> {
        let (link, memory) = self.launch(Builder::restore(&self.snapshot), false)?;
        let session = Session {
            timeout: Some(BOOT_LIMIT),
            ..Session::new(request)
        };
        session.run(link)?;
        let memory = memory.expect("the machine has been launched");
        WorkingSet::of(&memory).map_err(cannot("tell which pages were touched"))
    }

    /// The pages that clones are given before they run.
    pub fn pages(&self) -> &WorkingSet {
        &self.pages
    }
}
