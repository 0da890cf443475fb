//! `cargo xtask test`: everything that checks the project. It goes on after a failure, so that one run tells all, and ends
//! with the line `N passed, N failed, N skipped`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::cargo::{self, Executable, cargo};
use crate::failures;
use crate::kvm;
use crate::process::pass_through;
use crate::report::Report;
use crate::sandboxes;
use crate::setup::{self, Made, Wanted};
use crate::suite::{self, Environment, Place};
use crate::tally::Tally;

pub(crate) fn run(fast: bool) -> Result<()> {
    let mut run = Run::new();
    let made = run.set_up(fast)?;
    run.lint();
    let minivm = if fast { None } else { run.minivm() };
    let environment = Environment::new(&made, minivm.as_deref());
    let tests = run.tests();
    run.test(&tests, &environment, minivm.as_deref(), fast);
    run.count("doc tests", suite::run_doc_tests);
    run.close(fast)
}

/// How a test program is run.
enum Way<'a> {
    Here { with_ignored: bool },
    InLab { minivm: &'a Path },
    NotNow,
    WithoutMinivm,
}

impl<'a> Way<'a> {
    fn of(test: &Executable, minivm: Option<&'a Path>, fast: bool) -> Self {
        let place = Place::of(&test.name);
        let elsewhere = match place {
            Place::Kvm => !kvm::runs_kernels(),
            Place::AnyKvm => !kvm::is_there(),
            Place::WithImageTools => fast || minivm.is_none(),
            Place::Here | Place::HereWithIgnored => false,
        };
        match (elsewhere, minivm) {
            (false, _) => Way::Here {
                with_ignored: place != Place::Here && !(fast && place == Place::HereWithIgnored),
            },
            (true, _) if fast => Way::NotNow,
            (true, Some(minivm)) => Way::InLab { minivm },
            (true, None) => Way::WithoutMinivm,
        }
    }

    fn is_in_lab(&self) -> bool {
        matches!(self, Way::InLab { .. })
    }

    fn name(&self, test: &Executable) -> String {
        match self {
            Way::InLab { .. } => format!("{} (lab)", test.name),
            _ => test.name.clone(),
        }
    }

    fn run(
        &self,
        test: &Executable,
        environment: &Environment,
        output: &mut Vec<u8>,
    ) -> Result<Tally> {
        match *self {
            Way::Here { with_ignored } => suite::run_here(test, environment, with_ignored, output),
            Way::InLab { minivm } => suite::run_in_lab(test, environment, minivm, output),
            Way::NotNow => suite::skip(test, output),
            Way::WithoutMinivm => bail!("it needs minivm, which didn't build"),
        }
    }
}

pub(crate) struct Run {
    report: Report,
    tally: Tally,
    /// What the failed tests of each program said.
    failures: Vec<String>,
}

impl Run {
    pub(crate) fn new() -> Self {
        Run {
            report: Report::new(),
            tally: Tally::default(),
            failures: Vec::new(),
        }
    }

    /// Makes what the tests need, or what those need that are quick.
    pub(crate) fn set_up(&mut self, fast: bool) -> Result<Made> {
        let wanted = Wanted {
            lab: !fast,
            debian_kernels: !fast,
            sandboxes: true,
            image_tools: !fast,
            coding_image: !fast,
        };
        setup::prepare(&mut self.report, &wanted)
    }

    /// Builds minivm, and has it install its sandboxes.
    pub(crate) fn minivm(&mut self) -> Option<PathBuf> {
        let minivm = self.attempt("build minivm", cargo::build_minivm)?;
        self.attempt("sandboxes", || sandboxes::install(&minivm));
        Some(minivm)
    }

    /// Builds the test programs.
    pub(crate) fn tests(&mut self) -> Vec<Executable> {
        self.attempt("build tests", suite::build)
            .unwrap_or_default()
    }

    /// What needs no test to run: the format, clippy's and rustdoc's warnings.
    fn lint(&mut self) {
        self.attempt("format", || {
            pass_through(cargo().args(["fmt", "--all", "--check"]))
        });
        let clippy = [
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ];
        self.attempt("clippy", || pass_through(cargo().args(clippy)));
        let doc = ["doc", "--quiet", "--workspace", "--no-deps"];
        self.attempt("documentation", || {
            pass_through(cargo().args(doc).env("RUSTDOCFLAGS", "--deny warnings"))
        });
    }

    /// Runs the test programs in two lanes: those that run in the lab, and the others, some of which start labs themselves.
    pub(crate) fn test(
        &mut self,
        tests: &[Executable],
        environment: &Environment,
        minivm: Option<&Path>,
        fast: bool,
    ) {
        let ways = tests.iter().map(|test| (test, Way::of(test, minivm, fast)));
        let (in_lab, here): (Vec<_>, Vec<_>) = ways.partition(|(_, way)| way.is_in_lab());
        let run = &Mutex::new(self);
        thread::scope(|scope| {
            for lane in [in_lab, here] {
                scope.spawn(move || {
                    for (test, way) in lane {
                        let name = way.name(test);
                        println!("{name} …");
                        let started = Instant::now();
                        let mut output = Vec::new();
                        let tally = way.run(test, environment, &mut output);
                        // What two lanes print at once nobody can read, so it is printed when a program has ended.
                        let mut run = run.lock().unwrap_or_else(PoisonError::into_inner);
                        let output = String::from_utf8_lossy(&output);
                        println!("\n{name}: {output}");
                        if !matches!(tally, Ok(Tally { failed: 0, .. })) {
                            run.failures
                                .push(format!("{name}:\n{}", failures::told(&output)));
                        }
                        run.record(&name, tally, started.elapsed());
                    }
                });
            }
        });
    }

    /// A step that makes something. Its failure is told, and counted.
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

    fn fail(&mut self, error: &anyhow::Error) {
        eprintln!("xtask: {error:#}");
        self.tally += Tally::failure();
    }

    /// The table of steps, and the closing line, which is the last on stdout.
    pub(crate) fn close(self, fast: bool) -> Result<()> {
        self.report.print_table();
        for failure in &self.failures {
            println!("\n{failure}");
        }
        if fast {
            println!(
                "the tests that need the lab were left out (--fast): those of them are among the skipped"
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
