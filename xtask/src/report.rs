//! What the user sees: one line a step, with its time. While a step works, a terminal shows a spinner; anything else (a log,
//! a pipe) gets the finished lines only.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// The steps done so far.
pub(crate) struct Report {
    started: Instant,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    outcome: String,
    took: Duration,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            rows: Vec::new(),
        }
    }

    /// The time since the first step.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Says in a line what the next step is for.
    pub(crate) fn purpose(&self, text: &str) {
        println!("# {text}");
    }

    /// Does a step that prints nothing itself. `work` returns what it made, and in a few words what it did.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(T, String)>,
    ) -> Result<T> {
        let started = Instant::now();
        let spinner = spinner(name);
        let worked = work();
        spinner.finish_and_clear();
        self.finish(name, started, worked)
    }

    /// Does a step whose programs print their own progress: it gets a heading, and no spinner.
    pub(crate) fn stage<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(T, String)>,
    ) -> Result<T> {
        println!("{name} …");
        let started = Instant::now();
        let worked = work();
        self.finish(name, started, worked)
    }

    /// Waits for a step that began before this. `work` shows how far it is by what it is given.
    pub(crate) fn wait<T>(
        &mut self,
        name: &str,
        began: Instant,
        work: impl FnOnce(&dyn Fn(&str)) -> Result<(T, String)>,
    ) -> Result<T> {
        let spinner = spinner(name).with_elapsed(began.elapsed());
        let worked = work(&|progress| spinner.set_message(format!("{name} {progress}")));
        spinner.finish_and_clear();
        self.finish(name, began, worked)
    }

    /// Records a step that its caller has timed.
    pub(crate) fn done(&mut self, name: &str, outcome: impl Display, took: Duration) {
        println!("{}", line(name, &outcome.to_string(), took));
        self.rows.push(Row {
            name: name.to_owned(),
            outcome: outcome.to_string(),
            took,
        });
    }

    fn finish<T>(
        &mut self,
        name: &str,
        started: Instant,
        worked: Result<(T, String)>,
    ) -> Result<T> {
        match worked {
            Ok((made, outcome)) => {
                self.done(name, outcome, started.elapsed());
                Ok(made)
            }
            Err(error) => {
                self.done(name, "FAILED", started.elapsed());
                Err(error)
            }
        }
    }

    /// The table of all steps, with the total.
    pub(crate) fn print_table(&self) {
        println!();
        for row in &self.rows {
            println!("{}", line(&row.name, &row.outcome, row.took));
        }
        println!("{}", line("total", "", self.started.elapsed()));
    }
}

fn line(name: &str, outcome: &str, took: Duration) -> String {
    format!("{name:<18} {:>7.2} s  {outcome}", took.as_secs_f64())
        .trim_end()
        .to_owned()
}

/// Draws on stderr, and only where that is a terminal.
fn spinner(name: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(name.to_owned());
    spinner.set_style(
        ProgressStyle::with_template("{spinner} {msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
