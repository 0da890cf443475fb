//! The walls around minivm's own processes that touch what others have made, from within: around the monitor, which runs a guest, the
//! fetcher, which reads images, the unpacker, which writes the files that a guest sends, and the folder server, which does what a guest asks
//! with the user's folders.
//!
//! Such a process opens what it needs, and then gives up all else, before it reads a byte that a guest, a kernel's file, a snapshot, a
//! registry or an image has chosen. Code that takes the monitor over finds a process that owns its open descriptors and nothing more;
//! code that takes the fetcher over, one that makes files in the cache's folders of images and reads its own image; code that takes the
//! unpacker over, one that fills the folder that it was given; code that takes the folder server over, one that reads its folders, what is
//! hidden in them as well, and changes those that may be changed. The walls, in the order in which they rise, for some take away what others
//! need:
//!
//! | wall | what it takes from the monitor | the fetcher | the unpacker | the folder server |
//! |---|---|---|---|---|
//! | limits | core dumps; more than a few descriptors | the same | the same, and memory beyond a bound | core dumps; more descriptors than its guest may have open |
//! | dumps | being read or traced by processes of the same user | the same | the same | the same |
//! | namespaces | the host's IPC objects and names | | none: it gets one of users, for its root | as the monitor's |
//! | empty root | each file that has a name | | each that is not in the folder that it fills | each that is not in its folders, which are mounts of their own |
//! | user | root: another user of the host's, which owns nothing | | | |
//! | capabilities | all of them, those of a user namespace included | keeps, of root's, reading any file: of its image | keeps two, by which modes don't close its folder | keeps, of root's, the same two |
//! | privileges | what an `exec` could give | the same | the same | the same |
//! | Landlock | the same files once more, TCP, sockets, signals to other processes | keeps its `Reach` | keeps filling its folder | keeps reading its folders, and changing those that may be changed |
//! | descriptors | all that were inherited, and not named by the caller | the same | the same | the same |
//! | system calls | all but some sixty, `ioctl` by request; fewer on a vCPU's thread | files, and sockets of the Internet | files; names, if it fills a folder | files, threads |
//!
//! The fetcher, the unpacker and the folder server make files, which have to be the user's. So they stay that user, and the fetcher, whose
//! folders have names, stays in the host's namespaces. An unpacker that writes to an open file has no names at all, and keeps no capability.
//!
//! An ordinary user gets all of them, the namespaces by a user namespace. What a kernel or a container refuses is reported by [`Walls`],
//! with its reason, and the others stand without it; only the system calls must be filtered. Each wall that another process lacks on a host
//! the monitor lacks as well: [`survey`] tries the monitor's. Where that finds no namespaces, an unpacker of an ordinary user's has no root
//! of its own, and a folder server names that Landlock alone bounds.

mod calls;
mod descriptors;
mod filters;
mod folders;
mod landlock;
mod namespaces;
mod privileges;
mod survey;

use std::fmt::{self, Display};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Resource;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::jail::lower_limit;
pub use folders::{Folders, Served};
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

/// The walls that a fetcher has, too.
pub const FETCHER: [&str; 7] = [
    LIMITS,
    DUMPS,
    CAPABILITIES,
    PRIVILEGES,
    LANDLOCK,
    DESCRIPTORS,
    CALLS,
];

/// The walls that an unpacker and a folder server have, too. Of the namespaces an unpacker has the one of users, for its root.
pub const UNPACKER: [&str; 9] = [
    LIMITS,
    DUMPS,
    NAMESPACES,
    ROOT,
    CAPABILITIES,
    PRIVILEGES,
    LANDLOCK,
    DESCRIPTORS,
    CALLS,
];

/// The most descriptors that a monitor has open: its files, and a few for each vCPU.
const MONITOR_FILES: u64 = 256;
/// The most descriptors that a fetcher has open: each layer of its image, each folder on the way to a file, and a few.
const FETCHER_FILES: u64 = 4096;
/// The most descriptors that an unpacker has open: its sockets, a few folders, a file.
const UNPACKER_FILES: u64 = 64;
/// The most memory that an unpacker maps, its program included.
const UNPACKER_MEMORY: u64 = 512 << 20;

/// Whether minivm's processes put walls around themselves.
static WANTED: AtomicBool = AtomicBool::new(true);

/// Lets the processes that this program starts run without walls: a guest that breaks out of its machine, and an image or an archive that
/// takes its reader over, have the user's rights then.
pub fn leave_out() {
    WANTED.store(false, Ordering::Relaxed);
}

/// Returns whether the processes that this program starts put walls around themselves.
pub(crate) fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// What a fetcher reaches by name.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// Folders in which it makes, moves, reads and removes files.
    pub(crate) filled: Vec<PathBuf>,
    /// Files and folders that it reads.
    pub(crate) read: Vec<PathBuf>,
    /// Whether it connects to servers.
    pub(crate) network: bool,
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
    walls.note(landlock::restrict());
    walls.note(descriptors::close_all_but(keep));
    filters::restrict_process()?;
    Ok(walls)
}

/// Puts this process behind a fetcher's walls for good, on the same conditions as [`monitor`].
///
/// # Errors
///
/// The kernel's, where it can't filter system calls. The process must end then.
pub(crate) fn fetcher(reach: &Reach, keep: &[BorrowedFd<'_>]) -> io::Result<Walls> {
    let mut walls = Walls::default();
    walls.note(descriptors::limit(FETCHER_FILES));
    walls.note(privileges::forbid_dumps());
    // An image's folder may have files of any user's.
    let kept = CapabilitySet::DAC_READ_SEARCH;
    walls.note(privileges::drop_capabilities_but(kept));
    walls.note(privileges::forbid_new());
    walls.note(landlock::restrict_to_reach(reach));
    walls.note(descriptors::close_all_but(keep));
    filters::restrict_fetcher(reach.network)?;
    Ok(walls)
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
    walls.note(match folder {
        Some(folder) => landlock::restrict_to_folder(folder),
        None => landlock::restrict(),
    });
    walls.note(descriptors::close_all_but(keep));
    filters::restrict_unpacker(names)?;
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

#[cfg(test)]
mod tests;
