//! The walls around a monitor, attacked from within, and a guest that runs behind them: as root, as an ordinary user, and where no
//! namespace can be made.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![allow(unsafe_code, reason = "attacks are system calls")]

#[cfg_attr(target_arch = "aarch64", path = "guest_code/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "guest_code/x86_64.rs")]
#[allow(dead_code, reason = "other programs use the rest of it")]
mod guest_code;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use minivm_machine::Input;
use minivm_machine::confine::{self, Walls};
use minivm_tests::fork::{Ended, forked};
use minivm_vmm::{Builder, Config, Kernel, Outcome};
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

    /// Checks that the walls are those that such a host can have.
    fn check(self, walls: &Walls) {
        let missing: Vec<_> = walls
            .missing
            .iter()
            .map(|missing| &missing.wall[..])
            .collect();
        let expected: &[&str] = match self.namespaces {
            true => &[],
            false => &["namespaces"],
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

/// Calls `act` behind the walls, in a child of a process of the same user that others may look into; returns how it ended.
fn behind_walls(host: Host, act: impl FnOnce() -> String) -> Ended {
    forked(|_| {
        host.enter();
        let ended = forked(|report| {
            // Behind the walls a process can't ask for it.
            let broker = getppid().unwrap().as_raw_nonzero().get();
            BROKER.store(broker, Ordering::Relaxed);
            host.check(&confine::monitor(&[report]).unwrap());
            act()
        });
        match ended {
            Ended::Returned(text) => text,
            Ended::Killed(signal) => format!("killed by {signal}"),
        }
    })
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
            let ended = behind_walls(host, || match attack() {
                Ok(()) => "done".into(),
                Err(error) => error.kind().to_string(),
            });
            let expected = match gets_an_error {
                true => "permission denied".to_owned(),
                false => format!("killed by {}", libc::SIGSYS),
            };
            assert_eq!(ended, Ended::Returned(expected), "{what} on {host:?}");
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
    host.check(&confine::monitor(&kept).unwrap());
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
