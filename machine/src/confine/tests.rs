//! Each wall alone: what it takes, the other walls left out.

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use minivm_tests::fork::{Ended, forked};
use rustix::process::{getpid, getppid, test_kill_process};
use rustix::thread::{capabilities, capability_is_in_bounding_set};

use super::*;

/// An unprivileged user: most systems call it `nobody`.
const NOBODY: u32 = 65534;

/// Becomes an ordinary user, if this process is root. Other processes of that user may read its memory, as that of most programs.
fn become_nobody() {
    if rustix::process::geteuid().is_root() {
        let (user, group) = (
            rustix::process::Uid::from_raw(NOBODY),
            rustix::process::Gid::from_raw(NOBODY),
        );
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
    }
    let dumpable = rustix::process::DumpableBehavior::Dumpable;
    rustix::process::set_dumpable_behavior(dumpable).unwrap();
    #[allow(unsafe_code, reason = "rustix does not have this call")]
    // SAFETY: it takes no address. Kernels without Yama, which else lets a process read those below it alone, refuse it.
    unsafe {
        libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY)
    };
}

/// Runs `act` in a copy of this process, and checks that it returned nothing but `expected`.
fn expect(expected: &str, act: impl FnOnce(BorrowedFd<'_>) -> String) {
    assert_eq!(forked(act), Ended::Returned(expected.into()));
}

/// Returns the kind of an error in words.
fn told<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "done".into(),
        Err(error) => error.kind().to_string(),
    }
}

/// Landlock's version in this kernel, by its own call.
#[allow(unsafe_code, reason = "the call has no safe interface")]
fn landlock_version() -> i64 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes no structure.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) }
}

#[test]
fn landlock_refuses_files_tcp_sockets_and_other_processes() {
    if landlock_version() < 6 {
        let missing = |_: BorrowedFd<'_>| landlock::restrict().unwrap_err().wall;
        return expect(LANDLOCK, missing);
    }
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let name = SocketAddr::from_abstract_name(format!("minivm-{}", getpid())).unwrap();
    let _socket = UnixListener::bind_addr(&name).unwrap();
    let refused = "permission denied";
    expect(&[refused; 6].join(", "), |_| {
        landlock::restrict().unwrap();
        let parent = getppid().unwrap();
        let tries = [
            told(File::open("/etc/passwd")),
            told(fs::read_dir("/")),
            told(TcpStream::connect(address)),
            told(TcpListener::bind("127.0.0.1:0")),
            told(UnixStream::connect_addr(&name)),
            told(test_kill_process(parent).map_err(io::Error::from)),
        ];
        tries.join(", ")
    });
}

#[test]
fn namespaces_show_no_file_to_root_and_to_others() {
    let look = || {
        let tries = [
            told(File::open("/etc/passwd")),
            told(File::open("/proc/self/status")),
            told(File::create("/new")),
            fs::read_dir("/").unwrap().count().to_string(),
            fs::read_dir("/..").unwrap().count().to_string(),
            fs::read_dir(".").unwrap().count().to_string(),
        ];
        tries.join(", ")
    };
    let empty =
        "entity not found, entity not found, read-only filesystem or storage medium, 0, 0, 0";
    expect(empty, |_| {
        become_nobody();
        namespaces::enter(true).unwrap();
        look()
    });
    if rustix::process::geteuid().is_root() {
        expect(empty, |_| {
            namespaces::enter(false).unwrap();
            look()
        });
        assert!(
            File::open("/proc/self/status").is_ok(),
            "the host has a root"
        );
    }
}

#[test]
fn root_leaves_for_a_user_from_whom_it_cannot_come_back() {
    if !rustix::process::geteuid().is_root() {
        return expect("Ok(None)", |_| format!("{:?}", privileges::pick_user()));
    }
    expect("permission denied, no groups, no capabilities", |_| {
        let user = privileges::pick_user().unwrap().unwrap();
        privileges::become_user(user).unwrap();
        privileges::drop_capabilities_but(CapabilitySet::empty()).unwrap();
        assert!(rustix::process::getuid().as_raw() >= 65000);
        assert!(rustix::process::getgid().as_raw() >= 65000);
        let root = rustix::process::Uid::ROOT;
        let back = rustix::thread::set_thread_res_uid(root, root, root);
        let groups = rustix::process::getgroups().unwrap().len();
        let held = capabilities(None).unwrap();
        let all = held.effective | held.permitted | held.inheritable;
        let admin = rustix::thread::CapabilitySet::SYS_ADMIN;
        let bounding = capability_is_in_bounding_set(admin).unwrap();
        format!(
            "{}, {} groups, {} capabilities",
            told(back.map_err(io::Error::from)),
            if groups == 0 { "no" } else { "some" },
            if all.is_empty() && !bounding {
                "no"
            } else {
                "some"
            },
        )
    });
}

#[test]
fn the_bond_with_the_parent_survives_the_change_of_user() {
    use rustix::process::{Signal, parent_process_death_signal, set_parent_process_death_signal};
    expect("kept", |_| {
        set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
        let bond = Bond::read();
        become_nobody();
        bond.restore().unwrap();
        assert_eq!(parent_process_death_signal(), Ok(Some(Signal::KILL)));
        "kept".into()
    });
}

#[test]
fn no_process_of_the_same_user_reads_its_memory() {
    for (forbid, expected) in [(false, "done"), (true, "permission denied")] {
        expect(expected, |_| {
            become_nobody();
            let secret = [7_u8; 16];
            if forbid {
                privileges::forbid_dumps().unwrap();
            }
            let reading = |_: BorrowedFd<'_>| {
                // A fork inherits that, and shall be as any other process of the user.
                become_nobody();
                let mut copy = [0; 16];
                told(read_of_parent(secret.as_ptr(), &mut copy))
            };
            match forked(reading) {
                Ended::Returned(text) => text,
                killed => format!("{killed:?}"),
            }
        });
    }
}

/// Reads the parent's memory.
#[allow(unsafe_code, reason = "the call has no safe interface")]
pub(super) fn read_of_parent(from: *const u8, copy: &mut [u8]) -> io::Result<()> {
    let parent = getppid().unwrap().as_raw_nonzero().get();
    let (here, there) = (
        libc::iovec {
            iov_base: copy.as_mut_ptr().cast(),
            iov_len: copy.len(),
        },
        libc::iovec {
            iov_base: from.cast_mut().cast(),
            iov_len: copy.len(),
        },
    );
    // SAFETY: one range of this process's memory is written to, which is `copy`.
    match unsafe { libc::process_vm_readv(parent, &raw const here, 1, &raw const there, 1, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[test]
fn descriptors_that_are_not_kept_are_closed() {
    expect("true, false, false", |report| {
        let null = || File::open("/dev/null").unwrap();
        let (before, kept, behind) = (null(), null(), null());
        let numbers = [&kept, &before, &behind].map(AsRawFd::as_raw_fd);
        // They are closed without their owners' knowing.
        std::mem::forget((before, behind));
        descriptors::close_all_but(&[kept.as_fd(), report]).unwrap();
        #[allow(unsafe_code, reason = "it asks for a number that may be closed")]
        // SAFETY: it has no condition.
        let open = numbers.map(|number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0);
        open.map(|open| open.to_string()).join(", ")
    });
}

#[test]
fn a_process_leaves_no_core_dump_and_opens_few_files() {
    expect("Some(0), true", |_| {
        descriptors::limit(256).unwrap();
        let limit = |resource| rustix::process::getrlimit(resource).maximum;
        let files: Vec<_> = (0..300)
            .map_while(|_| File::open("/dev/null").ok())
            .collect();
        let core = limit(rustix::process::Resource::Core);
        format!("{core:?}, {}", files.len() < 256)
    });
}

#[test]
fn a_wall_that_is_missing_has_its_reason_and_a_remedy() {
    let missing = Missing::of(NAMESPACES, "unshare")(rustix::io::Errno::PERM);
    assert_eq!(missing.why, "unshare: Operation not permitted (os error 1)");
    for wall in ALL {
        assert!(!Missing::new(wall, "").remedy().is_empty(), "{wall}");
    }
    let walls = Walls {
        missing: vec![missing],
    };
    let json = serde_json::to_string(&walls).unwrap();
    assert_eq!(serde_json::from_str::<Walls>(&json).unwrap(), walls);
}

#[test]
fn the_survey_finds_what_a_monitor_finds() {
    let found = survey();
    expect(&format!("{found:?}"), |report| {
        format!("{:?}", monitor(&[report]).unwrap())
    });
    let reasons = found.missing.iter().map(|missing| missing.wall.as_str());
    let known = |wall: &str| wall == LANDLOCK && landlock_version() < 6;
    let unexpected: Vec<_> = reasons.filter(|wall| !known(wall)).collect();
    assert!(
        unexpected.is_empty(),
        "{unexpected:?} is missing here: {found:?}"
    );
}
