//! Debian's own kernels as packaged, which minivm must boot too: `debian-kernels/{cloud,generic}/{vmlinuz,version}`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};

use crate::cache::{Cache, key};
use crate::debian;

/// The name in the cache, and the package that depends on the newest image of that flavour.
const FLAVOURS: [(&str, &str); 2] = [
    ("cloud", "linux-image-cloud-amd64"),
    ("generic", "linux-image-amd64"),
];

/// The folder with both, which are fetched if they aren't there, and what was done.
pub(crate) fn ensure(cache: &Cache) -> Result<(PathBuf, String)> {
    let mut outcome = Vec::new();
    for (flavour, package) in FLAVOURS {
        let images = debian::pinned(cache, package, || {
            let mut images = debian::dependencies(&[package])?;
            images.retain(|name| name.starts_with("linux-image-"));
            Ok(images)
        })?;
        let image = images
            .first()
            .ok_or_else(|| anyhow!("{package} depends on no kernel image"))?;
        let key = key(["debian-kernel 1", image]);
        if !cache.folder("debian-kernels").join(&key).exists() {
            fetch(cache, &key, image)?;
            outcome.push(image.as_str().to_owned());
        }
        cache.point("debian-kernels", flavour, &key)?;
    }
    let outcome = if outcome.is_empty() {
        "already there".to_owned()
    } else {
        format!("fetched {}", outcome.join(" "))
    };
    Ok((cache.folder("debian-kernels"), outcome))
}

/// Fetches a kernel's package and keeps nothing but the kernel.
fn fetch(cache: &Cache, key: &str, image: &str) -> Result<()> {
    cache.make("debian-kernels", key, |folder| {
        let unpacked = tempfile::tempdir().context("cannot create a temporary folder")?;
        debian::unpack(&[image.to_owned()], unpacked.path())?;
        let boot = fs::read_dir(unpacked.path().join("boot"))
            .with_context(|| format!("{image} has no /boot"))?;
        for entry in boot {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
                fs::copy(entry.path(), folder.join("vmlinuz"))?;
                return Ok(fs::write(folder.join("version"), format!("{image}\n"))?);
            }
        }
        bail!("{image} has no /boot/vmlinuz-…")
    })?;
    Ok(())
}
