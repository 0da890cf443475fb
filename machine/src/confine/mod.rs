//! The walls around minivm's processes that handle what a guest wrote: the monitor, which runs it, and the unpacker of its files. A
//! process puts them up from within.
//!
//! The monitor opens what it needs, and then gives up all else, before it reads a byte that a guest, a kernel's file or a snapshot has
//! chosen. Code that takes the monitor over finds a process that owns its open descriptors and nothing more. The walls, in the order in
//! which they rise, for some take away what others need:
//!
//! | wall | what it takes from a monitor |
//! |---|---|
//! | limits | core dumps; more than a few descriptors |
//! | dumps | being read or traced by processes of the same user |
//! | namespaces | the host's IPC objects and names |
//! | empty root | each file that has a name |
//! | user | root: another user of the host's, which owns nothing |
//! | capabilities | all of them, those of a user namespace included |
//! | privileges | what an `exec` could give |
//! | Landlock | the same files once more, TCP, sockets, signals to other processes |
//! | descriptors | all that were inherited, and not named by the caller |
//! | system calls | all but some sixty, `ioctl` by request; fewer on a vCPU's thread |
//!
//! An ordinary user gets all of them, the namespaces by a user namespace. What a kernel or a container refuses is reported by
//! [`Walls`], with its reason, and the others stand without it; only the system calls must be filtered.
//!
//! The unpacker fills one folder, or one open file. It stays the user that it is, for the files to be that user's, and has no IPC or UTS
//! namespace. Its root is the folder; below that, Landlock leaves it the rights to fill it, and as root of a user namespace or of the host
//! it keeps two capabilities, by which modes don't close that to it. For an open file it has no names at all.

mod calls;
mod descriptors;
mod filters;
mod landlock;
mod namespaces;
mod privileges;
mod survey;

use std::fmt::{self, Display};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Resource;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::jail::lower_limit;
use privileges::Bond;
pub use survey::survey;

/// The names of the walls.
const LIMITS: &str = "limits";
const DUMPS: &str = "dumps";
const NAMESPACES: &str = "namespaces";
const ROOT: &str = "empty root";
const USER: &str = "user";
const CAPABILITIES: &str = "capabilities";
const PRIVILEGES: &str = "privileges";
const LANDLOCK: &str = "Landlock";
const DESCRIPTORS: &str = "descriptors";
const CALLS: &str = "system calls";

/// All walls, in the order in which they rise.
pub const ALL: [&str; 10] = [
    LIMITS,
    DUMPS,
    NAMESPACES,
    ROOT,
    USER,
    CAPABILITIES,
    PRIVILEGES,
    LANDLOCK,
    DESCRIPTORS,
    CALLS,
];

/// The most descriptors that a monitor has open: its files, and a few for each vCPU.
const MONITOR_FILES: u64 = 256;
/// The most descriptors that an unpacker has open: its sockets, a few folders, a file.
const UNPACKER_FILES: u64 = 64;
/// The most memory that an unpacker maps, its program included.
const UNPACKER_MEMORY: u64 = 512 << 20;

/// Whether minivm's processes put walls around themselves.
static WANTED: AtomicBool = AtomicBool::new(true);

/// Lets the processes that this program starts run without walls: a guest that breaks out of its machine has the user's rights then.
pub fn leave_out() {
    WANTED.store(false, Ordering::Relaxed);
}

/// Returns whether the processes that this program starts put walls around themselves.
pub(crate) fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// The walls around a process of minivm's: those that this host doesn't provide.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    /// The missing ones.
    pub missing: Vec<Missing>,
}

/// A wall that a process doesn't have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Its name, one of [`ALL`].
    pub wall: String,
    /// The call that failed and the kernel's reason.
    pub why: String,
}

impl Missing {
    fn new(wall: &str, why: impl Into<String>) -> Missing {
        Missing {
            wall: wall.into(),
            why: why.into(),
        }
    }

    /// Returns the maker of a missing wall of a call's error.
    fn of<E: Display>(wall: &str, call: &str) -> impl FnOnce(E) -> Missing {
        move |error| Missing::new(wall, format!("{call}: {error}"))
    }

    /// Returns what may provide the wall on this host.
    pub fn remedy(&self) -> &'static str {
        match self.wall.as_str() {
            NAMESPACES | ROOT => crate::jail::NAMESPACES_HINT,
            USER => "run minivm as an ordinary user, or give the container more users",
            LANDLOCK => {
                "Linux 6.12 or newer with CONFIG_SECURITY_LANDLOCK, and `landlock` in its lsm= parameter, if it has one"
            }
            DESCRIPTORS => "Linux 5.9 or newer",
            CALLS => {
                "a kernel with CONFIG_SECCOMP_FILTER, and no filter around minivm that refuses seccomp(2)"
            }
            _ => "no filter of system calls around minivm that refuses the call",
        }
    }
}

impl Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} ({})", self.wall, self.why)
    }
}

impl Walls {
    fn note(&mut self, wall: Result<(), Missing>) {
        self.missing.extend(wall.err());
    }
}

/// Puts this process behind its walls for good. It must have one thread: the walls are also those of each thread that it starts later.
///
/// `keep` are the descriptors that stay open, beside 0, 1 and 2. All others are closed, so no object of this process may own one.
///
/// # Errors
///
/// The kernel's, where it can't filter system calls, or where the process's parent has ended meanwhile. The process must end then:
/// some of its walls stand.
pub fn monitor(keep: &[BorrowedFd<'_>]) -> io::Result<Walls> {
    let mut walls = Walls::default();
    let bond = Bond::read();
    walls.note(descriptors::limit(MONITOR_FILES));
    walls.note(privileges::forbid_dumps());
    let user = privileges::pick_user();
    // Root may make namespaces, and as another user it may not any more; others need a user namespace.
    let apart = namespaces::enter(false);
    let user = user.and_then(|user| user.map_or(Ok(()), privileges::become_user));
    walls.note(apart.or_else(retry_with_user));
    walls.note(user);
    walls.note(privileges::drop_capabilities_but(CapabilitySet::empty()));
    walls.note(privileges::forbid_new());
    // Anew, for the change of user has undone it.
    walls.note(privileges::forbid_dumps());
    bond.restore()?;
    walls.note(landlock::restrict(None));
    walls.note(descriptors::close_all_but(keep));
    filters::restrict_process()?;
    Ok(walls)
}

/// Tries the namespaces again, as an ordinary user. Where that fails too, the attempt that came further has the reason.
fn retry_with_user(first: Missing) -> Result<(), Missing> {
    namespaces::enter(true).map_err(|second| match first.wall == ROOT {
        true => first,
        false => second,
    })
}

/// Restricts the calling thread, which runs a vCPU of a process behind [`monitor`]'s walls, to the calls that it needs for that.
///
/// # Errors
///
/// The kernel's, where it refuses the filter.
pub fn vcpu() -> io::Result<()> {
    filters::restrict_vcpu()
}

/// Puts this process, which unpacks files, behind its walls for good. It must have one thread. `folder` is the folder that it fills;
/// without one, it writes to an open file. `keep` are the descriptors that stay open, as [`monitor`]'s: no other folder's may be among
/// them.
///
/// # Errors
///
/// The kernel's, where it can't filter system calls. The process must end then: some of its walls stand.
pub fn unpacker(keep: &[BorrowedFd<'_>], folder: Option<BorrowedFd<'_>>) -> io::Result<Walls> {
    let mut walls = Walls::default();
    walls.note(descriptors::limit(UNPACKER_FILES));
    let bounded = lower_limit(Resource::As, UNPACKER_MEMORY);
    walls.note(bounded.map_err(Missing::of(LIMITS, "setrlimit")));
    walls.note(privileges::forbid_dumps());
    let rooted = folder.map(namespaces::enter_folder);
    let names = match &rooted {
        None => Names::None,
        Some(Ok(())) => Names::OfFolder,
        Some(Err(_)) => Names::OfHost,
    };
    walls.note(rooted.unwrap_or(Ok(())));
    walls.note(privileges::drop_capabilities_but(match folder {
        // Root's files are others' too, and a folder may be closed even to its owner.
        Some(_) => CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER,
        None => CapabilitySet::empty(),
    }));
    walls.note(privileges::forbid_new());
    walls.note(landlock::restrict(folder));
    walls.note(descriptors::close_all_but(keep));
    filters::restrict_unpacker(names)?;
    Ok(walls)
}

/// The names that an unpacker uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    None,
    /// They lead to nothing outside its folder.
    OfFolder,
    /// They could lead to any file; what is done by them is what Landlock can refuse.
    OfHost,
}

#[cfg(test)]
mod tests;
