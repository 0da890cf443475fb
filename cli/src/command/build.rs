//! `minivm build`: a container image becomes an initramfs.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use minivm_image::{Platform, rootfs};
use minivm_machine::output_path::Output;

use super::image::{self, ImageArgs};

/// How the archive is compressed.
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
    /// Machines that the archive is for: linux/amd64 or linux/arm64 [default: this host's]
    ///
    /// Of an image for several platforms, this one's files are taken; one that isn't for it is refused.
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Compression of the archive
    #[arg(long, value_enum, default_value_t = Compression::None, value_name = "HOW")]
    compression: Compression,
}

/// Builds it.
pub(super) fn run(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    let path = &args.output;
    let platform = args.platform.clone().unwrap_or_else(Platform::here);
    let images = image::image_cache()?.for_guests_of(&platform)?;
    // Better now than after the work.
    let output = Output::open(path, 0o666);
    let output = output.with_context(|| format!("cannot write {}", path.display()))?;
    let found = image::open_for(&platform, &args.image.image, &args.image.pull, &images)?;
    let spinner = image::making(&args.image.image, args.image.pull.quiet);
    let compression = match args.compression {
        Compression::None => rootfs::Compression::None,
        Compression::Lz4 => rootfs::Compression::Lz4,
        Compression::Zstd => rootfs::Compression::Zstd,
        Compression::Gzip => rootfs::Compression::Gzip,
    };
    let made = found.build(&images, compression, path, output);
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let made = made?;
    if !args.image.pull.quiet && stdout().is_terminal() {
        println!(
            "{}: {} files, {} unpacked",
            path.display(),
            made.files,
            indicatif::BinaryBytes(made.bytes)
        );
    }
    Ok(ExitCode::SUCCESS)
}
