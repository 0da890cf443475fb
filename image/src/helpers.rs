//! The user's files and programs that opening an image may have to ask: what `docker login` has stored, and container engines.
//!
//! [`Here`] asks them from this process. A process that may not reach them has another one ask: that implements [`Helpers`] by
//! messages, and gets no more than the answers for its image.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::engine::{self, Engine};
use crate::error::Error;
use crate::reference::Reference;
use crate::shown::shown;

/// A credential for a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// A user's name and password.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token for which a token server issues others.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Password { .. } => "Credential::Password",
            Credential::IdentityToken(_) => "Credential::IdentityToken",
        })
    }
}

/// What opening an image asks for when it needs it.
pub trait Helpers: fmt::Debug + Send + Sync {
    /// Returns the credential that `docker login` has stored for the registry of this image, or `None`.
    fn credential(&self, image: &Reference) -> Option<Credential>;

    /// Returns the id of a container engine's image.
    ///
    /// # Errors
    ///
    /// Where no engine answers, or none has the image.
    fn image_id(&self, name: &str) -> Result<Digest, Error>;

    /// Writes the archive of the image that [`image_id`](Self::image_id) has found, of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// Where the engine fails, or the archive can't be written or is larger.
    fn save(&self, name: &str, id: &Digest, to: &mut File, limit: u64) -> Result<(), Error>;
}

/// The helpers that this process asks itself.
#[derive(Debug, Default)]
pub struct Here {
    /// The ways to engines; `None` for those that the environment names.
    engines: Option<Vec<Engine>>,
    /// The engine that has the image.
    found: Mutex<Option<Engine>>,
}

impl Here {
    #[cfg(test)]
    pub(crate) fn with(engines: Vec<Engine>) -> Here {
        Here {
            engines: Some(engines),
            found: Mutex::default(),
        }
    }
}

impl Helpers for Here {
    fn credential(&self, image: &Reference) -> Option<Credential> {
        stored(match image.registry() {
            "docker.io" => "https://index.docker.io/v1/",
            registry => registry,
        })
    }

    fn image_id(&self, name: &str) -> Result<Digest, Error> {
        let engines = self.engines.clone().unwrap_or_else(engine::named);
        let (engine, id) = engine::find(&engines, name)?;
        *self.found.lock().expect("no holder panics") = Some(engine.clone());
        Ok(id)
    }

    fn save(&self, name: &str, id: &Digest, to: &mut File, limit: u64) -> Result<(), Error> {
        let found = self.found.lock().expect("no holder panics").clone();
        let Some(engine) = found else {
            let problem = "it was not looked for before".to_owned();
            return Err(Error::Engine {
                image: name.into(),
                problem,
                source: None,
            });
        };
        engine.save(name, id, to, limit)
    }
}

/// Returns the credential that `docker login` has stored for the server.
fn stored(server: &str) -> Option<Credential> {
    match docker_credential::get_credential(server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Some(Credential::Password { user, password })
        }
        Ok(DockerCredential::IdentityToken(token)) => Some(Credential::IdentityToken(token)),
        Err(
            CredentialRetrievalError::ConfigNotFound
            | CredentialRetrievalError::NoCredentialConfigured,
        ) => None,
        // The error is the same for a configuration that isn't there.
        Err(CredentialRetrievalError::ConfigReadError) if !has_configuration() => None,
        Err(error) if knows_none(&error) => None,
        Err(error) => {
            log::warn!("no credentials for {server}: {}", shown(&error.to_string()));
            None
        }
    }
}

/// Whether a helper reports, in Docker's words, that nothing is stored for the registry.
fn knows_none(error: &CredentialRetrievalError) -> bool {
    let CredentialRetrievalError::HelperFailure { stdout, .. } = error else {
        return false;
    };
    stdout.trim() == "credentials not found in native keychain"
}

/// Whether there is a configuration that `docker login` may have written.
fn has_configuration() -> bool {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let file = folder
        .or_else(home)
        .map(|folder| folder.join("config.json"));
    file.is_some_and(|file| std::fs::symlink_metadata(file).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_without_credentials_is_not_a_failure() {
        let said = |stdout: &str| CredentialRetrievalError::HelperFailure {
            helper: "docker-credential-x".into(),
            stdout: stdout.into(),
            stderr: String::new(),
        };
        assert!(knows_none(&said(
            "credentials not found in native keychain\n"
        )));
        assert!(!knows_none(&said("the keychain is locked")));
    }

    #[test]
    fn a_credential_is_not_printed() {
        let secret = Credential::Password {
            user: "user".into(),
            password: "hidden".into(),
        };
        for shown in [
            format!("{secret:?}"),
            format!("{:?}", Credential::IdentityToken("hidden".into())),
        ] {
            assert!(!shown.contains("hidden"), "{shown}");
        }
    }
}
