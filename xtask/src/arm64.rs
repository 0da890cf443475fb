//! arm64: what its lab needs, and the tests that are compiled for it here and run there.
//!
//! Where a part of it can't be had (Rust's target, the emulator, a package), its tests are skipped by name.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::cargo::{self, Target, cargo};
use crate::choice::Choice;
use crate::kernels::{self, Kernel};
use crate::process::pass_through;
use crate::report::Report;
use crate::suite::{self, Foreign, Program};
use crate::{debian_arm64, packages, target};

/// Rust's target: static programs, linked without a C compiler.
const TARGET: &str = "aarch64-unknown-linux-musl";

/// The workspace's packages that compile for it.
const PORTABLE: [&str; 3] = ["minivm-vmm", "minivm-guest", "minivm-machine"];

/// Further packages whose tests compile for it.
const TESTED: [&str; 1] = ["minivm-tests"];

/// The package whose program is the lab's init, and that program.
const INIT: [&str; 2] = ["minivm-guest", "minivm-lab-init"];

/// The name of the lab's program in the cache, where `minivm` looks for it.
const PROGRAM: &str = "minivm";

/// The lab's processors, as `minivm lab` names them: without VHE, and with.
const PROCESSORS: [&str; 2] = ["cortex-a72", "arm-max"];

/// The test program that the plain test runs there: a boot of Debian's kernel.
const QUICK: &str = "arm64_linux";

/// Tests, by program, that call bubblewrap or dtc: the arm64 lab has neither.
const UNFIT: [(&str, &str); 3] = [
    ("minivm_machine", "jail::tests::a_jail_can_be_made_here"),
    (
        "minivm_vmm",
        "arch::aarch64::tree::tests::a_machine_without_initramfs_has_no_place_of_one",
    ),
    (
        "minivm_vmm",
        "arch::aarch64::tree::tests::the_tree_is_the_golden_one_and_has_no_warning",
    ),
];

/// What an arm64 lab and its guests are made of.
pub(crate) struct Parts {
    /// Debian's kernel as `vmlinuz`, its modules, busybox, and Python's root file system.
    debian: PathBuf,
}

/// Which of the tests are run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// [`QUICK`], on one processor.
    Quick,
    /// All that compile for it, on every processor, with our own kernel too.
    All,
}

impl Extent {
    fn processors(self) -> &'static [&'static str] {
        match self {
            Self::Quick => &PROCESSORS[..1],
            Self::All => &PROCESSORS,
        }
    }

    fn has(self, target: &Target) -> bool {
        self == Self::All || target.is_called(QUICK)
    }
}

/// Gets what isn't there yet; none of it is compiled.
pub(crate) fn ensure(report: &mut Report) -> Result<Parts> {
    let cache = Cache::open()?;
    report.purpose("arm64: QEMU, which emulates it with KVM, and what compiles for it");
    report.step("arm64 packages", || {
        Ok(((), packages::install_for_arm64()?))
    })?;
    report.step("arm64 Rust target", || Ok(((), target::add(TARGET)?)))?;
    report.purpose("an arm64 kernel as Debian packages it, for the lab and its guests");
    let debian = report.step("arm64 kernel", || debian_arm64::ensure(&cache))?;
    Ok(Parts { debian })
}

/// Puts the program that the lab starts where `minivm` finds it.
pub(crate) fn install_program(report: &mut Report) -> Result<()> {
    let built = report.stage("minivm for arm64", || {
        Ok((build_minivm()?, "built".to_owned()))
    })?;
    let cache = Cache::open()?;
    let program = cache.folder("arm64").join(PROGRAM);
    // A lab that is starting reads either the old file or the new one.
    let new = program.with_extension("new");
    fs::copy(&built, &new)
        .and_then(|_| fs::rename(&new, &program))
        .with_context(|| format!("cannot create {}", program.display()))
}

/// Clippy's warnings about the packages that compile for arm64.
pub(crate) fn lint() -> Result<()> {
    let mut clippy = cargo();
    clippy.args(["clippy", "--quiet", "--target", TARGET]);
    clippy.args(PORTABLE.iter().flat_map(|name| ["--package", name]));
    pass_through(clippy.args(["--", "--deny", "warnings"]))
}

/// Builds those of the chosen test programs that are to be run, once for each processor.
pub(crate) fn build(
    report: &mut Report,
    parts: &Parts,
    extent: Extent,
    choice: &Choice,
    candidates: &[Target],
) -> Result<Vec<Program>> {
    let wanted = candidates.iter().filter(|target| extent.has(target));
    let wanted: Vec<_> = wanted.cloned().collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let variables = variables(report, parts, extent)?;
    let mut arguments = vec!["test", "--no-run", "--target", TARGET];
    arguments.extend(
        PORTABLE
            .iter()
            .chain(&TESTED)
            .flat_map(|name| ["--package", name]),
    );
    match extent {
        Extent::All => arguments.push("--tests"),
        Extent::Quick => arguments.extend(wanted.iter().flat_map(Target::arguments)),
    }
    let mut programs = Vec::new();
    for &processor in extent.processors() {
        // The second time there is nothing to build.
        for executable in cargo::build(&arguments)? {
            let Some(target) = suite::target_of(&executable, &wanted) else {
                continue;
            };
            let filters = match choice.is_everything() || choice.names(target) {
                true => Vec::new(),
                false => choice.parts().to_vec(),
            };
            programs.push(Program {
                place: target.place()?,
                skipped: unfit(target),
                executable,
                tests: Vec::new(),
                filters,
                foreign: Some(Foreign {
                    processor,
                    variables: variables.clone(),
                }),
            });
        }
    }
    Ok(programs)
}

fn unfit(target: &Target) -> Vec<&'static str> {
    let of_target = UNFIT
        .iter()
        .filter(|(program, _)| target.is_called(program));
    of_target.map(|(_, test)| *test).collect()
}

/// What makes the lab, and what its tests find.
fn variables(
    report: &mut Report,
    parts: &Parts,
    extent: Extent,
) -> Result<Vec<(&'static str, PathBuf)>> {
    let debian = parts.debian.join("vmlinuz");
    let kernel = match extent {
        Extent::Quick => debian.clone(),
        Extent::All => kernels::ensure(report, Kernel::SandboxArm64)?.join("Image"),
    };
    let mut variables = vec![
        ("MINIVM_LAB_KERNEL", parts.debian.clone()),
        ("MINIVM_LAB_PROGRAM", build_init()?),
        ("MINIVM_TEST_KERNEL", kernel.clone()),
        ("MINIVM_TEST_ARM64_KERNEL", kernel),
        ("MINIVM_TEST_DEBIAN_CLOUD", debian.clone()),
        ("MINIVM_TEST_DEBIAN_GENERIC", debian),
        ("MINIVM_TEST_BUSYBOX", parts.debian.join("bin/busybox")),
        ("PATH", path(&parts.debian.join("bin"))),
        (
            "MINIVM_TEST_INITRAMFS",
            parts.debian.join("demo/rootfs.cpio"),
        ),
    ];
    if extent == Extent::All {
        variables.push(("MINIVM_TEST_BINARY", build_minivm()?));
    }
    Ok(variables)
}

/// The folders of programs: this one before those that this process has.
fn path(first: &Path) -> PathBuf {
    let mut path = first.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path.into()
}

/// Builds `minivm`, which labs run for guests and the tests call: without what only a debugger reads, as it is copied into labs.
fn build_minivm() -> Result<PathBuf> {
    cargo::minivm_among(&cargo::build(&[
        "build",
        "--profile",
        "quick",
        "--target",
        TARGET,
        "--package",
        "minivm",
        "--bin",
        "minivm",
    ])?)
}

/// Builds the lab's init as tests are built; returns its path.
fn build_init() -> Result<PathBuf> {
    let [package, name] = INIT;
    let built = cargo::build(&[
        "build",
        "--target",
        TARGET,
        "--package",
        package,
        "--bin",
        name,
    ])?;
    let init = built.into_iter().find(|executable| executable.name == name);
    Ok(init
        .with_context(|| format!("the package {package} has no program {name}"))?
        .path)
}
