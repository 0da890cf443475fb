//! `cargo xtask test`: everything that checks the project. It goes on after a failure, so that one run shows all of them, and ends
//! with the line `N passed, N failed, N skipped`.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use crate::arm64::{self, Extent};
use crate::cargo::{self, Target, cargo};
use crate::choice::Choice;
use crate::failures;
use crate::intel::plan;
use crate::kvm;
use crate::place::Kind;
use crate::process::pass_through;
use crate::queue::{Beside, Queue};
use crate::report::Report;
use crate::sandboxes;
use crate::setup::{self, Made, Wanted};
use crate::suite::{self, Built, Environment, Output, Program};
use crate::tally::Tally;
use crate::times;

/// Programs that run at a time: each of the two keeps a processor busy, and rarely more.
pub(crate) const WORKERS: usize = 2;

/// How many of the slowest tests are listed.
const SLOWEST: usize = 10;

/// Why tests are skipped with `--fast`.
const LEFT_OUT: &str =
    "they need the lab, or the tools that make images and sandboxes, which --fast leaves out";

/// What is checked.
#[derive(Args)]
pub(crate) struct Test {
    /// Leave out the tests that need the lab (an emulated machine with real KVM), or the tools that make images and sandboxes
    #[arg(long)]
    fast: bool,
    /// Run the tests that are compiled for this architecture, in labs that emulate its processors, and no others
    #[arg(long, value_name = "ARCH", value_parser = ["aarch64"], conflicts_with = "fast")]
    target: Option<String>,
    /// Run those tests that need KVM on Intel's processors, and no others: in Bochs, which emulates them and is slow
    #[arg(long, conflicts_with = "fast")]
    intel: bool,
    /// Run these alone: test programs by their names, as in `boot`, and all other tests with such a part in their names
    names: Vec<String>,
}

/// Runs what is chosen. Where nothing is, clippy, rustdoc and the format are checked, too.
pub(crate) fn run(wanted: &Test) -> Result<()> {
    if wanted.intel {
        return run_on_intel(&wanted.names);
    }
    let mut run = Run::new();
    let targets = cargo::test_targets()?;
    let choice = Choice::new(&wanted.names, &targets);
    let candidates = choice.candidates(targets)?;
    if wanted.target.is_some() {
        return run.all_of_arm64(&choice, &candidates);
    }
    let fast = wanted.fast || all_run_here(&candidates)?;
    let made = run.set_up(fast)?;
    let for_arm64 = match choice.is_everything() && !fast {
        true => run.arm64(),
        false => None,
    };
    if choice.is_everything() {
        run.lint();
    }
    if for_arm64.is_some() {
        run.attempt("clippy for arm64", arm64::lint);
    }
    let Built {
        mut programs,
        minivm,
    } = run.build(&choice, &candidates, !fast);
    if let Some(parts) = &for_arm64 {
        programs.extend(run.build_for_arm64(parts, Extent::Quick, &choice, &candidates));
    }
    let minivm = minivm.as_deref();
    let environment = Environment::new(&made, minivm);
    let mut jobs: Vec<_> = ways(&programs, minivm, wanted.fast).collect();
    if choice.is_everything() && !fast {
        jobs.extend(ways_on_intel(plan::quick(&programs), &made));
    }
    run.test(jobs, &environment, WORKERS);
    if choice.is_everything() {
        run.count("doc tests", suite::run_doc_tests);
    }
    run.close(wanted.fast)
}

/// `--intel`: runs the tests that are for Intel's processors, or those of them that are named.
fn run_on_intel(names: &[String]) -> Result<()> {
    let mut run = Run::new();
    let targets = cargo::test_targets()?;
    let choice = match names {
        [] => Choice::new(&plan::programs(), &targets),
        _ => Choice::new(names, &targets),
    };
    let candidates: Vec<_> = choice
        .candidates(targets)?
        .into_iter()
        .filter(|target| plan::programs().iter().any(|name| target.is_called(name)))
        .collect();
    if candidates.is_empty() {
        bail!(
            "none of these tests run on Intel's processors: {} are the programs that do",
            plan::programs().join(", ")
        );
    }
    let made = setup::prepare(&mut run.report, &plan::WANTED)?;
    let Built { programs, minivm } =
        run.build(&choice, &candidates, plan::need_minivm(&candidates));
    let environment = Environment::new(&made, minivm.as_deref());
    let jobs = ways_on_intel(plan::all(&programs), &made);
    run.test(jobs.collect(), &environment, WORKERS);
    run.close(false)
}

/// Whether these programs need neither the lab nor what minivm installs.
fn all_run_here(candidates: &[Target]) -> Result<bool> {
    for target in candidates {
        let is_here = match target.place()?.kind {
            Kind::Here => true,
            Kind::AnyKvm => kvm::is_there(),
            Kind::RealKvm | Kind::HereAndInLabs | Kind::WithTools => false,
        };
        if !is_here {
            return Ok(false);
        }
    }
    Ok(true)
}

/// All programs, and how each is run.
pub(crate) fn ways<'a>(
    programs: &'a [Program],
    minivm: Option<&'a Path>,
    fast: bool,
) -> impl Iterator<Item = (&'a Program, Way<'a>)> {
    let way = move |program| (program, Way::of(program, minivm, fast));
    programs.iter().map(way)
}

/// The programs of jobs on Intel's processors, and how each is run.
fn ways_on_intel<'a>(
    jobs: Vec<(&'a Program, plan::Job)>,
    made: &Made,
) -> impl Iterator<Item = (&'a Program, Way<'a>)> {
    let there = made.intel;
    let way = move |(program, job)| (program, Way::OnIntel { job, there });
    jobs.into_iter().map(way)
}

/// How a test program is run.
pub(crate) enum Way<'a> {
    Here { with_ignored: bool },
    InLab { minivm: &'a Path },
    OnIntel { job: plan::Job, there: bool },
    NotNow,
    WithoutMinivm,
}

impl<'a> Way<'a> {
    fn of(program: &Program, minivm: Option<&'a Path>, fast: bool) -> Self {
        let kind = program.place.kind;
        let elsewhere = match kind {
            // What runs tools runs this host's, and the tests of labs start labs.
            Kind::WithTools | Kind::HereAndInLabs if program.foreign.is_some() => {
                return Way::NotNow;
            }
            _ if program.foreign.is_some() => true,
            Kind::RealKvm => !kvm::runs_kernels(),
            Kind::AnyKvm => !kvm::is_there(),
            Kind::WithTools => fast || minivm.is_none(),
            Kind::Here | Kind::HereAndInLabs => false,
        };
        match (elsewhere, minivm) {
            (false, _) => Way::Here {
                with_ignored: kind != Kind::Here && !(fast && kind == Kind::HereAndInLabs),
            },
            (true, _) if fast => Way::NotNow,
            (true, Some(minivm)) => Way::InLab { minivm },
            (true, None) => Way::WithoutMinivm,
        }
    }

    fn beside(&self, program: &Program) -> Beside {
        match self {
            Way::InLab { .. } | Way::OnIntel { .. } | Way::NotNow => Beside::All,
            _ if program.place.alone => Beside::Labs,
            _ => Beside::Others,
        }
    }

    fn name(&self, program: &Program) -> String {
        let name = &program.executable.name;
        match (self, &program.foreign) {
            (_, Some(foreign)) => format!("{name} (lab, {})", foreign.processor),
            (Way::InLab { .. }, None) => format!("{name} (lab)"),
            (Way::OnIntel { job, .. }, None) => job.name(),
            _ => name.clone(),
        }
    }

    fn run(
        &self,
        program: &Program,
        environment: &Environment,
        output: &mut Output,
    ) -> Result<Tally> {
        match self {
            Way::Here { with_ignored } => {
                suite::run_here(program, environment, *with_ignored, output)
            }
            Way::InLab { minivm } => suite::run_in_lab(program, environment, minivm, output),
            Way::OnIntel { job, there: true } => job.run(program, environment, output),
            Way::OnIntel { job, there: false } => job.skip(program, output),
            Way::NotNow => suite::skip(program.tests.len(), LEFT_OUT, output),
            Way::WithoutMinivm => bail!("it needs minivm, which didn't build"),
        }
    }
}

pub(crate) struct Run {
    report: Report,
    tally: Tally,
    /// What the failed tests of each program said.
    failures: Vec<String>,
    /// How long each test took.
    times: Vec<(String, Duration)>,
}

impl Run {
    pub(crate) fn new() -> Self {
        Run {
            report: Report::new(),
            tally: Tally::default(),
            failures: Vec::new(),
            times: Vec::new(),
        }
    }

    /// Makes what the tests need, or what those need that are quick.
    pub(crate) fn set_up(&mut self, fast: bool) -> Result<Made> {
        let wanted = Wanted {
            lab: !fast,
            debian_kernels: !fast,
            sandboxes: true,
            image_tools: !fast,
            strace: true,
            coding_image: !fast,
            // See `Run::arm64`.
            arm64: false,
            intel: !fast,
        };
        setup::prepare(&mut self.report, &wanted)
    }

    /// Builds the test programs, and `with_minivm` the command, which then installs its sandboxes.
    pub(crate) fn build(
        &mut self,
        choice: &Choice,
        candidates: &[Target],
        with_minivm: bool,
    ) -> Built {
        let build = || suite::build(choice, candidates, with_minivm);
        let built = self.attempt("build", build).unwrap_or_default();
        if let Some(minivm) = &built.minivm {
            self.attempt("sandboxes", || sandboxes::install(minivm));
        }
        built
    }

    /// Gets what the tests on arm64 need. Where that can't be had, they are skipped.
    fn arm64(&mut self) -> Option<arm64::Parts> {
        let parts = arm64::ensure(&mut self.report);
        parts.inspect_err(|error| self.skip("arm64", error)).ok()
    }

    /// Builds the test programs that run on arm64.
    fn build_for_arm64(
        &mut self,
        parts: &arm64::Parts,
        extent: Extent,
        choice: &Choice,
        candidates: &[Target],
    ) -> Vec<Program> {
        let built = arm64::build(&mut self.report, parts, extent, choice, candidates);
        built
            .inspect_err(|error| self.fail(error))
            .unwrap_or_default()
    }

    /// `cargo xtask test --target aarch64`.
    fn all_of_arm64(mut self, choice: &Choice, candidates: &[Target]) -> Result<()> {
        if let Some(parts) = self.arm64() {
            // It starts labs, and runs in none.
            let minivm = self.attempt("build minivm", cargo::build_debug_minivm);
            let programs = self.build_for_arm64(&parts, Extent::All, choice, candidates);
            let environment = Environment::empty();
            let jobs = ways(&programs, minivm.as_deref(), false);
            self.test(jobs.collect(), &environment, WORKERS);
        }
        self.close(false)
    }

    /// What needs no test to run: the format, clippy's and rustdoc's warnings.
    fn lint(&mut self) {
        self.attempt("format", || {
            pass_through(cargo().args(["fmt", "--all", "--check"]))
        });
        // The command alone is built without what only minivm-worker needs, as `demo` does.
        for (name, what) in [
            ("clippy", &["--workspace", "--all-targets"][..]),
            ("clippy of minivm alone", &["--package", "minivm"]),
        ] {
            let mut clippy = cargo();
            clippy.args(["clippy", "--quiet"]).args(what);
            clippy.args(["--", "--deny", "warnings"]);
            self.attempt(name, || pass_through(&mut clippy));
        }
        let doc = ["doc", "--quiet", "--workspace", "--no-deps"];
        self.attempt("documentation", || {
            pass_through(cargo().args(doc).env("RUSTDOCFLAGS", "--deny warnings"))
        });
    }

    /// Runs test programs, so many at a time. Those that take long come first, so that one worker isn't left with them at the end.
    pub(crate) fn test(
        &mut self,
        jobs: Vec<(&Program, Way)>,
        environment: &Environment,
        workers: usize,
    ) {
        let jobs = jobs
            .into_iter()
            .map(|(program, way)| (way.beside(program), (program, way)));
        let mut jobs: Vec<_> = jobs.collect();
        jobs.sort_by_key(|(beside, (program, _))| (*beside, program.place.kind));
        let queue = &Queue::new(jobs);
        let run = &Mutex::new(self);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(move || {
                    while queue.work(|(program, way)| {
                        let name = way.name(program);
                        println!("{name} …");
                        let started = Instant::now();
                        let mut output = Output::default();
                        let tally = way.run(program, environment, &mut output);
                        let mut run = run.lock().unwrap_or_else(PoisonError::into_inner);
                        run.ended(&name, tally, output, started.elapsed());
                    }) {}
                });
            }
        });
    }

    /// Prints what a test program printed: only when it has ended, for what two print at once can't be read.
    fn ended(&mut self, name: &str, tally: Result<Tally>, output: Output, took: Duration) {
        let text = String::from_utf8_lossy(&output.text);
        println!("\n{name}: {text}");
        if !matches!(tally, Ok(Tally { failed: 0, .. })) {
            self.failures
                .push(format!("{name}:\n{}", failures::told(&text)));
        }
        let times = output.times.into_iter();
        self.times
            .extend(times.map(|(test, took)| (format!("{name}: {test}"), took)));
        self.record(name, tally, took);
    }

    /// A step that makes something. Its failure is printed, and counted.
    fn attempt<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        let made = self.report.stage(name, || Ok((work()?, "ok".to_owned())));
        made.inspect_err(|error| self.fail(error)).ok()
    }

    /// A step that runs tests.
    fn count(&mut self, name: &str, work: impl FnOnce() -> Result<Tally>) {
        println!("{name} …");
        let started = Instant::now();
        let tally = work();
        self.record(name, tally, started.elapsed());
    }

    fn record(&mut self, name: &str, tally: Result<Tally>, took: Duration) {
        let tally = tally.unwrap_or_else(|error| {
            eprintln!("xtask: {error:#}");
            Tally::failure()
        });
        self.report.done(name, tally, took);
        self.tally += tally;
    }

    /// Counts tests that can't be run here as one that is skipped.
    fn skip(&mut self, name: &str, why: &anyhow::Error) {
        eprintln!("xtask: {name} is skipped: {why:#}");
        let skipped = Tally {
            skipped: 1,
            ..Tally::default()
        };
        self.record(name, Ok(skipped), Duration::ZERO);
    }

    fn fail(&mut self, error: &anyhow::Error) {
        eprintln!("xtask: {error:#}");
        self.tally += Tally::failure();
    }

    /// The table of steps, and the closing line, which is the last on stdout.
    pub(crate) fn close(self, fast: bool) -> Result<()> {
        self.report.print_table();
        let slowest = times::slowest(self.times, SLOWEST);
        if !slowest.is_empty() {
            println!(
                "\nthe slowest tests, each from the moment when a thread was free for it to its result, beside others:"
            );
        }
        for line in slowest {
            println!("{line}");
        }
        for failure in &self.failures {
            println!("\n{failure}");
        }
        if fast {
            println!(
                "the tests that need the lab, or the tools, were left out (--fast): they are among the skipped"
            );
        }
        println!("{}", self.tally);
        match self.tally {
            Tally {
                failed: 0,
                passed: 0,
                ..
            } => bail!("no test ran"),
            Tally { failed: 0, .. } => Ok(()),
            Tally { failed, .. } => bail!("{failed} failed (tests, or whole steps: see above)"),
        }
    }
}
