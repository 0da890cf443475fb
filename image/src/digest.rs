//! Digests of content: `sha256:` and 64 hexadecimal digits.
//!
//! A digest comes from hostile text and becomes part of file names and URLs, so the only ways to make one are to parse it
//! strictly and to compute it.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::shown::shown;

/// The SHA-256 of some content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

/// A text that is not a valid digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{}\" is not a valid digest: sha256: and 64 hexadecimal digits in lower case", shown(.0))]
pub struct NoDigest(String);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: impl AsRef<[u8]>) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(bytes.as_ref());
        hasher.finish()
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// Parses a digest that is written without `sha256:`.
    pub(super) fn from_hex(hex: &str) -> Option<Digest> {
        let valid = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| Digest(hex.to_owned()))
    }
}

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Digest, NoDigest> {
        text.strip_prefix("sha256:")
            .and_then(Digest::from_hex)
            .ok_or_else(|| NoDigest(text.to_owned()))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl TryFrom<String> for Digest {
    type Error = NoDigest;

    fn try_from(text: String) -> Result<Digest, NoDigest> {
        text.parse()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// A digest being computed.
#[derive(Clone, Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn read(&mut self, mut from: impl Read) -> io::Result<u64> {
        let mut buffer = vec![0; 64 << 10];
        let mut total = 0;
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(n) => {
                    self.update(&buffer[..n]);
                    total += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Adds one field of several. Its length goes first, so that no two lists of fields hash alike.
    pub(super) fn field(&mut self, bytes: &[u8]) {
        self.update(&(bytes.len() as u64).to_le_bytes());
        self.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        let hex = self.bytes().map(|byte| format!("{byte:02x}"));
        Digest(hex.concat())
    }

    /// The digest's bytes.
    pub(crate) fn bytes(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_computed_parsed_and_printed() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of("").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(""));
    }

    #[test]
    fn paths_and_other_algorithms_are_not_valid_digests() {
        let upper = Digest::of("").to_string().to_uppercase();
        for text in [
            "sha256:../../etc/passwd",
            "sha256:",
            "",
            "sha512:00",
            upper.as_str(),
            &format!("sha256:{}", "é".repeat(32)),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let hash = |fields: [&str; 2]| {
            let mut hasher = Hasher::default();
            fields
                .iter()
                .for_each(|field| hasher.field(field.as_bytes()));
            hasher.finish()
        };
        assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
    }
}
