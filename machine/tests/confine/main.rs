//! The walls around a monitor, an unpacker and a folder server, attacked from within, and a guest that runs behind them: as root, as an ordinary
//! user, and in a container where no namespace can be made.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod attacks;
mod folders;
#[cfg(target_arch = "x86_64")]
mod growth;
#[cfg_attr(target_arch = "aarch64", path = "../guest_code/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "../guest_code/x86_64.rs")]
#[allow(dead_code, reason = "other programs use the rest of it")]
mod guest_code;
mod host;
mod takeover;
mod unpacker;

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use minivm_machine::{Input, confine};
use minivm_tests::fork::{Ended, forked};
use minivm_vmm::{Builder, Config, Kernel, Outcome};

use attacks::{End, Target};
use guest_code::{LOOP, RAM, say};
use host::{HOSTS, Host};
use takeover::{Order, Thread, take_over};

/// An address of what the guest writes to COM2, and one that it doesn't use.
const WORDS: u64 = RAM + (4 << 20);
const DIRECTORY: u64 = RAM + (6 << 20);
/// What the guest writes.
const HELLO: &[u8] = b"hello from behind the walls";
/// How a monitor's end is reported that a filter has brought.
const SIGSYS: &str =
    "it made a system call that its filter refuses (SIGSYS), which is minivm's fault or an attack";

#[test]
fn a_monitor_that_was_taken_over_reaches_nothing() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listening = UnixListener::bind(&socket).unwrap();
    // One exit, after which the guest runs for ever.
    let code = [&say(1)[..], &LOOP].concat();
    for host in HOSTS {
        for attack in attacks::ALL {
            for thread in [Thread::Vcpu, Thread::Other] {
                let ended = forked(|_| {
                    host.enter();
                    let order = Order {
                        attack: attack.name.into(),
                        thread,
                        target: Target {
                            broker: std::process::id().cast_signed(),
                            tcp: tcp.local_addr().unwrap(),
                            socket: socket.clone(),
                        },
                    };
                    take_over(host, &code, &order)
                });
                let expected = match (attack.end, thread) {
                    (End::Error, _) => "permission denied",
                    (End::SigsysOnVcpu, Thread::Other) => "done",
                    (End::Sigsys | End::SigsysOnVcpu, _) => SIGSYS,
                };
                let what = format!("{} on a thread {thread:?} on {host:?}", attack.name);
                assert_eq!(ended, Ended::Returned(expected.into()), "{what}");
            }
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
