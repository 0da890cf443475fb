//! What other programs ask of a running machine, over a Unix socket: one request a connection, a line of JSON, and an answer
//! in another line.
//!
//! ```text
//! → {"snapshot":"/var/tmp/warm","stop":false}
//! ← {"saved":{"bytes":51200000,"microseconds":312000}}      or {"failed":"cannot save /var/tmp/warm: …"}
//! ```
//!
//! A process that may open the socket may save the machine's memory and end it: its file's mode lets its owner and root. What a client
//! does wrong is answered, or the client is left: the machine goes on.

mod server;
mod socket;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};

pub(super) use server::Server;
pub(super) use socket::{Name, Socket};

/// No request or answer is longer: a path has at most 4096 bytes, of which each may take six in JSON.
const LINE_MAX: u64 = 32 << 10;

/// Asks to save the machine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// The folder, as an absolute path.
    pub(super) snapshot: PathBuf,
    /// Whether the machine is to end once it is saved.
    #[serde(default)]
    pub(super) stop: bool,
}

/// The server's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Saved(Saved),
    Failed(String),
}

/// A snapshot that has reached the disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    /// Bytes on the disk.
    bytes: u64,
    /// How long the guest stood still.
    microseconds: u64,
}

impl Saved {
    fn new(bytes: u64, pause: Duration) -> Self {
        let microseconds = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        Saved {
            bytes,
            microseconds,
        }
    }

    /// MiB on the disk.
    pub(super) fn mebibytes(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20)
    }

    /// How long the guest stood still.
    pub(super) fn pause(&self) -> Duration {
        Duration::from_micros(self.microseconds)
    }
}

/// Asks the machine at `socket`, and waits until the work is done; if it is to end, until it has ended.
pub(super) fn ask(socket: &Path, request: &Request) -> anyhow::Result<Saved> {
    let mut stream = connect(socket)?;
    let mut line = serde_json::to_string(request).context("cannot ask for it")?;
    line.push('\n');
    // One that is gone has no answer either.
    let _ = stream.write_all(line.as_bytes());
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    match (&mut stream).take(LINE_MAX).read_line(&mut answer) {
        // It went without having read the request.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        read => {
            read.with_context(|| format!("cannot hear the machine at {}", socket.display()))?;
        }
    }
    if answer.is_empty() {
        bail!(
            "the machine at {} ended, or left, without an answer",
            socket.display()
        );
    }
    let answer = serde_json::from_str(&answer);
    let saved = match answer.with_context(|| format!("{} is no machine's", socket.display()))? {
        Answer::Saved(saved) => saved,
        Answer::Failed(why) => return Err(anyhow!(why)),
    };
    if request.stop {
        let _ = io::copy(&mut stream, &mut io::sink());
    }
    Ok(saved)
}

fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    let connected = match UnixStream::connect(socket) {
        // A machine that is just being started has its file there a moment before it listens, and its folder locked until it does.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            drop(socket::lock(socket));
            UnixStream::connect(socket)
        }
        connected => connected,
    };
    connected.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(
            "no machine listens at {}: start one with --control {0}",
            socket.display()
        ),
        _ => anyhow!(error).context(format!("cannot reach a machine at {}", socket.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_those_of_the_documentation() {
        let request = Request {
            snapshot: "/a \"b\"\n".into(),
            stop: true,
        };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"snapshot":"/a \"b\"\n","stop":true}"#);
        let answer = Answer::Saved(Saved::new(5, Duration::from_millis(7)));
        let line = serde_json::to_string(&answer).unwrap();
        assert_eq!(line, r#"{"saved":{"bytes":5,"microseconds":7000}}"#);
        let answer = serde_json::to_string(&Answer::Failed("no".into())).unwrap();
        assert_eq!(answer, r#"{"failed":"no"}"#);
    }
}
