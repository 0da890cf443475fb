//! Opening images in a process of its own, the fetcher, so that this one reads nothing that a registry or an image's maker wrote.
//!
//! [`open`] starts `minivm fetch`: this program again, with an environment of proxies and certificates alone. One socket joins the two
//! processes, with messages of a limited size (`message`):
//!
//! ```text
//! broker (this process)                           fetcher
//!   the job: source, cache, platform  ─────────▶  walls, then opens the image
//!   draws bars, prints lines          ◀─────────  layers' progress, log lines
//!   docker login's credential         ◀────────▶  asked for when the registry wants one
//!   a container engine's archive      ◀────────▶  its id; the archive through a pipe
//!                                     ◀─────────  opened: identity, configuration
//!   archive, EROFS image, folder, file ────────▶  makes it in the cache, or writes it to the descriptor it got
//!   opens the entry by its own path   ◀─────────  made
//! ```
//!
//! The fetcher parses manifests and layers, speaks TLS, decompresses and unpacks, behind [`confine`](crate::confine)'s walls: it can start
//! no program, and open no file but those of its `reach`. It gets no more than the answers for its own image: the broker asks credential
//! helpers and engines itself, since these are the user's programs. The broker believes no path of the fetcher's: it computes those of
//! cache entries from the identity.
//!
//! The fetcher ends when the broker's end of the socket closes, whatever closed it, and the kernel kills it with the thread that has
//! started it. A fetcher that ends early, or sends what is not a message, is one error here; the cache stays whole, as it does when any
//! process that makes an entry is killed.
//!
//! An image that was opened before needs no fetcher ([`minivm_image::known`]): its entries in the cache are opened at once. The fetcher
//! is gone before a guest runs, but for an image from stdin, which can't be opened twice.

mod broker;
mod failure;
mod helpers;
mod message;
mod process;
mod reach;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use minivm_image::io_error::HostError;
use minivm_image::rootfs::Summary;
use minivm_image::{Config, Known, Options, Progress, Pull, Source, Unwatched};

use crate::child::Role;
use crate::images::{self, Archive, Erofs, Format, ImageCache, Root, Unpack};
use crate::output_path::Output;

use broker::{Fetcher, Opened};
use message::Form;

pub use failure::Reported;

/// The argument with which this program is a fetcher.
pub const COMMAND: &str = "fetch";
/// The fetcher as a child of this program: it gets proxies, and where root certificates are. All that it prints comes as messages.
const ROLE: Role = Role {
    command: c"fetch",
    duty: "reads the images",
    variables: &[
        "ALL_PROXY",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "all_proxy",
        "https_proxy",
        "http_proxy",
        "no_proxy",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
    ],
    is_apart: false,
    has_stderr: false,
};

/// Whether this program answers as a fetcher.
static ANSWERS: AtomicBool = AtomicBool::new(false);

/// Runs this process as a fetcher, if its command line is that of one, and returns its exit code then. Otherwise lets [`open`] start
/// fetchers. A program's `main` calls it first, while it has one thread.
pub fn answer(command_line: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    if ROLE.is_named_by(command_line) {
        return Some(process::serve());
    }
    ANSWERS.store(true, Ordering::Relaxed);
    None
}

/// The reason why an image can't be had from the fetcher.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image can't be looked for, or a container engine doesn't have it.
    #[error(transparent)]
    Image(#[from] minivm_image::Error),
    /// The fetcher's own reason.
    #[error(transparent)]
    Reported(#[from] Reported),
    /// What the fetcher has made can't be opened.
    #[error(transparent)]
    Cache(Box<images::Error>),
    /// The fetcher can't be started, or not be sent its job.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The fetcher ended before it was done.
    #[error("the process that reads {image} ended early ({how}): run the command again")]
    Ended {
        /// The image, as the user called it.
        image: String,
        /// How it ended.
        how: String,
    },
    /// The fetcher sent an invalid message.
    #[error("cannot go on with the process that reads {image}")]
    Message {
        /// The image, as the user called it.
        image: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The image is another one than it was a moment ago.
    #[error("{image} was changed while it was opened: run the command again")]
    Changed {
        /// The image, as the user called it.
        image: String,
    },
}

impl From<images::Error> for Error {
    fn from(error: images::Error) -> Self {
        Error::Cache(Box::new(error))
    }
}

/// An image that the fetcher has opened, or that is known without it.
#[derive(Debug)]
pub struct Fetched {
    source: Source,
    options: Options,
    identity: String,
    config: Config,
    /// The fetcher that has the image open, if one has.
    fetcher: Mutex<Option<Fetcher>>,
}

/// Finds and opens an image: as [`minivm_image::open`], with the fetcher where the image isn't known yet.
///
/// The program's `main` has to begin with [`answer`]. The image's fetcher lives no longer than the calling thread.
///
/// # Errors
///
/// [`Error`]; those of the fetcher's have the texts and system errors that they have there.
pub fn open(
    source: &Source,
    images: &ImageCache,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Fetched, Error> {
    let known = minivm_image::known(source, &images.store(), options)?;
    let (opened, fetcher) = match known {
        Some(Known {
            identity, config, ..
        }) => (Opened { identity, config }, None),
        None => {
            let (opened, fetcher) = Fetcher::open(source, images, options, progress)?;
            (opened, Some(fetcher))
        }
    };
    Ok(Fetched {
        source: source.clone(),
        options: options.clone(),
        identity: opened.identity,
        config: opened.config,
        fetcher: Mutex::new(fetcher),
    })
}

impl Fetched {
    /// Returns how the image is to be run.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Writes the image in this format to `output`, which is open at `path`.
    ///
    /// # Errors
    ///
    /// [`Error`], also where the output can't be written.
    pub fn build(
        &self,
        images: &ImageCache,
        format: Format,
        path: &Path,
        output: Output,
    ) -> Result<Summary, Error> {
        let form = Form::Built {
            name: path.display().to_string(),
            format,
        };
        let file = output.file();
        let written = |_: &str, summary| Ok(summary);
        let summary = self.make(images, &form, Some(file), &mut || {}, written)?;
        images::finish(output, path)?;
        Ok(summary)
    }

    /// Has the fetcher make a form of the image, and takes it: `take` gets the image's identity and, for a file, what was written. As long
    /// as that runs, the fetcher keeps an entry of the cache in use.
    fn make<T>(
        &self,
        images: &ImageCache,
        form: &Form,
        output: Option<&std::fs::File>,
        making: &mut dyn FnMut(),
        take: impl FnOnce(&str, Summary) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut held = self.fetcher.lock().unwrap_or_else(PoisonError::into_inner);
        let mut identity = self.identity.clone();
        let mut fetcher = match held.take() {
            Some(fetcher) => fetcher,
            None => {
                let (opened, fetcher) = self.open_again(images)?;
                identity = opened.identity;
                fetcher
            }
        };
        let summary = fetcher.make(form, output, making)?;
        let taken = take(&identity, summary);
        if self.source == Source::Stdin {
            *held = Some(fetcher);
        }
        // What is built for the user is not in the cache.
        if !matches!(form, Form::Built { .. }) {
            images.evict();
        }
        taken
    }

    /// Ends the fetcher, which needn't make anything.
    fn let_go(&self) {
        if self.source != Source::Stdin {
            let mut held = self.fetcher.lock().unwrap_or_else(PoisonError::into_inner);
            drop(held.take());
        }
    }

    fn open_again(&self, images: &ImageCache) -> Result<(Opened, Fetcher), Error> {
        let options = Options {
            pull: match self.options.pull {
                // It was asked when the image was opened.
                Pull::Always => Pull::Missing,
                pull => pull,
            },
            ..self.options.clone()
        };
        let (opened, fetcher) = Fetcher::open(&self.source, images, &options, &Unwatched)?;
        match opened.config == self.config {
            true => Ok((opened, fetcher)),
            false => Err(Error::Changed {
                image: self.source.to_string(),
            }),
        }
    }

    /// Returns an entry of the cache: the one that `find` finds by the image's identity, made in this form where it isn't there. `path`
    /// returns its place.
    fn keep<T>(
        &self,
        images: &ImageCache,
        form: &Form,
        making: &mut dyn FnMut(),
        find: fn(&ImageCache, &str) -> Result<Option<T>, images::Error>,
        path: fn(&ImageCache, &str) -> PathBuf,
    ) -> Result<T, images::Error> {
        if let Some(entry) = find(images, &self.identity)? {
            self.let_go();
            return Ok(entry);
        }
        let made = self.make(images, form, None, making, |identity, _| {
            let made = find(images, identity)?;
            made.ok_or_else(|| images::removed(&path(images, identity)).into())
        });
        Ok(made?)
    }
}

impl Unpack for Fetched {
    fn config(&self) -> &Config {
        &self.config
    }

    fn archive(
        &self,
        images: &ImageCache,
        making: &mut dyn FnMut(),
    ) -> Result<Archive, images::Error> {
        let (find, path) = (ImageCache::kept_archive, ImageCache::archive_path);
        self.keep(images, &Form::Archive, making, find, path)
    }

    fn erofs(&self, images: &ImageCache, making: &mut dyn FnMut()) -> Result<Erofs, images::Error> {
        let (find, path) = (ImageCache::kept_erofs, ImageCache::erofs_path);
        self.keep(images, &Form::Erofs, making, find, path)
    }

    fn root(&self, images: &ImageCache, making: &mut dyn FnMut()) -> Result<Root, images::Error> {
        let (find, path) = (ImageCache::kept_root, ImageCache::root_path);
        self.keep(images, &Form::Root, making, find, path)
    }
}
