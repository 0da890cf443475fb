//! `minivm run`, killed at any moment of its life: nothing of it stays, and the next run works.
//!
//! It runs as on any machine without KVM that runs kernels, so that most of that life is the lab's.

// Tests run: here and in labs

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use minivm_tests::patience::PATIENCE;
use minivm_tests::processes::{self, Process};
use minivm_tests::program::{ends_until, run};
use minivm_tests::{busybox, given, stress};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open, set_child_subreaper};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// The cache's folders of what is made of images for machines.
const MADE: [&str; 2] = ["initramfs", "erofs"];

/// A cache, a folder for temporary files and an image of its own.
struct Home {
    folder: TempDir,
    lab_kernel: PathBuf,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for name in ["tmp", "cache"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        busybox::make_root(&root, "sh cat echo");
        // Making the archive is to take a while.
        fs::write(root.join("data"), vec![b'x'; 8 << 20]).unwrap();
        let lab_kernel = match std::env::var_os("MINIVM_LAB_KERNEL") {
            Some(folder) => folder.into(),
            None => minivm_machine::cache::folder()
                .unwrap()
                .join("kernel/lab/current"),
        };
        Home { folder, lab_kernel }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn minivm(&self) -> Command {
        let kernel = given::path("MINIVM_TEST_KERNEL");
        let mut command = Command::new(given::minivm(env!("CARGO_BIN_EXE_minivm")));
        command
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("MINIVM_COLD", "1")
            .env("TMPDIR", self.path("tmp"))
            .env("MINIVM_LAB_KERNEL", &self.lab_kernel)
            .args(["run", "--quiet", "--kernel"])
            .arg(kernel)
            .arg(format!("dir:{}", self.path("root").display()))
            .args(["--", "sh", "-c", "echo $((2 + 2))"]);
        command
    }

    /// A run that goes well, and how long it took.
    fn assert_works(&self) -> Duration {
        let start = Instant::now();
        let ended = run(&mut self.minivm(), PATIENCE);
        let told = (ended.code, ended.text(), ended.stderr.as_str());
        assert_eq!(told, (Some(0), "4\n".to_owned(), ""));
        start.elapsed()
    }

    /// What was made of the image, each with its digest.
    fn made(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let folders = MADE.map(|name| self.path("cache/minivm").join(name));
        let paths = folders.iter().flat_map(|folder| {
            let names = names(folder).into_iter();
            names.map(|name| folder.join(name))
        });
        let whole = paths.filter(|path| path.extension().unwrap() != "partial");
        whole.map(|path| (path.clone(), digest(&path))).collect()
    }

    /// Waits until no process is left of all that minivm has started.
    fn assert_no_process(&self, when: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // What has lost its parent is this process's child (see the test).
            let mut alive = processes::below(std::process::id()).into_iter();
            let Some(Process { id, .. }) = alive.find(|process| process.is_alive) else {
                return;
            };
            let pid = i32::try_from(id).ok().and_then(Pid::from_raw).unwrap();
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap();
            let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
            let line = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
            assert_eq!(
                ended,
                Ok(1),
                "{when}: still there: {}",
                line.replace('\0', " ")
            );
        }
    }

    /// Nothing is in the folders but what a next run uses: what is `whole`, and the locked beginning of that.
    fn assert_clean(&self, whole: &BTreeMap<PathBuf, Vec<u8>>, when: &str) {
        assert_eq!(names(&self.path("tmp")), Vec::<String>::new(), "{when}");
        let known = [
            "initramfs",
            "erofs",
            "images",
            "rootfs",
            "kvm-usable",
            "eviction.lock",
        ];
        let mut others = names(&self.path("cache/minivm"));
        others.retain(|name| !known.contains(&name.as_str()));
        assert_eq!(others, [""; 0], "{when}");
        assert_eq!(names(&self.path("cache/minivm/rootfs")), [""; 0], "{when}");
        for (path, digest) in self.made() {
            assert_eq!(whole.get(&path), Some(&digest), "{when}: {path:?}");
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn digest(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).unwrap()).to_vec()
}

/// The mounts of this host that are minivm's: by their source, or by a path in the folder that this test alone uses. Others come and go
/// with other programs.
fn mounts(of: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = of.to_str().unwrap();
    let ours = |line: &&str| line.contains(own) || line.contains(" minivm ");
    mounts.lines().filter(ours).map(str::to_owned).collect()
}

/// Kills it after this time, if it is still there.
fn kill_after(child: &mut Child, moment: Duration) {
    let _ended = ends_until(child, Instant::now() + moment);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn whenever_it_is_killed_nothing_stays_and_the_next_run_works() {
    // Whatever minivm leaves behind becomes this process's child, and is found.
    set_child_subreaper(Some(getpid())).unwrap();
    let home = Home::new();
    // With all that is made of the image, read once.
    home.assert_works();
    let whole = home.made();
    assert!(!whole.is_empty());
    for path in whole.keys() {
        let permissions = fs::metadata(path).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600, "{path:?}");
    }
    let life = home.assert_works();
    assert_eq!(mounts(&home.path("")), [""; 0], "before any kill");
    // How many moments lie within the first 120 ms, and how many there are.
    let (early, moments) = stress::count((4, 10), (24, 72));
    for moment in 0..moments {
        // Every other time the image's files are to be made, and the first moments, in which that happens, lie closer.
        let making = moment % 2 == 0;
        if making {
            for path in whole.keys() {
                let _ = fs::remove_file(path);
            }
        }
        let at = match moment < early {
            true => Duration::from_millis(120) * moment / early,
            false => life * (moment + 1 - early) / (moments + 1 - early),
        };
        let when = format!("killed after {at:?} of {life:?}");
        let mut child = home
            .minivm()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        kill_after(&mut child, at);
        home.assert_no_process(&when);
        home.assert_clean(&whole, &when);
        assert_eq!(mounts(&home.path("")), [""; 0], "{when}");
        if moment % 7 == 6 {
            home.assert_works();
            home.assert_clean(&whole, &when);
        }
    }
    home.assert_works();
}
