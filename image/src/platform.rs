//! The machines that images are for.

use std::fmt;

use serde::Deserialize;

use super::shown::shown;

/// The machine that an image is for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// The operating system, such as `linux`.
    #[serde(default)]
    pub os: String,
    /// The architecture as Go names it, such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// The variant of the architecture that the image needs, such as `v3`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's processor.
    pub(crate) fn here() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        }
    }

    pub(super) fn fits(&self, wanted: &Platform) -> bool {
        self.os == wanted.os && self.architecture == wanted.architecture
    }

    /// Whether every machine of the architecture fits.
    pub(super) fn is_basic(&self) -> bool {
        matches!(self.variant.as_deref(), None | Some("" | "v1" | "v8"))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{}", shown(variant)),
        }
    }
}
