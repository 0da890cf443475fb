//! Debian's archive: which packages and versions it has for us now, and getting them without installing them (no root).
//!
//! Asking apt takes a second or two, so that the answer is kept under the state of apt's lists.
//!
//! A machine has lists for its own architecture. Those for arm64 are fetched where they are needed, into a folder of their own that apt
//! is pointed at: the machine's stay as they are.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, key};
use crate::packages;
use crate::process::capture;

const LISTS: &str = "/var/lib/apt/lists";

/// A package of an exact version, in the form that `apt-get download` takes: `name=version`.
pub(crate) type Pinned = String;

/// Pins the packages that `choose` names, by the present state of apt's lists. `purpose` is part of the key: change it when
/// `choose` changes.
pub(crate) fn pinned(
    cache: &Cache,
    purpose: &str,
    choose: impl Fn() -> Result<Vec<String>>,
) -> Result<Vec<Pinned>> {
    let mut state = lists_state()?;
    if state.is_empty() {
        packages::refresh()?;
        state = lists_state()?;
    }
    let key = key([purpose, &state]);
    let kept = cache.folder("debian").join(&key).join("packages");
    if !kept.exists() {
        let pinned = OWN.pin(&choose()?)?;
        cache.make("debian", &key, |folder| {
            Ok(fs::write(folder.join("packages"), pinned.join("\n"))?)
        })?;
    }
    let text =
        fs::read_to_string(&kept).with_context(|| format!("cannot read {}", kept.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// apt with this machine's lists.
pub(crate) const OWN: Apt = Apt {
    configuration: None,
};

/// apt, with some lists or others.
pub(crate) struct Apt {
    /// A file that is read after the machine's own configuration.
    pub(crate) configuration: Option<PathBuf>,
}

impl Apt {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.configuration.iter().map(|file| ("APT_CONFIG", file)));
        command
    }

    /// Fetches the lists.
    pub(crate) fn update(&self) -> Result<()> {
        capture(self.command("apt-get").args(["--quiet", "update"])).map(drop)
    }

    /// What these packages depend on, directly. Of alternatives all are named.
    pub(crate) fn dependencies(&self, names: &[&str]) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        command.args([
            "depends",
            "--no-recommends",
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
            "--no-replaces",
        ]);
        let text = capture(command.args(["--no-enhances"]).args(names))?;
        Ok(text
            .lines()
            .filter_map(dependency)
            .map(str::to_owned)
            .collect())
    }

    /// Downloads the packages and unpacks them into `target`.
    pub(crate) fn unpack(&self, packages: &[Pinned], target: &Path) -> Result<()> {
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        capture(
            self.command("apt-get")
                .args(["--quiet", "download"])
                .args(packages)
                .current_dir(folder.path()),
        )?;
        for entry in fs::read_dir(folder.path())? {
            capture(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(entry?.path())
                    .arg(target),
            )?;
        }
        Ok(())
    }

    /// Finds the version that apt would take for each.
    pub(crate) fn pin(&self, names: &[String]) -> Result<Vec<Pinned>> {
        let text = capture(
            self.command("apt-cache")
                .args(["show", "--no-all-versions"])
                .args(names),
        )?;
        let field = |paragraph: &str, name: &str| {
            paragraph.lines().find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(": ")
                    .map(str::to_owned)
            })
        };
        let mut pinned = Vec::new();
        for paragraph in text.split("\n\n") {
            if let (Some(name), Some(version)) =
                (field(paragraph, "Package"), field(paragraph, "Version"))
            {
                pinned.push(format!("{name}={version}"));
            }
        }
        for name in names {
            if !pinned.iter().any(|pin| {
                pin.split_once('=')
                    .is_some_and(|(pinned, _)| pinned == name)
            }) {
                bail!(
                    "Debian's archive has no package {name}; look at /etc/apt/sources.list.d and run `apt-get update`"
                );
            }
        }
        pinned.sort_unstable();
        pinned.dedup();
        Ok(pinned)
    }
}

/// The name in a line such as `  PreDepends: libc6`. Virtual packages stand in angle brackets and are left out.
fn dependency(line: &str) -> Option<&str> {
    let (kind, name) = line.split_once(": ")?;
    (kind.ends_with("Depends") && !name.starts_with('<')).then_some(name.trim())
}

/// The signed heads of apt's lists by name, size and time: this changes when `apt-get update` brings something new.
fn lists_state() -> Result<String> {
    let mut heads = Vec::new();
    for entry in fs::read_dir(LISTS).with_context(|| format!("cannot read {LISTS}"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with("Release") {
            let metadata = entry.metadata()?;
            heads.push(format!("{name} {} {}", metadata.len(), metadata.mtime()));
        }
    }
    heads.sort_unstable();
    Ok(heads.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_apt_cache() {
        assert_eq!(dependency("  PreDepends: libc6"), Some("libc6"));
        assert_eq!(dependency(" |Depends: media-types"), Some("media-types"));
        assert_eq!(dependency("  Depends: <python3:any>"), None);
        assert_eq!(dependency("python3"), None);
    }
}
