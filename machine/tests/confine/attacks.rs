//! What code that has taken a monitor over may try.

#![allow(unsafe_code, reason = "attacks are system calls")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is attacked beside the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Target {
    /// The ID of the process that has started the monitor.
    pub(crate) broker: i32,
    /// The address of a TCP socket that listens.
    pub(crate) tcp: SocketAddr,
    /// The name of a Unix socket that listens.
    pub(crate) socket: PathBuf,
}

impl Target {
    fn of_broker(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.broker)
    }
}

/// One thing to try.
pub(crate) struct Attack {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it leads to.
    pub(crate) end: End,
    /// Tries it.
    pub(crate) attempt: Attempt,
}

type Attempt = fn(&Target) -> io::Result<()>;

/// The end of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It gets an error.
    Error,
    /// It ends the process.
    Sigsys,
    /// It ends the process where a vCPU's thread tries it. The others need that themselves.
    SigsysOnVcpu,
}

impl Attack {
    const fn refused(name: &'static str, attempt: Attempt) -> Attack {
        let end = End::Error;
        Attack { name, end, attempt }
    }

    const fn fatal(name: &'static str, attempt: Attempt) -> Attack {
        let end = End::Sigsys;
        Attack { name, end, attempt }
    }

    const fn fatal_on_vcpu(name: &'static str, attempt: Attempt) -> Attack {
        let end = End::SigsysOnVcpu;
        Attack { name, end, attempt }
    }
}

const NAMESPACES: i32 = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
/// The request of an `ioctl` that types a character into a terminal.
const TIOCSTI: i64 = 0x5412;

#[rustfmt::skip]
pub(crate) const ALL: &[Attack] = &[
    Attack::refused("open a file", |_| File::open("/etc/passwd").map(drop)),
    Attack::refused("create a file", |_| File::create("/tmp/minivm-walls").map(drop)),
    Attack::refused("list a folder", |_| std::fs::read_dir("/").map(drop)),
    Attack::refused("look a name up", |_| done(look_up(c"/etc/passwd"))),
    Attack::refused("read the broker's memory by a file", |at| File::open(at.of_broker("mem")).map(drop)),
    Attack::refused("read the broker's environment", |at| File::open(at.of_broker("environ")).map(drop)),
    Attack::fatal("read the broker's memory", |at| call(libc::SYS_process_vm_readv, [at.broker.into(), 0, 0, 0])),
    Attack::fatal("trace the broker", |at| call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), at.broker.into(), 0, 0])),
    Attack::fatal("signal the broker", |at| call(libc::SYS_kill, [at.broker.into(), 0, 0, 0])),
    Attack::fatal("signal the broker's thread", |at| call(libc::SYS_tgkill, [at.broker.into(), at.broker.into(), 0, 0])),
    Attack::fatal("open a handle to the broker", |at| call(libc::SYS_pidfd_open, [at.broker.into(), 0, 0, 0])),
    Attack::fatal("connect by TCP", |at| TcpStream::connect(at.tcp).map(drop)),
    Attack::fatal("listen at TCP", |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    Attack::fatal("connect to a socket", |at| UnixStream::connect(&at.socket).map(drop)),
    Attack::fatal("listen at a socket", |_| UnixListener::bind("/tmp/minivm-walls").map(drop)),
    Attack::fatal("make a pair of sockets", |_| UnixStream::pair().map(drop)),
    Attack::fatal("fork", |_| call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0])),
    Attack::fatal("execute a program", |_| Err(exec("/bin/true"))),
    Attack::fatal("execute a program in memory", |_| call(libc::SYS_memfd_create, [0; 4])),
    Attack::fatal("mount", |_| call(libc::SYS_mount, [0; 4])),
    Attack::fatal("make namespaces", |_| call(libc::SYS_unshare, [NAMESPACES.into(), 0, 0, 0])),
    Attack::fatal("become root", |_| call(libc::SYS_setresuid, [0; 4])),
    Attack::fatal("make memory executable", |_| call(libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC.into(), 0])),
    Attack::fatal("type into the terminal", |_| call(libc::SYS_ioctl, [0, TIOCSTI, 0, 0])),
    Attack::fatal("load a program into the kernel", |_| call(libc::SYS_bpf, [0; 4])),
    Attack::fatal("make a ring of requests", |_| call(libc::SYS_io_uring_setup, [1, 0, 0, 0])),
    Attack::fatal_on_vcpu("make a pipe", |_| io::pipe().map(drop)),
    Attack::fatal_on_vcpu("start a thread", |_| std::thread::Builder::new().spawn(|| {}).map(drop)),
];

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A system call whose first arguments are these.
fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments;
    // SAFETY: what is called ends in an error or in this process's end, and gets no address of memory but zero.
    done(unsafe { libc::syscall(number, a, b, c, d, 0, 0) })
}

/// Looks a name up by the call that each architecture has.
fn look_up(name: &CStr) -> libc::c_long {
    let mut found = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the name ends with a zero, and the structure may be written to.
    let looked = unsafe { libc::fstatat(libc::AT_FDCWD, name.as_ptr(), found.as_mut_ptr(), 0) };
    looked.into()
}

/// Executes a program in place of this one, without the steps that std takes before.
fn exec(program: &str) -> io::Error {
    let program = CString::new(program).unwrap();
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
