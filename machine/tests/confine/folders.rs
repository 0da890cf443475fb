//! A process that serves folders and was taken over: it reads and changes nothing outside them, changes nothing in one that is to be read,
//! and reaches no more than a monitor.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use minivm_machine::confine::{Folders, Served};
use minivm_tests::fork::{Ended, forked};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with, unlinkat};

use super::attacks::{self, Target};
use super::host::{HOSTS, Host};
use super::unpacker::{BY_NAME, Beside, ByName, CREATE, OVERWRITE, outcome, write};

/// Opens the folder, goes behind the walls with it, and acts.
fn behind_walls(
    host: Host,
    folder: &Path,
    is_writable: bool,
    report: BorrowedFd<'_>,
    act: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> String {
    host.enter();
    host.make_user_namespace();
    let is_root = rustix::process::geteuid().is_root();
    let walls = Folders::begin(64);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut root = openat(rustix::fs::CWD, folder, flags, Mode::empty()).unwrap();
    let mut served = [Served {
        root: &mut root,
        is_file: false,
        is_writable,
    }];
    let walls = walls.finish(&mut served, &[report], is_root).unwrap();
    host.check(&walls);
    outcome(act(root.as_fd()))
}

/// Opens a file and reads it.
fn read(folder: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let file = openat(folder, path, OFlags::RDONLY, Mode::empty())?;
    rustix::io::read(file, &mut [0; 8])?;
    Ok(())
}

#[rustfmt::skip]
const READS: &[(&str, ByName)] = &[
    ("read a file", |folder, _| read(folder, Path::new("../victim"))),
    ("read a file by its path", |folder, above| read(folder, &above.join("victim"))),
    ("read a file through a link", |folder, _| read(folder, Path::new("link"))),
    ("list a folder", |folder, _| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        openat(folder, "../beside", flags, Mode::empty()).map(drop).map_err(io::Error::from)
    }),
];

/// Further changes outside, by the calls of a folder server.
#[rustfmt::skip]
const MOVES: &[(&str, ByName)] = &[
    ("move a file out", |folder, _| Ok(renameat_with(folder, "inner", folder, "../victim", RenameFlags::empty())?)),
    ("move a file in", |folder, _| Ok(renameat_with(folder, "../victim", folder, "mine", RenameFlags::empty())?)),
    ("exchange two files", |folder, _| Ok(renameat_with(folder, "inner", folder, "../victim", RenameFlags::EXCHANGE)?)),
];

/// Changes in the folder itself.
#[rustfmt::skip]
const INSIDE: &[(&str, ByName)] = &[
    ("write to a file", |folder, _| write(folder, Path::new("inner"), OVERWRITE)),
    ("create a file", |folder, _| write(folder, Path::new("new"), CREATE)),
    ("create a folder", |folder, _| Ok(mkdirat(folder, "new", Mode::RWXU)?)),
    ("remove a file", |folder, _| Ok(unlinkat(folder, "inner", AtFlags::empty())?)),
    ("move a file", |folder, _| Ok(renameat_with(folder, "inner", folder, "new", RenameFlags::empty())?)),
];

/// A folder with a file and a link out in it, and something beside.
fn beside() -> Beside {
    let beside = Beside::new();
    let filled = beside.above.path().join("filled");
    fs::write(filled.join("inner"), "inner").unwrap();
    std::os::unix::fs::symlink("../victim", filled.join("link")).unwrap();
    beside.give_away("filled/inner");
    beside
}

#[test]
fn a_folder_server_that_was_taken_over_changes_nothing_outside_its_folders() {
    // Without a root of their own, permissions and times have names that nothing bounds.
    let unbounded = ["close a file", "set a file's times"];
    for host in HOSTS.into_iter().filter(|host| host.bounds_names()) {
        let bounded = |what: &&str| !host.is_container() || !unbounded.contains(what);
        for (what, attack) in BY_NAME
            .iter()
            .chain(MOVES)
            .filter(|(what, _)| bounded(what))
        {
            let beside = beside();
            let before = beside.state();
            let above = beside.above.path();
            let ended = forked(|report| {
                behind_walls(host, &above.join("filled"), true, report, |folder| {
                    attack(folder, above)
                })
            });
            let ended = format!("{what} on {host:?}: {ended:?}");
            assert_eq!(beside.state(), before, "{ended}");
        }
    }
}

#[test]
fn a_folder_server_that_was_taken_over_reads_nothing_outside_its_folders() {
    for host in HOSTS.into_iter().filter(|host| host.bounds_names()) {
        for (what, attack) in READS {
            let beside = beside();
            let above = beside.above.path();
            let bare = forked(|_| {
                host.enter();
                let folder: OwnedFd = File::open(above.join("filled")).unwrap().into();
                outcome(attack(folder.as_fd(), above))
            });
            assert_eq!(bare, Ended::Returned("done".into()), "{what}");
            let ended = forked(|report| {
                behind_walls(host, &above.join("filled"), true, report, |folder| {
                    attack(folder, above)
                })
            });
            let refused = ["permission denied", "entity not found"];
            let refused = refused.map(|text| Ended::Returned(text.into()));
            assert!(refused.contains(&ended), "{what} on {host:?}: {ended:?}");
        }
    }
}

#[test]
fn a_folder_that_is_to_be_read_is_not_changed() {
    for host in HOSTS.into_iter().filter(|host| host.has_landlock()) {
        for (what, attack) in INSIDE {
            for is_writable in [true, false] {
                let beside = beside();
                let above = beside.above.path();
                let ended = forked(|report| {
                    behind_walls(host, &above.join("filled"), is_writable, report, |folder| {
                        attack(folder, above)
                    })
                });
                let expected = if is_writable {
                    "done"
                } else {
                    "permission denied"
                };
                let expected = Ended::Returned(expected.into());
                assert_eq!(ended, expected, "{what} on {host:?}");
            }
        }
    }
}

#[test]
fn a_folder_server_that_was_taken_over_reaches_no_more_than_a_monitor() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let beside = Beside::new();
    let folder = beside.above.path().join("filled");
    let socket = folder.join("socket");
    let _listening = UnixListener::bind(&socket).unwrap();
    let others = attacks::ALL.iter();
    // It answers on several threads.
    let others = others.filter(|attack| attack.name != "start a thread");
    for attack in others {
        for host in HOSTS.into_iter().filter(|host| host.has_landlock()) {
            let ended = forked(|_| {
                let target = Target {
                    // Behind the walls a process can't ask for it.
                    broker: std::process::id().cast_signed(),
                    tcp: tcp.local_addr().unwrap(),
                    socket: socket.clone(),
                };
                let ended = forked(|report| {
                    behind_walls(host, &folder, true, report, |_| (attack.attempt)(&target))
                });
                match ended {
                    Ended::Returned(text) => text,
                    Ended::Killed(signal) => format!("killed by {signal}"),
                }
            });
            let killed = format!("killed by {}", libc::SIGSYS);
            let failures = ["permission denied", "entity not found", &killed];
            let has_failed = matches!(&ended, Ended::Returned(text) if failures.contains(&&**text));
            assert!(has_failed, "{} on {host:?}: {ended:?}", attack.name);
        }
    }
}
