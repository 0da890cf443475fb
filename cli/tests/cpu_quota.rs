//! `--cpu-quota`: a machine that spins is stopped when it has had its share, nothing of its control group stays, and where it can't be had
//! it is refused.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0, and most of them a control group with the controller `cpu`.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minivm_machine::jail::CpuGroup;
use minivm_tests::code::{LOOP, RESET, SHOW, show};
use minivm_tests::kernel_file::Elf;
use minivm_tests::patience::{PATIENCE, wait_until};
use minivm_tests::processes::{self, Process};
use minivm_tests::program::{Program, assert_told, run};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Wrong usage.
const USAGE: i32 = 2;
/// minivm's own error.
const ERROR: i32 = 125;

/// A folder for one test, with guests' kernels in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        // Shows a byte now and then, so that one that is restored does too.
        let spin = [0xb9, 0x00, 0x40, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xfc]; // mov ecx, 0x4000; dec ecx; jnz
        let again = [&SHOW[..], &spin, &[0xeb, 0xf0]].concat(); // jmp to the start of SHOW
        let guests: [(&str, &[&[u8]]); 3] = [
            ("short", &[&show(b'.'), &RESET]),
            ("endless", &[&show(b'.'), &LOOP]),
            ("again", &[&show(b'.'), &again]),
        ];
        for (name, code) in guests {
            fs::write(place.path(name), Elf::of_code(code).bytes()).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `minivm` with a cache of this test's.
    fn minivm(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// A machine of one of the guests.
    fn unbounded(&self, guest: &str) -> Command {
        let mut command = self.minivm();
        command.args(["--accel", "kvm", "--memory", "64M", "--kernel"]);
        command.arg(self.path(guest));
        command
    }

    /// A machine of one of the guests, which gets a tenth of a processor.
    fn boot(&self, guest: &str) -> Command {
        let mut command = self.unbounded(guest);
        command.args(["--cpu-quota", "0.1"]);
        command
    }
}

/// A machine that runs, and the folder of its monitor's control group.
struct Bounded {
    program: Program,
    monitor: Process,
    group: PathBuf,
}

impl Bounded {
    /// Starts it, and waits until its guest has written a byte.
    fn start(command: &mut Command) -> Bounded {
        let mut program = Program::start(command);
        program.wait_for(".", PATIENCE);
        Bounded::of(program)
    }

    fn of(program: Program) -> Bounded {
        let below = processes::below(program.id());
        let [monitor] = &below[..] else {
            panic!("{below:?}");
        };
        let groups = groups(program.id());
        let [group] = &groups[..] else {
            panic!("{groups:?}");
        };
        let inside = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(inside, format!("{}\n", monitor.id));
        Bounded {
            monitor: *monitor,
            group: group.clone(),
            program,
        }
    }

    /// Waits until the kernel has stopped it at the end of its share, in which it spins.
    fn wait_until_stopped(&self) {
        wait_until("it is never stopped", || times(&self.group) > 3);
    }

    /// Asserts that it has ended by a signal, and that nothing of it is left.
    fn assert_ended_by(self, signal: Signal) {
        let ended = self.program.end(PATIENCE);
        assert_eq!(ended.signal, Some(signal.as_raw()), "{ended:?}");
        assert_eq!(ended.stderr, "");
        assert!(!self.monitor.still_runs() && !self.group.exists());
    }
}

/// How many times the kernel has stopped a group.
fn times(group: &Path) -> u64 {
    let stat = fs::read_to_string(group.join("cpu.stat")).unwrap();
    let times = stat
        .lines()
        .find_map(|line| line.strip_prefix("nr_throttled "));
    times.unwrap().parse().unwrap()
}

/// Whether no thread is in a group, or the group is gone.
fn is_empty(group: &Path) -> bool {
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    match (read("cgroup.events"), read("tasks")) {
        (Some(events), _) => events.contains("populated 0"),
        (None, tasks) => tasks.unwrap_or_default().is_empty(),
    }
}

/// The folders of the control groups that a process has made.
fn groups(process: u32) -> Vec<PathBuf> {
    fn below(folder: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        for folder in folders {
            if folder.file_name().to_string_lossy().starts_with(prefix) {
                found.push(folder.path());
            }
            below(&folder.path(), prefix, found);
        }
    }
    let mut found = Vec::new();
    below(
        Path::new("/sys/fs/cgroup"),
        &format!("minivm-{process}-"),
        &mut found,
    );
    found
}

/// Returns whether a bound can be had here, and says that a test is skipped where it can't.
fn can_be_had() -> bool {
    let group = CpuGroup::create("1".parse().unwrap());
    if let Err(error) = &group {
        eprintln!("skipped: {error}");
    }
    group.is_ok()
}

fn signal(process: u32, signal: Signal) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    kill_process(process.unwrap(), signal).unwrap();
}

#[test]
fn a_guest_that_spins_is_stopped_when_it_has_had_its_share() {
    if !can_be_had() {
        return;
    }
    let place = Place::new();
    for cpus in ["1", "3"] {
        let machine = Bounded::start(place.boot("endless").args(["--cpus", cpus]));
        machine.wait_until_stopped();
        machine.program.signal(Signal::TERM);
        machine.assert_ended_by(Signal::TERM);
    }
}

#[test]
fn a_machine_that_ends_leaves_no_group() {
    if !can_be_had() {
        return;
    }
    let place = Place::new();
    let trace = format!("--trace={}", place.path("trace.jsonl").display());
    for flags in [&[][..], &[&*trace]] {
        let machine = Program::start(place.boot("short").args(flags));
        let id = machine.id();
        let ended = machine.end(PATIENCE);
        assert_eq!((ended.code, &*ended.text()), (Some(0), "."), "{ended:?}");
        assert_eq!(groups(id), [""; 0].map(PathBuf::from));
    }
    let mut bad = place.boot("short");
    let machine = Program::start(bad.arg("--initramfs").arg(place.path("none")));
    let id = machine.id();
    let ended = machine.end(PATIENCE);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert_eq!(groups(id), [""; 0].map(PathBuf::from));
}

#[test]
fn a_machine_that_was_saved_is_bounded_when_it_goes_on() {
    if !can_be_had() {
        return;
    }
    let place = Place::new();
    let (socket, folder) = (place.path("socket"), place.path("saved"));
    let mut machine = Program::start(place.unbounded("again").arg("--control").arg(&socket));
    machine.wait_for(".", PATIENCE);
    assert_eq!(groups(machine.id()), [""; 0].map(PathBuf::from));
    let mut save = place.minivm();
    save.arg("snapshot").args([&socket, &folder]).arg("--stop");
    let saved = run(&mut save, PATIENCE);
    assert_eq!(saved.code, Some(0), "{saved:?}");
    assert_eq!(machine.end(PATIENCE).code, Some(0));
    let mut restore = place.minivm();
    restore.args(["restore", "--accel", "kvm", "--cpu-quota", "0.1"]);
    let machine = Bounded::start(restore.arg(&folder));
    machine.wait_until_stopped();
    machine.program.signal(Signal::INT);
    machine.assert_ended_by(Signal::INT);
}

#[test]
fn a_run_of_an_image_is_bounded_too() {
    if !can_be_had() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("root")).unwrap();
    fs::write(place.path("root/file"), "content").unwrap();
    let mut command = place.minivm();
    command.args([
        "run",
        "--accel",
        "kvm",
        "--cold",
        "--cpu-quota",
        "0.1",
        "--kernel",
    ]);
    command.arg(place.path("endless"));
    command.arg(format!("dir:{}", place.path("root").display()));
    let program = Program::start(command.args(["--", "true"]));
    wait_until("it starts no machine", || !groups(program.id()).is_empty());
    wait_until("its machine never spins", || {
        groups(program.id()).iter().any(|group| times(group) > 3)
    });
    let machine = Bounded::of(program);
    // The one that is seen second ends the machine, whose init never starts.
    machine.program.signal(Signal::TERM);
    machine.program.signal(Signal::INT);
    let ended = machine.program.end(PATIENCE);
    assert!(matches!(ended.code, Some(130 | 143)), "{ended:?}");
    assert!(!machine.monitor.still_runs() && !machine.group.exists());
}

#[test]
fn a_monitor_that_is_killed_leaves_no_group() {
    if !can_be_had() {
        return;
    }
    let place = Place::new();
    let machine = Bounded::start(&mut place.boot("endless"));
    signal(machine.monitor.id, Signal::KILL);
    let ended = machine.program.end(PATIENCE);
    assert_eq!(ended.code, Some(ERROR), "{ended:?}");
    assert_told("killed", ended.stderr.trim_end(), &["it was killed"]);
    assert!(!machine.group.exists());
}

#[test]
fn the_group_of_a_minivm_that_is_killed_goes_at_the_next_start() {
    if !can_be_had() {
        return;
    }
    let place = Place::new();
    let machine = Bounded::start(&mut place.boot("endless"));
    machine.wait_until_stopped();
    machine.program.signal(Signal::KILL);
    machine.program.end(PATIENCE);
    wait_until("its monitor stays", || is_empty(&machine.group));
    // The next start of another test may have removed it already.
    let next = run(&mut place.boot("short"), PATIENCE);
    assert_eq!(next.code, Some(0), "{next:?}");
    assert!(!machine.group.exists());
}

#[test]
fn a_bound_that_is_no_number_of_processors_is_refused() {
    let place = Place::new();
    for quota in ["0", "-1", "nan", "inf", "1e9", "0.001", "half", ""] {
        let mut command = place.minivm();
        command.arg(format!("--cpu-quota={quota}"));
        let ended = run(command.arg("--kernel").arg(place.path("short")), PATIENCE);
        assert_eq!(ended.code, Some(USAGE), "{quota}: {ended:?}");
        let told = "expected a number of processors from 0.01 to 1024, such as 0.5";
        assert!(ended.stderr.contains(told), "{quota}: {ended:?}");
    }
}

#[test]
fn the_lab_and_other_sandboxes_refuse_a_bound() {
    let place = Place::new();
    let mut raw = place.minivm();
    raw.args(["--accel", "lab", "--cpu-quota", "2", "--kernel"]);
    let ended = run(raw.arg(place.path("short")), PATIENCE);
    ended.assert_refused(
        "raw",
        &["--cpu-quota 2 needs this host's KVM", "--accel lab"],
    );
    let mut image = place.minivm();
    image.args(["run", "--accel", "lab", "--cpu-quota", "2", "dir:/nowhere"]);
    let ended = run(&mut image, PATIENCE);
    ended.assert_refused(
        "run",
        &["--cpu-quota 2 needs this host's KVM", "--accel lab"],
    );
    for backend in ["gvisor", "monty", "deno", "chromium"] {
        let mut command = place.minivm();
        command.args(["run", "--cpu-quota", "2", "--code", "pass", "--backend"]);
        let ended = run(command.arg(backend), PATIENCE);
        let has_none = format!("--cpu-quota: the backend {backend} has no bound on processor time");
        ended.assert_refused(backend, &[&has_none]);
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_bound_that_can_not_be_had_is_refused_before_anything_runs() {
    let place = Place::new();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-c"]);
    command.arg("mount -t tmpfs none /sys/fs/cgroup && exec \"$0\" \"$@\"");
    let boot = place.boot("short");
    command.arg(boot.get_program()).args(boot.get_args());
    let ended = run(&mut command, PATIENCE);
    assert_eq!(ended.text(), "");
    ended.assert_refused(
        "none",
        &["no bound of 0.1", "control group", "run minivm as root"],
    );
}
