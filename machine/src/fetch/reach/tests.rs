//! What a process behind a fetcher's walls does, and what it can't do: tried in copies of this one, since there is no way back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use minivm_tests::fork::{Ended, forked};
use rustix::fs::{AtFlags, CWD, unlinkat};
use rustix::process::{
    Gid, Pid, PidfdFlags, Signal, Uid, geteuid, getppid, kill_process, pidfd_open,
};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tempfile::TempDir;

use super::*;
use crate::confine;

/// An unprivileged user: most systems call it `nobody`.
const NOBODY: u32 = 65534;

/// Files of this host's that a fetcher without a network has no use for.
const CLOSED: [&str; 6] = [
    "/etc/passwd",
    "/etc/shadow",
    "/etc/resolv.conf",
    "/proc/self/environ",
    "/proc/1/environ",
    "/root/.bashrc",
];

/// A cache, a source, and a home with secrets.
struct Host(TempDir);

impl Host {
    fn new() -> Host {
        let host = Host(tempfile::tempdir().unwrap());
        let caches = FOLDERS.map(|name| format!("cache/{name}"));
        let folders = [
            "",
            "cache",
            "cache/kernel",
            "cache/assets",
            "source",
            "home/.ssh",
        ];
        let folders = || folders.into_iter().chain(caches.iter().map(String::as_str));
        for name in folders() {
            fs::create_dir_all(host.path(name)).unwrap();
        }
        for name in [
            "cache/kernel/vmlinux",
            "cache/assets/runsc",
            "source/file",
            "home/.ssh/id_ed25519",
        ] {
            fs::write(host.path(name), "x").unwrap();
        }
        symlink("../home/.ssh/id_ed25519", host.path("source/link")).unwrap();
        // For another user, which this process becomes: what is closed is so by the walls.
        for name in folders() {
            let everyones = fs::Permissions::from_mode(0o777);
            fs::set_permissions(host.path(name), everyones).unwrap();
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Calls `act` behind the walls, in a copy of this process, as this user and as an ordinary one. `act` gets that copy's parent,
    /// and whether the kernel has all of Landlock.
    fn behind_walls(&self, source: &Source, act: impl Fn(Pid, bool)) {
        let copy = |report: BorrowedFd<'_>| {
            // Behind the walls a process can't ask for it.
            let parent = getppid().unwrap();
            let walls = confine::fetcher(&of(source, &self.path("cache")), &[report]).unwrap();
            let missing: Vec<_> = walls.missing.iter().map(|one| &one.wall[..]).collect();
            assert!(matches!(missing[..], [] | ["Landlock"]), "{missing:?}");
            act(parent, missing.is_empty());
            "done".to_owned()
        };
        let done = Ended::Returned("done".into());
        assert_eq!(forked(copy), done);
        let ordinary = |report: BorrowedFd<'_>| {
            become_nobody();
            copy(report)
        };
        assert_eq!(forked(ordinary), done, "as nobody");
    }
}

fn become_nobody() {
    if geteuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
    }
}

/// Asserts that the kernel refused something.
#[track_caller]
fn assert_refused<T>(result: io::Result<T>, what: impl AsRef<Path>) {
    let error = result.map(drop).expect_err("it was done");
    let what = what.as_ref();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{what:?}");
}

/// Tries what no fetcher may do, whatever its source is.
fn attack(host: &Host, parent: Pid) {
    assert_refused(Command::new("/bin/true").spawn(), "start a program");
    let exec: io::Result<()> = Err(Command::new("/bin/true").exec());
    assert_refused(exec, "become a program");
    let signal = kill_process(parent, Signal::CONT);
    assert_refused(signal.map_err(io::Error::from), "signal the parent");
    let handle = pidfd_open(parent, PidfdFlags::empty());
    assert_refused(handle.map_err(io::Error::from), "a handle to the parent");
    assert_refused(UnixStream::connect(host.path("socket")), "a socket");
    assert_refused(UnixDatagram::unbound(), "a Unix socket");
}

/// Asserts that these can't be read.
fn assert_closed<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    for path in paths.into_iter().filter(|path| path.exists()) {
        assert_refused(File::open(path), path);
    }
}

#[test]
fn a_folders_fetcher_has_its_source_and_the_images_of_the_cache() {
    let host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _socket = UnixListener::bind(host.path("socket")).unwrap();
    let source = Source::Folder(host.path("source"));
    host.behind_walls(&source, |parent, has_landlock| {
        assert_eq!(fs::read(host.path("source/file")).unwrap(), b"x");
        let link = fs::read_link(host.path("source/link")).unwrap();
        assert_eq!(link, Path::new("../home/.ssh/id_ed25519"));
        for name in FOLDERS.map(|name| host.path("cache").join(name)) {
            let inner = name.join("deep");
            fs::create_dir(&inner).unwrap();
            fs::write(inner.join("a"), "x").unwrap();
            fs::rename(inner.join("a"), name.join("a")).unwrap();
            let unnamed = tempfile::tempfile_in(&inner).unwrap();
            (&unnamed).write_all(b"x").unwrap();
            unlinkat(CWD, inner, AtFlags::REMOVEDIR).unwrap();
            fs::remove_file(name.join("a")).unwrap();
        }
        thread::spawn(|| {}).join().unwrap();
        attack(&host, parent);
        assert_refused(TcpListener::bind("127.0.0.1:0"), "listen at TCP");
        assert_refused(TcpStream::connect(address), "connect by TCP");
        assert_refused(UdpSocket::bind("127.0.0.1:0"), "a UDP socket");
        if !has_landlock {
            return;
        }
        assert_closed(CLOSED.map(Path::new));
        let ours = [
            "source/link",
            "home/.ssh/id_ed25519",
            "cache/kernel/vmlinux",
            "cache/assets/runsc",
        ];
        assert_closed(
            ours.map(|name| host.path(name))
                .iter()
                .map(PathBuf::as_path),
        );
        for name in [
            "source/new",
            "cache/new",
            "home/.ssh/authorized_keys",
            "new",
        ] {
            assert_refused(File::create(host.path(name)), name);
        }
        let lists = fs::read_dir(host.path("home/.ssh"));
        assert_refused(lists, "list a folder");
        let image = host.path("cache/images/a");
        fs::write(&image, "x").unwrap();
        let moved = fs::rename(&image, host.path("cache/kernel/vmlinux"));
        assert_refused(moved, "move a file to the kernels");
        fs::remove_file(&image).unwrap();
    });
}

#[test]
fn a_registrys_fetcher_connects_and_does_no_more() {
    let host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _socket = UnixListener::bind(host.path("socket")).unwrap();
    let source = "a/b".parse().unwrap();
    host.behind_walls(&source, |parent, has_landlock| {
        TcpStream::connect(address).unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap();
        for path in ["/etc/resolv.conf", "/etc/ssl/certs"].map(Path::new) {
            assert!(!path.exists() || File::open(path).is_ok(), "{path:?}");
        }
        attack(&host, parent);
        if has_landlock {
            assert_refused(TcpListener::bind("127.0.0.1:0"), "listen at TCP");
            let of_requests = |path: &&str| !FOR_REQUESTS.contains(path);
            let closed = CLOSED.into_iter().filter(of_requests).map(Path::new);
            assert_closed(closed.chain([Path::new("/etc/ssl/private")]));
            assert_closed([&*host.path("source/file")]);
        }
    });
}
