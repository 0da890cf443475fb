//! The walls around a monitor, attacked from within, and a guest that runs behind them: as root, as an ordinary user, and where no
//! namespace can be made.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![allow(unsafe_code, reason = "attacks are system calls")]

#[cfg_attr(target_arch = "aarch64", path = "guest_code/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "guest_code/x86_64.rs")]
#[allow(dead_code, reason = "other programs use the rest of it")]
mod guest_code;

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use minivm_machine::confine::{self, Walls};
use minivm_tests::fork::{Ended, forked};
use minivm_vmm::{Builder, Config, Input, Kernel, Outcome};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, chmodat, fchmod, linkat, mkdirat, openat,
    renameat, symlinkat, unlinkat, utimensat,
};
use rustix::process::{DumpableBehavior, Gid, Uid, geteuid, getppid, set_dumpable_behavior};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use guest_code::{LOOP, RAM, say};

/// An address of what the guest writes to COM2, and one that it doesn't use.
const WORDS: u64 = RAM + (4 << 20);
const DIRECTORY: u64 = RAM + (6 << 20);
/// What the guest writes.
const HELLO: &[u8] = b"hello from behind the walls";
/// An unprivileged user: most systems call it `nobody`.
const NOBODY: u32 = 65534;

/// A host that a monitor may find.
#[derive(Clone, Copy, Debug)]
struct Host {
    /// Whether minivm is root there, if the tests are.
    root: bool,
    /// Whether namespaces can be made.
    namespaces: bool,
}

const HOSTS: [Host; 4] = [
    Host {
        root: true,
        namespaces: true,
    },
    Host {
        root: false,
        namespaces: true,
    },
    Host {
        root: true,
        namespaces: false,
    },
    Host {
        root: false,
        namespaces: false,
    },
];

impl Host {
    /// Makes this process one of that host's.
    fn enter(self) {
        LazyLock::force(&HAS_LANDLOCK);
        if !self.root && geteuid().is_root() {
            let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(group, group, group).unwrap();
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            // As most programs are, which have not changed their user.
            set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap();
        }
        if !self.namespaces {
            refuse_namespaces();
        }
    }

    /// Checks that the walls are those that such a host can have: without namespaces, `those` are missing.
    fn check(self, walls: &Walls, those: &[&str]) {
        let missing: Vec<_> = walls
            .missing
            .iter()
            .map(|missing| &missing.wall[..])
            .collect();
        let expected: &[&str] = match self.namespaces {
            true => &[],
            false => those,
        };
        let by_kernel = |wall: &&&str| **wall != "Landlock" || *HAS_LANDLOCK;
        let missing: Vec<_> = missing.iter().filter(by_kernel).copied().collect();
        assert_eq!(missing, expected, "{walls:?}");
    }
}

/// Has the kernel refuse what Docker has it refuse to programs without CAP_SYS_ADMIN.
fn refuse_namespaces() {
    let calls = [
        libc::SYS_unshare,
        libc::SYS_mount,
        libc::SYS_setns,
        libc::SYS_pivot_root,
    ];
    let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let error = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, error, machine).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Whether this kernel has all of Landlock. Behind the walls it can't be asked any more.
static HAS_LANDLOCK: LazyLock<bool> = LazyLock::new(|| {
    // SAFETY: with this flag, which asks for the version, the call takes no structure.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) >= 6 }
});

/// Calls `act` behind the walls that `raise` puts up, in a child of a process of the same user that others may look into; returns how it
/// ended.
fn behind_walls(
    host: Host,
    raise: impl FnOnce(BorrowedFd<'_>),
    act: impl FnOnce() -> String,
) -> Ended {
    forked(|_| {
        host.enter();
        let ended = forked(|report| {
            // Behind the walls a process can't ask for it.
            let broker = getppid().unwrap().as_raw_nonzero().get();
            BROKER.store(broker, Ordering::Relaxed);
            raise(report);
            act()
        });
        match ended {
            Ended::Returned(text) => text,
            Ended::Killed(signal) => format!("killed by {signal}"),
        }
    })
}

/// Tells what came of an attack.
fn outcome(attack: io::Result<()>) -> String {
    match attack {
        Ok(()) => "done".into(),
        Err(error) => error.kind().to_string(),
    }
}

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The ID of the process that has put a child behind walls.
static BROKER: AtomicI32 = AtomicI32::new(0);

fn of_broker(file: &str) -> String {
    format!("/proc/{}/{file}", BROKER.load(Ordering::Relaxed))
}

/// A system call whose first arguments are these.
fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments;
    // SAFETY: what is called ends in an error or in this process's end, and gets no address of memory but zero.
    done(unsafe { libc::syscall(number, a, b, c, d, 0, 0) })
}

/// What code that has taken the monitor over may try, and whether it gets an error. If not, it ends the process.
type Attack<'a> = (&'static str, bool, Box<dyn Fn() -> io::Result<()> + 'a>);

#[rustfmt::skip]
fn attacks<'a>(tcp: &'a TcpListener, socket: &'a Path) -> Vec<Attack<'a>> {
    let (namespaces, executable) = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS, libc::PROT_EXEC);
    let broker = || libc::c_long::from(BROKER.load(Ordering::Relaxed));
    vec![
        ("open a file", true, Box::new(|| File::open("/etc/passwd").map(drop))),
        ("create a file", true, Box::new(|| File::create("/tmp/minivm-walls").map(drop))),
        ("list a folder", true, Box::new(|| std::fs::read_dir("/").map(drop))),
        ("look a name up", true, Box::new(|| done(look_up(c"/etc/passwd")))),
        ("read the broker's memory by a file", true, Box::new(|| File::open(of_broker("mem")).map(drop))),
        ("read the broker's environment", true, Box::new(|| File::open(of_broker("environ")).map(drop))),
        ("read the broker's memory", false, Box::new(move || call(libc::SYS_process_vm_readv, [broker(), 0, 0, 0]))),
        ("trace the broker", false, Box::new(move || call(libc::SYS_ptrace, [16, broker(), 0, 0]))),
        ("signal the broker", false, Box::new(move || call(libc::SYS_kill, [broker(), 0, 0, 0]))),
        ("signal the broker's thread", false, Box::new(move || call(libc::SYS_tgkill, [broker(), broker(), 0, 0]))),
        ("open a handle to the broker", false, Box::new(move || call(libc::SYS_pidfd_open, [broker(), 0, 0, 0]))),
        ("connect by TCP", false, Box::new(move || TcpStream::connect(tcp.local_addr()?).map(drop))),
        ("listen at TCP", false, Box::new(|| TcpListener::bind("127.0.0.1:0").map(drop))),
        ("connect to a socket", false, Box::new(move || UnixStream::connect(socket).map(drop))),
        ("listen at a socket", false, Box::new(|| UnixListener::bind("/tmp/minivm-walls").map(drop))),
        ("make a pair of sockets", false, Box::new(|| UnixStream::pair().map(drop))),
        ("fork", false, Box::new(|| call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]))),
        ("execute a program", false, Box::new(|| Err(exec("/bin/true")))),
        ("execute a program in memory", false, Box::new(|| call(libc::SYS_memfd_create, [0; 4]))),
        ("mount", false, Box::new(|| call(libc::SYS_mount, [0; 4]))),
        ("make namespaces", false, Box::new(move || call(libc::SYS_unshare, [namespaces.into(), 0, 0, 0]))),
        ("become root", false, Box::new(|| call(libc::SYS_setresuid, [0; 4]))),
        ("make memory executable", false, Box::new(move || call(libc::SYS_mprotect, [0, 4096, executable.into(), 0]))),
        ("type into the terminal", false, Box::new(|| call(libc::SYS_ioctl, [0, 0x5412, 0, 0]))),
        ("load a program into the kernel", false, Box::new(|| call(libc::SYS_bpf, [0; 4]))),
        ("make a ring of requests", false, Box::new(|| call(libc::SYS_io_uring_setup, [1, 0, 0, 0]))),
    ]
}

/// Looks a name up by the call that each architecture has.
fn look_up(name: &std::ffi::CStr) -> libc::c_long {
    let mut found = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the name ends with a zero, and the structure may be written to.
    let looked = unsafe { libc::fstatat(libc::AT_FDCWD, name.as_ptr(), found.as_mut_ptr(), 0) };
    looked.into()
}

/// Executes a program in place of this one, without the steps that std takes before.
fn exec(program: &str) -> io::Error {
    let program = std::ffi::CString::new(program).unwrap();
    let arguments = [program.as_ptr(), std::ptr::null()];
    // SAFETY: both lists end with a zero.
    unsafe {
        libc::execve(
            program.as_ptr(),
            arguments.as_ptr(),
            arguments[1..].as_ptr(),
        )
    };
    io::Error::last_os_error()
}

#[test]
fn a_monitor_that_was_taken_over_reaches_nothing() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listening = UnixListener::bind(&socket).unwrap();
    for host in HOSTS {
        for (what, gets_an_error, attack) in attacks(&tcp, &socket) {
            let raise = |report: BorrowedFd<'_>| {
                host.check(&confine::monitor(&[report]).unwrap(), &["namespaces"]);
            };
            let ended = behind_walls(host, raise, || outcome(attack()));
            let expected = match gets_an_error {
                true => "permission denied".to_owned(),
                false => format!("killed by {}", libc::SIGSYS),
            };
            assert_eq!(ended, Ended::Returned(expected), "{what} on {host:?}");
        }
    }
}

impl Host {
    /// Makes the user namespace that an unpacker of an ordinary user's finds itself in, where it can be made.
    fn make_user_namespace(self) {
        if !geteuid().is_root() && self.namespaces {
            let flags = rustix::thread::UnshareFlags::NEWUSER;
            // SAFETY: the flag is not CLONE_FILES, by which a thread would lose the descriptors of others.
            unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
        }
    }

    /// Whether names are bounded there: by Landlock, or by a change of root.
    fn bounds_names(self) -> bool {
        *HAS_LANDLOCK || self.root || self.namespaces
    }
}

/// A folder that is filled, in one with a file and a folder that any user may change.
struct Beside {
    above: tempfile::TempDir,
}

impl Beside {
    fn new() -> Beside {
        let above = tempfile::tempdir().unwrap();
        let open = |name: &str, mode| {
            let path = above.path().join(name);
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        open(".", 0o777);
        for name in ["filled", "beside"] {
            std::fs::create_dir(above.path().join(name)).unwrap();
            open(name, 0o777);
        }
        std::fs::write(above.path().join("victim"), "safe").unwrap();
        open("victim", 0o666);
        let owner = Some(NOBODY);
        for name in [".", "filled", "beside", "victim"] {
            // Where it is not this user's to give, it is this user's.
            let _ = std::os::unix::fs::chown(above.path().join(name), owner, owner);
        }
        Beside { above }
    }

    /// What stands outside the folder that is filled.
    fn state(&self) -> Vec<String> {
        let mut state: Vec<_> = ["", "beside", "victim"]
            .into_iter()
            .map(|name| {
                let path = self.above.path().join(name);
                let metadata = std::fs::metadata(&path);
                let facts = metadata.map(|found| (found.mode(), found.len(), found.mtime_nsec()));
                let inside = std::fs::read_dir(&path).into_iter().flatten();
                let names = inside.map(|entry| entry.unwrap().file_name());
                let names: std::collections::BTreeSet<_> = names.collect();
                format!("{facts:?} {names:?}")
            })
            .collect();
        state.push(format!(
            "{:?}",
            std::fs::read(self.above.path().join("victim"))
        ));
        state
    }
}

/// What code that has taken an unpacker over may try with names.
type ByName<'a> = (&'static str, Box<dyn Fn() -> io::Result<()> + 'a>);

/// The attacks with names: by the open folder, and by the path of the one above.
#[rustfmt::skip]
fn attacks_by_name<'a>(folder: BorrowedFd<'a>, above: &'a Path) -> Vec<ByName<'a>> {
    let write = OFlags::WRONLY | OFlags::TRUNC;
    let create = OFlags::WRONLY | OFlags::CREATE;
    let mode = Mode::from_raw_mode(0o666);
    let open = move |path: &Path, flags| -> io::Result<()> {
        let file = openat(folder, path, flags, mode)?;
        rustix::io::write(file, b"evil")?;
        Ok(())
    };
    let time = Timespec { tv_sec: 1, tv_nsec: 1 };
    let times = move || Timestamps { last_access: time, last_modification: time };
    let victim = above.join("victim");
    let by_path = victim.clone();
    vec![
        ("write to a file", Box::new(move || open(Path::new("../victim"), write))),
        ("write to a file by its path", Box::new(move || open(&by_path, write))),
        ("write through a link", Box::new(move || {
            symlinkat(&victim, folder, "link")?;
            open(Path::new("link"), write)
        })),
        ("create a file", Box::new(move || open(Path::new("../new"), create))),
        ("create a file deeper", Box::new(move || open(Path::new("../beside/new"), create))),
        ("create a folder", Box::new(move || Ok(mkdirat(folder, "../new", Mode::RWXU)?))),
        ("create a link", Box::new(move || Ok(symlinkat("/", folder, "../new")?))),
        ("remove a file", Box::new(move || Ok(unlinkat(folder, "../victim", AtFlags::empty())?))),
        ("remove a folder", Box::new(move || Ok(unlinkat(folder, "../beside", AtFlags::REMOVEDIR)?))),
        ("move a file out", Box::new(move || {
            open(Path::new("inner"), create)?;
            Ok(renameat(folder, "inner", folder, "../victim")?)
        })),
        ("move a file in", Box::new(move || Ok(renameat(folder, "../victim", folder, "mine")?))),
        ("link a file out", Box::new(move || {
            open(Path::new("inner"), create)?;
            Ok(linkat(folder, "inner", folder, "../new", AtFlags::empty())?)
        })),
        ("close a file", Box::new(move || Ok(chmodat(folder, "../victim", Mode::empty(), AtFlags::empty())?))),
        ("close a folder", Box::new(move || {
            let beside = openat(folder, "../beside", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            Ok(fchmod(beside, Mode::RUSR)?)
        })),
        ("set a file's times", Box::new(move || Ok(utimensat(folder, "../victim", &times(), AtFlags::empty())?))),
    ]
}

#[test]
fn an_unpacker_that_was_taken_over_changes_nothing_outside_its_folder() {
    let root = File::open("/").unwrap();
    let names = attacks_by_name(root.as_fd(), Path::new("/"));
    for (number, (what, _)) in names.into_iter().enumerate() {
        for host in HOSTS.into_iter().filter(|host| host.bounds_names()) {
            let bare = attack_by_name(host, number, false);
            assert_eq!(bare, (Ended::Returned("done".into()), true), "{what}");
            let (ended, has_changed) = attack_by_name(host, number, true);
            assert!(!has_changed, "{what} on {host:?}: {ended:?}");
        }
    }
}

/// Runs one attack, behind walls or without; returns how that ended, and whether something outside the folder changed.
fn attack_by_name(host: Host, number: usize, walls: bool) -> (Ended, bool) {
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
            host.check(&found, if is_root { &[] } else { &["empty root"] });
        }
        let (_, attack) = attacks_by_name(folder.as_fd(), above).swap_remove(number);
        outcome(attack())
    });
    (ended, beside.state() != before)
}

#[test]
fn an_unpacker_that_was_taken_over_reaches_no_more_than_a_monitor() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let socket = folder.path().join("socket");
    let _listening = UnixListener::bind(&socket).unwrap();
    let hosts = HOSTS.into_iter().filter(|host| host.bounds_names());
    for (host, fills_folder) in hosts.flat_map(|host| [(host, false), (host, true)]) {
        // Of its folder it may look at all, and of the host's names, where they are that.
        let may = |what: &str| fills_folder && ["look a name up", "list a folder"].contains(&what);
        let attacks = attacks(&tcp, &socket).into_iter();
        for (what, _, attack) in attacks.filter(|(what, ..)| !may(what)) {
            let raise = |report: BorrowedFd<'_>| {
                host.make_user_namespace();
                let filled = File::open(folder.path()).unwrap();
                let kept = [report, filled.as_fd()];
                confine::unpacker(&kept, fills_folder.then_some(filled.as_fd())).unwrap();
            };
            let ended = behind_walls(host, raise, || outcome(attack()));
            let killed = format!("killed by {}", libc::SIGSYS);
            let failures = ["permission denied", "entity not found", &killed];
            let has_failed = |ended: &Ended| matches!(ended, Ended::Returned(text) if failures.contains(&&**text));
            assert!(has_failed(&ended), "{what} on {host:?}: {ended:?}");
        }
    }
}

/// Runs a guest behind the walls: its kernel and `/dev/kvm` are opened before, and read after. Returns its output.
fn run_guest(host: Host, kernel: &Path, report: BorrowedFd<'_>) -> String {
    let config = Config {
        memory: 64 << 20,
        ..Config::new(Kernel::File(kernel.into()))
    };
    let builder = Builder::new(config).open().unwrap();
    host.enter();
    let kept = [builder.descriptors(), vec![report]].concat();
    host.check(&confine::monitor(&kept).unwrap(), &["namespaces"]);
    let (mut output, writer) = io::pipe().unwrap();
    let (input, mut keys) = io::pipe().unwrap();
    let machine = builder
        .com2_output(writer)
        .com2_input(Input::from(OwnedFd::from(input)))
        .vcpu_thread(confine::vcpu)
        .build()
        .unwrap();
    let control = machine.control();
    let reader = thread::spawn(move || {
        let mut said = vec![0; HELLO.len()];
        output.read_exact(&mut said).unwrap();
        control.pause();
        control.resume();
        keys.write_all(b"keys").unwrap();
        control.stop();
        said
    });
    let outcome = machine.run().unwrap();
    let said = reader.join().unwrap();
    assert_eq!(outcome, Outcome::Stopped);
    String::from_utf8(said).unwrap()
}

#[test]
fn a_guest_runs_behind_the_walls() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    let code = guest_code::kernel(&[&say(HELLO.len()), &LOOP], &[(WORDS, HELLO)]);
    std::fs::write(&kernel, code).unwrap();
    for host in HOSTS {
        let ended = forked(|report| run_guest(host, &kernel, report));
        let expected = String::from_utf8(HELLO.into()).unwrap();
        assert_eq!(ended, Ended::Returned(expected), "on {host:?}");
    }
}
