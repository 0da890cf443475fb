//! Requests for an image's content, with the registry's challenges answered.

use reqwest::StatusCode;
use reqwest::blocking::Response;

use super::auth;
use super::client::Client;
use super::failure::Failure;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::Kind;

impl Client<'_> {
    /// Requests a manifest or a configuration. Returns it with the digest that the registry announces.
    pub(super) fn document(
        &self,
        folder: &str,
        id: &str,
        kind: Kind,
    ) -> Result<(Vec<u8>, Option<Digest>), Error> {
        self.retrying(|| {
            let response = self.get(&format!("{folder}/{id}"), 0)?;
            let announced = response.headers().get("docker-content-digest");
            let announced = announced.and_then(|digest| digest.to_str().ok()?.parse().ok());
            let size = response.content_length();
            let mut bytes = Vec::new();
            self.read(response, &mut |part| {
                bytes.extend_from_slice(part);
                match bytes.len() as u64 > kind.limit() {
                    true => Err(Error::TooLarge {
                        what: format!("the {} of {}", kind.noun(), self.image()),
                        limit: kind.limit(),
                    }),
                    false => Ok(()),
                }
            })?;
            match size {
                Some(size) if size != bytes.len() as u64 => Err(self.broken_off(0, None)),
                _ => Ok((bytes, announced)),
            }
        })
    }

    /// Requests a part of the image, from the byte `start` on. A challenge is answered where it is the registry's own.
    pub(super) fn get(&self, path: &str, start: u64) -> Result<Response, Failure> {
        let mut proved = false;
        loop {
            let (response, own) = self.follow(path, start)?;
            if response.status() == StatusCode::UNAUTHORIZED {
                if !own {
                    return Err(self.wants_credentials(response.url()));
                }
                // Also where there was a token, for tokens expire.
                if !proved && let Some(authorization) = auth::answer(self, response.headers())? {
                    self.authorize(authorization);
                    proved = true;
                    continue;
                }
            }
            return self.check(response);
        }
    }
}
