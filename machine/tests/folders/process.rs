//! Folders that a process of their own serves, behind its walls: as root and as an ordinary user.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use minivm_guest::channel::folders::Kind;
use minivm_machine::folders::{self, Access, Error, Folder, Report, Running, Server, Volume};
use minivm_tests::fork::{Ended, forked};
use minivm_tests::growth::{alone, check};
use minivm_tests::patience::wait_until;
use minivm_tests::processes::{self, Process};
use minivm_tests::stress;
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid, geteuid, getrlimit, kill_process,
    setrlimit,
};
use tempfile::{TempDir, tempdir};

use crate::client::Arg::{Bytes, Long, Word};
use crate::client::{Client, RDONLY, ROOT, number, op, request, tree, word};
use crate::wire::{Wire, do_everything, framed, receive, send};

/// An unprivileged user: most systems call it `nobody`.
const NOBODY: u32 = 65534;

/// Lets this program serve folders as `minivm` does, whose `main` begins with that: the harness's `main` would run tests instead.
#[used]
#[allow(
    unsafe_code,
    reason = "a program that serves folders in another process finds that out before its main"
)]
// SAFETY: the C library calls the functions in this section, each once, with one thread.
#[unsafe(link_section = ".init_array")]
static ANSWER: extern "C" fn() = answer;

extern "C" fn answer() {
    if folders::answer(processes::command_line()).is_some() {
        std::process::exit(0);
    }
}

fn volume(source: &Path, access: Access) -> Volume {
    Volume {
        folder: Folder::new(source, access),
        at: "/work".into(),
    }
}

/// Starts a process, and returns the machine's end of its stream.
fn begin(volumes: &[Volume]) -> Result<(Running, UnixStream), Error> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    Running::start(volumes, theirs, &|| false, || {}).map(|running| (running, ours))
}

/// Held while a process is started, which is known by being new.
static STARTING: Mutex<()> = Mutex::new(());

fn start(volumes: &[Volume]) -> (Running, UnixStream, Process) {
    let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    start_in_copy(volumes)
}

/// Starts a process in a copy of the test's, in which another test may have held the lock.
fn start_in_copy(volumes: &[Volume]) -> (Running, UnixStream, Process) {
    let before: BTreeSet<u32> = children().map(|process| process.id).collect();
    let (running, stream) = begin(volumes).unwrap();
    let new = children().find(|process| !before.contains(&process.id));
    (running, stream, new.unwrap())
}

/// The children of this process that serve folders.
fn children() -> impl Iterator<Item = Process> {
    let this = std::process::id();
    let below = processes::below(this).into_iter();
    below.filter(move |process| {
        let line = fs::read(format!("/proc/{}/cmdline", process.id));
        process.parent == this && line.is_ok_and(|line| line == b"minivm\0folders\0")
    })
}

/// Starts a process for one folder that may be changed.
fn start_one(source: &Path) -> (Running, UnixStream, Process) {
    start(&[volume(source, Access::ReadWrite)])
}

/// The lines of a process's status.
fn status(process: Process, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", process.id)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().to_owned()
}

/// Runs a test as each user that there is: in copies of this process. The folder is that user's.
fn as_each_user(test: impl Fn(&Path) -> String, expected: &str) {
    let users = [None, Some(NOBODY)];
    let is_root = geteuid().is_root();
    for user in users.into_iter().filter(|user| user.is_none() || is_root) {
        let place = tempdir().unwrap();
        chown(place.path(), user, user).unwrap();
        let ended = forked(|_| {
            if user.is_some() {
                become_nobody();
            }
            test(place.path())
        });
        assert_eq!(ended, Ended::Returned(expected.into()), "as {user:?}");
    }
}

fn become_nobody() {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(group, group, group).unwrap();
    rustix::thread::set_thread_res_uid(user, user, user).unwrap();
    // As most programs are, which have not changed their user.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap();
}

#[test]
fn folders_are_served_behind_walls() {
    as_each_user(
        |place| {
            tree(place, &["rw/", "ro/file", "single"]);
            fs::set_permissions(place.join("ro/file"), Permissions::from_mode(0o400)).unwrap();
            let volumes = [
                volume(&place.join("rw"), Access::ReadWrite),
                volume(&place.join("ro"), Access::ReadOnly),
                volume(&place.join("single"), Access::ReadWrite),
            ];
            let (running, stream, process) = start_in_copy(&volumes);
            assert_eq!(
                [0, 1, 2, 3].map(|at| running.is_file(at)),
                [false, false, true, false]
            );
            let wire = Arc::new(Wire::new(stream));
            let rw = Client::mount(Arc::clone(&wire), 0);
            do_everything(&rw);
            let ro = Client::mount(Arc::clone(&wire), 1);
            assert_eq!(ro.get("file").unwrap(), b"ro/file");
            if geteuid().is_root() {
                // Root reads and changes what is another user's, and closed.
                fs::write(place.join("rw/closed"), "closed").unwrap();
                fs::set_permissions(place.join("rw/closed"), Permissions::from_mode(0o000))
                    .unwrap();
                chown(place.join("rw/closed"), Some(NOBODY), Some(NOBODY)).unwrap();
                assert_eq!(rw.get("closed").unwrap(), b"closed");
                assert_eq!(rw.chmod("closed", 0o600).unwrap().owner, (65534, 65534));
            }
            assert_eq!(ro.put("new", b"x"), Err(Errno::ROFS));
            let single = Client::mount(Arc::clone(&wire), 2);
            let at = (ROOT, single.open_node(ROOT, 2).unwrap());
            assert_eq!(single.write(at, 0, b"S", 0).unwrap(), 1);
            assert_eq!(single.read(at, 0, 10).unwrap(), b"Single");
            // There is no such folder.
            let mut reply = Vec::new();
            let asked = request(op::GETATTR, 1, ROOT, &[Long(0), Long(0)]);
            crate::client::Answer::answer(&*wire, 3, &asked, &mut reply);
            assert_eq!(word(&reply, 4).cast_signed(), -Errno::NODEV.raw_os_error());

            let kept = fs::metadata(place.join("rw/kept")).unwrap();
            assert_eq!(
                (kept.uid(), kept.mode() & 0o777),
                (geteuid().as_raw(), 0o751)
            );
            let few = if geteuid().is_root() {
                "000000000000000a"
            } else {
                "0000000000000000"
            };
            for (name, expected) in [
                ("CapEff:", few),
                ("CapPrm:", few),
                ("NoNewPrivs:", "1"),
                ("Seccomp:", "2"),
            ] {
                assert_eq!(status(process, name), expected, "{name}");
            }
            let root = format!("/proc/{}/root/", process.id);
            assert_eq!(fs::read_dir(root).unwrap().count(), 0);
            format!("{:?}", running.end())
        },
        &format!(
            "{:?}",
            Report {
                repositories: vec![vec![PathBuf::from("new")], vec![], vec![]],
                ended: None,
            }
        ),
    );
}

#[test]
fn errors_come_back_in_one_line() {
    let place = tempdir().unwrap();
    tree(place.path(), &["folder/", "closed/inside/"]);
    crate::client::fifo(&place.path().join("fifo"));
    let mut bad = volume(place.path(), Access::ReadOnly);
    bad.folder.hide.push(" ".into());
    let of = |name: &str| volume(&place.path().join(name), Access::ReadOnly);
    let alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    for wrong in [of("none"), of("fifo"), bad] {
        let folders = [of("folder").folder, wrong.folder.clone()];
        let expected = Server::new(&folders).err().unwrap().to_string();
        let started = begin(&[of("folder"), wrong]);
        let error = started.err().unwrap().to_string();
        assert_eq!(error, expected);
        assert!(
            error.starts_with("cannot share /") && !error.contains('\n'),
            "{error}"
        );
    }
    drop(alone);
    // What a user may not open.
    if geteuid().is_root() {
        fs::set_permissions(place.path().join("closed"), Permissions::from_mode(0o700)).unwrap();
        let ended = forked(|_| {
            become_nobody();
            let started = begin(&[of("closed/inside")]);
            started.err().unwrap().to_string()
        });
        let path = place.path().join("closed/inside");
        let expected = format!(
            "cannot share {}: Permission denied (os error 13)",
            path.display()
        );
        assert_eq!(ended, Ended::Returned(expected));
    }
}

#[test]
fn several_requests_at_once_get_their_replies() {
    let place = tempdir().unwrap();
    let large: Vec<u8> = (0..100_000_u32).map(|at| at as u8).collect();
    fs::write(place.path().join("a"), &large).unwrap();
    let (_running, mut stream, _) = start_one(place.path());
    let guest = Client::mount(Arc::new(Wire::new(stream.try_clone().unwrap())), 0);
    let at = guest.open("a", RDONLY).unwrap();
    let count = 400;
    let mut asking = stream.try_clone().unwrap();
    let asker = thread::spawn(move || {
        for unique in 1000..1000 + count {
            let read = [Long(at.1), Long(0), Word(1 << 17), Bytes(&[0; 20])];
            let asked = match unique % 2 {
                0 => request(op::READ, unique, at.0, &read),
                _ => request(op::GETATTR, unique, ROOT, &[Long(0), Long(0)]),
            };
            send(&mut asking, 0, Kind::Fuse, &asked);
            // It has no reply.
            send(
                &mut asking,
                0,
                Kind::Fuse,
                &request(op::FORGET, 1, 77, &[Long(1)]),
            );
        }
    });
    let mut waited: BTreeSet<u64> = (1000..1000 + count).collect();
    while !waited.is_empty() {
        let (_, reply) = receive(&mut stream);
        let unique = number(&reply, 8);
        assert!(waited.remove(&unique), "{unique}");
        assert_eq!(word(&reply, 4), 0);
        match unique % 2 {
            0 => assert!(reply[16..] == large, "{} bytes", reply.len()),
            _ => assert_eq!(reply.len(), 16 + 104),
        }
    }
    asker.join().unwrap();
}

#[test]
fn the_process_ends_with_the_stream() {
    let place = tempdir().unwrap();
    let (running, stream, process) = start_one(place.path());
    Client::mount(Arc::new(Wire::new(stream)), 0);
    wait_until("the process goes on", || !process.still_runs());
    let none = Report {
        repositories: vec![vec![]],
        ended: None,
    };
    assert_eq!(running.end(), none);
    assert!(Process::read(process.id).is_none());
    // Or with its parent's side of it, in the middle of a message.
    let (running, mut stream, process) = start_one(place.path());
    stream.write_all(&[40, 0, 0]).unwrap();
    assert_eq!(running.end(), none);
    assert!(Process::read(process.id).is_none());
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn a_process_that_was_killed_is_reported() {
    let place = tempdir().unwrap();
    let (running, mut stream, process) = start_one(place.path());
    let pid = Pid::from_raw(process.id.cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    let report = running.end();
    assert_eq!(
        report.ended.unwrap(),
        "the process that serves folders ended: it was killed, perhaps because this host has no memory left"
    );
    assert_eq!(report.repositories, [Vec::<PathBuf>::new()]);
}

#[test]
fn broken_messages_end_the_stream_and_are_reported() {
    let place = tempdir().unwrap();
    let whole = |kind, len| framed(0, kind, &vec![0; len]);
    let mut unknown = whole(Kind::Fuse, 1);
    unknown[6] = 3;
    let mut long = whole(Kind::Fuse, 1);
    long[3] = 1;
    for (bytes, why) in [
        (unknown, "a folder's message of the unknown kind 3"),
        (
            long,
            "a folder's message of 16777217 bytes was announced: the most is 131152",
        ),
        (
            whole(Kind::Owner, 7),
            "a folder's owner of 7 bytes was sent: it has 8",
        ),
        (
            whole(Kind::Notice, 40),
            "a guest has sent what only a host sends",
        ),
    ] {
        let (running, mut stream, process) = start_one(place.path());
        stream.write_all(&bytes).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "{why}");
        wait_until("the process goes on", || !process.still_runs());
        let ended = running.end().ended.unwrap();
        assert_eq!(
            ended,
            format!("the process that serves folders ended: {why}")
        );
    }
    // What is too short for a request has no reply, and does no harm.
    let (running, mut stream, _) = start_one(place.path());
    stream.write_all(&whole(Kind::Fuse, 3)).unwrap();
    stream.write_all(&whole(Kind::Fuse, 0)).unwrap();
    Client::mount(Arc::new(Wire::new(stream)), 0);
    assert_eq!(running.end().ended, None);
}

#[test]
fn a_guest_names_the_owner_before_it_mounts() {
    let place = tempdir().unwrap();
    let (_running, mut stream, _) = start_one(place.path());
    let owner = |user: u32, group: u32| [user.to_le_bytes(), group.to_le_bytes()].concat();
    send(&mut stream, 0, Kind::Owner, &owner(1000, 100));
    // There is no such folder.
    send(&mut stream, 9, Kind::Owner, &owner(1, 1));
    let wire = Arc::new(Wire::new(stream.try_clone().unwrap()));
    let guest = Client::mount(wire, 0);
    assert_eq!(guest.attr(ROOT).unwrap().owner, (1000, 100));
    send(&mut stream, 0, Kind::Owner, &owner(7, 7));
    assert_eq!(guest.attr(ROOT).unwrap().owner, (1000, 100));
}

/// Requests that a guest makes without taking a reply.
const MANY: usize = 20_000;

#[test]
fn a_guest_that_takes_no_replies_costs_little_and_is_ended() {
    let place = tempdir().unwrap();
    fs::write(place.path().join("large"), vec![7; 1 << 17]).unwrap();
    let (running, stream, process) = start_one(place.path());
    let guest = Client::mount(Arc::new(Wire::new(stream.try_clone().unwrap())), 0);
    let at = guest.open("large", RDONLY).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, mut stalled) = (Arc::clone(&asked), stream);
    let asker = thread::spawn(move || {
        let read = [Long(at.1), Long(0), Word(1 << 17), Bytes(&[0; 20])];
        let message = framed(0, Kind::Fuse, &request(op::READ, 5, at.0, &read));
        while count.load(Ordering::Relaxed) < MANY && stalled.write_all(&message).is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    // Each thread of the process waits, and the guest can't ask for more.
    let mut rounds = 0;
    let mut last = 0;
    wait_until("the process goes on to read", || {
        let now = asked.load(Ordering::Relaxed);
        let still = now == last && sleeps(process);
        rounds = if still { rounds + 1 } else { 0 };
        last = now;
        rounds == 20
    });
    assert!(last < MANY, "{last} requests were taken");
    let peak = status(process, "VmHWM:");
    let kib: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 64 << 10, "{peak}");
    drop(running);
    assert!(Process::read(process.id).is_none());
    asker.join().unwrap();
}

/// Whether each thread of a process sleeps.
fn sleeps(process: Process) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", process.id)).unwrap();
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('S'))
    })
}

#[test]
fn as_many_files_are_open_as_a_guest_may_have() {
    let most = getrlimit(Resource::Nofile).maximum;
    let fit = most.is_none_or(|most| most >= 8192);
    let expected = if fit { "4096 Errno(NFILE)" } else { "fewer" };
    as_each_user(
        |place| {
            tree(place, &["file"]);
            // As most programs start.
            let (current, maximum) = (Some(256), most);
            setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
            let (_running, stream, _) = start_in_copy(&[volume(place, Access::ReadWrite)]);
            let guest = Client::mount(Arc::new(Wire::new(stream)), 0);
            let node = guest.find("file").unwrap();
            let open = || guest.open_node(node, RDONLY);
            let count = (0..5000).map_while(|_| open().ok()).count();
            let error = match open().unwrap_err() {
                Errno::NFILE => "Errno(NFILE)",
                _ => "another",
            };
            match fit {
                true => format!("{count} {error}"),
                false => "fewer".into(),
            }
        },
        expected,
    );
}

/// Threads of the process that may wait while another one answers.
const WAITING: u64 = 7;

/// Keeps others from opening a file, which is open nowhere else, until it is closed here. They get there at the next SIGIO.
#[allow(unsafe_code, reason = "leases have no safe interface")]
fn lease(file: &File) {
    // SAFETY: the call takes no address.
    let leased = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    assert_eq!(leased, 0, "{}", io::Error::last_os_error());
}

#[test]
fn requests_that_wait_keep_no_others_from_being_answered() {
    let place = tempdir().unwrap();
    let (running, mut stream, _) = start_one(place.path());
    let guest = Client::mount(Arc::new(Wire::new(stream.try_clone().unwrap())), 0);
    let waits = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(libc::SIGIO, Arc::clone(&waits)).unwrap();
    let mut leased = Vec::new();
    for unique in 1000..1000 + WAITING {
        let name = unique.to_string();
        let file = File::create(place.path().join(&name)).unwrap();
        lease(&file);
        leased.push(file);
        let node = guest.find(&name).unwrap();
        let open = request(op::OPEN, unique, node, &[Word(RDONLY), Word(0)]);
        send(&mut stream, 0, Kind::Fuse, &open);
        wait_until("the file isn't opened", || {
            waits.swap(false, Ordering::SeqCst)
        });
        // The next reply is this one's.
        assert_eq!(guest.attr(node).unwrap().size, 0);
    }
    drop(leased);
    let mut opened: Vec<u64> = (0..WAITING)
        .map(|_| number(&receive(&mut stream).1, 8))
        .collect();
    opened.sort_unstable();
    assert!(opened.into_iter().eq(1000..1000 + WAITING));
    assert_eq!(running.end().ended, None);
}

#[test]
fn processes_in_a_row_leave_nothing_behind() {
    alone("process::processes_in_a_row_leave_nothing_behind", || {
        let place = tempdir().unwrap();
        check(stress::count(3, 100), || {
            for number in 0..stress::count(10, 100) {
                let (running, stream, _) =
                    start_in_copy(&[volume(place.path(), Access::ReadWrite)]);
                match number % 3 {
                    0 => drop(running),
                    1 => drop((stream, running.end())),
                    _ => {
                        Client::mount(Arc::new(Wire::new(stream)), 0);
                        running.end();
                    }
                }
            }
        });
    });
}

/// A folder for a test that mounts it.
pub(crate) fn served(source: &TempDir) -> (Running, UnixStream) {
    begin(&[volume(source.path(), Access::ReadWrite)]).unwrap()
}
