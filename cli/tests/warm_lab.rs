//! Warm runs where the host's KVM runs no kernel: a process keeps a lab with a template and its clones, and runs use it.
//!
//! Each test has a cache of its own, and with it a keeper of its own, which it ends, also when it fails.

// Tests run: here and in labs

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use minivm_tests::patience::{PATIENCE, wait_until, with_limits_from};
use minivm_tests::program::{self, Ended, Program, ends_until};
use minivm_tests::{busybox, given, stress};
use rustix::process::{Pid, Signal, getsid, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How many machines a lab has.
const MACHINES: usize = 4;

/// What the image's shell scripts call.
const APPLETS: &str = "cat echo false head sh sleep tee true wc yes";

/// A cache and an image of its own.
struct Home {
    _folder: TempDir,
    path: PathBuf,
    lab_kernel: PathBuf,
}

impl Home {
    fn new() -> Self {
        Home::below("")
    }

    /// One whose path is longer by this.
    fn below(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        busybox::make_root(&path.join("root"), APPLETS);
        let lab_kernel = match std::env::var_os("MINIVM_LAB_KERNEL") {
            Some(folder) => folder.into(),
            None => minivm_machine::cache::folder()
                .unwrap()
                .join("kernel/lab/current"),
        };
        Home {
            _folder: folder,
            path,
            lab_kernel,
        }
    }

    /// One with a keeper that is ready.
    fn warm() -> Self {
        let home = Home::new();
        home.warm_up();
        home
    }

    fn warm_up(&self) {
        assert!(!self.is_warm(&["true"]), "there is no lab yet");
        // It waits for the lab that the first one has started, but not for long. It may be the second lab that is ready.
        wait_until("there is no lab", || self.is_warm(&["true"]));
    }

    fn minivm(&self) -> Command {
        let mut command = Command::new(given::minivm(env!("CARGO_BIN_EXE_minivm")));
        command
            .env("XDG_CACHE_HOME", self.path.join("cache"))
            .env("MINIVM_LAB_KERNEL", &self.lab_kernel)
            .env_remove("MINIVM_COLD");
        command
    }

    /// `minivm run` in the lab, with an image of its own.
    fn run(&self, flags: &[&str], words: &[&str]) -> Command {
        let kernel = given::path("MINIVM_TEST_KERNEL");
        let mut command = self.minivm();
        command.args(["run", "--quiet", "--accel", "lab", "--kernel"]);
        command.arg(kernel).args(flags);
        command.arg(format!("dir:{}", self.path.join("root").display()));
        command.args(words);
        command
    }

    fn shell(&self, flags: &[&str], script: &str) -> Command {
        self.run(flags, &["--", "sh", "-c", script])
    }

    /// What is reported of a run that ends well, whatever it is run from.
    fn report(&self, flags: &[&str], words: &[&str]) -> Value {
        // What is logged is seen where it fails.
        let flags = [&["--json", "--verbose"], flags].concat();
        let ended = program::run(&mut self.run(&flags, &[&["--"], words].concat()), PATIENCE);
        assert_eq!(ended.code, Some(0), "{} {}", ended.text(), ended.stderr);
        serde_json::from_slice(&ended.stdout).unwrap()
    }

    fn is_warm(&self, words: &[&str]) -> bool {
        self.report(&[], words)["warm"].as_bool().unwrap()
    }

    /// So many at once: their reports.
    fn at_once(&self, runs: usize) -> Vec<Value> {
        thread::scope(|scope| {
            let run = |number: usize| {
                let number = number.to_string();
                scope.spawn(move || self.report(&[], &["echo", &number]))
            };
            let runs: Vec<_> = (0..runs).map(run).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        })
    }

    /// Waits until all of the lab's machines are free.
    fn assert_all_are_free(&self) {
        wait_until("not all machines are free", || {
            self.at_once(MACHINES)
                .iter()
                .all(|report| report["warm"] == true)
        });
    }

    /// The processes that have this home in their environment, as minivm's own do, and all below them: a jail's have no
    /// environment.
    fn processes(&self) -> Vec<Process> {
        let mark = format!("XDG_CACHE_HOME={}", self.path.join("cache").display());
        let all: Vec<Process> = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| Process::read(&entry.ok()?.path()))
            .collect();
        let mut ours: Vec<Process> = Vec::new();
        loop {
            let more = |process: &&Process| {
                let marked = process.environ.split('\0').any(|variable| variable == mark);
                let below = ours.iter().any(|parent| parent.pid == process.parent);
                (marked || below) && !ours.contains(process)
            };
            let found: Vec<Process> = all.iter().filter(more).cloned().collect();
            if found.is_empty() {
                return ours;
            }
            ours.extend(found);
        }
    }

    /// Those of them that run this program, or one of minivm's parts.
    fn running(&self, program: &str) -> Vec<i32> {
        let runs = |process: &Process| {
            let mut words = process.line.split('\0');
            words.next().is_some_and(|name| name.ends_with(program))
                || words.next() == Some(program)
        };
        let found = self.processes().into_iter().filter(runs);
        found.map(|process| process.pid).collect()
    }

    fn keepers(&self) -> Vec<i32> {
        self.running("lab-keep")
    }

    fn labs(&self) -> Vec<i32> {
        self.running("qemu-system-x86_64")
    }

    /// The one keeper that there is.
    fn keeper(&self) -> i32 {
        match self.keepers()[..] {
            [keeper] => keeper,
            ref keepers => panic!("{keepers:?}"),
        }
    }

    fn sockets(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.join("cache/minivm/labs"))
            .into_iter()
            .flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|kind| kind == "socket"))
            .collect()
    }

    fn prune(&self) -> String {
        let ended = program::run(self.minivm().arg("prune"), PATIENCE);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        ended.text()
    }

    /// Prunes, and checks that this ends the lab.
    fn assert_prune_ends_the_lab(&self) {
        let labs = self.labs();
        // The session of a command that was cut off ends after it, and `prune` asks for a second only.
        wait_until("the lab stays in use", || {
            let told = self.prune();
            told.ends_with("ended 1 of the labs that were kept\n")
        });
        // It is waited for: none of a jail outlives it.
        let left: Vec<_> = labs.into_iter().filter(|&lab| is_there(lab)).collect();
        assert_eq!(left, [0; 0]);
        self.assert_nothing_is_left();
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!(self.processes(), Vec::<Process>::new());
        assert_eq!(self.sockets(), [""; 0].map(PathBuf::from));
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // These have this test's cache for their own, so they are this test's. What may come of those that end is there by
        // the second time.
        for _ in 0..2 {
            for process in self.processes() {
                let _ = kill_process(Pid::from_raw(process.pid).unwrap(), Signal::KILL);
            }
        }
    }
}

/// A process that is alive.
#[derive(Clone, Debug, PartialEq)]
struct Process {
    pid: i32,
    parent: i32,
    line: String,
    environ: String,
}

impl Process {
    /// `None` where it is gone, or dead and not waited for yet.
    fn read(folder: &Path) -> Option<Process> {
        let text = |name: &str| {
            let bytes = fs::read(folder.join(name)).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        let stat = text("stat")?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        Some(Process {
            pid: folder.file_name()?.to_str()?.parse().ok()?,
            parent: fields.nth(1)?.parse().ok()?,
            line: text("cmdline").filter(|line| !line.is_empty())?,
            environ: text("environ").unwrap_or_default(),
        })
    }
}

fn is_there(pid: i32) -> bool {
    // A dead process has no command line, even before its parent has waited for it.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn assert_end(ended: &Ended, code: i32, stdout: &str, stderr: &str) {
    let told = (ended.code, ended.text());
    assert_eq!(told, (Some(code), stdout.to_owned()), "{}", ended.stderr);
    assert_eq!(ended.stderr, stderr);
}

/// Bytes of every value in no simple order (a linear congruential generator).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn folders_are_this_hosts_in_a_lab_and_each_runs_own() {
    let home = Home::new();
    let script = "cat /work/host; echo from $1 > /work/guest; head -c 300000 /dev/zero > /work/zeros; wc -c < /work/zeros";
    let run = |name: &str, flags: &[&str]| {
        let folder = home.path.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("host"), format!("{name}\n")).unwrap();
        let volume = format!("{}:/work", folder.display());
        let flags = [&["-v", &volume], flags].concat();
        let script = script.replace("$1", name);
        let ended = program::run(&mut home.shell(&flags, &script), PATIENCE);
        let seen = (ended.code, ended.text(), ended.stderr.clone());
        assert_eq!(seen, (Some(0), format!("{name}\n300000\n"), String::new()));
        let written = fs::read_to_string(folder.join("guest")).unwrap();
        assert_eq!(written, format!("from {name}\n"));
        let zeros = fs::read(folder.join("zeros")).unwrap();
        assert!(zeros.len() == 300_000 && zeros.iter().all(|byte| *byte == 0));
    };
    run("cold", &["--cold"]);
    home.warm_up();
    let run = &run;
    thread::scope(|scope| {
        for name in ["one", "another"] {
            scope.spawn(move || run(name, &[]));
        }
    });
    home.assert_all_are_free();
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn the_first_run_boots_and_those_after_it_do_not() {
    let home = Home::new();
    // One that is to be cold starts no lab for others.
    assert_eq!(home.report(&["--cold"], &["true"])["warm"], false);
    let mut cold = home.run(&["--json"], &["--", "true"]);
    let cold = program::run(cold.env("MINIVM_COLD", "1"), PATIENCE);
    assert!(cold.text().contains("\"warm\":false"), "{}", cold.text());
    assert!(!home.path.join("cache/minivm/labs").exists());
    home.assert_nothing_is_left();

    home.warm_up();
    let keeper = home.keeper();
    // More than there are machines: those that get none boot one.
    let reports = home.at_once(6);
    for (number, report) in reports.iter().enumerate() {
        assert_eq!(report["stdout"], format!("{number}\n"));
    }
    home.assert_all_are_free();
    // Nor does it use the one that is there.
    assert_eq!(home.report(&["--cold"], &["true"])["warm"], false);
    assert_eq!(home.keeper(), keeper);

    // It is listed, and can be removed by the name that it has there.
    let template = |words: &[&str]| {
        let ended = program::run(home.minivm().arg("template").args(words), PATIENCE);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        ended.text()
    };
    let listed: Vec<Value> = serde_json::from_str(&template(&["ls", "--json"])).unwrap();
    let [listed] = &listed[..] else {
        panic!("one lab is kept: {listed:?}");
    };
    let image = format!("dir:{}", home.path.join("root").display());
    assert_eq!(listed["recipe"]["image"], image);
    assert_eq!(listed["lab"], true);
    template(&["rm", listed["name"].as_str().unwrap()]);
    home.assert_nothing_is_left();
    assert_eq!(template(&["ls", "--json"]), "[]\n");
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_comparison_shows_a_warm_machine_beside_one_that_boots() {
    let home = Home::new();
    let kernel = given::path("MINIVM_TEST_KERNEL");
    let python = given::python_root();
    let page = home.path.join("page.html");
    let mut command = home.minivm();
    command
        .env("MINIVM_KERNEL", kernel.parent().unwrap())
        .args(["compare", "--backends=microvm", "--runs=1", "--accel=lab"])
        .args(["--no-reach", "--json", "--html"])
        .arg(&page)
        .arg(format!("dir:{}", python.display()));
    let ended = program::run(&mut command, PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let rows: Vec<Value> = serde_json::from_slice(&ended.stdout).unwrap();
    let [row] = &rows[..] else {
        panic!("an object a backend: {rows:?}");
    };
    let warm = &row["warm"];
    for row in [row, warm] {
        let said = (&row["backend"], &row["stdout"]);
        assert_eq!(said, (&"microvm".into(), &"4\n".into()));
    }
    for row in [row, warm] {
        assert_eq!(row["accel"], "lab", "{row}");
        let boundary = row["boundary"].as_str().unwrap();
        assert!(boundary.contains("no wall against hostile code"), "{row}");
    }
    assert!(is_there(home.keeper()));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<th>microvm, warm</th>"), "{page}");
    assert!(page.contains("no wall against hostile code"), "{page}");
    assert!(!page.contains("hardware virtualization"), "{page}");
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn bytes_and_files_arrive_as_they_went() {
    let home = Home::warm();
    let sent = noise(10_000_001);
    let mut program = Program::start(&mut home.run(&["-i"], &["--", "tee", "/dev/stderr"]));
    let mut stdin = program.stdin.take().unwrap();
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&sent).unwrap();
            drop(stdin);
        });
        program.end(PATIENCE)
    });
    assert_eq!(ended.code, Some(0));
    assert!(
        ended.stdout == sent,
        "{} bytes of other stdout",
        ended.stdout.len()
    );
    // Which is kept as text.
    assert!(
        ended.stderr == String::from_utf8_lossy(&sent),
        "{} bytes of other stderr",
        ended.stderr.len()
    );

    let (file, out) = (home.path.join("file"), home.path.join("out"));
    fs::write(&file, &sent).unwrap();
    let copies = [
        "--copy-in".to_owned(),
        format!("{}:/in/file", file.display()),
        "--copy-out".to_owned(),
        format!("/out:{}", out.display()),
    ];
    let copies: Vec<&str> = copies.iter().map(String::as_str).collect();
    let script = "mkdir /out; cat /in/file > /out/copy; wc -c < /out/copy; exit 3";
    let script = script.replace("mkdir", "/bin/busybox mkdir");
    let ended = program::run(&mut home.shell(&copies, &script), PATIENCE);
    assert_end(&ended, 3, "10000001\n", "");
    assert!(fs::read(out.join("copy")).unwrap() == sent);

    // The error says why a guest has died, and what it printed before is kept.
    let script = "echo out; echo err >&2; sleep 1; echo c > /proc/sysrq-trigger";
    let ended = program::run(&mut home.shell(&["--json"], script), PATIENCE);
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let outputs = (&report["stdout"], &report["stderr"]);
    assert_eq!(outputs, (&"out\n".into(), &"err\n".into()), "{report}");
    let why = "the machine ended before its command did: the guest's kernel panicked";
    assert!(
        report["error"].as_str().unwrap().starts_with(why),
        "{report}"
    );
    assert_eq!(
        ended.stderr.matches("minivm: ").count(),
        1,
        "{}",
        ended.stderr
    );
    home.assert_all_are_free();
}

/// Starts a run that goes on until it is ended, and waits until it runs.
fn running(home: &Home, flags: &[&str], script: &str) -> Program {
    let mut program = Program::start(&mut home.shell(flags, &format!("echo up; {script}")));
    program.wait_for("up\n", PATIENCE);
    program
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn whatever_ends_a_run_frees_its_machine() {
    let home = Home::warm();
    let busy = "trap '' INT TERM; while :; do :; done";
    with_limits_from(Duration::from_secs(3), |limit| {
        let limit = format!("{}s", limit.as_secs());
        let mut shell = home.shell(&["--timeout", &limit], &format!("echo up; {busy}"));
        let late = program::run(&mut shell, PATIENCE);
        assert_eq!(late.code, Some(124), "{late:?}");
        let told = "minivm: time limit of ";
        assert!(late.stderr.starts_with(told), "{late:?}");
        (late.text() == "up\n").then_some(())
    });

    // The first signal is the command's, which says that it doesn't care: two that come at once are one.
    let script = "trap 'echo no' INT; echo ready; while :; do :; done";
    let mut interrupted = running(&home, &[], script);
    interrupted.wait_for("ready\n", PATIENCE);
    interrupted.signal(Signal::INT);
    interrupted.wait_for("no\n", PATIENCE);
    interrupted.signal(Signal::INT);
    assert_eq!(interrupted.end(PATIENCE).code, Some(130));
    let interrupted = running(&home, &[], "sleep 1000");
    interrupted.signal(Signal::INT);
    assert_eq!(interrupted.end(PATIENCE).code, Some(130));

    let mut flooded = home
        .run(&[], &["--", "yes"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = flooded.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 2]).unwrap();
    drop(stdout);
    let ended = ends_until(&flooded, Instant::now() + PATIENCE);
    let _ = flooded.kill();
    assert!(ended, "it goes on without a reader");
    assert_eq!(flooded.wait().unwrap().code(), Some(141));
    home.assert_all_are_free();

    // More of them than there are machines, while they do nothing, something, and while they write and read.
    for script in ["sleep 1000", busy, "yes", "cat"] {
        let all = [(); 2].map(|()| running(&home, &["-i"], script));
        all.iter().for_each(|program| program.signal(Signal::KILL));
        for program in all {
            assert_eq!(program.end(PATIENCE).signal, Some(9), "{script}");
        }
    }
    home.assert_all_are_free();

    // While they begin.
    let moments = stress::count(5, 100);
    for moment in 0..moments {
        let mut child = home.run(&[], &["--", "true"]).spawn().unwrap();
        thread::sleep(Duration::from_millis(50) * moment / moments);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    home.assert_all_are_free();
    home.keeper();
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_killed_keeper_leaves_nothing_and_is_replaced() {
    let home = Home::warm();
    let keeper = home.keeper();
    let qemu = home.labs();
    assert_eq!(qemu.len(), 1);
    let using = running(&home, &[], "sleep 1000");
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    // A command that has a machine there ends with the reason.
    let ended = using.end(PATIENCE);
    assert_eq!((ended.code, ended.text().as_str()), (Some(125), "up\n"));
    assert_eq!(
        ended.stderr,
        "minivm: the machine ended before its command did: its lab ended\n"
    );
    wait_until("QEMU is still there", || !is_there(qemu[0]));
    // Its socket is still there, and no process listens on it.
    assert_eq!(home.sockets().len(), 1);
    home.warm_up();
    assert_ne!(home.keeper(), keeper);
    assert_eq!(home.sockets().len(), 1);
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_keeper_that_is_asked_to_end_waits_for_the_run_in_its_lab() {
    let home = Home::warm();
    let keeper = home.keeper();
    let using = running(&home, &[], "sleep 2; echo end");
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::TERM).unwrap();
    let ended = using.end(PATIENCE);
    assert_end(&ended, 0, "up\nend\n", "");
    wait_until("the keeper is still there", || !is_there(keeper));
    assert!(home.labs().is_empty() && home.sockets().is_empty());
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn prune_ends_a_lab_that_nobody_uses() {
    let home = Home::warm();
    home.assert_prune_ends_the_lab();
    assert!(!home.prune().contains("labs"), "there is none any more");

    // While it starts.
    assert!(!home.is_warm(&["true"]));
    wait_until("no keeper listens", || !home.sockets().is_empty());
    home.assert_prune_ends_the_lab();

    // Not while one of its machines is in use.
    home.warm_up();
    let using = running(&home, &[], "sleep 1000");
    assert!(!home.prune().contains("labs"), "it is in use");
    assert!(home.is_warm(&["true"]));
    using.signal(Signal::TERM);
    using.signal(Signal::TERM);
    assert_eq!(using.end(PATIENCE).code, Some(143));
    home.assert_prune_ends_the_lab();
}

/// Runs, some at once, beside processes that end the lab again and again. Those that find none boot, and none fails.
#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn no_run_fails_beside_those_that_end_its_lab() {
    let runs = stress::count(2, 40);
    let home = Home::warm();
    let over = AtomicBool::new(false);
    let end_labs = |words: &dyn Fn() -> Vec<String>| {
        while !over.load(Ordering::Relaxed) {
            // The template or lab that a command is to remove may be gone by then.
            program::run(home.minivm().args(words()), PATIENCE);
        }
    };
    let remove = || {
        let entries = fs::read_dir(home.path.join("cache/minivm/labs"));
        let name = |entry: std::io::Result<fs::DirEntry>| {
            Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned())
        };
        let names = entries.into_iter().flatten().filter_map(name);
        ["template".to_owned(), "rm".to_owned()]
            .into_iter()
            .chain(names)
            .collect()
    };
    let warm = thread::scope(|scope| {
        scope.spawn(|| end_labs(&|| vec!["prune".to_owned()]));
        scope.spawn(|| end_labs(&remove));
        let ended = Over(&over);
        let mut warm = 0;
        for _ in 0..runs {
            let reports = home.at_once(3);
            warm += reports
                .iter()
                .filter(|report| report["warm"] == true)
                .count();
        }
        drop(ended);
        warm
    });
    eprintln!("{warm} of {} runs were warm", 3 * runs);
}

/// Tells the others that a test is over, also where it fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_template_with_a_name_outlives_its_lab_and_prune() {
    let home = Home::new();
    let kernel = given::path("MINIVM_TEST_KERNEL");
    let mut create = home.minivm();
    create.args(["template", "create", "kept", "--quiet", "--accel", "lab"]);
    create.arg("--kernel").arg(kernel);
    create.arg(format!("dir:{}", home.path.join("root").display()));
    let ended = program::run(&mut create, PATIENCE);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let run = || {
        let mut run = home.minivm();
        run.args(["run", "--quiet", "--template", "kept", "--", "echo", "4"]);
        program::run(&mut run, PATIENCE)
    };
    assert!(
        home.prune()
            .ends_with("ended 1 of the labs that were kept\n")
    );
    assert_end(&run(), 0, "4\n", "");

    // Without the image that it is made of, a run ends with the reason, and starts no lab.
    home.prune();
    let erofs = home.path.join("cache/minivm/erofs");
    let folder = match erofs.is_dir() {
        true => erofs,
        false => home.path.join("cache/minivm/initramfs"),
    };
    fs::remove_dir_all(folder).unwrap();
    let ended = run();
    assert_eq!((ended.code, ended.text().as_str()), (Some(125), ""));
    let told = "minivm: the template's image is gone from the cache, ";
    assert!(ended.stderr.starts_with(told), "{}", ended.stderr);
    assert_eq!(home.keepers(), [0; 0]);
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_template_that_cannot_be_made_holds_nothing_up() {
    let home = Home::new();
    let run = || {
        let ended = program::run(&mut home.run(&[], &["--code", "print(4)"]), PATIENCE);
        assert_eq!((ended.code, ended.text().as_str()), (Some(127), ""));
        assert!(
            ended
                .stderr
                .starts_with("minivm: no such command: python3: "),
            "{}",
            ended.stderr
        );
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    };
    run();
    run();
    let keeper = home.keeper();
    wait_until("its lab has not ended", || home.labs().is_empty());
    run();
    assert_eq!(home.keeper(), keeper, "it is known that it can't be made");
    assert!(home.labs().is_empty());
    assert!(
        home.prune()
            .ends_with("ended 1 of the labs that were kept\n")
    );
    home.assert_nothing_is_left();
}

/// A connection to the home's keeper.
fn connection(home: &Home) -> UnixStream {
    let stream = UnixStream::connect(&home.sockets()[0]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A frame: its kind, the length of what follows, and that.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
    [&[kind][..], &length, payload].concat()
}

/// The frames by which a command asks for a machine, gets one, and passes input on.
const ASK: u8 = 10;
const STARTED: u8 = 2;
const STDIN: u8 = 1;

/// A connection with a machine behind it, as soon as one is free.
fn machine(home: &Home) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut stream = connection(home);
        stream.write_all(&frame(ASK, b"")).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        if answer[..] == frame(STARTED, b"") {
            return stream;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
    }
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn nonsense_at_the_socket_disturbs_nobody() {
    let home = Home::warm();
    let keeper = home.keeper();
    // A connection that doesn't ask for a machine gets none; some of these never go away.
    let silent: Vec<_> = (0..2 * MACHINES).map(|_| connection(&home)).collect();
    for nonsense in [
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
        vec![0; 100_000],
        vec![0xff; 5],
        frame(STDIN, b"before anything"),
        frame(STARTED, b""),
        [ASK, 0xff, 0xff, 0xff, 0xff].to_vec(),
        frame(ASK, b"")[..3].to_vec(),
    ] {
        let mut stream = connection(&home);
        // It may be hung up on within.
        let _ = stream.write_all(&nonsense);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{nonsense:?}");
    }
    home.assert_all_are_free();
    // With a machine: nonsense for the keeper, and for the machine.
    for nonsense in [
        vec![0xff; 1000],
        frame(STDIN, &noise(1000)),
        frame(STDIN, &[0xff; 30_000]).repeat(100),
        frame(9, b""),
        frame(STDIN, b"half")[..7].to_vec(),
        frame(STDIN, b""),
        Vec::new(),
    ] {
        let mut stream = machine(&home);
        let _ = stream.write_all(&nonsense);
        // As soon as one is free: those of the last runs are made anew.
        wait_until("no other machine is as it was", || home.is_warm(&["true"]));
        drop(stream);
        home.assert_all_are_free();
    }
    drop(silent);
    assert_eq!(home.keeper(), keeper);
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_cache_with_a_long_path_has_a_lab_too() {
    // Twice what a socket's address has room for.
    let home = Home::below(
        &Path::new(&"long".repeat(25))
            .join("path".repeat(25))
            .to_string_lossy(),
    );
    home.warm_up();
    assert!(
        home.prune()
            .ends_with("ended 1 of the labs that were kept\n")
    );
    home.assert_nothing_is_left();
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn what_is_kept_holds_nothing_of_the_run_that_has_started_it() {
    let home = Home::new();
    let run = home.run(&[], &["--", "echo", "never seen"]);
    let mut shell = Command::new("/bin/sh");
    // The end of this output comes when all processes have closed it, as file 5 too.
    shell
        .args(["-c", "\"$0\" \"$@\" 5>&1 >/dev/null"])
        .arg(run.get_program())
        .args(run.get_args());
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let ended = program::run(&mut shell, PATIENCE);
    assert_end(&ended, 0, "", "");
    // Nor is it of its session: a key that ends the run isn't for it.
    let keeper = Pid::from_raw(home.keeper()).unwrap();
    assert_eq!(getsid(Some(keeper)), Ok(keeper), "it leads a session");
}
