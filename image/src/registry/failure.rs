//! Failures of requests: those that may pass and those that won't.

use std::error;
use std::io;
use std::time::Duration;

use crate::error::Error;
use crate::io_error::FileError;

/// Why a request failed.
pub(super) enum Failure {
    /// It fails again when it is repeated.
    Final(Box<Error>),
    /// It may succeed when it is repeated; not before `after`, if the registry gives one.
    Passing {
        error: Box<Error>,
        after: Option<Duration>,
        /// Bytes that arrived before the failure.
        headway: u64,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(Box::new(error))
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Failure {
        Error::from(error).into()
    }
}

impl Failure {
    pub(super) fn passing(error: Error) -> Failure {
        Failure::Passing {
            error: Box::new(error),
            after: None,
            headway: 0,
        }
    }

    pub(super) fn after_headway(self, bytes: u64) -> Failure {
        match self {
            Failure::Passing { error, after, .. } => Failure::Passing {
                error,
                after,
                headway: bytes,
            },
            failure => failure,
        }
    }

    /// Whether the registry has nothing from the requested byte on.
    pub(super) fn is_out_of_range(&self) -> bool {
        let Failure::Passing { error, .. } = self else {
            return false;
        };
        matches!(**error, Error::Registry { status: 416, .. })
    }
}

/// Returns why there is no connection, and the remedy.
pub(super) fn unreachable_for(error: &(dyn error::Error + 'static)) -> &'static str {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            "its certificate is not trusted; add its authority's to the system's, or name a file of it in SSL_CERT_FILE"
        }
        Some(_) => "it doesn't speak TLS, or no version of it that minivm does; is the port right?",
        None => "it can't be reached; is the name right and the network up?",
    }
}

/// Returns the failure of TLS among a failure's causes. It comes inside I/O errors, which don't name it as their source.
fn tls_error<'a>(error: &'a (dyn error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(tls) = error.downcast_ref() {
        return Some(tls);
    }
    let inner = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    let found = inner.and_then(|inner| tls_error(inner));
    found.or_else(|| error.source().and_then(tls_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untrusted_certificate_differs_from_a_dead_line() {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        for (error, needle) in [
            (
                io::Error::other(io::Error::other(unknown)),
                "certificate is not trusted",
            ),
            (
                io::Error::other(rustls::Error::DecryptError),
                "doesn't speak TLS",
            ),
            (io::ErrorKind::ConnectionRefused.into(), "can't be reached"),
        ] {
            let problem = unreachable_for(&error);
            assert!(problem.contains(needle), "{problem}");
        }
    }
}
