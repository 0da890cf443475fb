//! The fetcher itself, `minivm fetch`: takes a job from the socket that is its stdin, goes behind its walls, and does it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::LevelFilter;
use minivm_image::io_error::{cannot, failed};
use minivm_image::rootfs::Summary;
use minivm_image::{Described, Digest, Options, Progress, Source};

use super::failure::chain;
use super::helpers::Asked;
use super::message::{Form, Job, Order, Report};
use super::{ROLE, reach};
use crate::child::{Received, Stream, is_of_the_end};
use crate::confine;
use crate::images::{self, Format, ImageCache, Init};
use crate::output_path::{Output, own_descriptor};

/// How often a layer's progress is reported.
const BEAT: Duration = Duration::from_millis(50);
/// The exit code of a fetcher whose broker has gone.
const ALONE: i32 = 1;

/// An order, and the descriptor that came with it.
pub(super) type Due = (Order, Option<OwnedFd>);

/// Runs this process as a fetcher, whose socket is its stdin, until the broker closes that.
pub(super) fn serve() -> ExitCode {
    let (stream, Received { message, files }) = match ROLE.job() {
        Ok(job) => job,
        Err(code) => return code,
    };
    let Order::Open(job) = message else {
        return ExitCode::FAILURE;
    };
    match files.first() {
        Some(input) => put_on_stdin(input),
        None => close_stdin(),
    }
    drop(files);
    let stream = Arc::new(stream);
    let line = Arc::new(Line(Mutex::new(Arc::clone(&stream))));
    log_to(&line, job.log);
    match Service::start(job, stream, Arc::clone(&line)) {
        Ok((service, due)) => service.serve(due),
        Err(error) => line.fail(&*error),
    }
    ExitCode::SUCCESS
}

/// Passes the broker's orders on. Ends this process where there will be no more: whatever it does then, no process needs it.
fn listen(stream: &Stream, orders: &Sender<Due>) {
    while let Ok(Some(Received { message, files })) = stream.receive() {
        let file = files.into_iter().next();
        if orders.send((message, file)).is_err() {
            break;
        }
    }
    std::process::exit(ALONE)
}

/// The job, and what it takes.
struct Service {
    job: Job,
    source: Source,
    images: ImageCache,
    line: Arc<Line>,
}

impl Service {
    /// Goes behind the walls, and takes the broker's orders from then on.
    fn start(
        job: Job,
        stream: Arc<Stream>,
        line: Arc<Line>,
    ) -> Result<(Service, Receiver<Due>), Box<dyn std::error::Error>> {
        let cache = PathBuf::from(OsString::from_vec(job.cache.clone()));
        let source: Source = job.source.parse()?;
        if job.confined {
            let walls = confine(&source, &cache, &stream);
            walls.map_err(cannot("put walls around the process that reads images"))?;
        }
        let (orders, due) = mpsc::channel();
        let listener = thread::Builder::new().spawn(move || listen(&stream, &orders));
        listener.map_err(cannot("start a thread"))?;
        let service = Service {
            job,
            source,
            images: ImageCache::new(&cache).without_eviction(),
            line,
        };
        Ok((service, due))
    }

    /// Opens the image, and makes of it what the broker orders.
    fn serve(self, due: Receiver<Due>) {
        let orders = Arc::new(Mutex::new(due));
        let asked = Arc::new(Asked::new(Arc::clone(&self.line), Arc::clone(&orders)));
        let found = match self.open(asked.clone()) {
            Ok(found) => found,
            Err(error) => {
                return self.line.send(&Report::Failed {
                    chain: chain(&error),
                    answered: asked.is_refused(),
                });
            }
        };
        // In use until the broker has taken it, which it does before its next order.
        let mut _kept = Made::Written;
        loop {
            let order = orders.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((Order::Make(form), output)) = order else {
                return;
            };
            match self.make(&form, output, &found) {
                Ok((summary, made)) => {
                    _kept = made;
                    self.line.send(&Report::made(summary));
                }
                Err(error) => self.line.fail(&error),
            }
        }
    }

    fn open(&self, asked: Arc<Asked>) -> Result<Described, minivm_image::Error> {
        let options = Options {
            pull: self.job.pull,
            platform: self.job.platform.clone(),
            helpers: asked,
            ..Options::default()
        };
        let store = self.images.store();
        let progress = Reporter {
            line: Arc::clone(&self.line),
            last: Mutex::new(Instant::now()),
        };
        let found = minivm_image::describe(&self.source, &store, &options, &progress)?;
        self.line.send(&Report::Opened {
            identity: found.image.identity.clone(),
            config: found.image.config.clone(),
            grown: store.has_grown(),
        });
        Ok(found)
    }

    /// Makes a form of the image. Of what is made in the cache, the broker finds the path itself.
    fn make(
        &self,
        form: &Form,
        output: Option<OwnedFd>,
        found: &Described,
    ) -> Result<(Summary, Made), images::Error> {
        let image = &found.image;
        let making = || self.line.send(&Report::Making);
        match form {
            Form::Archive => {
                let images = self.images.clone().for_guests_of(&self.job.platform)?;
                let archive = images.archive(image, making)?;
                Ok((Summary::default(), Made::Archive(archive)))
            }
            Form::Erofs => {
                let erofs = self.images.erofs(image, making)?;
                Ok((Summary::default(), Made::Erofs(erofs)))
            }
            Form::Root => {
                let root = self.images.root(image, making)?;
                Ok((Summary::default(), Made::Root(root)))
            }
            Form::Built { name, format } => {
                let path = Path::new(name);
                let none = || failed("write", path)(io::ErrorKind::NotFound.into());
                let mut output = Output::lent(output.ok_or_else(none)?.into(), false);
                let summary = match *format {
                    Format::Initramfs(compression) => {
                        let init = Init::of(&self.job.platform)?;
                        images::write_output(image, init, compression, path, &mut output)?
                    }
                    Format::Erofs => {
                        images::write_erofs(image, &self.images.store(), path, &mut output)?
                    }
                    Format::OciArchive => {
                        let platform = &self.job.platform;
                        images::write_oci_archive(found, &self.source, platform, path, &mut output)?
                    }
                };
                Ok((summary, Made::Written))
            }
        }
    }
}

/// A form of the image that was made: an entry of the cache is in use as long as its value lives.
enum Made {
    Archive(#[expect(dead_code, reason = "it is held")] images::Archive),
    Erofs(#[expect(dead_code, reason = "it is held")] images::Erofs),
    Root(#[expect(dead_code, reason = "it is held")] images::Root),
    Written,
}

/// Puts this process, which has one thread, behind its walls.
fn confine(source: &Source, cache: &Path, stream: &Stream) -> io::Result<()> {
    let mut keep = vec![stream.as_fd()];
    // A file that the user's shell has opened, and the source names by its number.
    keep.extend(source.path().and_then(own_descriptor));
    let walls = confine::fetcher(&reach::of(source, cache), &keep)?;
    for missing in walls.missing {
        log::debug!("the process that reads images lacks a wall: {missing}");
    }
    Ok(())
}

/// The way to the broker, for all threads.
pub(super) struct Line(Mutex<Arc<Stream>>);

impl Line {
    /// Sends a report. Where the broker has gone, this process is about to end.
    pub(super) fn send(&self, report: &Report) {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = stream.send(report, &[]);
        drop(stream);
        if let Err(error) = sent
            && matches!(report, Report::Opened { .. })
            && !is_of_the_end(&error)
        {
            self.fail(&cannot("send the image's configuration")(error));
        }
    }

    /// Sends an error of this process's own.
    fn fail(&self, error: &(dyn std::error::Error + 'static)) {
        self.send(&Report::Failed {
            chain: chain(error),
            answered: false,
        });
    }
}

/// Reports a pull's progress, each layer's now and then.
struct Reporter {
    line: Arc<Line>,
    last: Mutex<Instant>,
}

impl Progress for Reporter {
    fn started(&self, layer: &Digest, total: u64) {
        self.line.send(&Report::Started(layer.clone(), total));
    }

    fn advanced(&self, layer: &Digest, bytes: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= BEAT {
            *last = Instant::now();
            drop(last);
            self.line.send(&Report::Advanced(layer.clone(), bytes));
        }
    }

    fn done(&self, layer: &Digest) {
        self.line.send(&Report::Done(layer.clone()));
    }
}

/// Sends the log's lines to the broker, and what a panic says.
struct Log(Arc<Line>);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let (level, text) = (record.level() as usize, record.args().to_string());
        self.0.send(&Report::Line(level, text));
    }

    fn flush(&self) {}
}

fn log_to(line: &Arc<Line>, level: LevelFilter) {
    // The log lives as long as this process.
    let lines: &'static Log = Box::leak(Box::new(Log(Arc::clone(line))));
    // It fails where a logger is set already, which nothing else does.
    let _ = log::set_logger(lines).map(|()| log::set_max_level(level));
    let line = Arc::clone(line);
    std::panic::set_hook(Box::new(move |panic| {
        line.send(&Report::Line(log::Level::Error as usize, panic.to_string()));
    }));
}

/// Makes this file stdin.
fn put_on_stdin(file: &OwnedFd) {
    let _ = rustix::stdio::dup2_stdin(file);
}

/// Leaves nothing on stdin.
pub(super) fn close_stdin() {
    if let Ok(nothing) = File::open("/dev/null") {
        put_on_stdin(&nothing.into());
    }
}
