//! `minivm build`: a container image becomes an initramfs, or an EROFS image.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use minivm_image::{Platform, rootfs};
use minivm_machine::images;
use minivm_machine::output_path::Output;

use super::image::{self, ImageArgs};

/// What an image becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// An archive of its files and minivm's init, which boots with --initramfs
    Initramfs,
    /// A file system of its files alone, which Linux mounts, from memory too
    Erofs,
}

/// How an initramfs is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compression {
    /// Not at all: boots fastest
    None,
    /// Quick to unpack
    Lz4,
    /// Small
    Zstd,
    /// What every kernel can unpack
    Gzip,
}

#[derive(Args)]
pub(super) struct BuildArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Machines that the file is for: linux/amd64 or linux/arm64 [default: this host's]
    ///
    /// Of an image for several platforms, this one's files are taken; one that isn't for it is refused.
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// What the image becomes
    #[arg(long, value_enum, default_value_t = Format::Initramfs, value_name = "FORMAT")]
    format: Format,
    /// Compression of an initramfs
    #[arg(long, value_enum, default_value_t = Compression::None, value_name = "HOW")]
    compression: Compression,
}

impl BuildArgs {
    fn image_format(&self) -> images::Format {
        let compression = match self.compression {
            Compression::None => rootfs::Compression::None,
            Compression::Lz4 => rootfs::Compression::Lz4,
            Compression::Zstd => rootfs::Compression::Zstd,
            Compression::Gzip => rootfs::Compression::Gzip,
        };
        match self.format {
            Format::Initramfs => images::Format::Initramfs(compression),
            Format::Erofs => images::Format::Erofs,
        }
    }
}

/// Builds it.
pub(super) fn run(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    let path = &args.output;
    let quiet = args.image.pull.quiet;
    image::quieten(quiet);
    if args.format == Format::Erofs && args.compression != Compression::None {
        bail!(
            "--compression is for an initramfs: an EROFS image that is mapped into memory has none"
        );
    }
    let platform = args.platform.clone().unwrap_or_else(Platform::here);
    let mut images = image::image_cache()?;
    if args.format == Format::Initramfs {
        images = images.for_guests_of(&platform)?;
    }
    // Better now than after the work.
    let output = Output::open(path, 0o666);
    let output = output.with_context(|| format!("cannot write {}", path.display()))?;
    let found = image::open_for(&platform, &args.image.image, &args.image.pull, &images)?;
    let (what, size) = match args.format {
        Format::Initramfs => ("an initramfs", "unpacked"),
        Format::Erofs => ("an EROFS image", "in all"),
    };
    let spinner = image::making(what, &args.image.image, quiet);
    let made = found.build(&images, args.image_format(), path, output);
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let made = made?;
    if !quiet && stdout().is_terminal() {
        println!(
            "{}: {} files, {} {size}",
            path.display(),
            made.files,
            indicatif::BinaryBytes(made.bytes)
        );
    }
    Ok(ExitCode::SUCCESS)
}
