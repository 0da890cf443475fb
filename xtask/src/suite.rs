//! Running the tests: each test program here, or in the lab where a boot needs a KVM that this machine doesn't have.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Write, stdout};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Executable, Target};
use crate::choice::Choice;
use crate::place::{Kind, Place};
use crate::process::{self, cannot_start, capture};
use crate::setup::Made;
use crate::tally::Tally;
use crate::times::Times;

/// How long one test program may take, in seconds; in the lab it is some thirty times slower than here.
const LIMIT: u32 = 2400;

/// How long it may take in a soak, whose counts are large, or whose busy loops take most of the processors.
const SOAK_LIMIT: u32 = 6 * 3600;

/// Room for the largest guests of the tests, and for what they write.
const LAB_MEMORY: &str = "2G";

/// Test programs of the packages that have the programs `minivm` and `minivm-worker`. Cargo builds a package's programs with its tests, in
/// one profile and with one set of features for all.
const OF_PROGRAMS: [&str; 2] = ["cli", "gvisor"];

/// The test program that runs examples as they are built, and these.
const OF_EXAMPLES: &str = "lesson_zero";
const EXAMPLES: [&str; 2] = ["raw_kvm", "what_if"];

/// What the tests find in their environment.
pub(crate) struct Environment {
    variables: Vec<(&'static str, OsString)>,
    /// How long one test program may take, in seconds.
    limit: u32,
}

impl Environment {
    /// Nothing: what the tests in another architecture's lab find comes with them.
    pub(crate) fn empty() -> Self {
        Self {
            variables: Vec::new(),
            limit: LIMIT,
        }
    }

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
        let variables = variables.into_iter();
        Self {
            variables: variables
                .map(|(name, path)| (name, path.into_os_string()))
                .collect(),
            limit: LIMIT,
        }
    }

    /// The same for a round of a soak with the counts of `cargo xtask test`.
    pub(crate) fn for_small_soak(&self) -> Self {
        Self {
            variables: self.variables.clone(),
            limit: SOAK_LIMIT,
        }
    }

    /// The same for a round of a soak: stress tests do much, and choose at random from this seed.
    pub(crate) fn for_soak(&self, seed: u64) -> Self {
        let Self {
            mut variables,
            limit,
        } = self.for_small_soak();
        for (name, value) in [
            ("MINIVM_TEST_SOAK", "1".to_owned()),
            ("MINIVM_TEST_SEED", seed.to_string()),
            // Those of proptest, which has 256 cases otherwise.
            ("PROPTEST_CASES", "4096".to_owned()),
            ("PROPTEST_RNG_SEED", seed.to_string()),
        ] {
            variables.push((name, value.into()));
        }
        Self { variables, limit }
    }

    /// The file that a variable names.
    pub(crate) fn file(&self, variable: &str) -> Option<&OsStr> {
        let named = self.variables.iter().find(|(name, _)| *name == variable);
        named.map(|(_, path)| path.as_os_str())
    }

    /// The command to put before another, which ends it when it takes too long.
    pub(crate) fn bounded(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "--kill-after=30"]);
        command.arg(self.limit.to_string());
        command
    }
}

/// A lab whose processor is of another architecture than this machine, for programs that are compiled for it.
#[derive(Clone)]
pub(crate) struct Foreign {
    /// As `minivm lab` names it.
    pub(crate) processor: &'static str,
    /// What the lab is made of, and what its tests find in their environment in place of this machine's.
    pub(crate) variables: Vec<(&'static str, PathBuf)>,
}

/// A test program that is to be run, as a whole or in part.
pub(crate) struct Program {
    pub(crate) executable: Executable,
    pub(crate) place: Place,
    /// The tests that are run of it, in libtest's order. Of a program that doesn't run on this machine, they aren't known.
    pub(crate) tests: Vec<String>,
    /// Parts of their names: libtest's filters. None: all.
    pub(crate) filters: Vec<String>,
    /// The names of tests that are left out, and counted as skipped.
    pub(crate) skipped: Vec<&'static str>,
    /// The lab that it is compiled for, where that isn't this machine's.
    pub(crate) foreign: Option<Foreign>,
}

/// What is built for a run.
#[derive(Default)]
pub(crate) struct Built {
    pub(crate) programs: Vec<Program>,
    /// The command, with minivm-worker beside it, where it was asked for.
    pub(crate) minivm: Option<PathBuf>,
}

/// What a run of a program leaves beside its tally.
#[derive(Default)]
pub(crate) struct Output {
    pub(crate) text: Vec<u8>,
    /// How long each test took.
    pub(crate) times: Vec<(String, Duration)>,
}

/// Builds the chosen test programs, all of which are among `candidates`, and `with_minivm` the command.
pub(crate) fn build(choice: &Choice, candidates: &[Target], with_minivm: bool) -> Result<Built> {
    // As a whole, so that what they share is built with the features that all of it needs.
    let mut arguments = vec!["test", "--workspace", "--no-run"];
    match choice.is_everything() {
        // No other examples: clippy has checked them, and linking them takes a while.
        true => arguments.push("--tests"),
        false => {
            let mut chosen: Vec<_> = candidates.iter().map(Target::arguments).collect();
            if with_minivm {
                chosen.extend(OF_PROGRAMS.map(|name| vec!["--test", name]));
            }
            // `--lib` stands for all libraries, and may be given once.
            chosen.sort_unstable();
            chosen.dedup();
            arguments.extend(chosen.into_iter().flatten());
        }
    }
    if candidates
        .iter()
        .any(|target| target.is_called(OF_EXAMPLES))
    {
        build_examples()?;
    }
    let built = cargo::build(&arguments)?;
    let minivm = with_minivm
        .then(|| cargo::minivm_among(&built))
        .transpose()?;
    let mut programs = Vec::new();
    for executable in built {
        let Some(target) = target_of(&executable, candidates) else {
            continue;
        };
        programs.extend(program(choice, target, executable)?);
    }
    choice.check(programs.iter().flat_map(|program| &program.tests))?;
    Ok(Built { programs, minivm })
}

/// The target of which an executable is the tests.
pub(crate) fn target_of<'a>(
    executable: &Executable,
    candidates: &'a [Target],
) -> Option<&'a Target> {
    candidates
        .iter()
        .find(|target| executable.is_test && target.source == executable.source)
}

/// Builds the examples that a test program runs: `cargo test` builds tests of them, and no programs.
fn build_examples() -> Result<()> {
    let mut arguments = vec!["build", "--workspace"];
    arguments.extend(EXAMPLES.iter().flat_map(|name| ["--example", name]));
    cargo::build(&arguments).map(drop)
}

/// The program with the tests that are chosen of it, if there are any, or all are.
fn program(choice: &Choice, target: &Target, executable: Executable) -> Result<Option<Program>> {
    let list = capture(Command::new(&executable.path).args(["--list", "--format", "terse"]))?;
    let tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let filters: &[String] = match choice.is_everything() || choice.names(target) {
        true => &[],
        false => choice.parts(),
    };
    let is_chosen =
        |test: &&str| filters.is_empty() || filters.iter().any(|part| test.contains(part));
    let tests: Vec<String> = tests.filter(is_chosen).map(str::to_owned).collect();
    // It may be for another architecture.
    if tests.is_empty() {
        return Ok(None);
    }
    Ok(Some(Program {
        place: target.place()?,
        executable,
        tests,
        filters: filters.to_vec(),
        skipped: Vec::new(),
        foreign: None,
    }))
}

/// Runs a test program on this machine.
pub(crate) fn run_here(
    program: &Program,
    environment: &Environment,
    with_ignored: bool,
    output: &mut Output,
) -> Result<Tally> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let mut command = environment.bounded();
    command.arg(&program.executable.path);
    if with_ignored {
        command.arg("--include-ignored");
    }
    command.args(&program.filters);
    run(
        command,
        program,
        &program.tests,
        environment,
        threads,
        output,
    )
}

/// Runs a test program in the lab, one test after the other. The lab hands environment and working folder on.
pub(crate) fn run_in_lab(
    program: &Program,
    environment: &Environment,
    minivm: &Path,
    output: &mut Output,
) -> Result<Tally> {
    let mut command = environment.bounded();
    command.arg(minivm).args(["lab", "--memory", LAB_MEMORY]);
    if let Some(foreign) = &program.foreign {
        command.args(["--processor", foreign.processor]);
    }
    command.arg("--").arg(&program.executable.path);
    if program.place.kind != Kind::Here {
        command.arg("--include-ignored");
    }
    command.args(&program.filters);
    run(command, program, &program.tests, environment, 1, output)
}

/// Counts tests that can't run now, all of them as skipped.
pub(crate) fn skip(tests: usize, why: &str, output: &mut Output) -> Result<Tally> {
    writeln!(output.text, "{tests} tests skipped: {why}")?;
    Ok(Tally {
        skipped: tests as u64,
        ..Tally::default()
    })
}

/// Runs a command that runs these tests of a program. The command's last arguments are the program's.
pub(crate) fn run(
    mut command: Command,
    program: &Program,
    tests: &[String],
    environment: &Environment,
    threads: usize,
    output: &mut Output,
) -> Result<Tally> {
    let package = &program.executable.package;
    command
        .arg(format!("--test-threads={threads}"))
        .args(program.skipped.iter().flat_map(|test| ["--skip", test]))
        .current_dir(package)
        .env("CARGO_MANIFEST_DIR", package);
    command.envs(
        environment
            .variables
            .iter()
            .map(|(name, value)| (name, value)),
    );
    command.envs(program.foreign.iter().flat_map(|lab| lab.variables.clone()));
    // Tests of a boot boot, and leave nothing running; those of templates unset it.
    command.env("MINIVM_COLD", "1");
    let mut times = Times::new(threads, tests);
    let text = &mut output.text;
    let tally = count(&mut command, |line| {
        text.extend_from_slice(line);
        text.push(b'\n');
        times.read(&String::from_utf8_lossy(line), Instant::now());
        Ok(())
    });
    output.times = times.ended();
    let mut tally = tally?;
    if program.filters.is_empty() {
        tally.skipped += program.skipped.len() as u64;
    }
    Ok(tally)
}

/// Runs the examples in the documentation.
pub(crate) fn run_doc_tests() -> Result<Tally> {
    let mut command = cargo::cargo();
    count(command.args(["test", "--workspace", "--doc"]), |line| {
        stdout().write_all(&[line, b"\n"].concat())
    })
}

/// Runs a command, hands on each line of its outputs as it comes, and sums what its tests say. A command that fails without a failed
/// test (it crashed, or took too long) is an error.
fn count(command: &mut Command, mut shown: impl FnMut(&[u8]) -> io::Result<()>) -> Result<Tally> {
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
        shown(&line)?;
        if let Some(result) = Tally::read(&String::from_utf8_lossy(&line)) {
            tally += result;
        }
    }
    let status = child.wait().context("cannot wait for the test")?;
    if !status.success() && tally.failed == 0 {
        let why = if status.code() == Some(124) {
            "took too long"
        } else {
            "failed"
        };
        bail!("{} {why} ({status})", process::shown(command));
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_that_ends_early_is_an_error() {
        let script = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'; exit";
        let mut shown = Vec::new();
        let mut run = |script: &str| {
            count(Command::new("sh").args(["-c", script]), |line| {
                shown.extend_from_slice(line);
                Ok(())
            })
        };
        assert_eq!(run(script).unwrap().passed, 2);
        let error = run(&format!("{script} 3")).unwrap_err().to_string();
        assert!(error.ends_with("failed (exit status: 3)"), "{error}");
        assert!(shown.starts_with(b"test result: ok. 2 passed"));
    }

    #[test]
    fn stress_tests_do_much_in_a_soak() {
        let environment = Environment {
            variables: Vec::new(),
            limit: LIMIT,
        };
        let soak = environment.for_soak(7);
        let seed = ("MINIVM_TEST_SEED", OsString::from("7"));
        assert!(soak.variables.contains(&seed));
        assert!(soak.limit > environment.limit);
    }
}
