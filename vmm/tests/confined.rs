//! A process that may open no file any more builds machines of files that it has opened before, saves them into files that it
//! was given, and restores them.
//!
//! A seccomp filter makes each call that looks up a name fail, as it does in minivm's monitor. It holds for the thread that sets
//! it and for those that the thread starts from then on.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]
#![allow(unsafe_code, reason = "std closes no descriptors by number")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use minivm_tests::code::{LOOP, show};
use minivm_tests::input::input;
use minivm_tests::kernel_file::Elf;
use minivm_tests::output::tap;
use minivm_tests::patience::PATIENCE;
use minivm_tests::snapshot::save_in;
use minivm_vmm::{
    Builder, Config, Control, Error, Kernel, Memory, Outcome, Result, SaveFiles, SnapshotFiles,
    WorkingSet,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Names the folder with the files of a confined process, and the memory file that it saves into.
const FOLDER: &str = "MINIVM_TEST_CONFINED";
const MEMORY: &str = "MINIVM_TEST_MEMORY";

/// The calls that open files, look names up or reach other processes by a name.
const BY_NAME: [libc::c_long; 16] = [
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_mkdir,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_execve,
];

/// Makes the calls fail on the calling thread, and on all that it starts.
fn confine() {
    let rules: BTreeMap<i64, _> = BY_NAME.into_iter().map(|call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(u32::try_from(libc::EACCES).unwrap());
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, machine).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    for name in ["/dev/kvm", "/proc/self/pagemap", "/dev/urandom"] {
        let refused = File::open(name).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{name}");
    }
}

/// A machine that runs on a thread of its own.
struct Running {
    control: Control,
    memory: Memory,
    output: Receiver<u8>,
    runner: JoinHandle<Result<Outcome>>,
}

impl Running {
    fn start(builder: Builder) -> Self {
        let (tap, output) = tap();
        let machine = builder.console_output(tap).build().unwrap();
        Running {
            control: machine.control(),
            memory: machine.memory(),
            output,
            runner: thread::spawn(move || machine.run()),
        }
    }

    fn read(&self) -> u8 {
        self.output.recv_timeout(PATIENCE).unwrap()
    }

    fn stop(self) {
        self.control.stop();
        assert_eq!(self.runner.join().unwrap().unwrap(), Outcome::Stopped);
    }
}

/// The guest writes '>', and then the sum of all input so far after each byte of it.
#[rustfmt::skip]
const ADD: [u8; 54] = [
    0x66, 0xba, 0xf9, 0x03, 0xb0, 0x01, 0xee, // mov dx, 0x3f9; mov al, 1; out dx, al: interrupt on received data
    0x66, 0xba, 0xfc, 0x03, 0xb0, 0x02, 0xee, // mov dx, 0x3fc; mov al, 2; out dx, al: request to send
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'>', 0xee, // mov dx, 0x3f8; mov al, '>'; out dx, al
    0x66, 0xba, 0xfd, 0x03, 0xec,             // again: mov dx, 0x3fd; in al, dx: the line status
    0xa8, 0x01, 0x74, 0xf7,                   // test al, 1; jz again
    0x66, 0xba, 0xf8, 0x03, 0xec,             // mov dx, 0x3f8; in al, dx
    0x00, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, // add [0x200000], al
    0x8a, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, // mov al, [0x200000]
    0xee, 0xeb, 0xe1, 0x90, 0x90,             // out dx, al; jmp again
];

/// A machine that boots from files: a kernel, an initramfs that is large enough for several threads to load, and persistent memory.
fn booted(folder: &Path) -> Builder {
    Builder::new(Config {
        initramfs: Some(folder.join("initramfs")),
        pmem: Some(folder.join("pmem")),
        memory: 128 << 20,
        ..Config::new(Kernel::File(folder.join("kernel")))
    })
}

/// This test runs in two processes. This one makes the files that the machine is saved into; the other one, which is confined, has
/// them as stdin and stderr.
#[test]
fn a_machine_of_open_files_is_built_saved_and_restored() {
    let name = "a_machine_of_open_files_is_built_saved_and_restored";
    if let Some(folder) = std::env::var_os(FOLDER) {
        return confined(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("kernel"), Elf::of_code(&[&ADD]).bytes()).unwrap();
    fs::write(path("initramfs"), vec![7; 20 << 20]).unwrap();
    fs::write(path("pmem"), vec![7; 3 << 20]).unwrap();
    let machine = booted(folder.path()).build().unwrap();
    let old = save_in(&path("old"), |state, memory, name| {
        machine.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    });
    old.unwrap();

    let new = save_in(&path("new"), |state, memory, memory_name| {
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(FOLDER, folder.path())
            .env(MEMORY, memory_name)
            .stdin(state)
            .stderr(memory)
            .output()?;
        let text = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
        io::Result::Ok(())
    });
    new.unwrap();
    let files = SnapshotFiles::in_folder(path("new")).unwrap();
    let snapshot = files.pmem(path("pmem")).unwrap().read().unwrap();
    snapshot.verify().unwrap();
    let continued = Running::start(Builder::restore(&snapshot).console_input(input(&[8])));
    assert_eq!(continued.read(), 15);
    continued.stop();
}

fn confined(folder: &Path) {
    let own = |file: BorrowedFd<'_>| File::from(file.try_clone_to_owned().unwrap());
    let new = SaveFiles {
        state: own(io::stdin().as_fd()),
        memory: own(io::stderr().as_fd()),
        name: std::env::var(MEMORY).unwrap(),
    };
    let booting = booted(folder).console_input(input(&[3, 4])).open().unwrap();
    let files = SnapshotFiles::open(folder.join("old")).unwrap();
    let files = files.pmem(folder.join("pmem")).unwrap();
    let mut kept = [booting.descriptors(), files.descriptors()].concat();
    kept.extend([new.state.as_fd(), new.memory.as_fd()]);
    close_all_but(&kept);
    confine();

    let late = booted(folder).build().map(drop);
    assert!(matches!(late, Err(Error::File { .. })), "{late:?}");
    let machine = Running::start(booting);
    assert_eq!([(); 3].map(|()| machine.read()), [b'>', 3, 7]);
    machine.control.pause();
    machine.control.snapshot_into(&new).unwrap();
    machine.stop();

    let snapshot = files.read().unwrap();
    let restored = Running::start(Builder::restore(&snapshot).console_input(input(&[5])));
    assert_eq!([(); 2].map(|()| restored.read()), [b'>', 5]);
    let touched = WorkingSet::of(&restored.memory).unwrap();
    assert!(touched.bytes().0 > 0, "the guest has written to a page");
    restored.stop();
}

/// Closes all of this process's descriptors but the first three and `kept`.
fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let kept: BTreeSet<_> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    for number in (3..1024).filter(|number| !kept.contains(number)) {
        // SAFETY: no code here uses any of them any more.
        unsafe { libc::close(number) };
    }
}

/// A guest that writes a byte and loops, with two vCPUs, the second of which it never starts.
fn writes() -> (Builder, Receiver<u8>) {
    let (tap, output) = tap();
    let code = [&show(b'!')[..], &LOOP].concat();
    let config = Config {
        cpus: 2,
        ..Config::new(Kernel::Code(code))
    };
    (Builder::new(config).console_output(tap), output)
}

fn thread_name() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

#[test]
fn each_vcpus_thread_is_prepared_before_the_guest_runs() {
    let (builder, output) = writes();
    let (sender, entered) = channel();
    let machine = builder
        .vcpu_thread(move || {
            sender.send(thread_name()).unwrap();
            Ok(())
        })
        .build()
        .unwrap();
    let control = machine.control();
    let runner = thread::spawn(move || machine.run());
    assert_eq!(output.recv_timeout(PATIENCE).unwrap(), b'!');
    let names: BTreeSet<_> = entered.try_iter().collect();
    assert!(names.iter().eq(["vcpu0", "vcpu1"]), "{names:?}");
    control.stop();
    assert_eq!(runner.join().unwrap().unwrap(), Outcome::Stopped);
}

#[test]
fn a_vcpus_thread_that_is_not_prepared_ends_the_machine_before_it_runs() {
    let fail: [fn() -> io::Result<()>; 2] = [
        || Err(io::Error::other("on purpose")),
        || panic!("on purpose"),
    ];
    for fail in fail {
        let (builder, output) = writes();
        let machine = builder.vcpu_thread(move || match thread_name().as_str() {
            "vcpu1" => {
                // Time for the other one, which must not run.
                thread::sleep(Duration::from_millis(200));
                fail()
            }
            _ => Ok(()),
        });
        let ended = machine.build().unwrap().run();
        assert!(matches!(ended, Err(Error::VcpuThread(_))), "{ended:?}");
        assert_eq!(output.iter().count(), 0);
    }
}
