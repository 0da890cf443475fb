//! `minivm compare`: the same code in all sandboxes, side by side.

mod measure;
mod page;
mod table;

use std::io::{self, IsTerminal, Write, stderr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use minivm_image::{Platform, Source};
use minivm_machine::{cache, output_path};
use minivm_sandbox::reach::{self, Secret};
use minivm_sandbox::{Backend, Host};

use super::accel::AccelArg;
use super::image::{self, PullArgs};
use super::page::PageFile;
use super::{template, units, worker};
use measure::{Plan, Row};

/// The variable that the sandboxes are not to see.
const SECRET: &str = "MINIVM_COMPARE_SECRET";

#[derive(Args)]
#[command(
    after_help = "START-UP is the time of a whole run of an empty program, TOTAL that of the code; both are medians.\n\
                  Probes try for real what code can reach; minivm judges them from outside the sandbox.\n\
                  Exit code: 0 when all sandboxes named by --backends, or all that are available, ran the code."
)]
pub(super) struct CompareArgs {
    /// Python code to run
    #[arg(long, value_name = "PYTHON", default_value = "print(2+2)")]
    code: String,
    /// Container image for the sandboxes that run one [default: $MINIVM_IMAGE, or an image with Python]
    #[arg(value_name = "IMAGE", value_parser = image::source)]
    image: Option<Source>,
    /// Runs in each sandbox
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Sandboxes to compare, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "BACKENDS")]
    backends: Vec<Backend>,
    /// Kill a run after this time
    #[arg(long, value_name = "DURATION", value_parser = units::duration, default_value = "60s")]
    timeout: Duration,
    /// Skip the warm microVM; the variable MINIVM_COLD does the same
    #[arg(long)]
    cold: bool,
    /// Skip the probes of what code can reach
    #[arg(long)]
    no_reach: bool,
    /// Print a JSON array with an object for each sandbox
    #[arg(long)]
    json: bool,
    /// Write an HTML page with a chart, in one file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    pull: PullArgs,
    #[command(flatten)]
    accel: AccelArg,
}

/// Compares them.
pub(super) fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let Ok(secret) = std::env::var(SECRET) else {
        return again_with_a_secret(args.html.as_deref());
    };
    // Better now than after a minute.
    let page = args.html.as_deref().map(PageFile::open).transpose()?;
    let image = args.image()?;
    let host = args.host(image.as_ref())?;
    let backends = match &*args.backends {
        [] => &Backend::ALL,
        some => some,
    };
    let plan = Plan {
        code: &args.code,
        runs: args.runs,
        limit: args.timeout,
        warm: image
            .filter(|_| !template::is_unwanted(args.cold))
            .map(|image| image.to_string()),
        secret: (!args.no_reach).then_some(Secret {
            name: SECRET,
            value: &secret,
        }),
    };
    let bar = args.bar(plan.steps(backends));
    let mut rows = Vec::new();
    let in_lines = bar.is_hidden() && !args.pull.quiet;
    for &backend in backends {
        if in_lines {
            eprintln!("minivm: {backend} …");
        }
        let row = measure::measure(&host, backend, &plan, &bar);
        if in_lines {
            for row in row.both() {
                eprintln!("minivm: {}", row.line());
            }
        }
        rows.push(row);
    }
    bar.finish_and_clear();
    args.print(&rows, page)?;
    let wanted = |row: &&Row| !args.backends.is_empty() || row.is_available();
    let asked: Vec<&Row> = rows.iter().filter(wanted).collect();
    if asked.is_empty() {
        bail!("no sandbox is available here: `minivm doctor --fix` installs what is missing");
    }
    let all_ran = asked.iter().flat_map(|row| row.both()).all(Row::has_run);
    Ok(ExitCode::from(u8::from(!all_ran)))
}

/// Becomes the same command with a secret in its environment.
fn again_with_a_secret(page: Option<&Path>) -> anyhow::Result<ExitCode> {
    page.map(output_path::pass_on);
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1));
    let error = command.env(SECRET, reach::word()).exec();
    Err(error).context("cannot start minivm anew")
}

impl CompareArgs {
    /// The image, where a sandbox needs one.
    fn image(&self) -> anyhow::Result<Option<Source>> {
        let needs_image = |backends: &[Backend]| {
            backends.is_empty() || backends.iter().any(|backend| backend.needs_image())
        };
        match (needs_image(&self.backends), &self.image) {
            (false, _) => Ok(None),
            (true, Some(image)) => Ok(Some(image.clone())),
            (true, None) => image::python(&Platform::here()).map(Some),
        }
    }

    fn host(&self, image: Option<&Source>) -> anyhow::Result<Host> {
        let open = |source: &Source| {
            let named = self.image.as_ref();
            image::open_named_or_python(
                &Platform::here(),
                named,
                source,
                &self.pull,
                &image::image_cache()?,
            )
        };
        Ok(Host {
            worker: worker()?,
            cache: cache::find()?,
            image: image
                .map(open)
                .transpose()?
                .map(|image| Arc::new(image) as _),
            kernel: None,
            accel: self.accel.choose(|_| ())?,
        })
    }

    fn bar(&self, steps: u64) -> ProgressBar {
        if self.pull.quiet || !stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = "{spinner} {bar:30} {pos}/{len} {msg}";
        let style = ProgressStyle::with_template(style).expect("the template is a constant");
        let bar = ProgressBar::new(steps).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn print(&self, rows: &[Row], file: Option<PageFile>) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(rows)?)?;
        } else {
            writeln!(out, "{}", table::table(rows).trim_fmt())?;
            for row in rows.iter().filter(|row| !row.is_available()) {
                writeln!(out, "{}", row.answer())?;
            }
        }
        if let (Some(file), Some(path)) = (file, &self.html) {
            file.write(&page::render(&self.code, self.runs, rows)?)?;
            if !self.pull.quiet {
                eprintln!("minivm: wrote {}", path.display());
            }
        }
        Ok(())
    }
}
