//! `minivm save`: an image becomes an archive of an OCI layout.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use indicatif::BinaryBytes;
use minivm_image::Platform;
use minivm_machine::images::Format;
use minivm_machine::output_path::Output;

use super::image::{self, ImageArgs};

#[derive(Args)]
pub(super) struct SaveArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The platform to save of an image for several ones: linux/amd64 or linux/arm64 [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
}

/// Saves it.
pub(super) fn run(args: &SaveArgs) -> anyhow::Result<ExitCode> {
    let (path, quiet) = (&args.output, args.image.pull.quiet);
    image::quieten(quiet);
    let platform = args.platform.clone().unwrap_or_else(Platform::here);
    let images = image::image_cache()?;
    // Better now than after the work.
    let output = Output::open(path, 0o666);
    let output = output.with_context(|| format!("cannot write {}", path.display()))?;
    let found = image::open_for(&platform, &args.image.image, &args.image.pull, &images)?;
    let spinner = image::spinner(&format!("saving {}", args.image.image), quiet);
    let saved = found.build(&images, Format::OciArchive, path, output);
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let saved = saved?;
    if !quiet && stdout().is_terminal() {
        println!("{}: {}", path.display(), BinaryBytes(saved.bytes));
    }
    Ok(ExitCode::SUCCESS)
}
