//! The names of an image in an archive.

use std::collections::BTreeMap;

use crate::reference::Reference;
use crate::source::Source;

/// The annotation that has the image's name in the layout (OCI image specification, "Pre-Defined Annotation Keys"): the tag alone, as
/// Docker writes it.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Docker's annotation, which has the repository as well.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// The least digits of an image's id.
const ID: usize = 12;

/// The names that an image has in its archive, as far as the user's name for it has them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Name {
    /// In a registry, with a tag.
    full: Option<Reference>,
    /// In a layout.
    tag: Option<String>,
}

impl Name {
    pub(super) fn of(source: &Source) -> Name {
        match source {
            Source::Registry(name) => Name::full(name.tagged()),
            Source::DockerArchive { reference, .. } => {
                Name::full(reference.as_ref().and_then(Reference::tagged))
            }
            Source::Daemon(name) if is_id(name) => Name::default(),
            Source::Daemon(name) => Name::full(parsed(name)),
            Source::Oci { tag, .. } | Source::OciArchive { tag, .. } => match tag {
                // Docker's and Podman's layouts have whole names for tags.
                Some(tag) if tag.contains(['/', ':']) => Name::full(parsed(tag)),
                tag => Name {
                    full: None,
                    tag: tag.clone(),
                },
            },
            Source::Stdin | Source::Folder(_) | Source::Tar(_) => Name::default(),
        }
    }

    fn full(full: Option<Reference>) -> Name {
        let tag = full.as_ref().map(|name| name.tag().to_owned());
        Name { full, tag }
    }

    /// Returns the annotations of the image in an index.
    pub(super) fn annotations(&self) -> BTreeMap<&'static str, String> {
        let full = self.full.as_ref();
        let full = full.map(|name| (IMAGE_NAME, name.unabridged()));
        let tag = self.tag.clone().map(|tag| (REF_NAME, tag));
        full.into_iter().chain(tag).collect()
    }

    /// Returns the name and tag, as short as Docker prints it.
    pub(super) fn tagged(&self) -> Option<String> {
        self.full.as_ref().map(Reference::to_string)
    }
}

fn parsed(name: &str) -> Option<Reference> {
    name.parse::<Reference>().ok()?.tagged()
}

/// Returns whether an engine's name is an id, or may be the beginning of one.
fn is_id(name: &str) -> bool {
    let hex = name.strip_prefix("sha256:");
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.is_some() || name.len() >= ID && is_hex(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The containerd name, the tag of the layout, and Docker's name.
    fn names(source: &str) -> [Option<String>; 3] {
        let name = Name::of(&source.parse().unwrap());
        let annotations = name.annotations();
        let of = |key: &str| annotations.get(key).cloned();
        [of(IMAGE_NAME), of(REF_NAME), name.tagged()]
    }

    #[test]
    fn an_image_is_named_in_its_archive_as_far_as_it_has_a_name() {
        let python = ["docker.io/library/python:3", "3", "python:3"].map(|name| Some(name.into()));
        let digest = crate::Digest::of("");
        for source in [
            "python:3",
            &format!("python:3@{digest}"),
            "docker-daemon:python:3",
            "docker-archive:a.tar:python:3",
            "oci-archive:a.tar:docker.io/library/python:3",
        ] {
            assert_eq!(names(source), python, "{source}");
        }
        assert_eq!(
            names("oci:layout:python"),
            [None, Some("python".into()), None]
        );
        for source in [
            &format!("python@{digest}"),
            &format!("docker-daemon:{digest}"),
            "docker-daemon:0123456789ab",
            "docker-archive:a.tar",
            "oci:layout",
            "tar:root.tar",
            "-",
        ] {
            assert_eq!(names(source), [None, None, None], "{source}");
        }
    }
}
