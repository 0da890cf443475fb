//! The decision whether guests map an image, or unpack it from an initramfs.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::Error;

/// The variable that decides for every kernel that can't be asked, and whatever the image's size: for tests and benchmarks.
const VARIABLE: &str = "MINIVM_ROOT_FORMAT";
/// The architecture whose guests map images, as in images' platforms.
const ARCHITECTURE: &str = "amd64";
/// The smallest EROFS image that is mapped, in bytes.
const SMALLEST: u64 = 0;
/// What a guest's kernel needs, built in: its root is there before any module is. The image is persistent memory that ACPI describes
/// (`ACPI_NFIT`) and a driver serves (`BLK_DEV_PMEM`), with page structures (`NVDIMM_PFN`), so that EROFS files are mapped without a copy
/// (`FS_DAX`), below a file system that takes the changes (`OVERLAY_FS`).
const OPTIONS: [&str; 6] = [
    "CONFIG_ACPI_NFIT",
    "CONFIG_BLK_DEV_PMEM",
    "CONFIG_NVDIMM_PFN",
    "CONFIG_FS_DAX",
    "CONFIG_EROFS_FS",
    "CONFIG_OVERLAY_FS",
];

/// The form in which a machine gets the files of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootFormat {
    /// An archive, which the guest's kernel unpacks into its memory.
    Initramfs,
    /// An EROFS image, which the guest reads in place.
    Erofs,
}

/// The reason why guests don't map an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unmapped {
    /// The user wants it so.
    Unwanted,
    /// They are of another architecture.
    Architecture(&'static str),
    /// Nothing tells what their kernel has.
    UnknownKernel(PathBuf),
    /// Their kernel lacks an option.
    Lacks(PathBuf, &'static str),
    /// The EROFS image has so many bytes.
    Small(u64),
}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmapped::Unwanted => write!(f, "{VARIABLE} says so"),
            Unmapped::Architecture(architecture) => {
                write!(f, "{architecture} guests can't map images")
            }
            Unmapped::UnknownKernel(kernel) => write!(
                f,
                "there is no config beside the kernel {} that tells what it can do",
                kernel.display()
            ),
            Unmapped::Lacks(kernel, option) => {
                write!(f, "the kernel {} lacks {option}=y", kernel.display())
            }
            Unmapped::Small(size) => write!(f, "an EROFS image of {size} bytes is small"),
        }
    }
}

/// Returns the format that the user asked for.
///
/// # Errors
///
/// [`Error::RootFormat`] where it is unknown.
pub(super) fn wanted() -> Result<Option<RootFormat>, Error> {
    let said = env::var_os(VARIABLE).filter(|said| !said.is_empty());
    let parse = |said: std::ffi::OsString| match said.to_str() {
        Some("initramfs") => Ok(RootFormat::Initramfs),
        Some("erofs") => Ok(RootFormat::Erofs),
        _ => Err(Error::RootFormat(said.to_string_lossy().into_owned())),
    };
    said.map(parse).transpose()
}

/// Returns why guests of this architecture with this kernel don't map images; `None` where they do.
pub(super) fn unmapped(
    kernel: &Path,
    architecture: &'static str,
    wanted: Option<RootFormat>,
) -> Option<Unmapped> {
    match wanted {
        Some(RootFormat::Initramfs) => return Some(Unmapped::Unwanted),
        _ if architecture != ARCHITECTURE => return Some(Unmapped::Architecture(architecture)),
        Some(RootFormat::Erofs) => return None,
        None => {}
    }
    let Some(config) = config_of(kernel) else {
        return Some(Unmapped::UnknownKernel(kernel.to_owned()));
    };
    let missing = missing(&config)?;
    Some(Unmapped::Lacks(kernel.to_owned(), missing))
}

/// Returns why an EROFS image of so many bytes isn't mapped; `None` where it is.
pub(super) fn too_small(size: u64, wanted: Option<RootFormat>) -> Option<Unmapped> {
    (size < smallest(wanted)).then_some(Unmapped::Small(size))
}

fn smallest(wanted: Option<RootFormat>) -> u64 {
    match wanted {
        Some(_) => 0,
        None => SMALLEST,
    }
}

/// Returns the configuration that a kernel was built with: the file `config` beside it, as `kernel-config/build.sh` has it, or for
/// `vmlinuz-VERSION` the file `config-VERSION`, as in distributions' `/boot`.
fn config_of(kernel: &Path) -> Option<Vec<u8>> {
    let name = kernel.file_name()?.to_str()?;
    let config = match name.split_once('-') {
        Some((_, version)) => format!("config-{version}"),
        None => "config".to_owned(),
    };
    fs::read(kernel.with_file_name(config)).ok()
}

/// Returns the first option that is missing in a configuration.
fn missing(config: &[u8]) -> Option<&'static str> {
    let mut missing = OPTIONS.to_vec();
    for line in config.split(|byte| *byte == b'\n') {
        if let Some(option) = line.strip_suffix(b"=y") {
            missing.retain(|missing| missing.as_bytes() != option);
        }
    }
    missing.first().copied()
}

/// Writes the configuration of a kernel whose guests map images.
#[cfg(test)]
pub(super) fn write_able_config(path: &Path) {
    let lines = OPTIONS.map(|option| format!("{option}=y\n"));
    fs::write(path, lines.concat()).expect("the file can be written");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a configuration in which these options have another value than `y`.
    fn config(others: &[(&str, &str)]) -> String {
        let mut text = "# Linux/x86 6.12.57 Kernel Configuration\nCONFIG_64BIT=y\n".to_owned();
        for option in OPTIONS {
            let other = others.iter().find(|(name, _)| *name == option);
            text += &match other {
                Some((_, "n")) => format!("# {option} is not set\n"),
                Some((_, value)) => format!("{option}={value}\n"),
                None => format!("{option}=y\n"),
            };
        }
        text
    }

    #[test]
    fn an_image_is_mapped_where_the_kernel_is_known_to_do_it() {
        use RootFormat::{Erofs, Initramfs};
        let able = config(&[]);
        let of_modules = config(&[("CONFIG_EROFS_FS", "m")]);
        let lacking = config(&[("CONFIG_FS_DAX", "n"), ("CONFIG_OVERLAY_FS", "n")]);
        let like_it = able.replace("CONFIG_FS_DAX=y", "CONFIG_FS_DAX_PMD=y\nXCONFIG_FS_DAX=y");
        for (name, beside, content, architecture, wanted, expected) in [
            ("vmlinux", "config", &able, "amd64", None, "mapped"),
            (
                "vmlinuz-6.12.1+x-y",
                "config-6.12.1+x-y",
                &able,
                "amd64",
                None,
                "mapped",
            ),
            (
                "vmlinux",
                "none",
                &able,
                "amd64",
                None,
                "there is no config beside the kernel",
            ),
            (
                "vmlinuz-6.12",
                "config-6.1",
                &able,
                "amd64",
                None,
                "there is no config",
            ),
            (
                "vmlinuz-6.12",
                "config",
                &able,
                "amd64",
                None,
                "there is no config",
            ),
            (
                "vmlinux",
                "config",
                &of_modules,
                "amd64",
                None,
                "lacks CONFIG_EROFS_FS=y",
            ),
            (
                "vmlinux",
                "config",
                &lacking,
                "amd64",
                None,
                "lacks CONFIG_FS_DAX=y",
            ),
            (
                "vmlinux",
                "config",
                &like_it,
                "amd64",
                None,
                "lacks CONFIG_FS_DAX=y",
            ),
            (
                "Image",
                "config",
                &able,
                "arm64",
                None,
                "arm64 guests can't",
            ),
            (
                "Image",
                "config",
                &able,
                "arm64",
                Some(Erofs),
                "arm64 guests can't",
            ),
            (
                "vmlinux",
                "config",
                &lacking,
                "amd64",
                Some(Erofs),
                "mapped",
            ),
            ("vmlinux", "none", &able, "amd64", Some(Erofs), "mapped"),
            (
                "vmlinux",
                "config",
                &able,
                "amd64",
                Some(Initramfs),
                "MINIVM_ROOT_FORMAT",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(beside), content).unwrap();
            let kernel = folder.path().join(name);
            let told = match unmapped(&kernel, architecture, wanted) {
                Some(why) => why.to_string(),
                None => "mapped".to_owned(),
            };
            assert!(
                told.contains(expected),
                "{name}, {beside}, {wanted:?}: {told}"
            );
        }
    }

    #[test]
    fn the_smallest_image_counts_where_nothing_else_was_asked_for() {
        assert_eq!(too_small(SMALLEST, None), None);
        if let Some(below) = SMALLEST.checked_sub(1) {
            assert_eq!(too_small(below, None), Some(Unmapped::Small(below)));
        }
        assert_eq!(too_small(0, Some(RootFormat::Erofs)), None);
    }
}
