//! The broker's side: starts the fetcher, answers what it asks for, and believes nothing of what it sends.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use minivm_image::io_error::{HostError, cannot};
use minivm_image::rootfs::Summary;
use minivm_image::{Config, Digest, Options, Progress, Source, Unwatched};

use super::failure::Reported;
use super::message::{Form, Job, Order, Report};
use super::{ANSWERS, Error, ROLE};
use crate::child::{Child, Received, Stream, is_of_the_end};
use crate::confine;
use crate::images::ImageCache;
use crate::output_path::own_descriptor;
use crate::printable::printable;

/// The most characters of a log line, and the most warnings of one fetcher's.
const LINE_MAX: usize = 1000;
const LINES_MAX: usize = 1000;
/// The most layers whose progress is shown: as many as an image may have.
const LAYERS_MAX: usize = 1000;
/// The longest identity of an image: a digest, and more.
const IDENTITY_MAX: usize = 200;

/// What the fetcher has found out about an image.
pub(super) struct Opened {
    pub(super) identity: String,
    pub(super) config: Config,
}

/// A fetcher with an image open. It is killed, and waited for, when this value is dropped.
#[derive(Debug)]
pub(super) struct Fetcher {
    /// The process, until it has been waited for.
    child: Option<Child>,
    stream: Stream,
    source: Source,
    options: Options,
    /// The way of an engine's archive to the fetcher, and the image's id.
    pipe: Option<PipeWriter>,
    id: Option<Digest>,
    /// The error of an answer that the fetcher has asked for.
    own: Option<minivm_image::Error>,
    /// The layers that were named, and the lines that were printed.
    layers: HashSet<Digest>,
    lines: usize,
}

impl Fetcher {
    /// Starts the fetcher and has it open an image.
    pub(super) fn open(
        source: &Source,
        images: &ImageCache,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<(Opened, Fetcher), Error> {
        let (pipe, input) = input(source)?;
        let (child, stream) =
            start(source).map_err(cannot("start the process that reads images"))?;
        let mut fetcher = Fetcher {
            child: Some(child),
            stream,
            source: source.clone(),
            options: options.clone(),
            pipe,
            id: None,
            own: None,
            layers: HashSet::new(),
            lines: 0,
        };
        let job = Job {
            source: source.to_string(),
            cache: images.folder().as_os_str().as_bytes().to_vec(),
            pull: options.pull,
            platform: options.platform.clone(),
            confined: confine::is_wanted(),
            log: log::max_level(),
        };
        fetcher.send(&Order::Open(job), input.as_ref())?;
        drop(input);
        match fetcher.listen(progress, &mut || {})? {
            Report::Opened {
                identity,
                config,
                grown,
            } if identity.len() <= IDENTITY_MAX => {
                if grown {
                    images.evict();
                }
                Ok((Opened { identity, config }, fetcher))
            }
            _ => Err(fetcher.invalid("it is not due")),
        }
    }

    /// Has a form of the image made, with this output; `making` is called where it isn't there.
    pub(super) fn make(
        &mut self,
        form: &Form,
        output: Option<&File>,
        making: &mut dyn FnMut(),
    ) -> Result<Summary, Error> {
        self.send(&Order::Make(form.clone()), output)?;
        match self.listen(&Unwatched, making)? {
            Report::Made { files, bytes } => Ok(Summary { files, bytes }),
            _ => Err(self.invalid("it is not due")),
        }
    }

    /// Receives messages up to one that ends a job, and returns that.
    fn listen(
        &mut self,
        progress: &dyn Progress,
        making: &mut dyn FnMut(),
    ) -> Result<Report, Error> {
        loop {
            let report = match self.stream.receive() {
                Ok(Some(Received { message, .. })) => message,
                Ok(None) => return Err(self.ended()),
                Err(error) if is_of_the_end(&error) => return Err(self.ended()),
                Err(error) => return Err(self.broken(error)),
            };
            match report {
                Report::Opened { .. } | Report::Made { .. } => return Ok(report),
                Report::Failed { chain, answered } => {
                    let own = self.own.take().filter(|_| answered);
                    return Err(own.map_or_else(|| Reported::of(chain).into(), Error::from));
                }
                Report::Making => making(),
                Report::Line(level, text) => self.print(level, &text)?,
                Report::Started(layer, total) => {
                    self.layers.insert(layer.clone());
                    if self.layers.len() > LAYERS_MAX {
                        return Err(self.invalid("it names more layers than an image may have"));
                    }
                    progress.started(&layer, total);
                }
                Report::Advanced(layer, bytes) => progress.advanced(&layer, bytes),
                Report::Done(layer) => progress.done(&layer),
                Report::AskCredential | Report::AskImageId | Report::AskSave(_) => {
                    let answer = self.answer(&report)?;
                    self.send(&answer, None)?;
                }
            }
        }
    }

    /// Returns the answer to a question, which is about the job's image whatever the fetcher would like to know.
    fn answer(&mut self, question: &Report) -> Result<Order, Error> {
        let helpers = self.options.helpers.clone();
        match (question, &self.source) {
            (Report::AskCredential, Source::Registry(name)) => {
                Ok(Order::Credential(helpers.credential(name)))
            }
            (Report::AskImageId, Source::Daemon(name)) => {
                let id = helpers
                    .image_id(name)
                    .map_err(|error| self.own = Some(error));
                self.id = id.ok();
                Ok(Order::ImageId(self.id.clone()))
            }
            (Report::AskSave(limit), Source::Daemon(name)) => match (self.pipe.take(), &self.id) {
                (Some(pipe), Some(id)) => {
                    let mut pipe = File::from(OwnedFd::from(pipe));
                    let saved = helpers.save(name, id, &mut pipe, *limit);
                    let saved = saved.map_err(|error| self.own = Some(error));
                    Ok(Order::Saved(saved.is_ok()))
                }
                _ => Err(self.invalid("it asks for an archive once more")),
            },
            _ => Err(self.invalid("it asks for what this image doesn't need")),
        }
    }

    fn print(&mut self, level: usize, text: &str) -> Result<(), Error> {
        let level = log::Level::iter().find(|known| *known as usize == level);
        let level = level.unwrap_or(log::Level::Error);
        // Of the others, the user wants to see all.
        self.lines += usize::from(level <= log::Level::Warn);
        if self.lines > LINES_MAX {
            return Err(self.invalid("there are too many lines to print"));
        }
        if level <= log::max_level() {
            log::log!(level, "{}", printable(text, LINE_MAX));
        }
        Ok(())
    }

    fn send(&mut self, order: &Order, file: Option<&File>) -> Result<(), Error> {
        let files = file.map(AsFd::as_fd);
        match self.stream.send(order, files.as_slice()) {
            // It has ended; its end, or the last that it has sent, says more.
            Err(error) if is_of_the_end(&error) => Ok(()),
            sent => Ok(sent.map_err(cannot("send a job to the process that reads images"))?),
        }
    }

    /// Returns the error of a message that can't be received.
    fn broken(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::InvalidData => Error::Message {
                image: self.source.to_string(),
                source: error,
            },
            _ => cannot("read the answer of the process that reads images")(error).into(),
        }
    }

    fn invalid(&self, problem: &str) -> Error {
        self.broken(io::Error::new(io::ErrorKind::InvalidData, problem))
    }

    /// Returns the error of a fetcher that has closed its end of the socket, which it does by its end.
    fn ended(&mut self) -> Error {
        Error::Ended {
            image: self.source.to_string(),
            how: self.end().unwrap_or_default(),
        }
    }

    /// Ends the process, unless that was done before, and describes its end.
    fn end(&mut self) -> Option<String> {
        let child = self.child.take()?;
        // One that lives on would be waited for for ever: it ends with the socket, if it can't be killed.
        self.stream.end();
        child.kill();
        Some(child.wait())
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns the descriptor that a source's job needs: this process's stdin, or a pipe for an engine's archive.
fn input(source: &Source) -> Result<(Option<PipeWriter>, Option<File>), HostError> {
    match source {
        Source::Daemon(_) => {
            let (from, to): (PipeReader, PipeWriter) = io::pipe().map_err(cannot("make a pipe"))?;
            Ok((Some(to), Some(OwnedFd::from(from).into())))
        }
        _ if may_be_stdin(source) => {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            let stdin = stdin.map_err(cannot("use stdin"))?;
            Ok((None, Some(stdin.into())))
        }
        _ => Ok((None, None)),
    }
}

/// Returns whether the source is this process's stdin, or its path may lead there.
fn may_be_stdin(source: &Source) -> bool {
    let of_process = |path: &Path| path.starts_with("/dev") || path.starts_with("/proc");
    *source == Source::Stdin || source.path().is_some_and(of_process)
}

/// Starts this program as a fetcher. It gets the file that the source names by its number, if it does.
fn start(source: &Source) -> io::Result<(Child, Stream)> {
    if !ANSWERS.load(Ordering::Relaxed) {
        return Err(io::Error::other(
            "this program's `main` doesn't call `fetch::answer`",
        ));
    }
    let (stream, theirs) = Stream::pair()?;
    let file = source.path().and_then(own_descriptor);
    Ok((Child::start_with(&ROLE, theirs.as_fd(), file)?, stream))
}

#[cfg(test)]
mod tests;
