//! The machines that images are for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::shown::shown;

/// The machine that an image is for.
///
/// # Example
///
/// ```
/// use minivm_image::Platform;
///
/// let platform: Platform = "linux/arm64".parse()?;
/// assert_eq!(platform.architecture, "arm64");
/// assert!("windows/amd64".parse::<Platform>().is_err());
/// # Ok::<(), minivm_image::UnknownPlatform>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// The architectures of guests: the name in platforms, the name that the kernel has for it, and the variant that every machine of it has.
const ARCHITECTURES: [(&str, &str, &str); 2] =
    [("amd64", "x86_64", "v1"), ("arm64", "aarch64", "v8")];

/// The error of a text that names no platform of a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not a platform of minivm's guests: those are linux/amd64 and linux/arm64", shown(.0))]
pub struct UnknownPlatform(String);

impl Platform {
    /// Returns Linux on this machine's processor.
    pub fn here() -> Platform {
        let here = std::env::consts::ARCH;
        let known = ARCHITECTURES
            .iter()
            .find(|(_, kernels, _)| *kernels == here);
        Platform::linux(known.map_or(here, |(name, ..)| name))
    }

    /// Returns Linux on the processors of an architecture, as Go names it.
    fn linux(architecture: &str) -> Platform {
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

/// Parses the platform of a guest: `linux/ARCHITECTURE`, or the architecture alone. A variant has to be the one that every machine of the
/// architecture has.
impl FromStr for Platform {
    type Err = UnknownPlatform;

    fn from_str(text: &str) -> Result<Platform, UnknownPlatform> {
        let architecture = text.strip_prefix("linux/").unwrap_or(text);
        let names = |(name, kernels, variant): &&(&str, &str, &str)| {
            let mut parts = architecture.splitn(2, '/');
            let named = parts
                .next()
                .is_some_and(|part| part == *name || part == *kernels);
            named && parts.next().is_none_or(|part| part == *variant)
        };
        let found = ARCHITECTURES.iter().find(names);
        let (name, ..) = found.ok_or_else(|| UnknownPlatform(text.into()))?;
        Ok(Platform::linux(name))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_has_several_names() {
        for (name, platform) in [
            ("linux/arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("arm64", "linux/arm64"),
            ("linux/amd64", "linux/amd64"),
            ("x86_64", "linux/amd64"),
        ] {
            let parsed: Platform = name.parse().unwrap();
            assert_eq!(parsed.to_string(), platform, "{name}");
            assert!(parsed.fits(&platform.parse().unwrap()), "{name}");
        }
        let here = Platform::here();
        assert_eq!(here.to_string().parse(), Ok(here));
    }

    #[test]
    fn a_platform_without_guests_is_refused_by_name() {
        for name in [
            "",
            "linux",
            "linux/",
            "linux/arm",
            "linux/arm64/v9",
            "linux/arm64/v8/v8",
            "windows/amd64",
            "LINUX/ARM64",
            "linux/linux/arm64",
            "arm64\x1b[2J",
        ] {
            let error = name.parse::<Platform>().unwrap_err().to_string();
            assert!(error.contains("linux/amd64 and linux/arm64"), "{error}");
            assert!(!error.contains('\x1b'), "{error:?}");
        }
    }
}
