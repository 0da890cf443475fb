//! The sandboxes, each against the same tool driven by hand: what the adapter itself costs.
//!
//! By hand means: the tool's own command line, no jail, no limits, no report. Pyodide starts from the same snapshot in both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use super::sample::{SampleArgs, Times, Words};
use super::table::median;
use super::{Contender, guest, sample, table, text};
use crate::process::capture;
use crate::report::Report;
use crate::setup::{self, Wanted};
use crate::{cargo, sandboxes};

#[derive(Args)]
pub(crate) struct CompareArgs {
    /// Runs of each kind
    #[arg(long, default_value_t = 10)]
    runs: usize,
}

/// What is run: it says the mark that [`mod@sample`] waits for.
const CODE: &str = "print('!')";
const BY_HAND_DENO: &str = include_str!("by_hand/deno.mjs");
const BY_HAND_CHROMIUM: &str = include_str!("by_hand/chromium.mjs");
/// What an adapter may cost: so many milliseconds, or so much of the whole, whichever is more.
const MILLISECONDS: f64 = 20.0;
const SHARE: f64 = 0.1;

/// The tools, where `minivm doctor` finds them.
struct Tools {
    runsc: PathBuf,
    deno: PathBuf,
    chromium: PathBuf,
    pyodide: PathBuf,
    snapshot: PathBuf,
}

pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let mut report = Report::new();
    let wanted = Wanted {
        sandboxes: true,
        ..Wanted::default()
    };
    let made = setup::prepare(&mut report, &wanted)?;
    let minivm = cargo::stage_minivm(&mut report)?;
    sandboxes::stage(&mut report, &minivm)?;
    let in_process = cargo::build_example(&mut report, "monty_in_process")?;
    let tools = Tools::find(&minivm)?;
    let folder = tempfile::tempdir_in(cargo::root().join("target"))?;
    let root = made.initramfs.with_file_name("rootfs");
    let pairs = [
        ("gvisor", tools.gvisor(&root)),
        ("monty", vec![text(&in_process), CODE.to_owned()]),
        ("deno", tools.deno(folder.path())?),
        ("chromium", tools.chromium(folder.path())?),
    ];
    for (backend, by_hand) in pairs {
        compare(args.runs, &minivm, backend, by_hand)?;
    }
    println!("\nMonty in process, from code to answer:");
    print!(
        "{}",
        capture(Command::new(&in_process).args(["--times", "1000", CODE]))?
    );
    Ok(())
}

/// Measures a pair in turn and says what the adapter costs.
fn compare(runs: usize, minivm: &Path, backend: &str, by_hand: Vec<String>) -> Result<()> {
    let minivm = text(minivm);
    let words = [
        &*minivm,
        "run",
        "--quiet",
        "--backend",
        backend,
        "--code",
        CODE,
    ];
    let contenders = [
        Contender::new(&format!("minivm run --backend {backend}"), &words),
        Contender {
            name: "by hand".to_owned(),
            command: by_hand,
        },
    ];
    let all = sample::run(&SampleArgs {
        runs,
        copy: Vec::new(),
        mark: guest::MARK,
        commands: contenders
            .iter()
            .map(|one| Words(one.command.clone()))
            .collect(),
    })?;
    let names: Vec<String> = contenders.into_iter().map(|one| one.name).collect();
    let title = format!("{backend}: exec → end, {runs} runs each");
    table::print(&title, "ms", &names, &all, |times| &times.to_end);
    println!("  {}", verdict(&all[0], &all[1]));
    Ok(())
}

fn verdict(ours: &Times, by_hand: &Times) -> String {
    let (ours, by_hand) = (median(&ours.to_end), median(&by_hand.to_end));
    let cost = ours - by_hand;
    let allowed = MILLISECONDS.max(SHARE * by_hand);
    let kept = if cost <= allowed {
        "within"
    } else {
        "MORE THAN"
    };
    format!("the adapter costs {cost:.1} ms: {kept} {allowed:.0} ms")
}

impl Tools {
    fn find(minivm: &Path) -> Result<Tools> {
        let checks: Value = serde_json::from_str(&doctor(minivm)?)?;
        let detail = |name: &str| {
            let check = checks
                .as_array()
                .into_iter()
                .flatten()
                .find(|check| check["name"] == name);
            let path = check.and_then(|check| check["detail"].as_str());
            path.map(PathBuf::from)
                .with_context(|| format!("the doctor knows no {name}"))
        };
        let deno = detail("deno")?;
        let modules = deno.ancestors().find(|path| path.ends_with("node_modules"));
        let modules = modules
            .context("deno is not below node_modules")?
            .to_owned();
        let assets = modules
            .ancestors()
            .nth(2)
            .context("node_modules is in the assets")?;
        Ok(Tools {
            runsc: detail("gvisor")?,
            chromium: detail("chromium")?,
            pyodide: modules.join("pyodide"),
            snapshot: newest_snapshot(assets)?,
            deno,
        })
    }

    fn gvisor(&self, root: &Path) -> Vec<String> {
        let root = format!("--root={}", text(root));
        let runsc = text(&self.runsc);
        let flags = [
            "--rootless",
            "--platform=systrap",
            "--network=none",
            "--ignore-cgroups",
        ];
        let words = [
            &["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", &runsc],
            &flags[..],
        ]
        .concat();
        let inside = [
            "do",
            "--cwd",
            "/",
            &root,
            "/usr/local/bin/python3",
            "-u",
            "-c",
            CODE,
        ];
        words
            .iter()
            .chain(&inside)
            .map(|&word| word.to_owned())
            .collect()
    }

    fn deno(&self, folder: &Path) -> Result<Vec<String>> {
        let script = folder.join("deno.mjs");
        fs::write(&script, BY_HAND_DENO)?;
        let script = text(&script);
        let allow = format!(
            "--allow-read={},{}",
            text(&self.pyodide),
            text(&self.snapshot)
        );
        let (deno, pyodide, snapshot) =
            (text(&self.deno), text(&self.pyodide), text(&self.snapshot));
        let flags = [
            "run",
            "--no-prompt",
            "--no-remote",
            "--no-npm",
            "--no-config",
            "--no-lock",
            "--cached-only",
        ];
        let words = [
            &[&*deno],
            &flags[..],
            &[&allow, &script, &pyodide, &snapshot, CODE],
        ]
        .concat();
        Ok(words.into_iter().map(str::to_owned).collect())
    }

    fn chromium(&self, folder: &Path) -> Result<Vec<String>> {
        let script = folder.join("chromium.mjs");
        fs::write(&script, BY_HAND_CHROMIUM)?;
        let paths = [&script, &self.chromium, &self.pyodide, &self.snapshot].map(|path| text(path));
        Ok([&["node".to_owned()], &paths[..], &[CODE.to_owned()]].concat())
    }
}

/// The doctor's JSON. Its exit code is about machines, which don't matter here.
fn doctor(minivm: &Path) -> Result<String> {
    let output = Command::new(minivm).args(["doctor", "--json"]).output()?;
    String::from_utf8(output.stdout).context("the doctor's JSON is not text")
}

fn newest_snapshot(assets: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(assets)?.flatten().map(|entry| entry.path());
    let snapshots = entries.filter(|path| path.extension().is_some_and(|end| end == "snapshot"));
    let newest =
        snapshots.max_by_key(|path| fs::metadata(path).and_then(|file| file.modified()).ok());
    newest.context("no snapshot of Python's memory in the assets")
}
