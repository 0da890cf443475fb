//! Everything that minivm needs on a fresh Debian machine with Rust, in a few steps; each is done once.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cache::Cache;
use crate::kernels::{self, Kernel};
use crate::report::Report;
use crate::{coding_image, debian_kernels, packages, rootfs, target};

/// What goes beyond a guest's kernel and the demo's root file system.
#[derive(Args, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// Build the lab's kernel too (for machines without usable KVM, and for the tests)
    #[arg(long)]
    pub(crate) lab: bool,
    /// Install what the sandboxes need that are no machines: bubblewrap, Chromium, npm
    #[arg(long)]
    pub(crate) sandboxes: bool,
    /// Fetch Debian's cloud and generic kernels too (for the tests)
    #[arg(long)]
    pub(crate) debian_kernels: bool,
    /// Install the tools that make and move container images too (for the tests)
    #[arg(long)]
    pub(crate) image_tools: bool,
    /// Make the image of the coding agent's example too, with git and pytest (for the tests)
    #[arg(long)]
    pub(crate) coding_image: bool,
}

/// Where set-up put things.
pub(crate) struct Made {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) lab_kernel: Option<PathBuf>,
    pub(crate) debian_kernels: Option<PathBuf>,
    pub(crate) coding_root: Option<PathBuf>,
}

/// `cargo xtask setup`.
pub(crate) fn run(wanted: &Wanted) -> Result<()> {
    let mut report = Report::new();
    prepare(&mut report, wanted)?;
    Ok(())
}

/// `cargo xtask kernel`.
pub(crate) fn kernel(which: Kernel) -> Result<()> {
    println!("{}", kernels::ensure(&mut Report::new(), which)?.display());
    Ok(())
}

/// `cargo xtask rootfs`.
pub(crate) fn rootfs() -> Result<()> {
    let cache = Cache::open()?;
    println!(
        "{}",
        Report::new()
            .step("root file system", || rootfs::ensure(&cache))?
            .display()
    );
    Ok(())
}

/// Does what isn't done yet.
pub(crate) fn prepare(report: &mut Report, wanted: &Wanted) -> Result<Made> {
    let cache = Cache::open()?;
    report.step("packages", || Ok(((), packages::install_all()?)))?;
    report.step("Rust target", || Ok(((), target::install()?)))?;
    if wanted.sandboxes {
        report.step("sandboxes' packages", || {
            Ok(((), packages::install_for_sandboxes()?))
        })?;
    }
    if wanted.image_tools {
        report.step("image tools", || Ok(((), packages::install_for_tests()?)))?;
    }
    let initramfs = report.step("root file system", || rootfs::ensure(&cache))?;
    let debian_kernels = match wanted.debian_kernels {
        true => Some(report.step("Debian kernels", || debian_kernels::ensure(&cache))?),
        false => None,
    };
    let coding_root = match wanted.coding_image {
        true => Some(report.step("coding image", || coding_image::ensure(&cache))?),
        false => None,
    };
    let kernel = kernels::ensure(report, Kernel::Sandbox)?;
    let lab_kernel = match wanted.lab {
        true => Some(kernels::ensure(report, Kernel::Lab)?),
        false => None,
    };
    Ok(Made {
        kernel,
        initramfs,
        lab_kernel,
        debian_kernels,
        coding_root,
    })
}
