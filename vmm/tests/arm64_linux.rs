//! Linux as Debian packages it for arm64: a boot, from the kernel's first instruction until it switches the power off.

// Tests run: on real KVM

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::fs;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use minivm_guest::newc::{Archive, Attributes, Node};
use minivm_tests::given;
use minivm_tests::output::Shared;
use minivm_tests::patience::PATIENCE;
use minivm_vmm::{Builder, Config, Kernel, Machine, Outcome};

const CPUS: u8 = 2;

/// The guest's first process: what it finds, on the serial port, and the end.
const INIT: &str = "#!/bin/busybox sh
busybox() { /bin/busybox \"$@\"; }
busybox mount -t proc none /proc
busybox mount -t devtmpfs none /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo \"hello from $(busybox uname -m): $(busybox nproc) CPUs, $(busybox cat /proc/cmdline)\"
busybox poweroff -f
";

fn initramfs() -> Vec<u8> {
    let mut archive = Archive::new(Vec::new());
    for folder in ["bin", "dev", "proc"] {
        archive.directory(folder, Attributes::new(0o755)).unwrap();
    }
    let console = Node::CharDevice { major: 5, minor: 1 };
    archive
        .node("dev/console", console, Attributes::new(0o600))
        .unwrap();
    let busybox = fs::read(given::path("MINIVM_TEST_BUSYBOX")).unwrap();
    for (path, bytes) in [("bin/busybox", &busybox[..]), ("init", INIT.as_bytes())] {
        let size = bytes.len() as u64;
        archive
            .file(path, Attributes::new(0o755), size, bytes)
            .unwrap();
    }
    archive.finish().unwrap()
}

/// Runs a machine to its end, and stops one that hangs.
fn run(machine: Machine) -> Outcome {
    let control = machine.control();
    let (ended, wait) = channel::<()>();
    let watchdog = thread::spawn(move || {
        if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            control.stop();
        }
    });
    let outcome = machine.run().unwrap();
    drop(ended);
    watchdog.join().unwrap();
    outcome
}

#[test]
fn debians_kernel_boots_and_switches_off() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("arm64-linux.cpio");
    fs::write(&file, initramfs()).unwrap();
    let console = Shared::default();
    let config = Config {
        initramfs: Some(file),
        cmdline: "console=ttyS0 quiet panic=-1".into(),
        cpus: CPUS,
        ..Config::new(Kernel::File(given::path("MINIVM_TEST_DEBIAN_GENERIC")))
    };
    let builder = Builder::new(config).console_output(console.clone());
    let outcome = run(builder.build().unwrap());
    let text = console.text();
    assert_eq!(outcome, Outcome::PowerOff, "{text}");
    let hello = format!("hello from aarch64: {CPUS} CPUs, console=ttyS0 quiet panic=-1");
    assert!(text.contains(&hello), "{text}");
}
