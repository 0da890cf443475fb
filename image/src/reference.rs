//! Names of images in registries, as Docker reads them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::digest::Digest;
use super::error::Error;

/// An image in a registry.
///
/// Docker's short forms are its own: no registry means `docker.io`, and no owner there means `library`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    /// Present wherever there is no digest.
    tag: Option<String>,
    digest: Option<Digest>,
}

const DOCKER_HUB: &str = "docker.io";

impl Reference {
    /// The registry: a host, perhaps with a port.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry, such as `library/python`.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. It means nothing where there is a digest.
    pub(crate) fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }

    /// Returns the name without its digest; `None` where it has no tag.
    pub(crate) fn tagged(&self) -> Option<Reference> {
        self.tag.as_ref()?;
        Some(Reference {
            digest: None,
            ..self.clone()
        })
    }

    /// Returns the name with its registry, owner and tag, whatever Docker leaves out.
    pub(crate) fn unabridged(&self) -> String {
        format!("{}/{}:{}", self.registry, self.repository, self.tag())
    }

    /// The manifest's digest, where the name has one.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether the registry is on this machine: such ones are used without TLS.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.registry)
    }
}

/// Whether a host, perhaps with a port, is this machine itself.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(host, _)| host),
        None => host.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        parse(text).map_err(|problem| Error::Name {
            text: text.to_owned(),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty; an example is python:3-alpine".into());
    }
    if text.starts_with(['.', '/', '~']) {
        return Err(
            "a file is docker-archive:FILE, oci-archive:FILE or tar:FILE, a folder oci:FOLDER or dir:FOLDER".into(),
        );
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            let digest: Digest = digest.parse().map_err(|error| format!("{error}"))?;
            (name, Some(digest))
        }
        None => (text, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (DOCKER_HUB, name),
    };
    let (path, tag) = match path.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    check_registry(registry)?;
    check_repository(path)?;
    tag.map(check_tag).transpose()?;
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB,
        registry => registry,
    };
    let library = registry == DOCKER_HUB && !path.contains('/');
    Ok(Reference {
        registry: registry.to_owned(),
        repository: format!("{}{path}", if library { "library/" } else { "" }),
        tag: tag
            .or(digest.is_none().then_some("latest"))
            .map(str::to_owned),
        digest,
    })
}

/// Whether the part before the first slash is a host, not an owner.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '['])
}

fn check_registry(text: &str) -> Result<(), String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if port.is_some_and(|port| !digits(port) || port.parse::<u16>().is_err()) {
        return Err("the port after the registry's name is not a number from 0 to 65535".into());
    }
    let host_is_right = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            !label.is_empty()
                && label.len() < 64
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    match host_is_right && text.len() <= 255 {
        true => Ok(()),
        false => Err("what stands before the first slash is not a valid name of a registry".into()),
    }
}

fn check_repository(text: &str) -> Result<(), String> {
    if text.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("names of images are in lower case".into());
    }
    let part = |part: &str| {
        let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(ends)
            && part.ends_with(ends)
            && part.chars().all(|c| ends(c) || "._-".contains(c))
            && !part.contains("..")
    };
    match text.len() <= 255 && text.split('/').all(part) {
        true => Ok(()),
        false => Err(
            "a name has letters and digits, with single '.', '_' or '-' between them; an example is ghcr.io/owner/name:tag"
                .into(),
        ),
    }
}

fn check_tag(text: &str) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let right = !text.is_empty()
        && text.len() <= 128
        && text.bytes().all(inner)
        && !text.starts_with(['.', '-']);
    match right {
        true => Ok(()),
        false => Err(
            "a tag has letters, digits, '_', '.' and '-', and doesn't start with '.' or '-'".into(),
        ),
    }
}

impl fmt::Display for Reference {
    /// Writes the name as short as Docker prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.repository;
        let short = match path.strip_prefix("library/") {
            _ if self.registry != DOCKER_HUB => None,
            Some(name) if !name.contains('/') => Some(name),
            _ => {
                let owner = path.split('/').next().unwrap_or_default();
                (!is_registry(owner)).then_some(path.as_str())
            }
        };
        match short {
            Some(short) => f.write_str(short)?,
            None => write!(f, "{}/{path}", self.registry)?,
        }
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest
            .iter()
            .try_for_each(|digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, String, String) {
        let r: Reference = text.parse().unwrap();
        (r.registry.clone(), r.repository.clone(), r.tag().to_owned())
    }

    fn three(a: &str, b: &str, c: &str) -> (String, String, String) {
        (a.into(), b.into(), c.into())
    }

    #[test]
    fn short_names_are_docker_hubs() {
        let python = three("docker.io", "library/python", "3-alpine");
        assert_eq!(parts("python:3-alpine"), python);
        assert_eq!(parts("docker.io/python:3-alpine"), python);
        assert_eq!(parts("index.docker.io/library/python:3-alpine"), python);
        assert_eq!(parts("o/n"), three("docker.io", "o/n", "latest"));
    }

    #[test]
    fn a_first_part_like_a_host_is_the_registry() {
        assert_eq!(parts("ghcr.io/o/n"), three("ghcr.io", "o/n", "latest"));
        assert_eq!(parts("localhost/x"), three("localhost", "x", "latest"));
        assert_eq!(
            parts("localhost:5000/x:1"),
            three("localhost:5000", "x", "1")
        );
        assert_eq!(parts("[::1]:5000/x"), three("[::1]:5000", "x", "latest"));
    }

    #[test]
    fn loopback_is_known_in_all_its_forms() {
        let loopback = |text: &str| text.parse::<Reference>().unwrap().is_loopback();
        for text in [
            "localhost/x",
            "localhost:1/x",
            "127.0.0.1:5000/x",
            "127.9.9.9/x",
            "[::1]:5/x",
        ] {
            assert!(loopback(text), "{text}");
        }
        for text in [
            "x",
            "ghcr.io/o/x",
            "localhost.example.org/x",
            "10.0.0.1:5000/x",
            "127.0.0.1.org/x",
        ] {
            assert!(!loopback(text), "{text}");
        }
    }

    #[test]
    fn a_digest_is_kept_beside_the_tag() {
        let digest = Digest::of("x");
        let r: Reference = format!("ghcr.io/o/n:v1@{digest}").parse().unwrap();
        assert_eq!(r.digest(), Some(&digest));
        assert_eq!(r.to_string(), format!("ghcr.io/o/n:v1@{digest}"));
    }

    #[test]
    fn a_name_is_printed_short_but_never_ambiguous() {
        let printed = |text: &str| text.parse::<Reference>().unwrap().to_string();
        assert_eq!(printed("docker.io/library/python"), "python:latest");
        assert_eq!(printed("docker.io/o/n:1"), "o/n:1");
        assert_eq!(printed("docker.io/foo.bar/n:1"), "docker.io/foo.bar/n:1");
        assert_eq!(
            printed("docker.io/localhost/n:1"),
            "docker.io/localhost/n:1"
        );
    }

    #[test]
    fn wrong_names_are_refused() {
        for text in [
            "a//b",
            "a/",
            "/a",
            "a:b:c",
            "a:",
            "a@sha256:../../etc/passwd",
            "a@",
            "x.io:99999/a",
            "x.io:/a",
            "a..b/c",
            "a b",
            "a\u{0}",
            "-a",
            "a-",
            "x_.io/a",
            "a:-1",
            "[::1/x",
            "ghcr.io/../x",
            "a/b/.",
            "é",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
