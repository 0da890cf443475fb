//! What an arm64 lab and its guests need of Debian's: `arm64/debian/{vmlinuz,version,modules/,bin/,demo/}` in the cache.
//!
//! The kernel is the one for all machines: it has 9p, over which the lab shows the host's files, in modules, and KVM built in. Once it
//! is there it stays until its folder is removed, as no lists tell of newer ones.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::cache::{Cache, key};
use crate::debian::{Apt, OWN};
use crate::process::capture;
use crate::{debian_kernels, debian_python, modules, rootfs};

/// The folder in the cache, and the name there.
const FOLDER: &str = "arm64";
const NAME: &str = "debian";

/// The package that depends on the newest kernel.
const KERNEL: &str = "linux-image-arm64";

/// What is kept of its modules, with what these depend on: the lab's devices, its channel, the host's files and a layer over them.
const MODULES: [&str; 5] = [
    "virtio_mmio",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];

/// A shell and its tools in one static file.
const BUSYBOX: &str = "busybox-static";

/// The names in `bin` by which tests call it, in place of this machine's programs.
const APPLETS: [&str; 8] = [
    "cat", "gzip", "mkfifo", "sh", "sleep", "tar", "touch", "true",
];

/// Change this when what is kept changes.
const RECIPE: &str = "debian-arm64 3";

/// Debian's name for the architecture in folders.
const ARCHITECTURE: &str = "aarch64";

/// The keys of Debian's archive, where a Debian machine has them.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The folder, which is filled if it isn't there, and what was done.
pub(crate) fn ensure(cache: &Cache) -> Result<(PathBuf, String)> {
    let key = key([RECIPE, KERNEL, BUSYBOX].into_iter().chain(MODULES));
    let mut outcome = "already there".to_owned();
    if !cache.folder(FOLDER).join(&key).exists() {
        let lists = Lists::fetch()?;
        let folder = cache.make(FOLDER, &key, |folder| fill(&lists.apt, folder))?;
        let version = fs::read_to_string(folder.join("version"))?;
        outcome = format!("fetched {}", version.trim());
    }
    Ok((cache.point(FOLDER, NAME, &key)?, outcome))
}

fn fill(apt: &Apt, folder: &Path) -> Result<()> {
    let mut images = apt.dependencies(&[KERNEL])?;
    images.retain(|name| name.starts_with("linux-image-"));
    images.push(BUSYBOX.to_owned());
    let packages = apt.pin(&images)?;
    python(apt, &folder.join("demo"))?;
    let unpacked = tempfile::tempdir().context("cannot create a temporary folder")?;
    apt.unpack(&packages, unpacked.path())?;
    let kernel = debian_kernels::kernel(unpacked.path(), KERNEL)?;
    fs::copy(kernel, folder.join("vmlinuz"))?;
    let programs = folder.join("bin");
    fs::create_dir(&programs)?;
    fs::copy(
        unpacked.path().join("bin/busybox"),
        programs.join("busybox"),
    )
    .with_context(|| format!("{BUSYBOX} has no /bin/busybox"))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", programs.join(applet))?;
    }
    fs::write(folder.join("version"), format!("{}\n", packages.join(" ")))?;
    let kept = folder.join("modules");
    fs::create_dir(&kept)?;
    let tree = debian_kernels::tree(unpacked.path(), KERNEL)?;
    modules::keep(&tree, &MODULES, &kept)
        .with_context(|| format!("cannot take modules of {KERNEL}"))
}

/// Makes the demo's root file system and its archive, as those for this machine are made of Debian's packages.
fn python(apt: &Apt, folder: &Path) -> Result<()> {
    let root = folder.join("rootfs");
    fs::create_dir_all(&root)?;
    let packages = apt.pin(&debian_python::names(apt)?)?;
    debian_python::fill_from(apt, ARCHITECTURE, &packages, &root)?;
    rootfs::finish(&root)?;
    rootfs::archive(&root, &folder.join("rootfs.cpio"))
}

/// apt's lists for arm64, of the archives from which this machine has its packages. They are gone when this is dropped.
struct Lists {
    apt: Apt,
    _folder: Option<TempDir>,
}

impl Lists {
    fn fetch() -> Result<Self> {
        if std::env::consts::ARCH == "aarch64" {
            return Ok(Self {
                apt: OWN,
                _folder: None,
            });
        }
        let format = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)";
        let mut targets = Command::new("apt-get");
        targets.args(["indextargets", "--format", format, "Created-By: Packages"]);
        let sources = sources(&capture(&mut targets)?);
        if sources.is_empty() {
            bail!(
                "apt has no list of Debian's archive: look at /etc/apt/sources.list.d and run `apt-get update`"
            );
        }
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        let apt = configure(folder.path(), &sources).context("cannot configure apt for arm64")?;
        apt.update()?;
        Ok(Self {
            apt,
            _folder: Some(folder),
        })
    }
}

/// The lines of a `sources.list` for Debian's archives among these index targets, each `ORIGIN URI RELEASE COMPONENT`.
fn sources(targets: &str) -> String {
    let mut lines = String::new();
    for target in targets.lines() {
        if let ["Debian", uri, release, component] = target.split(' ').collect::<Vec<_>>()[..] {
            // Writing to a string never fails.
            let _ = writeln!(
                lines,
                "deb [arch=arm64{}] {uri} {release} {component}",
                keys()
            );
        }
    }
    lines
}

fn keys() -> String {
    match Path::new(KEYS).exists() {
        true => format!(" signed-by={KEYS}"),
        // apt's own choice of keys is then what the machine's lists are checked with.
        false => String::new(),
    }
}

/// Makes the folders that apt expects, and a configuration that names them.
fn configure(folder: &Path, sources: &str) -> Result<Apt> {
    for name in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(name))?;
    }
    fs::write(folder.join("state/status"), "")?;
    fs::write(folder.join("sources.list"), sources)?;
    let path = |name: &str| folder.join(name).display().to_string();
    let settings = [
        ("APT::Architecture", "arm64".to_owned()),
        ("APT::Architectures::", "arm64".to_owned()),
        // The user `_apt` couldn't write to this folder.
        ("APT::Sandbox::User", "root".to_owned()),
        ("Acquire::Languages", "none".to_owned()),
        (
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
            "false".to_owned(),
        ),
        ("Dir::State", path("state")),
        ("Dir::State::status", path("state/status")),
        ("Dir::Cache", path("cache")),
        ("Dir::Etc::SourceList", path("sources.list")),
        ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
    ];
    let mut text = "#clear APT::Architectures;\n".to_owned();
    for (name, value) in settings {
        let _ = writeln!(text, "{name} \"{value}\";");
    }
    let configuration = folder.join("apt.conf");
    fs::write(&configuration, text)?;
    Ok(Apt {
        configuration: Some(configuration),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debians_archives_are_asked_for_arm64() {
        let targets = "Debian http://d/debian/ bookworm main\n. https://other/ nodistro main\nDebian http://d/debian/ bookworm-updates main\n";
        let sources = sources(targets);
        let ends: Vec<_> = sources
            .lines()
            .map(|line| line.split_once("] ").unwrap().1)
            .collect();
        assert_eq!(
            ends,
            [
                "http://d/debian/ bookworm main",
                "http://d/debian/ bookworm-updates main"
            ]
        );
        assert!(sources.starts_with("deb [arch=arm64"), "{sources}");
    }
}
