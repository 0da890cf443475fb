//! Images of the command line: opening one, with progress on a terminal, and describing the machine made from it.

use std::collections::HashMap;
use std::io::{self, IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};
use log::LevelFilter;
use minivm_image::{self, Digest, Options, Platform, Progress, Source};
use minivm_machine::Accel;
use minivm_machine::cache;
use minivm_machine::fetch::{self, Fetched};
use minivm_machine::images::{self, ImageCache, MachineRoot, RootFormat};
use minivm_machine::kernel::{self, Missing};
use minivm_machine::lab::Processor;
use minivm_machine::printable::printable;
use minivm_machine::templates::{Listed, Templates, lab};
use minivm_sandbox::Microvm;

use super::{EXIT_ERROR, units};

/// The most characters of a line about something that can't be removed: the longest path and more.
const LINE_MAX: usize = 5000;

/// What `cargo xtask setup --arm64` has made, in the cache.
const FOREIGN_PYTHON: &str = "arm64/debian/demo/rootfs";

/// When a registry is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pull {
    /// If the image isn't cached
    Missing,
    /// To look up what the tag stands for now
    Always,
    /// Not at all
    Never,
}

#[derive(Args)]
pub(super) struct ImageArgs {
    /// Container image, such as python:3-alpine
    ///
    /// NAME[:TAG|@DIGEST] in a registry, docker-daemon:NAME, docker-archive:FILE, oci:DIR[:TAG], oci-archive:FILE, tar:FILE (a `docker
    /// export`), dir:FOLDER, or - for an archive on stdin.
    #[arg(value_name = "IMAGE", value_parser = source)]
    pub(super) image: Source,
    #[command(flatten)]
    pub(super) pull: PullArgs,
}

#[derive(Args)]
pub(super) struct PullArgs {
    /// When to ask a registry
    #[arg(long, value_enum, default_value_t = Pull::Missing, value_name = "WHEN", hide_short_help = true)]
    pull: Pull,
    /// Print no progress and no warnings, only errors
    #[arg(short, long, hide_short_help = true)]
    pub(super) quiet: bool,
}

/// The default image for a platform, which has Python: the one in `MINIVM_IMAGE`, or the root file system that `cargo xtask setup` has
/// made, or `python:3-alpine`.
pub(super) fn python(platform: &Platform) -> anyhow::Result<Source> {
    if let Some(name) = std::env::var_os("MINIVM_IMAGE").filter(|name| !name.is_empty()) {
        let name = name.to_str().context("MINIVM_IMAGE is not text")?;
        return source(name).map_err(|error| anyhow::anyhow!("MINIVM_IMAGE: {error}"));
    }
    let made = match *platform == Platform::here() {
        true => "demo/current/rootfs",
        false => FOREIGN_PYTHON,
    };
    let made = cache::folder().map(|cache| cache.join(made));
    match made.filter(|root| root.is_dir()) {
        Some(root) => Ok(Source::Folder(root.canonicalize().unwrap_or(root))),
        None => source_with_python(),
    }
}

/// The public image with Python.
fn source_with_python() -> anyhow::Result<Source> {
    source("python:3-alpine").map_err(anyhow::Error::msg)
}

/// Parses an image's name. One that looks like a volume gets a hint of `-v`.
pub(super) fn source(text: &str) -> Result<Source, String> {
    text.parse().map_err(|error: minivm_image::Error| {
        let hint = match text.split_once(":/") {
            Some((_, path)) if !path.starts_with('/') => {
                "; `minivm run -v SRC:DST` shares a folder with the guest"
            }
            _ => "",
        };
        format!("{error}{hint}")
    })
}

/// The cache of images and their archives.
pub(super) fn image_cache() -> anyhow::Result<ImageCache> {
    Ok(ImageCache::new(&cache_folder()?))
}

/// The cache's folder. Sets the limit on its size that the user asked for.
pub(super) fn cache_folder() -> anyhow::Result<PathBuf> {
    if let Some(limit) = cache_limit()? {
        images::set_limit(limit);
    }
    Ok(cache::find()?)
}

/// The limit in `MINIVM_CACHE_SIZE`.
fn cache_limit() -> anyhow::Result<Option<u64>> {
    let said = std::env::var_os("MINIVM_CACHE_SIZE").filter(|said| !said.is_empty());
    let said = said.map(|said| units::bytes(&said.to_string_lossy()));
    said.transpose()
        .map_err(|error| anyhow::anyhow!("MINIVM_CACHE_SIZE: {error}"))
}

/// `minivm prune`. What can't be removed doesn't keep the rest.
pub(super) fn prune() -> anyhow::Result<ExitCode> {
    let cache = cache_folder()?;
    let mut left = Vec::new();
    let labs = lab::stop_all(&cache).unwrap_or_else(|error| {
        left.push(format!("cannot end the labs that are kept: {error}"));
        0
    });
    let templates = Templates::new(&cache);
    let (mut freed, unremoved) = templates.clear();
    left.extend(unremoved.into_iter().map(told));
    let named = templates.list().unwrap_or_default();
    let kept: Vec<_> = named.iter().flat_map(Listed::needs).collect();
    let cleared = ImageCache::new(&cache).sweep(&kept);
    freed += cleared.freed;
    left.extend(cleared.left.into_iter().map(told));
    if cleared.more > 0 {
        left.push(format!("and {} more", cleared.more));
    }
    println!("freed {}", BinaryBytes(freed));
    if labs > 0 {
        println!("ended {labs} of the labs that were kept");
    }
    for line in &left {
        eprintln!("minivm: {line}");
    }
    Ok(match left.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_ERROR),
    })
}

/// An error in one line: an image may have made the name in it.
pub(super) fn told(error: impl Into<anyhow::Error>) -> String {
    printable(&format!("{:#}", error.into()), LINE_MAX)
}

/// Finds and opens the named image, or the default, for a platform; returns it with its source.
pub(super) fn named_or_python(
    platform: &Platform,
    named: Option<&Source>,
    args: &PullArgs,
) -> anyhow::Result<(Source, Fetched)> {
    let source = match named {
        Some(image) => image.clone(),
        None => python(platform)?,
    };
    let image = open_named_or_python(platform, named, &source, args, &image_cache()?)?;
    Ok((source, image))
}

/// Finds and opens the image `source`: the named one, or the default.
pub(super) fn open_named_or_python(
    platform: &Platform,
    named: Option<&Source>,
    source: &Source,
    args: &PullArgs,
    images: &ImageCache,
) -> anyhow::Result<Fetched> {
    let opened = open_for(platform, source, args, images);
    let is_usual = source_with_python().is_ok_and(|usual| usual == *source);
    match named.is_none() && is_usual {
        true => opened.context(
            "no image was named, and `cargo xtask setup` has made none; MINIVM_IMAGE may name one",
        ),
        false => opened,
    }
}

/// Finds and opens the image for this host's platform.
pub(super) fn open(
    source: &Source,
    args: &PullArgs,
    images: &ImageCache,
) -> anyhow::Result<Fetched> {
    open_for(&Platform::here(), source, args, images)
}

/// Finds and opens the image for a platform.
pub(super) fn open_for(
    platform: &Platform,
    source: &Source,
    args: &PullArgs,
    images: &ImageCache,
) -> anyhow::Result<Fetched> {
    let options = Options {
        pull: match args.pull {
            Pull::Missing => minivm_image::Pull::Missing,
            Pull::Always => minivm_image::Pull::Always,
            Pull::Never => minivm_image::Pull::Never,
        },
        platform: platform.clone(),
        ..Options::default()
    };
    let bars = Bars::new(args.quiet);
    fetch::open(source, images, &options, &bars).map_err(explain_full)
}

/// The image's files for machines with this kernel, made where they aren't there.
fn root(
    source: &Source,
    quiet: bool,
    image: &Fetched,
    images: &ImageCache,
    kernel: &Path,
) -> anyhow::Result<MachineRoot> {
    let mut spinner = None;
    let root = MachineRoot::open(image, images, kernel, &mut |format| {
        let made = match format {
            RootFormat::Initramfs => "an initramfs",
            RootFormat::Erofs => "an EROFS image",
        };
        spinner = making(made, source, quiet);
    });
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    root.map_err(explain_full)
}

/// Machines of the image with this kernel, or with the one that `cargo xtask setup` has made. `accel` is asked for where they run once
/// the image's files are there.
pub(super) fn microvm(
    source: &Source,
    image: Fetched,
    kernel: Option<&Path>,
    quiet: bool,
    accel: impl FnOnce() -> anyhow::Result<Accel>,
) -> anyhow::Result<Microvm> {
    microvm_for(&Platform::here(), source, image, kernel, quiet, accel)
}

/// As [`microvm`], for a platform's guests.
pub(super) fn microvm_for(
    platform: &Platform,
    source: &Source,
    image: Fetched,
    kernel: Option<&Path>,
    quiet: bool,
    accel: impl FnOnce() -> anyhow::Result<Accel>,
) -> anyhow::Result<Microvm> {
    let images = image_cache()?.for_guests_of(platform)?;
    let kernel = match kernel {
        Some(kernel) => kernel.to_owned(),
        None => kernel_for(platform)?,
    };
    let root = root(source, quiet, &image, &images, &kernel)?;
    let microvm = Microvm::new(root, image.config().clone(), kernel, accel()?);
    Ok(microvm.called(source.to_string()))
}

/// The default kernel for guests of a platform.
pub(super) fn kernel_for(platform: &Platform) -> Result<PathBuf, Missing> {
    match Processor::of_platform(&platform.architecture) {
        Some(processor) => kernel::find_for(processor),
        None => kernel::find(),
    }
}

/// The error; where the cache's disk is full, with what makes room there.
pub(super) fn explain_full(error: impl Into<anyhow::Error>) -> anyhow::Error {
    let error = error.into();
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    match causes.any(|cause: &io::Error| cause.kind() == io::ErrorKind::StorageFull) {
        true => anyhow::anyhow!("{error:#}: `minivm prune` removes what the cache holds"),
        false => error,
    }
}

/// Keeps warnings back where the user wants it quiet. `-v` asks for more than warnings, and wins.
pub(super) fn quieten(quiet: bool) {
    if quiet && log::max_level() == LevelFilter::Warn {
        log::set_max_level(LevelFilter::Error);
    }
}

/// Shows what is being made of an image.
pub(super) fn making(made: &str, source: &Source, quiet: bool) -> Option<ProgressBar> {
    spinner(&format!("making {made} of {source}"), quiet)
}

/// Shows what is being done, on stderr if that is a terminal.
pub(super) fn spinner(doing: &str, quiet: bool) -> Option<ProgressBar> {
    let watched = !quiet && stderr().is_terminal();
    watched.then(|| {
        let spinner = ProgressBar::new_spinner();
        spinner.set_message(doing.to_owned());
        spinner.enable_steady_tick(std::time::Duration::from_millis(100));
        spinner
    })
}

/// A bar for each layer that is pulled, on stderr if that is a terminal.
struct Bars {
    all: MultiProgress,
    quiet: bool,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn new(quiet: bool) -> Self {
        // Its drawing goes to stderr, and nowhere where that is no terminal.
        Bars {
            all: MultiProgress::new(),
            quiet,
            bars: Mutex::default(),
        }
    }

    fn with(&self, layer: &Digest, act: impl FnOnce(&mut HashMap<String, ProgressBar>, String)) {
        if !self.quiet {
            let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
            act(&mut bars, layer.to_string());
        }
    }
}

impl Progress for Bars {
    fn started(&self, layer: &Digest, total: u64) {
        self.with(layer, |bars, name| {
            let style = "{msg:12} {bar:30} {bytes:>10} of {total_bytes}, {bytes_per_sec}";
            let style = ProgressStyle::with_template(style).expect("the template is a constant");
            let short: String = name.chars().skip("sha256:".len()).take(12).collect();
            let bar = ProgressBar::new(total)
                .with_style(style)
                .with_message(short);
            bars.insert(name, self.all.add(bar));
        });
    }

    fn advanced(&self, layer: &Digest, bytes: u64) {
        self.with(layer, |bars, name| {
            if let Some(bar) = bars.get(&name) {
                bar.set_position(bytes);
            }
        });
    }

    fn done(&self, layer: &Digest) {
        self.with(layer, |bars, name| {
            if let Some(bar) = bars.remove(&name) {
                bar.finish_and_clear();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_volume_is_told_of_its_flag() {
        for volume in ["/src:/dst", "data:/var/lib", "./a:/b"] {
            assert!(
                source(volume).unwrap_err().contains("run -v SRC:DST"),
                "{volume}"
            );
        }
        for wrong in ["https://a/b", "UPPER", "a b"] {
            assert!(
                !source(wrong).unwrap_err().contains("run -v SRC:DST"),
                "{wrong}"
            );
        }
        assert!(source("dir:/a").is_ok() && source("docker://alpine").is_ok());
    }
}
