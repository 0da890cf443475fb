//! The hosts that a confined process may find: as root and as an ordinary user, on a machine and in a container.

use std::path::Path;
use std::sync::LazyLock;

use minivm_machine::confine::Walls;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{DumpableBehavior, Gid, Uid, geteuid, set_dumpable_behavior, umask};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities, set_capabilities, unshare_unsafe};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// An unprivileged user: most systems call it `nobody`.
pub(crate) const NOBODY: u32 = 65534;
/// The numbers of devices that a monitor opens, or that which starts it.
const DEVICES: [(&str, u32, u32); 2] = [("/dev/null", 1, 3), ("/dev/kvm", 10, 232)];

/// A host that a monitor may find.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    /// Whether minivm is root there, if the tests are.
    root: bool,
    /// Whether it is a container, in which no namespaces can be made.
    container: bool,
}

const fn host(root: bool, container: bool) -> Host {
    Host { root, container }
}

pub(crate) const HOSTS: [Host; 4] = [
    host(true, false),
    host(false, false),
    host(true, true),
    host(false, true),
];

impl Host {
    /// Makes this process one of that host's. It must have one thread.
    pub(crate) fn enter(self) {
        LazyLock::force(&HAS_LANDLOCK);
        if !self.root && geteuid().is_root() {
            offer_devices();
            become_nobody();
        }
        if self.container {
            refuse_namespaces();
        }
    }

    /// Makes the user namespace that an unpacker of an ordinary user's finds itself in, where it can be made.
    #[allow(unsafe_code, reason = "rustix's call for it is unsafe")]
    pub(crate) fn make_user_namespace(self) {
        if !geteuid().is_root() && !self.container {
            // SAFETY: without CLONE_FILES no thread loses descriptors of others.
            unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }.unwrap();
        }
    }

    /// Whether this host's kernel has all of Landlock.
    pub(crate) fn has_landlock(self) -> bool {
        *HAS_LANDLOCK
    }

    /// Whether it is a container, in which no namespaces can be made.
    pub(crate) fn is_container(self) -> bool {
        self.container
    }

    /// Whether an unpacker's names can be bounded there: by Landlock, or by a change of root. The tests' own user asks.
    pub(crate) fn bounds_names(self) -> bool {
        *HAS_LANDLOCK || !self.container || self.root && geteuid().is_root()
    }

    /// Checks that the walls of a monitor are those that such a host can have.
    pub(crate) fn check(self, walls: &Walls) {
        self.check_all_but(walls, &["namespaces"]);
    }

    /// Checks that the walls are those that such a host can have; in a container, these are missing.
    pub(crate) fn check_all_but(self, walls: &Walls, of_container: &[&str]) {
        let missing: Vec<_> = walls
            .missing
            .iter()
            .map(|missing| &missing.wall[..])
            .collect();
        let expected: &[&str] = match self.container {
            false => &[],
            true => of_container,
        };
        let by_kernel = |wall: &&&str| **wall != "Landlock" || *HAS_LANDLOCK;
        let missing: Vec<_> = missing.iter().filter(by_kernel).copied().collect();
        assert_eq!(missing, expected, "{walls:?}");
    }
}

/// Lets all users open the devices that a monitor needs, as most hosts do: by a `/dev` of this process's own.
#[allow(unsafe_code, reason = "rustix's call for it is unsafe")]
fn offer_devices() {
    // SAFETY: without CLONE_FILES no thread loses descriptors of others.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).unwrap();
    mount("minivm", "/dev", "tmpfs", MountFlags::NOEXEC, c"mode=755").unwrap();
    let mask = umask(Mode::empty());
    let mode = Mode::from_raw_mode(0o666);
    for (path, major, minor) in DEVICES {
        let device = makedev(major, minor);
        mknodat(
            CWD,
            Path::new(path),
            FileType::CharacterDevice,
            mode,
            device,
        )
        .unwrap();
    }
    umask(mask);
}

fn become_nobody() {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(group, group, group).unwrap();
    rustix::thread::set_thread_res_uid(user, user, user).unwrap();
    // As most programs are, which have not changed their user.
    set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap();
}

/// Takes what a container lacks in Docker: CAP_SYS_ADMIN, and calls by which programs without it make namespaces.
fn refuse_namespaces() {
    let mut held = capabilities(None).unwrap();
    held.effective.remove(CapabilitySet::SYS_ADMIN);
    held.permitted.remove(CapabilitySet::SYS_ADMIN);
    held.inheritable.remove(CapabilitySet::SYS_ADMIN);
    set_capabilities(None, held).unwrap();
    let calls = [
        libc::SYS_unshare,
        libc::SYS_mount,
        libc::SYS_setns,
        libc::SYS_pivot_root,
    ];
    let mut rules: std::collections::BTreeMap<_, _> =
        calls.into_iter().map(|call| (call, Vec::new())).collect();
    // Each flag of a new namespace.
    let flags = 0x7e02_0000_u64;
    let bits = (0..u64::BITS)
        .map(|bit| 1 << bit)
        .filter(|bit| flags & bit != 0);
    let has = |bit| {
        let equal = SeccompCmpOp::MaskedEq(bit);
        let has = SeccompCondition::new(0, SeccompCmpArgLen::Qword, equal, bit).unwrap();
        SeccompRule::new(vec![has]).unwrap()
    };
    rules.insert(libc::SYS_clone, bits.map(has).collect());
    let error = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, error, machine).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Whether this kernel has all of Landlock. Behind the walls it can't be asked any more.
static HAS_LANDLOCK: LazyLock<bool> = LazyLock::new(|| {
    #[allow(unsafe_code, reason = "the call has no safe interface")]
    // SAFETY: with this flag, which asks for the version, the call takes no structure.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    version >= 6
});
