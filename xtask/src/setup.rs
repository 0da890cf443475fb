//! Everything that minivm needs on a fresh Debian machine with Rust, in a few steps; each is done once.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cache::Cache;
use crate::kernels::{self, Kernel};
use crate::report::Report;
use crate::{arm64, coding_image, debian_kernels, packages, rootfs, target};

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
    /// Install strace too (for the tests)
    #[arg(long)]
    pub(crate) strace: bool,
    /// Make the image of the coding agent's example too, with git and pytest (for the tests)
    #[arg(long)]
    pub(crate) coding_image: bool,
    /// Fetch what an emulated arm64 machine with KVM needs too, and build minivm's part in it
    #[arg(long)]
    pub(crate) arm64: bool,
    /// Install Bochs too, which emulates Intel's processors (for the tests)
    #[arg(long)]
    pub(crate) intel: bool,
}

/// Where set-up put things.
pub(crate) struct Made {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) lab_kernel: Option<PathBuf>,
    pub(crate) debian_kernels: Option<PathBuf>,
    pub(crate) coding_root: Option<PathBuf>,
    /// Whether Bochs is there.
    pub(crate) intel: bool,
}

/// `cargo xtask setup`.
pub(crate) fn run(wanted: &Wanted) -> Result<()> {
    let mut report = Report::new();
    prepare(&mut report, wanted)?;
    if wanted.arm64 {
        arm64::ensure(&mut report)?;
        arm64::install_program(&mut report)?;
    }
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

/// What a first boot needs, in which nothing is built.
pub(crate) struct Fetched {
    /// With `vmlinuz`, its `version`, and its `modules`.
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// Fetches what a first boot needs that isn't there yet.
pub(crate) fn fetch(report: &mut Report, lab: bool) -> Result<Fetched> {
    let cache = Cache::open()?;
    report.purpose(if lab {
        "packages: QEMU, which emulates a machine with KVM (the lab: this host's runs no kernel), and bubblewrap, its jail"
    } else {
        "packages: what unpacks others"
    });
    report.step("packages", || {
        Ok(((), packages::install_for_first_boot(lab)?))
    })?;
    let initramfs = root_file_system(report, &cache)?;
    report.purpose(if lab {
        "a kernel as Debian packages it: for the guest, and with its modules for the lab"
    } else {
        "a kernel as Debian packages it, for the guest"
    });
    let kernel = report.step("Debian kernel", || debian_kernels::ensure_cloud(&cache))?;
    Ok(Fetched { kernel, initramfs })
}

/// Kernels that are built here.
pub(crate) struct Built {
    pub(crate) kernel: PathBuf,
    pub(crate) lab_kernel: Option<PathBuf>,
}

/// Builds the kernels that aren't there yet, and installs what that takes.
pub(crate) fn build(report: &mut Report, lab: bool) -> Result<Built> {
    build_packages(report)?;
    kernels(report, lab)
}

/// Does what isn't done yet.
pub(crate) fn prepare(report: &mut Report, wanted: &Wanted) -> Result<Made> {
    let cache = Cache::open()?;
    build_packages(report)?;
    rust_target(report)?;
    if wanted.sandboxes {
        sandboxes_packages(report)?;
    }
    if wanted.image_tools {
        report.purpose("tools that make and move container images, for the tests");
        report.step("image tools", || Ok(((), packages::install_for_tests()?)))?;
    }
    if wanted.strace {
        report.purpose("strace, for the tests that watch the calls of a program");
        report.step("strace", || Ok(((), packages::install_for_traces()?)))?;
    }
    let intel = wanted.intel && intel_packages(report)?;
    let initramfs = root_file_system(report, &cache)?;
    let debian_kernels = match wanted.debian_kernels {
        true => {
            report.purpose("kernels as Debian packages them, which minivm boots too");
            Some(report.step("Debian kernels", || debian_kernels::ensure(&cache))?)
        }
        false => None,
    };
    let coding_root = match wanted.coding_image {
        true => {
            report.purpose("the image of the coding agent's example: Python, git, pytest");
            Some(report.step("coding image", || coding_image::ensure(&cache))?)
        }
        false => None,
    };
    let Built { kernel, lab_kernel } = kernels(report, wanted.lab)?;
    Ok(Made {
        kernel,
        initramfs,
        lab_kernel,
        debian_kernels,
        coding_root,
        intel,
    })
}

/// Packages for building kernels.
fn build_packages(report: &mut Report) -> Result<()> {
    report
        .purpose("packages: what building a Linux kernel takes, and its source; QEMU, for the lab");
    report.step("kernel packages", || Ok(((), packages::install_all()?)))
}

/// Rust's standard library for the guest's init.
pub(crate) fn rust_target(report: &mut Report) -> Result<()> {
    report.purpose("Rust for musl: a guest's first process, minivm-init, is one static file");
    report.step("Rust target", || Ok(((), target::install()?)))
}

/// Packages for the sandboxes that are no machines.
pub(crate) fn sandboxes_packages(report: &mut Report) -> Result<()> {
    report.purpose("packages: what the other four sandboxes are made of, and the jail around them");
    report.step("sandbox packages", || {
        Ok(((), packages::install_for_sandboxes()?))
    })
}

/// Packages for the tests on Intel's processors. Returns whether they are there: where they can't be had, those tests are skipped.
fn intel_packages(report: &mut Report) -> Result<bool> {
    report.purpose("Bochs, which emulates Intel's processors with KVM, for the tests");
    report.step("Bochs", || {
        Ok(match packages::install_for_intel() {
            Ok(done) => (true, done),
            Err(error) => (false, format!("can't be had: {error:#}")),
        })
    })
}

/// The demo's initramfs.
fn root_file_system(report: &mut Report, cache: &Cache) -> Result<PathBuf> {
    report.purpose("what the guest has for files: Python, a shell, and an /init that asks for 2+2");
    report.step("root file system", || rootfs::ensure(cache))
}

/// The guest's kernel, and the lab's.
fn kernels(report: &mut Report, lab: bool) -> Result<Built> {
    report.purpose("the guest's kernel: a Linux that has what a sandbox needs, and nothing else");
    let kernel = kernels::ensure(report, Kernel::Sandbox)?;
    let lab_kernel = match lab {
        true => {
            report.purpose("the lab's kernel: as small, with KVM; all that it does is emulated");
            Some(kernels::ensure(report, Kernel::Lab)?)
        }
        false => None,
    };
    Ok(Built { kernel, lab_kernel })
}
