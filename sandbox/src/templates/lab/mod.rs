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
//! The agent boots the template's machine, saves it in the lab's memory, and keeps a clone waiting at every port. A session
//! begins with the first frame at a port and has two ends: the agent says that the machine has ended, and the keeper hangs up.
//! Then the port gets another clone. A keeper whose template can't be made tells so to everybody who asks for a while.

mod agent;
mod client;
mod keeper;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use agent::run as run_agent;
pub(super) use client::stop_one;
pub use client::{connect, connect_or_start, stop_all};
pub use keeper::run as run_keeper;

/// The argument that makes this program a keeper. The command line must hand it to [`run_keeper`].
pub const KEEPER_COMMAND: &str = "lab-keep";
/// The argument that makes this program an agent. The command line must hand it to [`run_agent`].
pub const AGENT_COMMAND: &str = "lab-agent";

/// How many commands can run in a lab at once.
const PORTS: usize = 4;
/// How long a lab stays that nobody uses.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// How long it is remembered that a template can't be made.
const FAILED: Duration = Duration::from_secs(60);
/// What the agent says on its stdout when the template is there.
const READY: &str = "ready\n";
/// Where the lab has the recipe.
const RECIPE: &str = "/recipe.json";

/// Where a template's keeper listens.
fn socket(cache: &Path, key: &str) -> PathBuf {
    folder(cache).join(key).with_extension(SOCKET)
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
