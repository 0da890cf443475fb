//! Debian's own kernels as packaged: `debian-kernels/{cloud,generic}/{vmlinuz,version}`, and for the cloud kernel `modules/`.
//!
//! minivm must boot both. The cloud kernel with its modules is a lab's kernel too, so that a first boot needs none that is built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::cache::{Cache, key};
use crate::debian;
use crate::modules;

/// Debian's name for what a kernel is configured for.
#[derive(Clone, Copy)]
struct Flavour {
    /// In the cache.
    name: &'static str,
    /// The package that depends on the newest image.
    package: &'static str,
    /// What is kept of its modules, with what these depend on.
    modules: &'static [&'static str],
}

/// Half the size of the generic one. It has neither 9p nor PCI's drivers for all machines, which a lab that shows none of the
/// host's files doesn't need.
const CLOUD: Flavour = Flavour {
    name: "cloud",
    package: "linux-image-cloud-amd64",
    modules: &["virtio_mmio", "virtio_console", "kvm-amd"],
};

const GENERIC: Flavour = Flavour {
    name: "generic",
    package: "linux-image-amd64",
    modules: &[],
};

/// Change this when what is kept of a package changes.
const RECIPE: &str = "debian-kernel 2";

/// The folder with both, which are fetched if they aren't there, and what was done.
pub(crate) fn ensure(cache: &Cache) -> Result<(PathBuf, String)> {
    let mut outcome = Vec::new();
    for flavour in [CLOUD, GENERIC] {
        outcome.extend(ensure_flavour(cache, flavour)?.1);
    }
    Ok((cache.folder("debian-kernels"), told(&outcome)))
}

/// The folder with the cloud kernel, which is fetched if it isn't there, and what was done.
pub(crate) fn ensure_cloud(cache: &Cache) -> Result<(PathBuf, String)> {
    let (folder, fetched) = ensure_flavour(cache, CLOUD)?;
    Ok((folder, told(fetched.as_slice())))
}

fn told(fetched: &[String]) -> String {
    match fetched {
        [] => "already there".to_owned(),
        packages => format!("fetched {}", packages.join(" ")),
    }
}

/// The folder with a kernel, and the package if it was fetched.
fn ensure_flavour(cache: &Cache, flavour: Flavour) -> Result<(PathBuf, Option<String>)> {
    let package = flavour.package;
    let images = debian::pinned(cache, package, || {
        let mut images = debian::OWN.dependencies(&[package])?;
        images.retain(|name| name.starts_with("linux-image-"));
        Ok(images)
    })?;
    let image = images
        .first()
        .ok_or_else(|| anyhow!("{package} depends on no kernel image"))?;
    let parts = [RECIPE, image].into_iter();
    let key = key(parts.chain(flavour.modules.iter().copied()));
    let is_there = cache.folder("debian-kernels").join(&key).exists();
    if !is_there {
        fetch(cache, &key, image, flavour.modules)?;
    }
    let folder = cache.point("debian-kernels", flavour.name, &key)?;
    Ok((folder, (!is_there).then(|| image.clone())))
}

/// Fetches a kernel's package and keeps nothing but the kernel and these modules.
fn fetch(cache: &Cache, key: &str, image: &str, modules: &[&str]) -> Result<()> {
    cache.make("debian-kernels", key, |folder| {
        let unpacked = tempfile::tempdir().context("cannot create a temporary folder")?;
        debian::OWN.unpack(&[image.to_owned()], unpacked.path())?;
        fs::copy(kernel(unpacked.path(), image)?, folder.join("vmlinuz"))?;
        fs::write(folder.join("version"), format!("{image}\n"))?;
        if modules.is_empty() {
            return Ok(());
        }
        let kept = folder.join("modules");
        fs::create_dir(&kept)?;
        modules::keep(&tree(unpacked.path(), image)?, modules, &kept)
            .with_context(|| format!("cannot take modules from {image}"))
    })?;
    Ok(())
}

/// The kernel in an unpacked package.
pub(crate) fn kernel(unpacked: &Path, image: &str) -> Result<PathBuf> {
    let boot = fs::read_dir(unpacked.join("boot"));
    for entry in boot.with_context(|| format!("{image} has no /boot"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(entry.path());
        }
    }
    bail!("{image} has no /boot/vmlinuz-…")
}

/// The folder of all modules in an unpacked package, whose name is the kernel's version.
pub(crate) fn tree(unpacked: &Path, image: &str) -> Result<PathBuf> {
    // Since Debian 13 all is below /usr.
    for folder in ["usr/lib/modules", "lib/modules"] {
        let folder = unpacked.join(folder);
        if let Some(entry) = fs::read_dir(folder).ok().and_then(|mut all| all.next()) {
            return Ok(entry?.path());
        }
    }
    bail!("{image} has no /lib/modules/…")
}
