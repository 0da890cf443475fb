//! A build that goes on while other things are done.

use std::io::{BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Executable};
use crate::process::cannot_start;

/// The width of Cargo's progress, of which a part is shown.
const WIDTH: &str = "80";

/// Cargo at work. It is killed where it isn't waited for.
pub(crate) struct Building {
    cargo: Child,
    arguments: String,
    /// The lines that it prints for people.
    lines: Receiver<String>,
    /// What it prints for programs.
    messages: Option<JoinHandle<std::io::Result<String>>>,
    began: Instant,
}

impl Building {
    /// Starts Cargo with these arguments, which must build.
    pub(crate) fn begin(arguments: &[&str]) -> Result<Self> {
        let mut command = cargo::cargo();
        command.args(arguments).args(cargo::MESSAGES);
        // As it does on a terminal, whatever ours is.
        command
            .env("CARGO_TERM_PROGRESS_WHEN", "always")
            .env("CARGO_TERM_PROGRESS_WIDTH", WIDTH)
            .env("CARGO_TERM_COLOR", "never");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut cargo = command
            .spawn()
            .map_err(|error| cannot_start(&command, &error))?;
        let stdout = cargo.stdout.take().context("Cargo's stdout is no pipe")?;
        let stderr = cargo.stderr.take().context("Cargo's stderr is no pipe")?;
        Ok(Self {
            cargo,
            arguments: arguments.join(" "),
            lines: lines(stderr),
            messages: Some(thread::spawn(move || std::io::read_to_string(stdout))),
            began: Instant::now(),
        })
    }

    /// When it began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Waits for its end; returns the executables. `show` gets its progress.
    pub(crate) fn wait(mut self, show: &dyn Fn(&str)) -> Result<Vec<Executable>> {
        let mut said = Vec::new();
        for line in &self.lines {
            match progress(&line) {
                Some(progress) => show(progress),
                None => said.push(line),
            }
        }
        let status = self.cargo.wait().context("cannot wait for Cargo")?;
        if !status.success() {
            eprintln!("{}", said.join("\n"));
            bail!("cargo {} failed: it says why above", self.arguments);
        }
        let messages = self.messages.take().map(JoinHandle::join);
        let messages = messages
            .and_then(Result::ok)
            .context("the thread that reads what Cargo prints has panicked")?;
        cargo::executables(&messages.context("cannot read what Cargo prints")?)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.cargo.kill();
        let _ = self.cargo.wait();
    }
}

/// The lines of an output, as they come. Progress ends by a carriage return, and is wiped out before another line.
fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = Vec::new();
        for byte in BufReader::new(output).bytes().map_while(Result::ok) {
            if !matches!(byte, b'\r' | b'\n') {
                line.push(byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).replace("\u{1b}[K", "");
            line.clear();
            if !text.trim().is_empty() && sender.send(text).is_err() {
                return;
            }
        }
    });
    receiver
}

/// How far a build is, and at what, in Cargo's line `Building [==>  ] 12/340: syn, libc`.
fn progress(line: &str) -> Option<&str> {
    let bar = line.trim().strip_prefix("Building [")?;
    Some(bar.split_once("] ")?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_from_what_cargo_says() {
        let output = "   Compiling libc v0.2.191\n    Building [=>      ] 12/340: syn, libc\r\u{1b}[Kerror: no\r\n";
        let lines: Vec<_> = lines(output.as_bytes()).iter().collect();
        let told: Vec<_> = lines.iter().map(|line| progress(line)).collect();
        assert_eq!(told, [None, Some("12/340: syn, libc"), None]);
        assert_eq!(lines[2], "error: no");
    }

    #[test]
    fn a_build_that_fails_is_an_error_that_names_it() {
        let building = Building::begin(&["build", "--package", "no-such-package"]).unwrap();
        let error = building.wait(&|_| ()).unwrap_err().to_string();
        assert!(
            error.starts_with("cargo build --package no-such-package failed"),
            "{error}"
        );
    }
}
