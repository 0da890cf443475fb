//! The messages between the broker and the fetcher.

use log::LevelFilter;
use minivm_image::helpers::Credential;
use minivm_image::rootfs::Summary;
use minivm_image::{Config, Digest, Platform, Pull};
use serde::{Deserialize, Serialize};

use super::failure::Link;
use crate::images::Format;

/// The broker's messages.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The first one; its descriptor is the image's stream, or the engine's pipe.
    Open(Job),
    /// To make this of the open image; the descriptor of a [`Form::Built`] is its output.
    Make(Form),
    /// The answer to [`Report::AskCredential`].
    Credential(Option<Credential>),
    /// The answer to [`Report::AskImageId`]; `None` where the broker has an error, which it returns itself.
    ImageId(Option<Digest>),
    /// The answer to [`Report::AskSave`]: whether all of the archive went into the pipe.
    Saved(bool),
}

/// An image to open.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// The source, as its text.
    pub(super) source: String,
    /// The cache's folder; paths are bytes.
    pub(super) cache: Vec<u8>,
    pub(super) pull: Pull,
    pub(super) platform: Platform,
    /// Whether the fetcher puts walls around itself.
    pub(super) confined: bool,
    /// The most detailed messages that are logged.
    #[serde(with = "crate::child::level")]
    pub(super) log: LevelFilter,
}

/// What is made of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Form {
    /// The cache's archive.
    Archive,
    /// The cache's EROFS image.
    Erofs,
    /// The cache's root folder.
    Root,
    /// A file of the user's.
    Built {
        /// The file's path, in errors.
        name: String,
        format: Format,
    },
}

/// The fetcher's messages.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// As [`minivm_image::Progress`].
    Started(Digest, u64),
    Advanced(Digest, u64),
    Done(Digest),
    /// The form isn't there, and is being made.
    Making,
    /// A line for the log, with its level.
    Line(usize, String),
    /// What `docker login` has stored for the registry of the job's image.
    AskCredential,
    /// The engine's id of the job's image.
    AskImageId,
    /// The archive of that image, into the pipe, of at most so many bytes.
    AskSave(u64),
    /// The image is open.
    Opened {
        identity: String,
        config: Config,
        /// Whether something was put into the store.
        grown: bool,
    },
    /// The form is there.
    Made {
        files: u64,
        bytes: u64,
    },
    /// The error, with its causes. `answered`: it is the broker's own, by the answer to a question.
    Failed {
        chain: Vec<Link>,
        answered: bool,
    },
}

impl Report {
    pub(super) fn made(summary: Summary) -> Report {
        Report::Made {
            files: summary.files,
            bytes: summary.bytes,
        }
    }
}
