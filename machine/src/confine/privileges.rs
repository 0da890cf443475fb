//! A confined process's rights: an unprivileged user where it was root and may be another, few capabilities, and none to come.

use std::io;

use rustix::process::{
    DumpableBehavior, Gid, Pid, Signal, Uid, geteuid, getppid, parent_process_death_signal,
    set_dumpable_behavior, set_parent_process_death_signal,
};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::{CAPABILITIES, DUMPS, Missing, PRIVILEGES, USER};
use crate::jail::free_user;

/// The IDs of a user and of a group.
pub(super) type Ids = (Uid, Gid);

/// Picks a user that owns nothing, for a process that is root; `None` for others. It reads a file below `/proc`.
///
/// # Errors
///
/// The missing wall, where there is no such user.
pub(super) fn pick_user() -> Result<Option<Ids>, Missing> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    match free_user::pick(seed()) {
        Ok(Some((user, group))) => Ok(Some((Uid::from_raw(user), Gid::from_raw(group)))),
        Ok(None) if free_user::is_root_mapped_away() => Ok(None),
        Ok(None) => Err(Missing::new(
            USER,
            "this container has no user that is free",
        )),
        Err(error) => Err(Missing::of(USER, "/proc/self/uid_map")(error)),
    }
}

/// Becomes that user, without groups. The process must have one thread.
///
/// # Errors
///
/// The missing wall, where this process stays root or keeps root's groups.
pub(super) fn become_user((user, group): Ids) -> Result<(), Missing> {
    // While there still is the right to it.
    empty_bounding_set();
    // Each of them counts, also where another fails.
    let done = [
        ("setgroups", set_thread_groups(&[])),
        ("setresgid", set_thread_res_gid(group, group, group)),
        ("setresuid", set_thread_res_uid(user, user, user)),
    ];
    done.into_iter()
        .try_for_each(|(call, done)| done.map_err(Missing::of(USER, call)))
}

/// Gives up all capabilities but these, those of a user namespace included.
///
/// # Errors
///
/// The missing wall.
pub(super) fn drop_capabilities_but(kept: CapabilitySet) -> Result<(), Missing> {
    empty_bounding_set();
    // Linux 4.2 and older have none.
    let _ = clear_ambient_capability_set();
    let sets = capabilities(None).and_then(|have| {
        let left = CapabilitySets {
            effective: have.effective & kept,
            permitted: have.permitted & kept,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, left)
    });
    sets.map_err(Missing::of(CAPABILITIES, "capset"))
}

/// Keeps this process from rights that an `exec` would give it, as one of a set-user-ID program does.
///
/// # Errors
///
/// The missing wall.
pub(super) fn forbid_new() -> Result<(), Missing> {
    set_no_new_privs(true).map_err(Missing::of(PRIVILEGES, "prctl (PR_SET_NO_NEW_PRIVS)"))
}

/// Lets no process of the same user read this one's memory, and no core dump be made of it. A change of the user undoes that.
///
/// # Errors
///
/// The missing wall.
pub(super) fn forbid_dumps() -> Result<(), Missing> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(Missing::of(DUMPS, "prctl (PR_SET_DUMPABLE)"))
}

/// Removes all capabilities from the bounding set, where this process may: without `exec` it matters little.
fn empty_bounding_set() {
    let _ = (0..u64::BITS)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        // The first error is that of the first number that the kernel has no capability of, or of a missing right.
        .try_for_each(remove_capability_from_bounding_set);
}

/// Draws a number by which two monitors most likely get different users. The process's ID would not do: in a namespace of its own each
/// is 1.
fn seed() -> u32 {
    let mut seed = [0; 4];
    let _ = getrandom(&mut seed, GetRandomFlags::empty());
    u32::from_ne_bytes(seed)
}

/// The bond with this process's parent: the signal that this process gets at the parent's end. The kernel forgets it when the process
/// becomes another user.
pub(super) struct Bond {
    parent: Option<Pid>,
    signal: Option<Signal>,
}

impl Bond {
    /// Reads it.
    pub(super) fn read() -> Bond {
        Bond {
            parent: getppid(),
            signal: parent_process_death_signal().ok().flatten(),
        }
    }

    /// Restores it.
    ///
    /// # Errors
    ///
    /// ESRCH where the parent has ended meanwhile, or the kernel's error.
    pub(super) fn restore(&self) -> io::Result<()> {
        if self.signal.is_none() {
            return Ok(());
        }
        set_parent_process_death_signal(self.signal)?;
        match getppid() == self.parent {
            true => Ok(()),
            false => Err(rustix::io::Errno::SRCH.into()),
        }
    }
}
