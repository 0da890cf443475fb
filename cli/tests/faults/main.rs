//! Faults of the host under `minivm --kernel`, `restore` and `build`: system calls that fail, memory that is short, signals at any moment, a
//! process that is suspended. Each ends with one line and the right exit code, and nothing stays.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0; even a KVM that can't run a whole Linux often can.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod calls;
mod memory;
mod moments;
mod sweep;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use minivm_tests::code::{LOOP, RESET, WAIT, show};
use minivm_tests::kernel_file::Elf;
use minivm_tests::patience::wait_until;
use minivm_tests::{given, processes};
use rustix::process::{getpid, set_child_subreaper};
use tempfile::TempDir;

/// A folder of one test's own, with guests' kernels, for temporary files and as a cache.
///
/// All processes that minivm leaves behind become the children of this process. So that they are one test's, no two tests have a
/// scene at a time.
struct Scene {
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new() -> Scene {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        set_child_subreaper(Some(getpid())).unwrap();
        let scene = Scene {
            folder: tempfile::tempdir().unwrap(),
            _alone: alone,
        };
        for name in ["tmp", "cache"] {
            fs::create_dir(scene.path(name)).unwrap();
        }
        // Writes a dot, and resets the machine; or loops; or waits for input, and then writes another character.
        let guests: [(&str, &[&[u8]]); 3] = [
            ("short", &[&show(b'.'), &RESET]),
            ("endless", &[&show(b'.'), &LOOP]),
            ("waiting", &[&show(b'.'), &WAIT, &show(b'!'), &RESET]),
        ];
        for (name, code) in guests {
            fs::write(scene.path(name), Elf::of_code(code).bytes()).unwrap();
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `command`, with this scene's folders.
    fn with_folders(&self, mut command: Command) -> Command {
        command.env("TMPDIR", self.path("tmp"));
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command.env_remove("RUST_BACKTRACE");
        command
    }

    /// `minivm` after the words of a command that starts others.
    fn minivm(&self, before: &[&str]) -> Command {
        let mut words = before.iter();
        let minivm = given::minivm(env!("CARGO_BIN_EXE_minivm"));
        let command = match words.next() {
            None => Command::new(minivm),
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(minivm);
                command
            }
        };
        self.with_folders(command)
    }

    /// `minivm --kernel` with one of the guests.
    fn boot(&self, before: &[&str], guest: &str) -> Command {
        let mut command = self.minivm(before);
        command.args(["--accel", "kvm", "--kernel"]);
        command.arg(self.path(guest));
        command
    }

    /// Waits until no process is left below this one, and asserts that nothing is in the folders, but for folders of the cache's.
    fn assert_nothing_stays(&self, when: &str) {
        wait_until(&format!("{when}: a process stays"), || {
            let below = processes::below(std::process::id());
            below.iter().all(|process| !process.is_alive)
        });
        let left = below(&self.path("tmp"));
        assert!(left.is_empty(), "{when}: {left:?}");
        let mut files = below(&self.path("cache"));
        files.retain(|path| !path.is_dir());
        assert!(files.is_empty(), "{when}: {files:?}");
    }
}

/// What is in a folder, and in those in it.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(folder).into_iter().flatten();
        let entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        folders.extend(entries.iter().filter(|path| path.is_dir()).cloned());
        all.extend(entries);
    }
    all
}
