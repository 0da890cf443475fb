//! Templates in the lab: a lab that outlives commands, with a saved machine in it.
//!
//! A lab takes a second to start, which is most of what a template would save. So a process of its own, the keeper, keeps one lab
//! running for each template, and ends it when no command has used it for a while:
//!
//! ```text
//!  minivm run ─── socket ──▶ keeper ─── a port each ──▶ agent, in the lab ─── rings ──▶ a clone
//!  (`client`)               (`keeper`)                 (`agent`)
//! ```
//!
//! A command's first frame asks the keeper for a machine (`Kind::Attach`) or to end (`Kind::Shutdown`). The agent boots the template's
//! machine, saves it in the lab's memory, and keeps a clone waiting at every port. A session begins with the first frame at a port
//! and has two ends: the agent reports that the machine has ended, and the keeper hangs up. Then the port gets another clone. A
//! keeper whose template can't be made answers every request with the reason for a while, and then ends.

mod agent;
mod client;
mod keeper;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Recipe;

pub use agent::run as run_agent;
pub use client::stop_all;
pub(super) use client::{connect, connect_or_start, stop_one};
pub use keeper::run as run_keeper;

/// The argument that makes this program a keeper. The command line must hand it to [`run_keeper`].
pub const KEEPER_COMMAND: &str = "lab-keep";

/// The most commands that run in a lab at once.
const PORTS: usize = 4;
/// How long a keeper keeps a lab that no command uses.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// How long a keeper answers with the reason why its template can't be made.
const FAILED: Duration = Duration::from_secs(60);
/// The most bytes of an agent's report.
const REPORT_MAX: usize = 64 << 10;

/// A report from the agent to the keeper: a line of JSON on the agent's stdout.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum AgentReport {
    /// The template is made, and every port has or will have a clone.
    Ready,
    /// The template can't be made, for this reason.
    Failed(String),
}

/// Returns the path of the socket at which a template's keeper listens.
fn socket(cache: &Path, key: &str) -> PathBuf {
    folder(cache).join(key).with_extension(SOCKET)
}

/// Listens at a keeper's socket.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    by_folder(socket, UnixListener::bind)
}

/// Connects to the keeper that listens at a socket.
fn connect_to(socket: &Path) -> io::Result<UnixStream> {
    by_folder(socket, UnixStream::connect)
}

/// Calls `reach` with a short path to a socket: below the open folder in /proc/self/fd. A socket's address has room for a hundred bytes
/// of its path (unix(7)), and a cache's path may be longer.
fn by_folder<T>(socket: &Path, reach: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(folder)?;
    reach(
        Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(name),
    )
}

/// Returns the path of the file with the recipe that a keeper writes beside its socket.
fn note(socket: &Path) -> PathBuf {
    socket.with_extension("json")
}

/// Lists the templates of the labs that run now, with their keys. A keeper that was killed leaves its socket and its note behind, and
/// no process listens there; whether a process has the keeper's ID tells nothing in another PID namespace.
pub fn kept(cache: &Path) -> Vec<(String, Recipe)> {
    let entries = fs::read_dir(folder(cache)).into_iter().flatten().flatten();
    let sockets = entries
        .map(|entry| entry.path())
        .filter(|path| is_socket(path));
    let noted = sockets.filter_map(|socket| {
        let key = socket.file_stem()?.to_str()?.to_owned();
        let recipe = serde_json::from_slice(&fs::read(note(&socket)).ok()?).ok()?;
        connect_to(&socket).ok().map(|_| (key, recipe))
    });
    noted.collect()
}

/// The extension of a keeper's socket.
const SOCKET: &str = "socket";

fn folder(cache: &Path) -> PathBuf {
    cache.join("labs")
}

/// Returns whether a file in the folder is a keeper's socket.
fn is_socket(path: &Path) -> bool {
    path.extension() == Some(OsStr::new(SOCKET))
}
