//! The demo's root file system: Python, a shell, and the `/init` that asks it for 2+2; and the initramfs made from it.
//!
//! Python comes from a container registry where one can be reached, else from Debian's packages. Both give
//! `demo/current/{rootfs/,rootfs.cpio,source}` in the cache. The archive is not compressed: that boots fastest.

use std::env;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use minivm_guest::Owner;

use crate::cache::{Cache, key};
use crate::process::capture;
use crate::{debian_python, registry};

/// Names another image than `python:3-alpine`; it must come from its registry then.
const IMAGE: &str = "MINIVM_DEMO_IMAGE";

const INIT: &str = include_str!("init.sh");

/// Change this when the recipe changes, so that what was made by the older one is made again.
const RECIPE: &str = "demo 3";

/// Room for it is in a machine of 256 MiB, where archive and files exist side by side for a moment.
const LARGEST: u64 = 50 << 20;

/// What nothing reads in a machine that lives for a second.
const UNREAD: [&str; 9] = [
    "*/lib/python3*/test",
    "*/lib/python3*/tests",
    "*/lib/python3*/idlelib",
    "*/lib/python3*/lib2to3",
    "*/lib/python3*/ensurepip",
    "*/lib/python3*/turtledemo",
    "*/usr/local/include",
    "*/share/doc",
    "*/share/man",
];

/// Where a root file system comes from, and the key of what comes from there.
struct Source {
    key: String,
    text: String,
}

impl Source {
    fn registry(image: &str) -> Self {
        Self {
            key: key([RECIPE, INIT, image]),
            text: image.to_owned(),
        }
    }

    fn debian(packages: &[String]) -> Self {
        let parts = [RECIPE, INIT]
            .into_iter()
            .chain(packages.iter().map(String::as_str));
        Self {
            key: key(parts),
            text: format!("Debian packages {}", packages.join(" ")),
        }
    }
}

/// The initramfs, made if it isn't there, and what was done.
pub(crate) fn ensure(cache: &Cache) -> Result<(PathBuf, String)> {
    let (source, outcome) = match env::var(IMAGE) {
        Ok(image) => from_registry(cache, &image).with_context(|| format!("{IMAGE}={image}"))?,
        Err(_) => from_anywhere(cache)?,
    };
    let folder = cache.point("demo", "current", &source.key)?;
    Ok((folder.join("rootfs.cpio"), outcome))
}

fn from_anywhere(cache: &Cache) -> Result<(Source, String)> {
    let packages = || debian_python::packages(cache);
    let wanted = Source::registry(registry::DEFAULT);
    if is_there(cache, &wanted) {
        return Ok((wanted, "already there (container image)".to_owned()));
    }
    if let Some(source) = packages().ok().map(|packages| Source::debian(&packages))
        && is_there(cache, &source)
    {
        return Ok((source, "already there (Debian packages)".to_owned()));
    }
    from_registry(cache, registry::DEFAULT).or_else(|error| {
        println!("no container image: {error:#}; taking Python from Debian's packages");
        let packages = packages()?;
        let source = Source::debian(&packages);
        let size = make(cache, &source, |root| debian_python::fill(&packages, root))?;
        Ok((
            source,
            format!(
                "made from {} Debian packages, {} MB",
                packages.len(),
                size >> 20
            ),
        ))
    })
}

fn from_registry(cache: &Cache, image: &str) -> Result<(Source, String)> {
    let source = Source::registry(image);
    if is_there(cache, &source) {
        return Ok((source, format!("already there ({image})")));
    }
    registry::check_reachable(image)?;
    let size = make(cache, &source, |root| registry::fill(image, root))?;
    Ok((source, format!("made from {image}, {} MB", size >> 20)))
}

fn is_there(cache: &Cache, source: &Source) -> bool {
    cache.folder("demo").join(&source.key).exists()
}

/// Makes everything from a source; returns the archive's size.
fn make(cache: &Cache, source: &Source, fill: impl FnOnce(&Path) -> Result<()>) -> Result<u64> {
    let made = cache.make("demo", &source.key, |folder| {
        let root = folder.join("rootfs");
        fs::create_dir(&root)?;
        fill(&root)?;
        finish(&root)?;
        archive(&root, &folder.join("rootfs.cpio"))?;
        Ok(fs::write(
            folder.join("source"),
            format!("{}\n", source.text),
        )?)
    })?;
    Ok(fs::metadata(made.join("rootfs.cpio"))?.len())
}

/// Adds `/init` and the mount points, drops what isn't needed, and looks whether Python is where `/init` calls it.
pub(crate) fn finish(root: &Path) -> Result<()> {
    for folder in ["proc", "sys", "dev", "tmp", "root", "run"] {
        fs::create_dir_all(root.join(folder))?;
    }
    // `find` follows no link, wherever an image lets one point.
    for unread in UNREAD {
        let mut remove = Command::new("find");
        remove
            .arg(root)
            .args(["-depth", "-type", "d", "-path", unread]);
        capture(remove.args(["-exec", "rm", "-rf", "{}", "+"]))?;
    }
    let init = root.join("init");
    let _ = fs::remove_file(&init); // An image may have one, and it may be a link to anywhere.
    File::create_new(&init)
        .and_then(|mut file| file.write_all(INIT.as_bytes()))
        .context("cannot write /init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    for needed in ["usr/local/bin/python3", "bin/sh"] {
        if fs::symlink_metadata(root.join(needed)).is_err() {
            bail!(
                "the root file system has no /{needed}, which /init needs: take an image such as python:3-alpine"
            );
        }
    }
    Ok(())
}

/// Writes the initramfs: the same bytes from the same files, with everything owned by root.
pub(crate) fn archive(root: &Path, archive: &Path) -> Result<()> {
    capture(Command::new("find").arg(root).args([
        "-exec",
        "touch",
        "--no-dereference",
        "--date=@0",
        "{}",
        "+",
    ]))?;
    let file =
        File::create(archive).with_context(|| format!("cannot create {}", archive.display()))?;
    let written = minivm_guest::archive_dir(root, Owner::Root, BufWriter::new(file));
    written.with_context(|| format!("cannot archive {}", root.display()))?;
    let size = fs::metadata(archive)?.len();
    if size > LARGEST {
        bail!(
            "the root file system is {} MB, more than {} MB: take a smaller image",
            size >> 20,
            LARGEST >> 20
        );
    }
    Ok(())
}
