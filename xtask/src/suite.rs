//! Running the tests: each test program here, or in the lab where a boot needs a KVM that this machine doesn't have.

use std::io::{self, BufRead, BufReader, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Executable};
use crate::process::{cannot_start, capture, shown};
use crate::setup::Made;
use crate::tally::Tally;

/// How long one test program may take, in seconds; in the lab it is some thirty times slower than here.
const LIMIT: &str = "2400";

/// Room for the largest guests of the tests, and for what they write.
const LAB_MEMORY: &str = "2G";

/// Where a test program runs, by the name of its file in `tests/`. All others run here, without what they ignore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Here, without its ignored tests.
    Here,
    /// Here, with its ignored tests: those of the lab itself.
    HereWithIgnored,
    /// Where there is a `/dev/kvm` of any kind: its guests are a few instructions long. In the lab, if there is none here.
    /// With its ignored tests, which need a mount namespace.
    AnyKvm,
    /// Where KVM runs kernels, with its ignored tests: in the lab, or here if this machine can.
    Kvm,
    /// Here, with the tools that make images, and with minivm's release; not with `--fast`, which has neither.
    WithImageTools,
}

impl Place {
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "lab" | "killed" | "warm_lab" => Self::HereWithIgnored,
            "images" | "coding_agent" | "conformance" | "leaks" | "gvisor" | "pyodide"
            | "turducken" | "page" => Self::WithImageTools,
            "minivm_vmm" | "machine_code" | "snapshot" | "pool" | "cli" | "control"
            | "terminal" | "hostile_guests" => Self::AnyKvm,
            "run" => Self::Kvm,
            _ if name.starts_with("boot") => Self::Kvm,
            _ => Self::Here,
        }
    }
}

/// What the tests find in their environment.
pub(crate) struct Environment(Vec<(&'static str, PathBuf)>);

impl Environment {
    pub(crate) fn new(made: &Made, minivm: Option<&Path>) -> Self {
        let mut variables = vec![
            ("MINIVM_TEST_KERNEL", made.kernel.join("vmlinux")),
            ("MINIVM_TEST_BZIMAGE", made.kernel.join("bzImage")),
            ("MINIVM_TEST_INITRAMFS", made.initramfs.clone()),
        ];
        variables.extend(
            made.lab_kernel
                .as_ref()
                .map(|folder| ("MINIVM_TEST_LAB_KERNEL", folder.join("vmlinux"))),
        );
        if let Some(kernels) = &made.debian_kernels {
            variables.push(("MINIVM_TEST_DEBIAN_CLOUD", kernels.join("cloud/vmlinuz")));
            variables.push((
                "MINIVM_TEST_DEBIAN_GENERIC",
                kernels.join("generic/vmlinuz"),
            ));
        }
        variables.extend(
            made.coding_root
                .as_ref()
                .map(|root| ("MINIVM_TEST_CODING_ROOT", root.clone())),
        );
        variables.extend(minivm.map(|path| ("MINIVM_TEST_BINARY", path.to_owned())));
        Self(variables)
    }
}

/// Builds all test programs.
pub(crate) fn build() -> Result<Vec<Executable>> {
    let mut executables = cargo::build(&["test", "--workspace", "--no-run"])?;
    executables.retain(|executable| executable.is_test);
    Ok(executables)
}

/// Runs a test program on this machine.
pub(crate) fn run_here(
    test: &Executable,
    environment: &Environment,
    with_ignored: bool,
    output: &mut Vec<u8>,
) -> Result<Tally> {
    let mut command = bounded();
    command.arg(&test.path);
    if with_ignored {
        command.arg("--include-ignored");
    }
    run(command, test, environment, output)
}

/// Runs a test program in the lab, one test after the other. The lab hands environment and working folder on.
pub(crate) fn run_in_lab(
    test: &Executable,
    environment: &Environment,
    minivm: &Path,
    output: &mut Vec<u8>,
) -> Result<Tally> {
    let mut command = bounded();
    command
        .arg(minivm)
        .args(["lab", "--memory", LAB_MEMORY, "--"])
        .arg(&test.path);
    command.args(["--test-threads=1", "--include-ignored"]);
    run(command, test, environment, output)
}

/// Counts the tests of a program that can't run now, all of them as skipped.
pub(crate) fn skip(test: &Executable, output: &mut Vec<u8>) -> Result<Tally> {
    let list = capture(Command::new(&test.path).args(["--list", "--format", "terse"]))?;
    let tests = list.lines().filter(|line| line.ends_with(": test")).count();
    writeln!(
        output,
        "{tests} tests skipped: they need the lab or the image tools, which --fast leaves out"
    )?;
    Ok(Tally {
        skipped: tests as u64,
        ..Tally::default()
    })
}

fn run(
    mut command: Command,
    test: &Executable,
    environment: &Environment,
    output: &mut Vec<u8>,
) -> Result<Tally> {
    command
        .current_dir(&test.package)
        .env("CARGO_MANIFEST_DIR", &test.package);
    command.envs(environment.0.iter().map(|(name, value)| (name, value)));
    // Tests of a boot boot, and leave nothing running; those of templates unset it.
    command.env("MINIVM_COLD", "1");
    count(&mut command, output)
}

/// Runs the examples in the documentation.
pub(crate) fn run_doc_tests() -> Result<Tally> {
    count(
        cargo::cargo().args(["test", "--workspace", "--doc"]),
        &mut stdout(),
    )
}

/// The command to put before another, which ends it when it takes too long.
fn bounded() -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=30", LIMIT]);
    command
}

/// Runs a command, hands its outputs on as they come, both as one, and sums what its tests say. A command that fails without a failed test
/// (it crashed, or took too long) is an error.
fn count(command: &mut Command, shown_to: &mut impl Write) -> Result<Tally> {
    let (output, input) = io::pipe().context("cannot create a pipe")?;
    let copy = input.try_clone().context("cannot copy a pipe")?;
    command.stdin(Stdio::null()).stdout(input).stderr(copy);
    let child = command.spawn();
    // Our own ends, or the pipe would have no end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.map_err(|error| cannot_start(command, &error))?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the test's output")?;
        shown_to.write_all(&[&line[..], b"\n"].concat())?;
        if let Some(result) = Tally::read(&String::from_utf8_lossy(&line)) {
            tally += result;
        }
    }
    let status = child.wait().context("cannot wait for the test")?;
    if !status.success() && tally.failed == 0 {
        let why = if status.code() == Some(124) {
            format!("took more than {LIMIT} s")
        } else {
            format!("failed ({status})")
        };
        bail!("{} {why}", shown(command));
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_need_kvm_and_the_labs_own_tests_do_not() {
        assert_eq!(Place::of("boot_debian"), Place::Kvm);
        assert_eq!(Place::of("lab"), Place::HereWithIgnored);
        assert_eq!(Place::of("images"), Place::WithImageTools);
        assert_eq!(Place::of("minivm_vmm"), Place::AnyKvm);
        assert_eq!(Place::of("minivm_guest"), Place::Here);
    }

    #[test]
    fn a_test_program_that_ends_early_is_an_error() {
        let script = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'; exit";
        let mut shown = Vec::new();
        assert_eq!(
            count(Command::new("sh").args(["-c", script]), &mut shown)
                .unwrap()
                .passed,
            2
        );
        assert!(shown.starts_with(b"test result: ok. 2 passed"));
        assert!(
            count(
                Command::new("sh").args(["-c", &format!("{script} 3")]),
                &mut shown
            )
            .is_err()
        );
    }
}
