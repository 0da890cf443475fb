//! Templates in the lab: a lab that stays when a command has ended, with a saved machine in it.
//!
//! A lab takes a second to start, which is most of what a template would save. So a process of its own, the keeper, keeps one
//! running for each template, and ends it when it was not used for a while:
//!
//! ```text
//!  minivm run ─── socket ──▶ keeper ─── a port each ──▶ agent, in the lab ─── rings ──▶ a clone
//!  (`client`)               (`keeper`)                 (`agent`)
//! ```
//!
//! A command says what it wants in its first frame: a machine (`Kind::Attach`), or that the keeper ends (`Kind::Shutdown`). The agent boots the
//! template's machine, saves it in the lab's memory, and keeps a clone waiting at every port. A session begins with the first
//! frame at a port and has two ends: the agent says that the machine has ended, and the keeper hangs up. Then the port gets
//! another clone. A keeper whose template can't be made tells so to everybody who asks for a while.

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
pub(super) use client::stop_one;
pub use client::{connect, connect_or_start, stop_all};
pub use keeper::run as run_keeper;

/// The argument that makes this program a keeper. The command line must hand it to [`run_keeper`].
pub const KEEPER_COMMAND: &str = "lab-keep";

/// How many commands can run in a lab at once.
const PORTS: usize = 4;
/// How long a lab stays that nobody uses.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// How long it is remembered that a template can't be made.
const FAILED: Duration = Duration::from_secs(60);
/// The longest report of an agent's in bytes.
const REPORT_MAX: usize = 64 << 10;

/// What the agent reports to the keeper: a line of JSON on its stdout.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum AgentReport {
    /// The template is there, and every port has or will have a clone.
    Ready,
    /// The template can't be made, for this reason.
    Failed(String),
}

/// Where a template's keeper listens.
fn socket(cache: &Path, key: &str) -> PathBuf {
    folder(cache).join(key).with_extension(SOCKET)
}

/// Listens there.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    by_folder(socket, UnixListener::bind)
}

/// Connects to who listens there.
fn connect_to(socket: &Path) -> io::Result<UnixStream> {
    by_folder(socket, UnixStream::connect)
}

/// A socket's address has room for a hundred bytes of its path (unix(7)), and a cache may be further down than that. So it is
/// reached from its folder, as an open file of this process.
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

/// What a keeper writes down beside its socket.
#[derive(Serialize, Deserialize)]
struct Note {
    process: u32,
    recipe: Recipe,
}

impl Note {
    fn path(socket: &Path) -> PathBuf {
        socket.with_extension("json")
    }

    /// One that was killed has left its note behind.
    fn is_true(&self) -> bool {
        let line = fs::read(format!("/proc/{}/cmdline", self.process)).unwrap_or_default();
        line.split(|&byte| byte == 0)
            .any(|word| word == KEEPER_COMMAND.as_bytes())
    }
}

/// The templates in the labs that are kept now, by their keys.
pub fn kept(cache: &Path) -> Vec<(String, Recipe)> {
    let entries = fs::read_dir(folder(cache)).into_iter().flatten().flatten();
    let sockets = entries
        .map(|entry| entry.path())
        .filter(|path| is_socket(path));
    let noted = sockets.filter_map(|socket| {
        let key = socket.file_stem()?.to_str()?.to_owned();
        let note: Note = serde_json::from_slice(&fs::read(Note::path(&socket)).ok()?).ok()?;
        note.is_true().then_some((key, note.recipe))
    });
    noted.collect()
}

/// The sockets' extension.
const SOCKET: &str = "socket";

fn folder(cache: &Path) -> PathBuf {
    cache.join("labs")
}

/// Whether a file in the folder is a keeper's socket.
fn is_socket(path: &Path) -> bool {
    path.extension() == Some(OsStr::new(SOCKET))
}
