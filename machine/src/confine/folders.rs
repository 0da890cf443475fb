//! The walls around a process that serves folders. It opens these by names when some of the walls stand, and reads nothing of them before
//! the others do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::thread::CapabilitySet;

use super::{Walls, descriptors, filters, landlock, namespaces, privileges};

/// An open folder or file that the process serves.
#[derive(Debug)]
pub struct Served<'a> {
    /// Its descriptor, which says where it is and no more (O_PATH).
    pub root: &'a mut OwnedFd,
    /// Whether it is a single file.
    pub is_file: bool,
    /// Whether it may be changed.
    pub is_writable: bool,
}

/// The first walls around a process that serves folders: names still lead to all of the host's files.
#[derive(Debug)]
#[must_use = "the other walls are missing"]
pub struct Folders {
    walls: Walls,
    is_apart: bool,
}

impl Folders {
    /// Puts the first walls around this process, which must have one thread; it opens at most so many files.
    pub fn begin(files: u64) -> Folders {
        let mut walls = Walls::default();
        walls.note(descriptors::limit(files));
        walls.note(privileges::forbid_dumps());
        // Without a further user namespace, whose files would have no owner: the process has one where it isn't root.
        let apart = namespaces::unshare(false);
        let is_apart = apart.is_ok();
        walls.note(apart);
        Folders { walls, is_apart }
    }

    /// Puts the other walls around this process, which still has one thread, for good. Each root becomes a mount of its own, out of which
    /// no `..` leads, and there are no others then. `keep` are the further descriptors that stay open, as [`monitor`](super::monitor)'s.
    ///
    /// # Errors
    ///
    /// The kernel's, where it can't filter system calls. The process must end then: some of its walls stand.
    pub fn finish(
        self,
        served: &mut [Served<'_>],
        keep: &[BorrowedFd<'_>],
        as_root: bool,
    ) -> io::Result<Walls> {
        let Folders {
            mut walls,
            is_apart,
        } = self;
        if is_apart {
            walls.note(apart(served));
        }
        walls.note(privileges::drop_capabilities_but(match as_root {
            // Root's files are others' too. In a user namespace of an ordinary user's, the process is root by name alone.
            true => CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER,
            false => CapabilitySet::empty(),
        }));
        walls.note(privileges::forbid_new());
        walls.note(landlock::restrict_to_served(served));
        let roots = served.iter().map(|served| served.root.as_fd());
        let kept: Vec<_> = keep.iter().copied().chain(roots).collect();
        walls.note(descriptors::close_all_but(&kept));
        filters::restrict_folders()?;
        Ok(walls)
    }
}

/// Makes each root a mount of its own, and unmounts all others.
fn apart(served: &mut [Served<'_>]) -> Result<(), super::Missing> {
    for served in served {
        *served.root = namespaces::mount_alone(&*served.root)?;
    }
    namespaces::leave_names()
}
