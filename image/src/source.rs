//! Names by which users call images.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::Error;
use super::reference::Reference;

/// The place of an image, parsed from what a user types.
///
/// ```
/// use minivm_image::Source;
///
/// let source: Source = "python:3-alpine".parse()?;
/// assert!(matches!(&source, Source::Registry(name) if name.to_string() == "python:3-alpine"));
/// let source: Source = "oci:layout:v1".parse()?;
/// assert_eq!(source, Source::Oci { folder: "layout".into(), tag: Some("v1".into()) });
/// # Ok::<(), minivm_image::Error>(())
/// ```
///
/// As with skopeo, the first colon after the path of a file or folder ends it: a path can't have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `[docker://][REGISTRY/]NAME[:TAG][@DIGEST]`: an image in a registry.
    Registry(Reference),
    /// `docker-daemon:NAME`: an image of Docker's or Podman's on this machine.
    Daemon(String),
    /// `docker-archive:FILE[:NAME]`: an image in an archive of `docker save`.
    DockerArchive {
        /// The archive, perhaps compressed.
        file: PathBuf,
        /// The name of one of its images.
        reference: Option<Reference>,
    },
    /// `-`: an archive of either kind on standard input.
    Stdin,
    /// `oci:FOLDER[:TAG]`: an image in a folder with a layout of the OCI image specification.
    Oci {
        /// The folder that has `index.json`.
        folder: PathBuf,
        /// The name of one of its images.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: an image in a tar archive of such a folder.
    OciArchive {
        /// The archive, perhaps compressed.
        file: PathBuf,
        /// The name of one of its images.
        tag: Option<String>,
    },
    /// `dir:FOLDER`: a folder that is the root file system.
    Folder(PathBuf),
    /// `tar:FILE`: a tar archive of the root file system, as from `docker export`.
    Tar(PathBuf),
}

impl Source {
    /// Returns the file or folder of this machine that the image is in.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Source::DockerArchive { file, .. } | Source::OciArchive { file, .. } => Some(file),
            Source::Oci { folder, .. } => Some(folder),
            Source::Folder(path) | Source::Tar(path) => Some(path),
            Source::Registry(_) | Source::Daemon(_) | Source::Stdin => None,
        }
    }
}

/// The words that don't name a repository when they stand before a colon.
const TRANSPORTS: [&str; 6] = [
    "docker-daemon",
    "docker-archive",
    "oci",
    "oci-archive",
    "dir",
    "tar",
];

/// The words of other tools for places of images, with what to type instead.
const OTHERS: [(&str, &str); 6] = [
    ("http", "leave http:// away"),
    ("https", "leave https:// away"),
    (
        "containers-storage",
        "use docker-daemon:NAME, which asks Podman too",
    ),
    ("podman", "use docker-daemon:NAME, which asks Podman too"),
    ("docker", "use docker://NAME or just NAME"),
    (
        "file",
        "use docker-archive:FILE, oci-archive:FILE, tar:FILE or dir:FOLDER",
    ),
];

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Source, Error> {
        let wrong = |problem: &str| Error::Name {
            text: text.to_owned(),
            problem: problem.to_owned(),
        };
        if text == "-" {
            return Ok(Source::Stdin);
        }
        if let Some(name) = text.strip_prefix("docker://") {
            return Ok(Source::Registry(name.parse()?));
        }
        let Some((transport, rest)) = text.split_once(':') else {
            return Ok(Source::Registry(text.parse()?));
        };
        if let Some((_, remedy)) = OTHERS.iter().find(|(other, _)| *other == transport) {
            return Err(wrong(remedy));
        }
        if !TRANSPORTS.contains(&transport) {
            return Ok(Source::Registry(text.parse()?));
        }
        if rest.contains('\0') {
            return Err(wrong("a name can't have a NUL"));
        }
        match transport {
            "docker-daemon" => Ok(Source::Daemon(engine_name(rest).map_err(wrong)?)),
            "dir" => Ok(Source::Folder(path(rest).map_err(wrong)?)),
            "tar" => Ok(Source::Tar(path(rest).map_err(wrong)?)),
            "docker-archive" => {
                let (file, reference) = split(rest).map_err(wrong)?;
                let reference = reference.map(|name| name.parse()).transpose()?;
                Ok(Source::DockerArchive { file, reference })
            }
            "oci" => {
                let (folder, tag) = split(rest).map_err(wrong)?;
                let tag = tag.map(str::to_owned);
                Ok(Source::Oci { folder, tag })
            }
            _ => {
                let (file, tag) = split(rest).map_err(wrong)?;
                let tag = tag.map(str::to_owned);
                Ok(Source::OciArchive { file, tag })
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Registry(name) => {
                let text = name.to_string();
                let head = text.split_once(':').map_or("", |(head, _)| head);
                let taken = TRANSPORTS.contains(&head) || OTHERS.iter().any(|(o, _)| *o == head);
                write!(f, "{}{text}", if taken { "docker://" } else { "" })
            }
            Source::Daemon(name) => write!(f, "docker-daemon:{name}"),
            Source::Stdin => f.write_str("-"),
            Source::DockerArchive { file, reference } => {
                write!(f, "docker-archive:{}", file.display())?;
                reference.iter().try_for_each(|name| write!(f, ":{name}"))
            }
            Source::Oci { folder, tag } => {
                write!(f, "oci:{}", folder.display())?;
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
            }
            Source::OciArchive { file, tag } => {
                write!(f, "oci-archive:{}", file.display())?;
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
            }
            Source::Folder(path) => write!(f, "dir:{}", path.display()),
            Source::Tar(path) => write!(f, "tar:{}", path.display()),
        }
    }
}

fn path(text: &str) -> Result<PathBuf, &'static str> {
    match text {
        "" => Err("the path is missing after the colon"),
        path => Ok(PathBuf::from(path)),
    }
}

fn split(text: &str) -> Result<(PathBuf, Option<&str>), &'static str> {
    match text.split_once(':') {
        Some((_, "")) => Err("the tag is missing after the last colon"),
        Some((file, tag)) => Ok((path(file)?, Some(tag))),
        None => Ok((path(text)?, None)),
    }
}

/// Checks a name for an engine. It goes into a URL's path and onto a command line: no part of it may be taken for an option or
/// a step upwards.
fn engine_name(text: &str) -> Result<String, &'static str> {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-:@".contains(&b))
    };
    match text {
        "" => Err("the name is missing after the colon"),
        text if text.len() <= 512 && text.split('/').all(part) => Ok(text.to_owned()),
        _ => {
            Err("use docker-daemon: with a name as `docker images` shows it, or with an image's id")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Source {
        text.parse().unwrap()
    }

    #[test]
    fn every_kind_of_source_is_parsed() {
        assert_eq!(parse("-"), Source::Stdin);
        assert_eq!(parse("dir:/srv/root"), Source::Folder("/srv/root".into()));
        assert_eq!(parse("tar:a.tar.gz"), Source::Tar("a.tar.gz".into()));
        assert_eq!(parse("docker-daemon:o/n:1"), Source::Daemon("o/n:1".into()));
        assert!(matches!(parse("docker://python"), Source::Registry(_)));
        assert!(matches!(parse("localhost:5000/x:1"), Source::Registry(_)));
        let Source::DockerArchive { file, reference } = parse("docker-archive:a.tar:o/n:1") else {
            panic!("another kind");
        };
        assert_eq!(file, PathBuf::from("a.tar"));
        assert_eq!(reference.unwrap().to_string(), "o/n:1");
        assert!(matches!(
            parse("oci-archive:a.tar"),
            Source::OciArchive { tag: None, .. }
        ));
    }

    #[test]
    fn invalid_sources_are_refused_with_a_remedy() {
        for (text, needle) in [
            ("", "empty"),
            ("dir:", "path is missing"),
            ("oci:", "path is missing"),
            ("oci:a:", "tag is missing"),
            ("docker-daemon:", "name is missing"),
            ("docker-daemon:-v", "`docker images`"),
            ("docker-daemon:a/../../containers", "`docker images`"),
            ("docker-daemon:a?b", "`docker images`"),
            ("https://ghcr.io/o/n", "leave https:// away"),
            ("containers-storage:x", "docker-daemon:NAME"),
            ("./image.tar", "docker-archive:FILE"),
            ("/srv/root", "dir:FOLDER"),
            ("Python", "lower case"),
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn a_repository_named_like_a_transport_keeps_its_prefix() {
        let source = parse("docker://dir:latest");
        assert_eq!(source.to_string(), "docker://dir:latest");
        assert_eq!(parse(&source.to_string()), source);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_printed_parses_back(text in ".*") {
            if let Ok(source) = text.parse::<Source>() {
                prop_assert_eq!(source.to_string().parse::<Source>().unwrap(), source);
            }
        }

        #[test]
        fn texts_like_names_parse_back_too(
            text in "(docker://|oci:|dir:|docker-archive:)?([a-z0-9.-]{1,8}(:[0-9]{1,5})?/){0,2}[a-z0-9._-]{1,10}(:[A-Za-z0-9._-]{1,8})?"
        ) {
            if let Ok(source) = text.parse::<Source>() {
                prop_assert_eq!(source.to_string().parse::<Source>().unwrap(), source);
            }
        }
    }
}
