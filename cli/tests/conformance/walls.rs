//! What holds code that has broken out of its sandbox: judged from outside, by what the kernel says of the jail's processes.
//!
//! Where the tests are run by root, minivm is tried as root and as an ordinary user, who can make no control group.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use minivm_machine::cache;
use minivm_sandbox::tools;
use minivm_sandbox::{Backend, Sandbox};
use minivm_tests::given;
use minivm_tests::patience::PATIENCE;
use minivm_tests::processes::Process;
use minivm_tests::program::run;

use crate::host;
use crate::kills::descendants;

/// The user that is tried.
const USER: u32 = 65534;
/// The most that a sandbox gets of memory where nothing is said.
const MEMORY_MOST: u64 = 1 << 30;
/// The most that a file system in memory takes.
const ROOM_MOST: u64 = 256 << 20;
/// More than an ordinary user's jail may have of processes beside those that there are.
const PROCESSES: u64 = 1024;
const LOOP: &str = "print('begun')\nwhile True:\n    pass";

/// `minivm` while it runs code. It is ended when this is dropped.
struct Running {
    minivm: Child,
    family: BTreeMap<u32, Process>,
}

impl Running {
    /// Runs code in a backend until it has printed a line.
    fn start(mut command: Command, backend: Backend, code: &str, more: &[&str]) -> Running {
        command.args(["run", "-q", "--backend", backend.name(), "--code", code]);
        command.args(more).stdin(Stdio::null());
        let mut minivm = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = BufReader::new(minivm.stdout.as_mut().unwrap()).read_line(&mut line);
        stdout.unwrap();
        assert_eq!(line, "begun\n");
        let family = descendants(minivm.id());
        Running { minivm, family }
    }

    /// The processes in the jail: all but the programs that make it, which run on outside.
    fn jailed(&self) -> Vec<u32> {
        let outside = |process: &u32| matches!(&*name(*process), "unshare" | "bwrap" | "");
        let all = self.family.keys().copied();
        let jailed: Vec<u32> = all.filter(|process| !outside(process)).collect();
        assert!(!jailed.is_empty(), "{:?}", self.family);
        jailed
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.minivm.kill();
        let _ = self.minivm.wait();
    }
}

fn minivm() -> Command {
    let mut command = Command::new(host::minivm());
    let image = format!("dir:{}", minivm_tests::given::python_root().display());
    command.env("MINIVM_IMAGE", image);
    command
}

fn of(process: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default()
}

fn name(process: u32) -> String {
    of(process, "comm").trim().to_owned()
}

/// The words of a line of `/proc/PID/status`.
fn status(process: u32, field: &str) -> Vec<String> {
    let status = of(process, "status");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let words = line.and_then(|line| line.strip_prefix(':'));
    let words = words.unwrap_or_else(|| panic!("{process} has no {field}: {status}"));
    words.split_whitespace().map(str::to_owned).collect()
}

fn processes_most(process: u32) -> u64 {
    let limits = of(process, "limits");
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max processes"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

pub(crate) fn hold_what_breaks_out(sandbox: &dyn Sandbox) {
    let backend = sandbox.backend();
    let running = Running::start(minivm(), backend, LOOP, &[]);
    let is_root = rustix::process::geteuid().is_root();
    for &process in running.family.keys() {
        let users = [status(process, "Uid"), status(process, "Gid")].concat();
        let held = !is_root || users.iter().all(|user| user != "0");
        assert!(held, "{}: {users:?}", name(process));
    }
    for process in running.jailed() {
        let name = name(process);
        assert_eq!(status(process, "Seccomp"), ["2"], "{name}");
        assert_eq!(status(process, "NoNewPrivs"), ["1"], "{name}");
        let most = processes_most(process);
        assert!(most <= PROCESSES || !is_root, "{name}: {most}");
        if let Some(limit) = memory_limit(process) {
            assert!(limit <= MEMORY_MOST, "{name}: {limit}");
        }
        // gVisor's kernel has file systems of its own making.
        if backend != Backend::Gvisor {
            what_can_be_written_is_bounded(process);
        }
    }
    if is_root {
        // These two make sandboxes of their own by it.
        let needed = matches!(backend, Backend::Gvisor | Backend::Chromium);
        assert_eq!(can_unshare(running.jailed()[0]), needed);
    }
}

/// The limit on memory of a process's control group. None where it is the one that this process is in too.
fn memory_limit(process: u32) -> Option<u64> {
    let group = |text: String| {
        let memory = text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let version_1 = controllers.split(',').any(|one| one == "memory");
            version_1.then(|| (path.to_owned(), true))
        });
        let one = text.lines().find_map(|line| line.strip_prefix("0::"));
        memory.or_else(|| one.map(|path| (path.to_owned(), false)))
    };
    let (path, version_1) = group(of(process, "cgroup"))?;
    if group(of(std::process::id(), "cgroup"))?.0 == path {
        return None;
    }
    let file = match version_1 {
        true => format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"),
        false => format!("/sys/fs/cgroup{path}/memory.max"),
    };
    Some(fs::read_to_string(file).ok()?.trim().parse().unwrap())
}

/// Each file system in memory that the process sees has a size, or can't be written to.
fn what_can_be_written_is_bounded(process: u32) {
    let mounts = of(process, "mountinfo");
    for line in mounts.lines() {
        let (mount, system) = line.split_once(" - ").unwrap();
        let options = mount.split(' ').nth(5).unwrap();
        let is_read_only = options.split(',').any(|option| option == "ro");
        if !system.starts_with("tmpfs ") || is_read_only || mount.contains(" /dev/") {
            // Devices are mounts of the host's own, one each.
            assert!(
                !mount.contains(" /dev/shm ") || system.contains("size="),
                "{line}"
            );
            continue;
        }
        let size = system
            .split(['=', ',', ' '])
            .skip_while(|word| *word != "size")
            .nth(1);
        let size = size.and_then(|size| size.strip_suffix('k')?.parse::<u64>().ok());
        let size = size.unwrap_or_else(|| panic!("{line}"));
        assert!(size << 10 <= ROOM_MOST, "{line}");
    }
}

/// Whether another process of that one's user, in its user namespace, can make one more.
fn can_unshare(process: u32) -> bool {
    let map = of(process, "uid_map");
    let user = map.split_whitespace().next().unwrap();
    let mut command = Command::new("nsenter");
    command.args(["--target", &process.to_string(), "--user"]);
    command.args(["--setuid", user, "--setgid", user]);
    command.args(["unshare", "--user", "true"]);
    command.stderr(Stdio::null()).status().unwrap().success()
}

/// What is copied in is what was there, and neither what comes later nor a way to a program of the host's.
pub(crate) fn hand_in_copies(sandbox: &dyn Sandbox) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("before"), "b").unwrap();
    let _listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let copy = format!("{}:/in", folder.path().display());
    let code = "import os\nassert open('/in/before').read() == 'b'\nassert os.listdir('/in') == ['before']\n";
    let code = format!("{code}{LOOP}");
    let running = Running::start(minivm(), sandbox.backend(), &code, &["--copy-in", &copy]);
    fs::write(folder.path().join("after"), "a").unwrap();
    let mut seen = Vec::new();
    for process in running.jailed() {
        for place in fs::read_dir(format!("/proc/{process}/root"))
            .into_iter()
            .flatten()
        {
            let path = place.unwrap().path();
            let own = [
                "proc", "sys", "usr", "lib", "lib64", "bin", "sbin", "pyodide", "image",
            ];
            if !own.iter().any(|own| path.ends_with(own)) {
                names(&path, &mut seen);
            }
        }
    }
    assert!(seen.iter().any(|path| path.ends_with("task")), "{seen:?}");
    for path in seen {
        let named = ["before", "after", "socket"]
            .iter()
            .any(|name| path.ends_with(name));
        assert!(!named, "{} is the host's", path.display());
    }
}

/// A path and all below it.
fn names(path: &Path, seen: &mut Vec<PathBuf>) {
    seen.push(path.to_owned());
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    for entry in is_folder
        .then(|| fs::read_dir(path).ok())
        .flatten()
        .into_iter()
        .flatten()
        .flatten()
    {
        assert!(!entry.file_type().unwrap().is_socket() || !path.ends_with("in"));
        names(&entry.path(), seen);
    }
}

/// Programs, a cache and an image where an ordinary user may use them.
struct Lent {
    folder: tempfile::TempDir,
}

impl Lent {
    fn new() -> Lent {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let lent = Lent { folder };
        let minivm = host::minivm();
        let runsc = tools::debian::runsc(&cache::folder().unwrap()).expect("it was fetched");
        for (from, name) in [
            (&minivm, "minivm"),
            (&minivm.with_file_name("minivm-worker"), "minivm-worker"),
            (&runsc, "runsc"),
        ] {
            fs::copy(from, lent.path(name)).unwrap();
        }
        let cache = lent.path("cache");
        fs::create_dir(&cache).unwrap();
        chown(&cache, Some(USER), Some(USER)).unwrap();
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(given::python_root());
        assert!(copy.arg(lent.path("image")).status().unwrap().success());
        lent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn minivm(&self) -> Command {
        let mut command = Command::new("setpriv");
        let user = USER.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]);
        command.arg(self.path("minivm")).current_dir("/");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.folder.path().display()));
        command.env("XDG_CACHE_HOME", self.path("cache"));
        let image = format!("dir:{}", self.path("image").display());
        command.env("MINIVM_IMAGE", image);
        command
            .env("HOME", self.path("cache"))
            .env("TMPDIR", "/tmp");
        command
    }
}

/// What gVisor makes in a folder belongs to the user who runs minivm, who may be no one else on this host.
#[test]
fn files_in_a_shared_folder_are_an_ordinary_users() {
    if !rustix::process::geteuid().is_root() {
        // Then all other tests are an ordinary user's.
        return;
    }
    let lent = Lent::new();
    let shared = lent.path("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(USER), Some(USER)).unwrap();
    fs::write(shared.join("roots"), "root's").unwrap();
    let mut command = lent.minivm();
    command.args(["run", "-q", "--backend", "gvisor", "--no-protect", "-v"]);
    command.arg(format!("{}:/work", shared.display()));
    let script =
        "cd /work; echo made > made; chmod 751 made; mkdir folder; cat roots; echo more >> roots";
    let output = command.args(["--", "sh", "-c", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout, b"root's", "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    for (name, mode) in [("made", 0o751), ("folder", 0o755)] {
        let metadata = fs::metadata(shared.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (USER, USER), "{name}");
        assert_eq!(metadata.mode() & 0o7777, mode, "{name}");
    }
    assert_eq!(fs::read(shared.join("roots")).unwrap(), b"root's");
}

/// An ordinary user's jails are that user's, and limits hold without a control group and without anything said.
#[test]
fn walls_hold_for_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        // Then all other tests are an ordinary user's.
        return;
    }
    let lent = Lent::new();
    for backend in [Backend::Monty, Backend::Gvisor] {
        let running = Running::start(lent.minivm(), backend, LOOP, &[]);
        for process in running.jailed() {
            assert_eq!(status(process, "Uid"), vec![USER.to_string(); 4]);
            assert_eq!(status(process, "Seccomp"), ["2"], "{}", name(process));
            assert!(processes_most(process) < u64::from(u16::MAX));
            assert_eq!(memory_limit(process), None, "it has a control group");
        }
        drop(running);
        let hog = "a = []\nwhile True:\n    a.append('x' * 1000000 + str(len(a)))";
        let mut command = lent.minivm();
        command.args([
            "run",
            "-q",
            "--json",
            "--backend",
            backend.name(),
            "--code",
            hog,
        ]);
        let told = command.stdin(Stdio::null()).output().unwrap().stdout;
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        let kind = &told["exception"]["type"];
        assert!(told["oom"] == true || kind == "MemoryError", "{told}");
        let peak = told["host_memory"].as_u64().unwrap();
        // It is looked at now and then, and takes more meanwhile.
        assert!(peak < 2 * MEMORY_MOST, "{peak}");
    }
    let mut doctor = lent.minivm();
    let told = doctor.arg("doctor").stderr(Stdio::null()).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("no control group can be made"), "{told}");
}

#[test]
fn a_limit_that_is_too_low_for_a_runtime_is_named() {
    for (backend, limit, what) in [
        (Backend::Deno, "--nofile=150", "open files"),
        (Backend::Deno, "--as=2000000000", "address space"),
        (Backend::Deno, "--data=150000000", "data in bytes"),
        (Backend::Chromium, "--nproc=100", "processes"),
        (Backend::Gvisor, "--nofile=150", "open files"),
    ] {
        let mut command = Command::new("prlimit");
        command.arg(limit).arg(host::minivm());
        command.args(["run", "-q", "--backend", backend.name()]);
        if backend.needs_image() {
            command.arg(format!("dir:{}", given::python_root().display()));
        }
        let ended = run(command.args(["--code", "print(1)"]), PATIENCE);
        let named = format!("the limit of {what}");
        ended.assert_refused(backend.name(), &[backend.name(), &named, "ulimit"]);
        assert_eq!(ended.text(), "", "{backend} {limit}");
    }
}
