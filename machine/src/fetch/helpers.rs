//! The fetcher's helpers: the broker, which is asked by messages.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use minivm_image::helpers::{Credential, Helpers};
use minivm_image::{Digest, Error, Reference};

use super::message::{Order, Report};
use super::process::{Due, Line, close_stdin};

/// The broker, as the fetcher asks it.
pub(super) struct Asked {
    line: Arc<Line>,
    /// The broker's orders. Several layers' threads may ask: one at a time.
    orders: Arc<Mutex<Receiver<Due>>>,
    /// Whether an answer was an error, which the broker has.
    refused: AtomicBool,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

impl Asked {
    pub(super) fn new(line: Arc<Line>, orders: Arc<Mutex<Receiver<Due>>>) -> Asked {
        Asked {
            line,
            orders,
            refused: AtomicBool::new(false),
        }
    }

    /// Returns whether the broker has the error of an answer.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    fn ask(&self, question: &Report, meanwhile: impl FnOnce()) -> Option<Order> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        self.line.send(question);
        meanwhile();
        // This process ends when the broker does.
        orders.recv().ok().map(|(order, _)| order)
    }

    /// Returns the error in place of the broker's own.
    fn refused(&self, name: &str) -> Error {
        self.refused.store(true, Ordering::Relaxed);
        Error::Engine {
            image: name.to_owned(),
            problem: "it was not handed over".to_owned(),
            source: None,
        }
    }
}

impl Helpers for Asked {
    fn credential(&self, _image: &Reference) -> Option<Credential> {
        match self.ask(&Report::AskCredential, || {}) {
            Some(Order::Credential(credential)) => credential,
            _ => None,
        }
    }

    fn image_id(&self, name: &str) -> Result<Digest, Error> {
        match self.ask(&Report::AskImageId, || {}) {
            Some(Order::ImageId(Some(id))) => Ok(id),
            _ => Err(self.refused(name)),
        }
    }

    /// Copies the archive from stdin, which is the pipe's end.
    fn save(&self, name: &str, _id: &Digest, to: &mut File, limit: u64) -> Result<(), Error> {
        let mut copied = Ok(0);
        let answer = self.ask(&Report::AskSave(limit), || {
            let from = io::Read::take(io::stdin().lock(), limit + 1);
            copied = io::copy(&mut { from }, to);
            // What is still to come is not waited for.
            close_stdin();
        });
        let too_large = || Error::TooLarge {
            what: format!("docker-daemon:{name}"),
            limit,
        };
        let broken = |error: io::Error| Error::Engine {
            image: name.to_owned(),
            problem: "its archive can't be kept".to_owned(),
            source: Some(error.into()),
        };
        match (copied, answer) {
            (Ok(bytes), _) if bytes > limit => Err(too_large()),
            (Err(error), _) => Err(broken(error)),
            (Ok(_), Some(Order::Saved(true))) => Ok(()),
            _ => Err(self.refused(name)),
        }
    }
}
