//! One of minivm's commands, whose guest is to print the answer.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{cannot_start, quoted, short, shown};
use crate::report::Report;

/// A boot in the lab takes some ten seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// What the guest has to print.
const ANSWER: &str = "4";

/// Runs one of minivm's commands, which is to print the answer, after a line about what it is for; returns how long that took.
pub(super) fn answer(
    report: &mut Report,
    name: &str,
    purpose: &str,
    command: &mut Command,
) -> Result<Duration> {
    // A shell takes a tilde for the home folder only where a word begins.
    let home = std::env::var("HOME").unwrap_or_default();
    let line = shown(command).replace(&format!("dir:{home}/"), "dir:$HOME/");
    println!();
    report.purpose(purpose);
    println!("$ {}{line}", variables(command));
    let boot = boot(command)?;
    report.done(
        &format!("{name} to answer"),
        format!("the guest printed {ANSWER}"),
        boot.to_answer,
    );
    report.done(&format!("{name}'s end"), "it is gone", boot.to_end);
    Ok(boot.to_answer)
}

/// The variables that are set for a command, as they are typed before it.
fn variables(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        let (name, value) = (name.to_string_lossy(), value?.to_string_lossy());
        Some(format!("{name}={} ", quoted(&short(&value))))
    });
    set.collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_stand_before_their_command() {
        let mut command = Command::new("minivm");
        command
            .env("MINIVM_LAB_KERNEL", "/k/a b")
            .env_remove("HOME");
        assert_eq!(variables(&command), "MINIVM_LAB_KERNEL='/k/a b' ");
    }

    #[test]
    fn another_answer_and_a_failure_are_errors() {
        let script = |text: &str| boot(Command::new("sh").args(["-c", text]));
        assert!(script("echo 4").is_ok());
        for text in ["echo 5", "echo 4; echo 4", "echo 4; exit 1", "true"] {
            assert!(script(text).is_err(), "{text}");
        }
    }
}
