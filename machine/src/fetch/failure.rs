//! The fetcher's errors: sent as texts with the system's error numbers, and put together again, so that the broker prints and
//! explains them as its own.

use std::error::Error;
use std::fmt;
use std::io;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::printable::printable;

/// The most characters of a text: the longest paths and more.
const TEXT_MAX: usize = 16 << 10;
/// The most causes of an error that are kept.
const CAUSES_MAX: usize = 20;

/// An error, or one of its causes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Link {
    text: String,
    /// The system's error number.
    number: Option<i32>,
}

/// Returns an error and its causes, the outermost first.
pub(super) fn chain(error: &(dyn Error + 'static)) -> Vec<Link> {
    let all = std::iter::successors(Some(error), |&error| error.source());
    let link = |error: &(dyn Error + 'static)| {
        let io = error.downcast_ref().and_then(io::Error::raw_os_error);
        let errno = || {
            error
                .downcast_ref()
                .map(|error: &Errno| error.raw_os_error())
        };
        Link {
            text: error.to_string(),
            number: io.or_else(errno),
        }
    };
    all.take(CAUSES_MAX).map(link).collect()
}

/// An error of the fetcher's.
#[derive(Debug)]
pub struct Reported {
    text: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Reported {
    /// Puts an error together again. What the texts would do to a terminal is taken out of them.
    pub(super) fn of(chain: Vec<Link>) -> Reported {
        let mut links = chain.into_iter().take(CAUSES_MAX);
        let first = links.next().map(|link| printable(&link.text, TEXT_MAX));
        let mut source = None;
        for link in links.collect::<Vec<_>>().into_iter().rev() {
            source = Some(link.error(source));
        }
        Reported {
            text: first.unwrap_or_else(|| "the image can't be read".to_owned()),
            source,
        }
    }
}

impl Link {
    fn error(self, source: Option<Box<dyn Error + Send + Sync>>) -> Box<dyn Error + Send + Sync> {
        let system = self.number.map(io::Error::from_raw_os_error);
        match system.filter(|_| source.is_none()) {
            // By its number it is recognized, such as that of a full disk.
            Some(system) => system.into(),
            None => Box::new(Reported {
                text: printable(&self.text, TEXT_MAX),
                source,
            }),
        }
    }
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Reported {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use minivm_image::io_error::failed;

    use super::*;

    #[test]
    fn an_error_is_the_same_here_as_it_was_there() {
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        let errors: [Box<dyn Error>; 3] = [
            Box::new(failed("write", Path::new("/a"))(full())),
            Box::new(minivm_image::Error::from(failed("write", Path::new("/a"))(
                full(),
            ))),
            Box::new(io::Error::other("it has no number")),
        ];
        for error in errors {
            let sent = serde_json::to_vec(&chain(&*error)).unwrap();
            let reported = Reported::of(serde_json::from_slice(&sent).unwrap());
            let texts = |error: &(dyn Error + 'static)| {
                let all = std::iter::successors(Some(error), |&error| error.source());
                all.map(ToString::to_string).collect::<Vec<_>>()
            };
            assert_eq!(texts(&reported), texts(&*error));
            let number = |error: &(dyn Error + 'static)| {
                let mut all = std::iter::successors(Some(error), |&error| error.source());
                all.find_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error())
            };
            assert_eq!(number(&reported), number(&*error));
        }
    }

    #[test]
    fn a_hostile_text_is_one_line_without_commands_for_a_terminal() {
        let text = format!("a\x1b]0;b\x07\n{}", "c".repeat(1 << 20));
        let link = || Link {
            text: text.clone(),
            number: None,
        };
        let reported = Reported::of((0..1000).map(|_| link()).collect());
        let mut error: Option<&(dyn Error + 'static)> = Some(&reported);
        let mut causes = 0;
        while let Some(one) = error {
            let text = one.to_string();
            assert!(
                text.starts_with("a]0;bc") && text.len() == TEXT_MAX,
                "{text:.20}"
            );
            causes += 1;
            error = one.source();
        }
        assert_eq!(causes, CAUSES_MAX);
        assert!(!Reported::of(Vec::new()).to_string().is_empty());
    }
}
