//! `cargo xtask demo`: everything from nothing to a virtual machine in which Python answers 4, four other sandboxes, and a machine that is warm.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo;
use crate::kvm;
use crate::process::{cannot_start, capture, shown};
use crate::report::Report;
use crate::sandboxes;
use crate::setup::{self, Wanted};

/// `reboot=t`: the guest's reboot is a triple fault, which ends the machine. `quiet loglevel=0`: nothing but the answer.
const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 quiet loglevel=0";

/// A boot in the lab takes some ten seconds.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is run, and what the guest has to print.
const CODE: &str = "print(2+2)";
const ANSWER: &str = "4";

pub(crate) fn run() -> Result<()> {
    let mut report = Report::new();
    let made = setup::prepare(
        &mut report,
        &Wanted {
            lab: !kvm::runs_kernels(),
            sandboxes: true,
            ..Wanted::default()
        },
    )?;
    let minivm = cargo::stage_minivm(&mut report)?;

    let mut command = Command::new(&minivm);
    command
        .arg("--kernel")
        .arg(made.kernel.join("vmlinux"))
        .arg("--initramfs")
        .arg(&made.initramfs);
    command.args(["--cmdline", CMDLINE, "--memory", "256M"]);
    answer(&mut report, "boot", &mut command)?;

    // The same files as an image, whose initramfs minivm makes and keeps.
    let root = made.initramfs.with_file_name("rootfs");
    let mut command = Command::new(&minivm);
    command
        .args(["run", "--cold", &format!("dir:{}", root.display())])
        .args(["--", "python3", "-c", "print(2+2)"]);
    answer(&mut report, "run", &mut command)?;

    // The same code in all five sandboxes; last in the microVM, whose first run has a template made for the next.
    sandboxes::stage(&mut report, &minivm)?;
    for backend in sandboxes::ALL.iter().rev() {
        let mut command = code_in(&minivm, backend);
        answer(&mut report, backend, &mut command)?;
    }
    wait_for_template(&minivm)?;
    answer(
        &mut report,
        "warm microvm",
        &mut code_in(&minivm, "microvm"),
    )?;
    report.print_table();
    Ok(())
}

/// Code in a sandbox.
fn code_in(minivm: &Path, backend: &str) -> Command {
    let mut command = Command::new(minivm);
    command.args(["run", "--quiet", "--backend", backend, "--code", CODE]);
    // The last run is to be warm, whatever the user likes otherwise.
    command.env_remove("MINIVM_COLD");
    command
}

/// Waits until a machine goes on from a template instead of booting.
fn wait_for_template(minivm: &Path) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let mut command = code_in(minivm, "microvm");
        let report: Value = serde_json::from_str(&capture(command.arg("--json"))?)?;
        if report["warm"] == true {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
    bail!("no run has left a template for the next");
}

/// Runs one of minivm's commands, which is to print the answer.
fn answer(report: &mut Report, name: &str, command: &mut Command) -> Result<()> {
    // A shell takes a tilde for the home folder only where a word begins.
    let home = std::env::var("HOME").unwrap_or_default();
    let line = shown(command).replace(&format!("dir:{home}/"), "dir:$HOME/");
    println!("\n$ {line}");
    let boot = boot(command)?;
    report.done(
        &format!("{name} to answer"),
        format!("the guest printed {ANSWER}"),
        boot.to_answer,
    );
    report.done(&format!("{name}'s end"), "it is gone", boot.to_end);
    Ok(())
}

struct Boot {
    to_answer: Duration,
    to_end: Duration,
}

/// Boots, shows what the guest prints, and checks it. minivm's own words go to stderr.
fn boot(command: &mut Command) -> Result<Boot> {
    let started = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut minivm = command
        .spawn()
        .map_err(|error| cannot_start(command, &error))?;
    let lines = lines(
        minivm
            .stdout
            .take()
            .context("minivm's stdout is not a pipe")?,
    );
    let printed = collect(&lines, started + PATIENCE);
    if printed.is_err() {
        let _ = minivm.kill(); // It may have ended meanwhile.
    }
    let status = minivm.wait().context("cannot wait for minivm")?;
    let printed = printed?;
    let texts: Vec<_> = printed.iter().map(|(text, _)| text.as_str()).collect();
    match printed.as_slice() {
        [(text, at)] if text == ANSWER && status.success() => Ok(Boot {
            to_answer: *at - started,
            to_end: at.elapsed(),
        }),
        _ if !status.success() => {
            bail!("minivm failed ({status}), and the guest printed {texts:?}")
        }
        _ => bail!("the guest printed {texts:?} instead of {ANSWER:?}"),
    }
}

/// Each line with the time when it came.
fn lines(output: impl std::io::Read + Send + 'static) -> Receiver<(String, Instant)> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if !text.is_empty() && sender.send((text, Instant::now())).is_err() {
                break;
            }
        }
    });
    receiver
}

/// All lines up to the end of the output, shown as they come.
fn collect(
    lines: &Receiver<(String, Instant)>,
    deadline: Instant,
) -> Result<Vec<(String, Instant)>> {
    let mut all = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((text, at)) => {
                println!("{text}");
                all.push((text, at));
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(all),
            Err(RecvTimeoutError::Timeout) => bail!(
                "the machine was still running after {} s",
                PATIENCE.as_secs()
            ),
        }
    }
}
