//! Timing a command: from just before it is started to its first byte of output that counts, and to its end.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::guest::MARK;
use crate::process::cannot_start;

#[derive(Args)]
pub(crate) struct SampleArgs {
    /// Rounds that are measured, after one that isn't
    #[arg(long)]
    pub(crate) runs: usize,
    /// Files to copy into a folder in memory first; commands find them by their names in the working folder
    #[arg(long)]
    pub(crate) copy: Vec<std::path::PathBuf>,
    /// The output that counts contains this byte
    #[arg(long, default_value_t = MARK)]
    pub(crate) mark: u8,
    /// A command as a JSON array; several take turns
    #[arg(long = "command", value_parser = words)]
    pub(crate) commands: Vec<Words>,
}

/// A command's words.
#[derive(Clone, Deserialize)]
pub(crate) struct Words(pub(crate) Vec<String>);

fn words(text: &str) -> Result<Words, serde_json::Error> {
    serde_json::from_str(text)
}

/// The times of one command, a number a run, in milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Times {
    /// From exec to the mark on stdout.
    pub(crate) to_mark: Vec<f64>,
    /// From exec to the end of the process.
    pub(crate) to_end: Vec<f64>,
}

/// Runs all commands in turn, `runs` times after a first that doesn't count, so that whatever else the machine does hits all
/// of them alike.
pub(crate) fn run(args: &SampleArgs) -> Result<Vec<Times>> {
    let folder = tempfile::tempdir()?;
    for file in &args.copy {
        let name = file.file_name().context("a file to copy has no name")?;
        std::fs::copy(file, folder.path().join(name))
            .with_context(|| format!("cannot copy {}", file.display()))?;
    }
    let mut all = vec![Times::default(); args.commands.len()];
    for round in 0..=args.runs {
        for (Words(words), times) in args.commands.iter().zip(&mut all) {
            let (program, arguments) = words.split_first().context("an empty command")?;
            let mut command = Command::new(program);
            command.args(arguments).current_dir(folder.path());
            let (to_mark, to_end) = time(&mut command, args.mark)?;
            if round > 0 {
                times.to_mark.push(to_mark);
                times.to_end.push(to_end);
            }
        }
    }
    Ok(all)
}

/// Runs one command; milliseconds to the mark and to the end.
fn time(command: &mut Command, mark: u8) -> Result<(f64, f64)> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command
        .spawn()
        .map_err(|error| cannot_start(command, &error))?;
    let mut output = child.stdout.take().context("its stdout is not a pipe")?;
    let mut marked = None;
    let mut bytes = [0; 4096];
    loop {
        let len = output.read(&mut bytes)?;
        if len == 0 {
            break;
        }
        if marked.is_none() && bytes[..len].contains(&mark) {
            marked = Some(start.elapsed());
        }
    }
    let status = child.wait()?;
    let end = start.elapsed();
    let Some(marked) = marked else {
        bail!(
            "{} ended ({status}) without its mark",
            crate::process::shown(command)
        );
    };
    Ok((marked.as_secs_f64() * 1e3, end.as_secs_f64() * 1e3))
}
