//! Kernels, booted by the command `minivm` and by the library: what a guest finds, and how it ends.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{OnceLock, PoisonError};

use minivm_tests::given;
use minivm_tests::output::Shared;
use minivm_tests::patience::{PATIENCE, wait_until};
use minivm_tests::program::{Ended, Program};
use minivm_tests::stress;
use minivm_vmm::{Builder, Config, Kernel, Outcome, Reset};

use crate::guest::{self, PROCESS, scratch, shared};

const CONSOLE: &str = "console=ttyS0 quiet panic=-1";

/// The kernels that are booted.
#[derive(Clone, Copy, PartialEq)]
enum Linux {
    OurVmlinux,
    OurBzImage,
    DebianCloud,
    DebianGeneric,
}

use Linux::{DebianCloud, DebianGeneric, OurBzImage, OurVmlinux};

impl Linux {
    fn path(self) -> &'static Path {
        static COPIES: [OnceLock<PathBuf>; 3] = [const { OnceLock::new() }; 3];
        let (copy, variable) = match self {
            OurVmlinux => return guest::kernel(),
            OurBzImage => (&COPIES[0], "MINIVM_TEST_BZIMAGE"),
            DebianCloud => (&COPIES[1], "MINIVM_TEST_DEBIAN_CLOUD"),
            DebianGeneric => (&COPIES[2], "MINIVM_TEST_DEBIAN_GENERIC"),
        };
        copy.get_or_init(|| given::copy(variable, &scratch("")))
    }
}

/// The initramfs of most tests: busybox, and an init that does what the command line says.
fn initramfs() -> &'static Path {
    static INITRAMFS: OnceLock<PathBuf> = OnceLock::new();
    INITRAMFS.get_or_init(|| {
        let files: [(&str, &[u8]); 2] = [
            ("bin/busybox", &guest::busybox()),
            ("init", include_bytes!("init.sh")),
        ];
        let applets = "cat cut dmesg grep halt head hexdump mount nproc poweroff reboot sh sleep stty taskset tr uname";
        guest::initramfs("jobs", &files, applets)
    })
}

/// A machine that does `jobs`.
#[derive(Clone, Copy)]
struct Boot {
    linux: Linux,
    jobs: &'static str,
    cmdline: &'static str,
    memory: u64,
    cpus: u8,
}

impl Boot {
    fn new(linux: Linux, jobs: &'static str) -> Self {
        Boot {
            linux,
            jobs,
            cmdline: "reboot=t",
            memory: 256 << 20,
            cpus: 1,
        }
    }

    fn cmdline(self) -> String {
        format!("{CONSOLE} {} jobs={}", self.cmdline, self.jobs)
    }

    /// Starts it with the command.
    fn start(self) -> Program {
        self.start_with(initramfs())
    }

    fn start_with(self, initramfs: &Path) -> Program {
        let memory = self.memory.to_string();
        let cpus = self.cpus.to_string();
        start(
            self.linux,
            initramfs,
            &self.cmdline(),
            &["--memory", &memory, "--cpus", &cpus],
        )
    }

    /// Runs it with the command to its end, which is to be a good one.
    fn text(self) -> String {
        let ended = self.start().end(PATIENCE);
        assert_orderly(&ended);
        ended.text()
    }

    fn config(self) -> Config {
        Config {
            initramfs: Some(initramfs().into()),
            cmdline: self.cmdline(),
            memory: self.memory,
            cpus: self.cpus,
            ..Config::new(Kernel::File(self.linux.path().into()))
        }
    }

    /// Runs it with the library to its end: how it ended, and what it wrote.
    fn outcome(self) -> (Outcome, String) {
        let console = Shared::default();
        let builder = Builder::new(self.config()).console_output(console.clone());
        (run_to_end(builder), console.text())
    }
}

/// Runs a machine with the library to its end.
fn run_to_end(builder: Builder) -> Outcome {
    let machine = builder.build().unwrap();
    let control = machine.control();
    let (ended, wait) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if wait.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            control.stop();
        }
    });
    let outcome = machine.run().unwrap();
    drop(ended);
    watchdog.join().unwrap();
    outcome
}

fn start(linux: Linux, initramfs: &Path, cmdline: &str, flags: &[&str]) -> Program {
    let mut command = guest::minivm();
    command.args(["--accel", "kvm", "--cmdline", cmdline]);
    command.arg("--kernel").arg(linux.path());
    command.arg("--initramfs").arg(initramfs);
    Program::start(command.args(flags))
}

fn assert_orderly(ended: &Ended) {
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
}

/// Checks the line that each kernel greets with: its version, the CPUs, and the memory that is left to use.
fn assert_greets(text: &str, boot: Boot) {
    let line = text
        .lines()
        .find(|line| line.starts_with("hello from Linux "));
    let line = line.unwrap_or_else(|| panic!("no greeting in:\n{text}"));
    let fields: Vec<&str> = line.split(' ').collect();
    let release = fields[3];
    // What the kernel keeps to itself: itself, and 4% for its records.
    let (suffix, itself) = match boot.linux {
        OurVmlinux | OurBzImage => ("-minivm,", 12 << 20),
        DebianCloud => ("-cloud-amd64,", 40 << 20),
        DebianGeneric => ("-amd64,", 48 << 20),
    };
    assert!(release.ends_with(suffix), "{line}");
    assert_eq!(fields[4], boot.cpus.to_string(), "{line}");
    let total = fields[7].parse::<u64>().unwrap() << 10;
    let least = boot.memory - boot.memory / 25 - itself;
    assert!((least..boot.memory).contains(&total), "{line}");
}

/// Boots, and checks that it ends well and has greeted.
fn greeted(boot: Boot) -> String {
    let text = boot.text();
    assert_greets(&text, boot);
    text
}

/// Checks that every CPU has run something, and has taken timer interrupts.
fn assert_all_cpus_run(text: &str, cpus: u8) {
    for cpu in 0..cpus {
        let line = format!("pinned to {cpu}: ran on {cpu}\n");
        assert!(text.contains(&line), "CPU {cpu}:\n{text}");
    }
    let timers = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("LOC: "));
    let counts = timers
        .unwrap_or_else(|| panic!("no timer interrupts:\n{text}"))
        .split(' ');
    let ticking = counts
        .map_while(|word| word.parse::<u64>().ok())
        .filter(|&count| count > 0);
    assert_eq!(ticking.count(), usize::from(cpus), "{text}");
}

/// Checks that the kernel has found a core of the one package for each CPU, and a local APIC's timer that fires at a value of the time
/// stamp counter.
fn assert_one_package(text: &str, cpus: u8) {
    let values = |name: &str| -> Vec<&str> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        lines
            .map(|value| value.trim_start_matches([':', ' ']))
            .collect()
    };
    let (number, each) = (cpus.to_string(), usize::from(cpus));
    assert_eq!(values("physical id"), vec!["0"; each], "{text}");
    assert_eq!(values("siblings"), vec![number.as_str(); each], "{text}");
    assert_eq!(values("cpu cores"), vec![number.as_str(); each], "{text}");
    let cores: Vec<_> = (0..cpus).map(|core| core.to_string()).collect();
    assert_eq!(values("core id"), cores, "{text}");
    let timers = text.lines().filter(|line| *line == "lapic-deadline");
    assert_eq!(timers.count(), each, "{text}");
}

#[test]
fn linux_has_com3_as_its_third_uart_where_the_machine_has_it() {
    let _shared = shared();
    for com3 in [true, false] {
        let config = Config {
            com3,
            ..Boot::new(OurVmlinux, "com3,poweroff").config()
        };
        let (console, output) = (Shared::default(), Shared::default());
        let (input, mut sender) = io::pipe().unwrap();
        let builder = Builder::new(config)
            .console_output(console.clone())
            .com3_output(output.clone())
            .com3_input(File::from(OwnedFd::from(input)));
        let said = console.clone();
        // Not earlier: until the terminal is raw, it has an echo of its own.
        let sending = std::thread::spawn(move || {
            wait_until("the guest looks for COM3", || {
                said.text().contains("com3: ")
            });
            if com3 {
                sender.write_all(b"hey").unwrap();
            }
        });
        let outcome = run_to_end(builder);
        sending.join().unwrap();
        let text = console.text();
        assert_eq!(outcome, Outcome::PowerOff, "{text}");
        let found = text.lines().find_map(|line| line.strip_prefix("com3: "));
        let (found, back) = (found.expect(&text), output.text());
        if com3 {
            // The number of its interrupt is Linux's own: it has one, and the bytes come by it.
            let interrupt = found.strip_prefix("0x3E8 ").expect(&text);
            assert!(interrupt.parse::<u32>().unwrap() > 0, "{text}");
            assert_eq!(back, "hey", "{text}");
        } else {
            assert_eq!((found, &*back), ("none", ""), "{text}");
        }
    }
}

#[test]
fn our_vmlinux_boots() {
    let _shared = shared();
    greeted(Boot::new(OurVmlinux, "hello,poweroff"));
}

#[test]
fn our_bzimage_boots() {
    let _shared = shared();
    greeted(Boot::new(OurBzImage, "hello,poweroff"));
}

#[test]
fn debians_cloud_kernel_boots() {
    let _shared = shared();
    greeted(Boot::new(DebianCloud, "hello,poweroff"));
}

#[test]
fn debians_generic_kernel_boots() {
    let _shared = shared();
    greeted(Boot::new(DebianGeneric, "hello,poweroff"));
}

#[test]
fn all_of_our_kernels_cpus_run() {
    let _shared = shared();
    for cpus in [1, 2, 4] {
        let boot = Boot {
            cpus,
            ..Boot::new(OurVmlinux, "hello,cpus,topology,poweroff")
        };
        let text = greeted(boot);
        assert_all_cpus_run(&text, cpus);
        assert_one_package(&text, cpus);
    }
}

#[test]
fn all_of_debians_cloud_kernels_cpus_run() {
    let _shared = shared();
    let boot = Boot {
        cpus: 2,
        ..Boot::new(DebianCloud, "hello,cpus,poweroff")
    };
    assert_all_cpus_run(&greeted(boot), 2);
}

#[test]
fn a_guest_has_the_memory_it_was_given() {
    let _shared = shared();
    for megabytes in [32, 64] {
        greeted(Boot {
            memory: megabytes << 20,
            ..Boot::new(OurVmlinux, "hello,poweroff")
        });
    }
}

#[test]
fn memory_above_the_hole_is_found() {
    let _shared = shared();
    let text = greeted(Boot {
        memory: 4 << 30,
        ..Boot::new(OurVmlinux, "hello,iomem,poweroff")
    });
    assert!(text.contains("100000000-13fffffff : System RAM"), "{text}");
}

#[test]
fn python_prints_4_and_nothing_else() {
    let _shared = shared();
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let initramfs = COPY.get_or_init(|| given::copy("MINIVM_TEST_INITRAMFS", &scratch("")));
    let cmdline = "reboot=t panic=-1 quiet loglevel=0";
    let ended = start(OurVmlinux, initramfs, cmdline, &[]).end(PATIENCE);
    assert_orderly(&ended);
    assert_eq!(ended.text(), "4\n");
}

#[test]
fn a_guest_that_switches_off_is_told() {
    let _shared = shared();
    for (linux, jobs) in [
        (OurVmlinux, "poweroff"),
        (OurVmlinux, "sysrq-o"),
        (DebianCloud, "sysrq-o"),
    ] {
        let (outcome, text) = Boot::new(linux, jobs).outcome();
        assert_eq!(outcome, Outcome::PowerOff, "{jobs}:\n{text}");
    }
}

#[test]
fn a_guest_that_reboots_is_told() {
    let _shared = shared();
    for (linux, cmdline, reset) in [
        (OurVmlinux, "", Reset::Line),
        (OurVmlinux, "reboot=k", Reset::Line),
        (OurVmlinux, "reboot=t", Reset::TripleFault),
        (DebianCloud, "", Reset::Line),
        (DebianCloud, "reboot=t", Reset::TripleFault),
    ] {
        let (outcome, text) = Boot {
            cmdline,
            ..Boot::new(linux, "reboot")
        }
        .outcome();
        assert_eq!(outcome, Outcome::Reboot(reset), "{cmdline}:\n{text}");
    }
}

#[test]
fn a_guest_that_panics_is_told() {
    let _shared = shared();
    for (linux, jobs, cmdline, reset) in [
        (OurVmlinux, "panic", "reboot=k", Reset::Line),
        (OurVmlinux, "panic", "reboot=t", Reset::TripleFault),
        (OurVmlinux, "exit", "reboot=t", Reset::TripleFault),
        (DebianCloud, "panic", "reboot=t", Reset::TripleFault),
    ] {
        let (outcome, text) = Boot {
            cmdline,
            ..Boot::new(linux, jobs)
        }
        .outcome();
        assert_eq!(outcome, Outcome::Panic(reset), "{jobs} {cmdline}:\n{text}");
        assert!(text.contains("Kernel panic - not syncing"), "{text}");
    }
}

#[test]
fn a_guest_that_halts_is_told() {
    let _shared = shared();
    for cpus in [1, 2] {
        let (outcome, text) = Boot {
            cpus,
            ..Boot::new(OurVmlinux, "halt")
        }
        .outcome();
        assert_eq!(outcome, Outcome::Halted, "{cpus} CPUs:\n{text}");
    }
}

#[test]
fn the_exit_code_tells_a_good_end_from_a_crash() {
    let _shared = shared();
    for jobs in ["reboot", "halt"] {
        assert_orderly(&Boot::new(OurVmlinux, jobs).start().end(PATIENCE));
    }
    for cmdline in ["reboot=t", "reboot=k"] {
        let boot = Boot {
            cmdline,
            ..Boot::new(OurVmlinux, "panic")
        };
        let ended = boot.start().end(PATIENCE);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(
            ended
                .stderr
                .starts_with("minivm: the guest's kernel panicked"),
            "{}",
            ended.stderr
        );
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
}

#[test]
fn a_command_on_stdin_is_run_and_its_end_is_not_the_guests() {
    let _shared = shared();
    let mut guest = Boot::new(OurVmlinux, "shell,poweroff").start();
    // All of it is there before the guest is, and nothing comes after it.
    guest
        .write(b"echo six times seven is $((6 * 7))\nsleep 1; echo it goes on; poweroff -f\n")
        .unwrap();
    guest.stdin = None;
    guest.wait_for("\nsix times seven is 42\n", PATIENCE);
    let ended = guest.end(PATIENCE);
    assert_orderly(&ended);
    assert!(ended.text().contains("\nit goes on\n"), "{}", ended.text());
}

#[test]
fn a_shells_long_output_is_complete() {
    let _shared = shared();
    let mut guest = Boot::new(OurVmlinux, "shell,poweroff").start();
    guest
        .write(
            b"stty -echo; n=0; while [ $n -lt 2000 ]; do echo line $n; n=$((n + 1)); done; exit\n",
        )
        .unwrap();
    let ended = guest.end(PATIENCE);
    assert_orderly(&ended);
    let lines: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    assert!(ended.text().contains(&lines), "{}", ended.text());
}

#[test]
fn four_kilobytes_of_input_arrive_unchanged() {
    let _shared = shared();
    let sent: Vec<u8> = (b' '..=b'~').cycle().take(4096).collect();
    let mut guest = Boot::new(OurVmlinux, "receive,poweroff").start();
    guest.wait_for("ready\n", PATIENCE);
    guest.write(&sent).unwrap();
    let ended = guest.end(PATIENCE);
    assert_orderly(&ended);
    let received = ended.stdout.strip_prefix(b"ready\n").unwrap();
    assert!(received.starts_with(&sent), "{}", ended.text());
}

#[test]
fn random_numbers_are_there_before_init_and_differ() {
    let _shared = shared();
    let numbers = [(); 2].map(|()| {
        let text = Boot::new(OurVmlinux, "random,poweroff").text();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name:?} in:\n{text}"))
                .to_owned()
        };
        assert_eq!(field("first: "), "crng init done", "{text}");
        field("random: ")
    });
    assert!(
        numbers.iter().all(|number| number.len() == 16),
        "{numbers:?}"
    );
    assert_ne!(numbers[0], numbers[1]);
}

#[test]
fn a_compressed_initramfs_boots() {
    let _shared = shared();
    let output = Command::new(given::busybox())
        .args(["gzip", "-1", "-c"])
        .arg(initramfs())
        .output()
        .unwrap();
    let path = scratch("boot.cpio.gz");
    fs::write(&path, output.stdout).unwrap();
    let boot = Boot::new(OurVmlinux, "hello,poweroff");
    let ended = boot.start_with(&path).end(PATIENCE);
    assert_orderly(&ended);
    assert_greets(&ended.text(), boot);
}

#[test]
fn a_guest_sees_a_hypervisor_and_no_virtualization_of_its_own() {
    let _shared = shared();
    let text = Boot::new(OurVmlinux, "flags,poweroff").text();
    let flags: Vec<&str> = text.split_whitespace().collect();
    assert!(flags.contains(&"hypervisor"), "{text}");
    assert!(!flags.contains(&"svm") && !flags.contains(&"vmx"), "{text}");
}

#[test]
fn boots_leave_nothing_behind() {
    let _alone = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    let entries = |folder: &str| fs::read_dir(folder).unwrap().count();
    let counted = || (entries("/proc/self/fd"), entries("/proc/self/task"));
    let boot = || {
        let (outcome, text) = Boot::new(OurVmlinux, "poweroff").outcome();
        assert_eq!(outcome, Outcome::PowerOff, "{text}");
    };
    boot();
    let before = counted();
    (0..stress::count(5, 100)).for_each(|_| boot());
    // A thread that was joined is listed for a moment longer; that may have been so before, too.
    wait_until("descriptors or threads are left", || {
        let now = counted();
        now.0 <= before.0 && now.1 <= before.1
    });
}
