//! Why an image can't be opened.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use super::digest::Digest;
use super::io_error::FileError;
use super::shown::shown;

/// The cause of a failure. Libraries' chains are folded to their innermost cause, the one a user can act on.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an image can't be opened. Each is one line that names the thing and, where there is one, the remedy; causes are
/// sources.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text names no image.
    #[error("\"{}\" names no image: {problem}", shown(text))]
    Name {
        /// The text that the user typed.
        text: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A file, folder or stream of the user's can't be read.
    #[error("cannot read {name}")]
    Read {
        /// The file, folder or stream.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// The store's folder can't be used.
    #[error("cannot keep images in {}", path.display())]
    Store {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// An archive, layout or image is not valid, or its parts contradict each other.
    #[error("{name} {problem}")]
    Invalid {
        /// The file, folder or image.
        name: String,
        /// What is wrong with it: a sentence without its subject.
        problem: String,
    },
    /// A manifest, an index or a configuration is not valid JSON of its kind.
    #[error("cannot understand the {what} of {image}")]
    Json {
        /// The image.
        image: String,
        /// The document's kind.
        what: &'static str,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// Content has another digest than its descriptor or its name says.
    #[error(
        "{what} has the digest {actual} instead of {expected}: it was damaged or changed on its way"
    )]
    Digest {
        /// The content.
        what: String,
        /// The digest that was expected.
        expected: Digest,
        /// The content's own digest.
        actual: Digest,
    },
    /// Content is larger than the limit for its kind.
    #[error("{what} is larger than {limit} bytes, the most that is accepted")]
    TooLarge {
        /// The content.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The archive, layout or engine has no image of this name.
    #[error("{name} has no image {wanted}; {remedy}")]
    NoImage {
        /// The archive, layout or engine.
        name: String,
        /// The name that was looked for.
        wanted: String,
        /// The images that are there, or how to get this one there.
        remedy: String,
    },
    /// The image is for other machines.
    #[error("{image} is not for {wanted}; it is for {there}")]
    Platform {
        /// The image.
        image: String,
        /// This machine's platform.
        wanted: String,
        /// The platforms that the image is for, separated by commas.
        there: String,
    },
    /// The image uses what minivm doesn't support.
    #[error("{image} {problem}")]
    Unsupported {
        /// The image.
        image: String,
        /// What it uses, and the remedy: a sentence without its subject.
        problem: String,
    },
    /// The image is not in the store, and pulling was ruled out.
    #[error("{image} was not pulled before, and pulling is ruled out: allow it once")]
    NotStored {
        /// The image.
        image: String,
    },
    /// The registry asks for other credentials.
    #[error(
        "registry {registry} denies {image} (HTTP status {status}{detail}): check the name, or `docker login {registry}`"
    )]
    Denied {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// 401 or 403.
        status: u16,
        /// The registry's message, after `: `; or nothing.
        detail: String,
    },
    /// The registry doesn't know the image.
    #[error(
        "registry {registry} has no {image} (HTTP status 404{detail}): check the name and the tag"
    )]
    NotFound {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// The registry's message, after `: `; or nothing.
        detail: String,
    },
    /// The registry answers with a failure, again and again.
    #[error("registry {registry} fails to serve {image} (HTTP status {status}{detail}): {remedy}")]
    Registry {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// The last answer's status.
        status: u16,
        /// The registry's message, after `: `; or nothing.
        detail: String,
        /// The remedy.
        remedy: String,
    },
    /// The registry can't be reached, or a transfer broke off again and again.
    #[error("cannot pull {image} from registry {registry}: {problem}")]
    Transfer {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// The problem, and its remedy.
        problem: String,
        /// The cause, where the transfer itself failed.
        source: Option<Cause>,
    },
    /// The container engine doesn't answer, or refuses.
    #[error("cannot get {image} from the container engine: {problem}")]
    Engine {
        /// The image.
        image: String,
        /// The problem, and its remedy.
        problem: String,
        /// The cause, where there is one.
        source: Option<Cause>,
    },
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Error {
        Error::Store {
            path: error.path,
            source: error.source,
        }
    }
}

impl Error {
    /// Wraps the system's error for a file, folder or stream of this name.
    pub(super) fn reading(name: impl Display) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Read {
            name: name.to_string(),
            source,
        }
    }

    pub(super) fn invalid(name: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Invalid {
            name: name.into(),
            problem: problem.into(),
        }
    }
}

/// Returns the innermost cause of a library's error.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> Cause {
    let mut error = error;
    while let Some(source) = error.source() {
        // The causes below it speak of queries and records.
        if error.to_string() == "dns error" {
            return "its name can't be resolved".into();
        }
        error = source;
    }
    error.to_string().into()
}
