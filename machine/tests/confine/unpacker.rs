//! An unpacker that was taken over: it changes nothing outside the folder that it fills, and reaches no more than a monitor.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use minivm_machine::confine;
use minivm_tests::fork::{Ended, forked};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, chmodat, fchmod, linkat, mkdirat, openat,
    renameat, symlinkat, unlinkat, utimensat,
};
use rustix::process::geteuid;
use tempfile::TempDir;

use super::attacks::{self, Attack, Target};
use super::host::{HOSTS, Host, NOBODY};

/// A folder that is filled, in one with a file and a folder that any user may change.
pub(crate) struct Beside {
    pub(crate) above: TempDir,
}

impl Beside {
    pub(crate) fn new() -> Beside {
        let above = tempfile::tempdir().unwrap();
        let open = |name: &str, mode| {
            let path = above.path().join(name);
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        open(".", 0o777);
        for name in ["filled", "beside"] {
            fs::create_dir(above.path().join(name)).unwrap();
            open(name, 0o777);
        }
        fs::write(above.path().join("victim"), "safe").unwrap();
        open("victim", 0o666);
        let beside = Beside { above };
        for name in [".", "filled", "beside", "victim"] {
            beside.give_away(name);
        }
        beside
    }

    /// Gives a file to the ordinary user. Where it is not this user's to give, it is this user's.
    pub(crate) fn give_away(&self, name: &str) {
        let owner = Some(NOBODY);
        let _ = chown(self.above.path().join(name), owner, owner);
    }

    /// What stands outside the folder that is filled.
    pub(crate) fn state(&self) -> Vec<String> {
        let state_of = |name: &str| {
            let path = self.above.path().join(name);
            let metadata = fs::metadata(&path);
            let facts = metadata.map(|found| (found.mode(), found.len(), found.mtime_nsec()));
            let inside = fs::read_dir(&path).into_iter().flatten();
            let names: BTreeSet<_> = inside.map(|entry| entry.unwrap().file_name()).collect();
            format!("{facts:?} {names:?}")
        };
        let mut state = ["", "beside", "victim"].map(state_of).to_vec();
        let text = fs::read(self.above.path().join("victim"));
        state.push(format!("{text:?}"));
        state
    }
}

/// What code that has taken an unpacker over may try with names: by the open folder, and by the path of the one above.
pub(crate) type ByName = fn(BorrowedFd<'_>, &Path) -> io::Result<()>;

#[rustfmt::skip]
pub(crate) const BY_NAME: &[(&str, ByName)] = &[
    ("write to a file", |folder, _| write(folder, Path::new("../victim"), OVERWRITE)),
    ("write to a file by its path", |folder, above| write(folder, &above.join("victim"), OVERWRITE)),
    ("write through a link", |folder, above| {
        symlinkat(above.join("victim"), folder, "link")?;
        write(folder, Path::new("link"), OVERWRITE)
    }),
    ("create a file", |folder, _| write(folder, Path::new("../new"), CREATE)),
    ("create a file deeper", |folder, _| write(folder, Path::new("../beside/new"), CREATE)),
    ("create a folder", |folder, _| Ok(mkdirat(folder, "../new", Mode::RWXU)?)),
    ("create a link", |folder, _| Ok(symlinkat("/", folder, "../new")?)),
    ("remove a file", |folder, _| Ok(unlinkat(folder, "../victim", AtFlags::empty())?)),
    ("remove a folder", |folder, _| Ok(unlinkat(folder, "../beside", AtFlags::REMOVEDIR)?)),
    ("move a file out", |folder, _| {
        write(folder, Path::new("inner"), CREATE)?;
        Ok(renameat(folder, "inner", folder, "../victim")?)
    }),
    ("move a file in", |folder, _| Ok(renameat(folder, "../victim", folder, "mine")?)),
    ("link a file out", |folder, _| {
        write(folder, Path::new("inner"), CREATE)?;
        Ok(linkat(folder, "inner", folder, "../new", AtFlags::empty())?)
    }),
    ("close a file", |folder, _| Ok(chmodat(folder, "../victim", Mode::empty(), AtFlags::empty())?)),
    ("close a folder", |folder, _| {
        let beside = openat(folder, "../beside", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(fchmod(beside, Mode::RUSR)?)
    }),
    ("set a file's times", |folder, _| Ok(utimensat(folder, "../victim", &LONG_AGO, AtFlags::empty())?)),
];

pub(crate) const OVERWRITE: OFlags = OFlags::WRONLY.union(OFlags::TRUNC);
pub(crate) const CREATE: OFlags = OFlags::WRONLY.union(OFlags::CREATE);
const LONG_AGO: Timestamps = Timestamps {
    last_access: SECOND,
    last_modification: SECOND,
};
const SECOND: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 1,
};

pub(crate) fn write(folder: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<()> {
    let file = openat(folder, path, flags, Mode::from_raw_mode(0o666))?;
    rustix::io::write(file, b"evil")?;
    Ok(())
}

#[test]
fn an_unpacker_that_was_taken_over_changes_nothing_outside_its_folder() {
    for (what, attack) in BY_NAME {
        for host in HOSTS.into_iter().filter(|host| host.bounds_names()) {
            let bare = attack_by_name(host, *attack, false);
            assert_eq!(bare, (Ended::Returned("done".into()), true), "{what}");
            let (ended, has_changed) = attack_by_name(host, *attack, true);
            assert!(!has_changed, "{what} on {host:?}: {ended:?}");
        }
    }
}

/// Runs one attack, behind walls or without; returns how that ended, and whether something outside the folder changed.
fn attack_by_name(host: Host, attack: ByName, walls: bool) -> (Ended, bool) {
    let beside = Beside::new();
    let before = beside.state();
    let above = beside.above.path();
    let ended = forked(|report| {
        host.enter();
        host.make_user_namespace();
        let folder = File::open(above.join("filled")).unwrap();
        if walls {
            // The user root may change its root without a namespace.
            let is_root = geteuid().is_root();
            let kept = [report, folder.as_fd()];
            let found = confine::unpacker(&kept, Some(folder.as_fd())).unwrap();
            host.check_all_but(&found, if is_root { &[] } else { &["empty root"] });
        }
        outcome(attack(folder.as_fd(), above))
    });
    (ended, beside.state() != before)
}

/// Describes what came of an attack.
pub(crate) fn outcome(attack: io::Result<()>) -> String {
    match attack {
        Ok(()) => "done".into(),
        Err(error) => error.kind().to_string(),
    }
}

#[test]
fn an_unpacker_that_was_taken_over_reaches_no_more_than_a_monitor() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let socket = folder.path().join("socket");
    let _listening = UnixListener::bind(&socket).unwrap();
    let target = Target {
        broker: 0,
        tcp: tcp.local_addr().unwrap(),
        socket,
    };
    let hosts = HOSTS.into_iter().filter(|host| host.bounds_names());
    for (host, fills_folder) in hosts.flat_map(|host| [(host, false), (host, true)]) {
        // Of its folder it may look at all, and of the host's names, where they are that.
        let may = |what| fills_folder && ["look a name up", "list a folder"].contains(&what);
        for attack in attacks::ALL.iter().filter(|attack| !may(attack.name)) {
            let ended = behind_walls(host, fills_folder, attack, &target);
            let killed = format!("killed by {}", libc::SIGSYS);
            let failures = ["permission denied", "entity not found", &killed];
            let has_failed = matches!(&ended, Ended::Returned(text) if failures.contains(&&**text));
            assert!(has_failed, "{} on {host:?}: {ended:?}", attack.name);
        }
    }
}

/// Runs one attack behind the walls, in a child of a process of the same user that others may look into; returns how it ended.
fn behind_walls(host: Host, fills_folder: bool, attack: &Attack, target: &Target) -> Ended {
    forked(|_| {
        host.enter();
        let target = Target {
            // Behind the walls a process can't ask for it.
            broker: std::process::id().cast_signed(),
            ..target.clone()
        };
        let ended = forked(|report| {
            host.make_user_namespace();
            let filled = File::open(target.socket.parent().unwrap()).unwrap();
            let kept = [report, filled.as_fd()];
            confine::unpacker(&kept, fills_folder.then_some(filled.as_fd())).unwrap();
            outcome((attack.attempt)(&target))
        });
        match ended {
            Ended::Returned(text) => text,
            Ended::Killed(signal) => format!("killed by {signal}"),
        }
    })
}
