//! Saved machines: one is saved when it is ready for a request, and clones are resumed from there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{Preparation, Refusal, Request, ToGuest, ToHost};
use minivm_image::io_error::cannot;
use minivm_vmm::{Builder, Control, Snapshot, SnapshotFiles, WorkingSet};

use super::conversation::check_version;
use super::limits::{Stopper, Watchdog, Why};
use super::session::{BOOT_LIMIT, Session};
use super::{Error, Link, MachineSpec, Watch, local, monitor};
use crate::jail::{CpuGroup, CpuQuota};
use crate::local::Greeted;
use crate::monitor::Monitor;
use crate::output::Pending;
use crate::printable::printable;
use crate::snapshot_folder::SnapshotFolder;

/// How long a machine that has reported that it is ready still runs before it is saved, so that its init waits by then and clones have
/// nothing left to do.
const SETTLING: Duration = Duration::from_millis(50);
/// The name of the file that lists the pages that every clone touches.
const PAGES: &str = "pages";
/// The most characters of a guest's text that are shown.
const TEXT_MAX: usize = 500;

/// The guest-physical address of a saved machine's ring directory, if it has one. The snapshot doesn't have it.
pub(crate) type Rings = Option<u64>;

/// Boots the machine on this host's KVM up to where it waits for a request, and saves it in `folder`, see [`MachineSpec::save_prepared`].
pub(super) fn save(
    machine: &MachineSpec,
    preparation: Preparation,
    folder: &Path,
) -> Result<Rings, Error> {
    let (link, running) = start(machine)?;
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
            running.save(folder).map(|()| rings)
        }
        (_, Some(Why::NoInit)) => Err(Error::NoTemplate(format!(
            "it was not ready within {BOOT_LIMIT:?}: the code that warms it does not end, or its init did not start"
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

/// A running machine that can be saved.
enum Running {
    Here(Control),
    InMonitor(Monitor),
}

impl Running {
    fn save(&self, folder: &Path) -> Result<(), Error> {
        match self {
            Running::Here(control) => {
                control.pause();
                let saved = SnapshotFolder::save(folder, |files| control.snapshot_into(files));
                Ok(saved?)
            }
            Running::InMonitor(monitor) => monitor.save(folder).map(drop),
        }
    }
}

/// Starts the machine, in a monitor if this program has any.
fn start(machine: &MachineSpec) -> Result<(Link, Running), Error> {
    if monitor::is_there() {
        let spec = monitor::Spec::boot(machine.config()).cpu_quota(machine.cpu_quota);
        let (link, monitor) = spec.start_session(machine.console, None)?;
        return Ok((link, Running::InMonitor(monitor)));
    }
    CpuGroup::refuse_here(machine.cpu_quota)?;
    let builder = Builder::new(machine.config());
    let (machine, ends) = local::launch(builder, machine.console, None)?;
    let control = machine.control.clone();
    Ok((machine.link(ends, false)?, Running::Here(control)))
}

/// Sends the preparation and waits until the guest has done it. Returns where its rings are, or `None` where the machine ends before.
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
                _ => return Err(broken("a message out of order before the guest is ready")),
            }
        }
    }
}

/// A machine that was saved when it was ready for a request.
pub struct Saved {
    source: Source,
    rings: Rings,
    pages: WorkingSet,
}

/// The snapshot of a saved machine.
enum Source {
    /// For clones in this process.
    Here(Snapshot),
    /// Its folder, whose files only monitors read, and the image that it has as persistent memory.
    ForMonitors(PathBuf, Option<PathBuf>),
}

/// What a clone has of its own, and not from its template.
#[derive(Default)]
pub struct ResumeOptions {
    /// Whether its console goes to stderr, see [`MachineSpec::console`].
    pub console: bool,
    /// The bound on its processor time.
    pub cpu_quota: Option<CpuQuota>,
    /// The watch over its exits.
    pub watch: Option<Watch>,
}

/// A started clone.
struct Clone {
    link: Link,
    /// Returns the pages that the clone has touched, once it has ended.
    touched: Box<dyn FnOnce() -> Result<WorkingSet, Error>>,
}

impl Saved {
    /// Opens the machine that is saved in `folder`, which has this image as persistent memory.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::open`]'s. In a program with monitors these errors come when a clone is started, but for a folder without a snapshot.
    pub(crate) fn open(
        folder: &Path,
        image: Option<&Path>,
        rings: Rings,
    ) -> Result<Saved, minivm_vmm::Error> {
        let pages = fs::read(folder.join(PAGES)).ok();
        Ok(Saved {
            source: match monitor::is_there() {
                true => {
                    SnapshotFiles::open(folder)?;
                    Source::ForMonitors(folder.into(), image.map(Into::into))
                }
                false => {
                    let files = SnapshotFiles::in_folder(folder)?;
                    let files = match image {
                        Some(image) => files.pmem(image)?,
                        None => files,
                    };
                    Source::Here(files.read()?)
                }
            },
            rings,
            // Without the list clones are slower, and no worse.
            pages: pages
                .and_then(|bytes| postcard::from_bytes(&bytes).ok())
                .unwrap_or_default(),
        })
    }

    /// Starts a clone, which waits for its request.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`]'s, in [`Error::Monitor`]; [`Error::Quota`] where its processor time can't be bounded; [`Error::Host`] where a
    /// pipe or a thread can't be made.
    pub fn resume(&self, options: ResumeOptions) -> Result<Link, Error> {
        let pages = Some(&self.pages);
        self.launch(pages, options).map(|clone| clone.link)
    }

    fn launch(&self, pages: Option<&WorkingSet>, options: ResumeOptions) -> Result<Clone, Error> {
        let ResumeOptions {
            console,
            cpu_quota,
            watch,
        } = options;
        let (events, observer) = Watch::parts(watch);
        let greeted = Greeted { rings: self.rings };
        match &self.source {
            Source::ForMonitors(folder, image) => {
                let spec = monitor::Spec::restore(folder, image.as_deref(), pages.cloned());
                let spec = spec.events(events);
                let mut spec = spec.cpu_quota(cpu_quota);
                spec.rehearsal = pages.is_none();
                let (link, monitor) = spec.start_session(console, Some(greeted))?;
                let touched = move || monitor.touched();
                Ok(Clone {
                    link,
                    touched: Box::new(touched),
                })
            }
            Source::Here(snapshot) => {
                CpuGroup::refuse_here(cpu_quota)?;
                let mut builder = Builder::restore(snapshot);
                if let Some(pages) = pages {
                    builder = builder.working_set(pages);
                }
                let builder = local::observed(builder, observer);
                let (machine, ends) = local::launch(builder, console, Some(greeted))?;
                let memory = machine.memory.clone();
                let touched = move || {
                    let touched = WorkingSet::of(&memory);
                    Ok(touched.map_err(cannot("find which pages were touched"))?)
                };
                Ok(Clone {
                    link: machine.link(ends, true)?,
                    touched: Box::new(touched),
                })
            }
        }
    }

    /// Lets a clone serve `request`, and writes the list of pages that it touched, for other clones will touch them too.
    pub(crate) fn rehearse(
        &self,
        request: Request,
        cpu_quota: Option<CpuQuota>,
        folder: &Path,
    ) -> Result<(), Error> {
        let pages = self.watch(request, cpu_quota)?;
        let bytes = postcard::to_allocvec(&pages).expect("plain data can be written");
        fs::write(folder.join(PAGES), bytes).map_err(cannot("write the template"))?;
        Ok(())
    }

    /// Runs `request` in a clone that gets no pages ahead, and returns the pages that it touched.
    ///
    /// # Errors
    ///
    /// As [`Session::run`]'s; [`Error::Host`] where the kernel doesn't report the pages.
    pub fn watch(
        &self,
        request: Request,
        cpu_quota: Option<CpuQuota>,
    ) -> Result<WorkingSet, Error> {
        let options = ResumeOptions {
            cpu_quota,
            ..ResumeOptions::default()
        };
        let Clone { link, touched } = self.launch(None, options)?;
        let session = Session {
            timeout: Some(BOOT_LIMIT),
            ..Session::new(request)
        };
        session.run(link)?;
        touched()
    }

    /// Returns the pages that clones get before they run.
    pub fn pages(&self) -> &WorkingSet {
        &self.pages
    }
}
