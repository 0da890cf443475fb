//! Two makers, makers that fail, and all that can stand in the place of an entry, its lock or its partial form.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use minivm_tests::patience::PATIENCE;
use rustix::fs::{CWD, FileType, FlockOperation, Mode, mknodat};

use super::*;
use crate::io_error::{HostError, cannot};

/// A cache, and something outside of it that nothing may touch.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.outside()).unwrap();
        fs::write(place.outside().join("file"), "safe").unwrap();
        make_folder(&place.cache()).unwrap();
        place
    }

    fn outside(&self) -> PathBuf {
        self.0.path().join("outside")
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cache().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn assert_untouched(&self) {
        assert_eq!(fs::read(self.outside().join("file")).unwrap(), b"safe");
        assert_eq!(fs::read_dir(self.outside()).unwrap().count(), 1);
    }

    /// The file of this name, made where it isn't there; says whether it was made.
    fn file(&self, name: &str) -> (File, bool) {
        let path = self.path(name);
        let partial = match find(path.with_extension("partial"), || hold(&path)).unwrap() {
            Found::There(file) => return (file, false),
            Found::Missing(partial) => partial,
        };
        let made = partial.make(&path, |file| {
            file.write_all(b"whole").map_err(failed("write", &path))
        });
        (hold_open(made.unwrap(), &path).unwrap().unwrap(), true)
    }

    /// The same, of a folder with a file in it.
    fn folder(&self, name: &str) -> (Lock, bool) {
        let entry = Folder::new(self.path(name));
        let opened = entry.open_or_make(
            |folder| folder.join("file").is_file(),
            |partial, _| {
                let path = partial.join("file");
                fs::write(&path, "whole").map_err(failed("write", &path))
            },
        );
        opened.unwrap()
    }
}

/// What can stand somewhere, by a name for messages.
type Stuck = (&'static str, fn(&Path, &Path));

const STUCK: [Stuck; 9] = [
    ("a folder", |path, _| {
        fs::create_dir_all(path.join("deep/er")).unwrap();
        fs::write(path.join("deep/file"), "x").unwrap();
    }),
    ("a closed folder", |path, _| {
        fs::create_dir_all(path.join("deep")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    }),
    ("a link to a file", |path, outside| {
        symlink(outside.join("file"), path).unwrap();
    }),
    ("a link to a folder", |path, outside| {
        symlink(outside, path).unwrap();
    }),
    ("a link to nothing", |path, outside| {
        symlink(outside.join("new"), path).unwrap();
    }),
    ("a pipe", |path, _| {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }),
    ("a socket", |path, _| {
        drop(UnixListener::bind(path).unwrap());
    }),
    ("a closed file", |path, _| {
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    }),
    ("another user's file", |path, _| {
        fs::write(path, "").unwrap();
        if rustix::process::geteuid().is_root() {
            chown(path, Some(1234), None).unwrap();
        }
    }),
];

#[test]
fn whatever_is_stuck_gives_way_to_a_file() {
    for (what, put) in STUCK {
        for name in ["entry", "entry.partial"] {
            let place = Place::new();
            put(&place.path(name), &place.outside());
            let (file, made) = place.file("entry");
            assert!(made, "{what} at {name}");
            drop(file);
            assert_eq!(fs::read(place.path("entry")).unwrap(), b"whole");
            let metadata = fs::symlink_metadata(place.path("entry")).unwrap();
            let us = rustix::process::geteuid().as_raw();
            assert_eq!((metadata.mode(), metadata.uid()), (0o100_600, us), "{what}");
            assert_eq!(place.names(), ["entry"], "{what} at {name}");
            assert!(!place.file("entry").1, "{what} at {name}");
            place.assert_untouched();
        }
    }
}

#[test]
fn whatever_is_stuck_gives_way_to_a_folder() {
    for (what, put) in STUCK {
        for name in ["entry", "entry.partial", "entry.lock"] {
            let place = Place::new();
            put(&place.path(name), &place.outside());
            let (lock, made) = place.folder("entry");
            assert!(made, "{what} at {name}");
            drop(lock);
            assert_eq!(fs::read(place.path("entry/file")).unwrap(), b"whole");
            assert_eq!(place.names(), ["entry", "entry.lock"], "{what} at {name}");
            assert!(!place.folder("entry").1, "{what} at {name}");
            place.assert_untouched();
        }
    }
}

#[test]
fn a_folder_that_is_not_whole_is_made_anew() {
    let place = Place::new();
    drop(place.folder("entry"));
    fs::rename(place.path("entry/file"), place.path("entry/other")).unwrap();
    assert!(place.folder("entry").1);
    assert!(!place.path("entry/other").exists());
}

#[test]
fn an_emptied_file_is_made_anew() {
    let place = Place::new();
    drop(place.file("entry"));
    File::create(place.path("entry")).unwrap();
    assert!(place.file("entry").1);
}

#[test]
fn of_makers_at_once_one_makes_and_all_use_what_it_made() {
    for stuck in [None, Some("entry.lock"), Some("entry.partial")] {
        let place = Place::new();
        if let Some(name) = stuck {
            fs::create_dir_all(place.path(name).join("deep")).unwrap();
        }
        let made = AtomicU32::new(0);
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for number in 0..8 {
                let (place, made, start) = (&place, &made, &start);
                scope.spawn(move || {
                    start.wait();
                    let new = match number % 2 {
                        0 => place.folder("entry").1,
                        _ => place.file("file").1,
                    };
                    made.fetch_add(u32::from(new), Ordering::Relaxed);
                });
            }
        });
        assert_eq!(made.into_inner(), 2, "a file and a folder");
        assert_eq!(place.names(), ["entry", "entry.lock", "file"]);
    }
}

#[test]
fn a_maker_that_uses_its_file_is_not_waited_for() {
    let place = Place::new();
    let (path, partial_path) = (place.path("file"), place.path("file.partial"));
    let mut partial = Partial::lock(partial_path.clone()).unwrap();
    let (opened, opens) = mpsc::channel();
    let (locked, locks) = mpsc::channel();
    let operation = FlockOperation::NonBlockingLockExclusive;
    thread::scope(|scope| {
        scope.spawn(|| {
            let wait = |file: &File| {
                opened.send(()).unwrap();
                lock::wait(&partial_path, file, operation, &|| 0, lock::PATIENCE).map(|()| true)
            };
            let file = lock::open_locked(&partial_path, lock::Access::Write, wait).unwrap();
            locked.send(file.is_some()).unwrap();
        });
        opens.recv_timeout(PATIENCE).unwrap();
        partial.file.write_all(b"whole").unwrap();
        let held = hold_open(partial.publish(&path).unwrap(), &path).unwrap();
        assert_eq!(locks.recv_timeout(PATIENCE), Ok(true));
        drop(held);
    });
}

#[test]
fn a_maker_that_uses_its_folder_is_not_waited_for() {
    let place = Place::new();
    let entry = Folder::new(place.path("entry"));
    make_folder(entry.path()).unwrap();
    let used = entry.hold().unwrap();
    let (looked, looks) = mpsc::channel();
    let (found, finds) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let is_whole = |folder: &Path| {
                let there = folder.join("file").is_file();
                looked.send(there).unwrap();
                there
            };
            let opened = entry.open_or_make(is_whole, |_, _| {
                Err::<(), _>(cannot("make it")(io::Error::other("no")))
            });
            found.send(opened.map(|opened| opened.1).ok()).unwrap();
        });
        assert_eq!(looks.recv_timeout(PATIENCE), Ok(false));
        fs::write(entry.path().join("file"), "whole").unwrap();
        assert_eq!(finds.recv_timeout(PATIENCE), Ok(Some(false)));
        drop(used);
    });
}

#[test]
fn a_lock_that_replaces_what_was_stuck_is_one() {
    for _ in 0..20 {
        let place = Place::new();
        let path = place.path("lock");
        symlink("/nowhere/at/all", &path).unwrap();
        let inside = AtomicU32::new(0);
        let start = Barrier::new(6);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    start.wait();
                    let lock = Lock::wait_alone(&path, &|| 0).unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(lock);
                });
            }
        });
    }
}

#[test]
fn a_maker_that_fails_leaves_nothing() {
    let place = Place::new();
    let (file, folder) = (place.path("file"), Folder::new(place.path("folder")));
    let fails = || cannot("go on")(io::Error::other("no"));
    let partial = Partial::lock(file.with_extension("partial")).unwrap();
    let made = partial.make(&file, |file| {
        file.write_all(b"half").unwrap();
        Err::<(), HostError>(fails())
    });
    assert_eq!(made.unwrap_err().to_string(), "cannot go on");
    let made = folder.open_or_make(
        |_| true,
        |partial, _| {
            fs::write(partial.join("half"), "half").unwrap();
            Err::<(), HostError>(fails())
        },
    );
    assert_eq!(made.unwrap_err().to_string(), "cannot go on");
    assert_eq!(place.names(), ["folder.lock"]);
    // Nor does one that doesn't return.
    let lock = folder.lock().unwrap();
    let unwound = std::panic::catch_unwind(|| {
        let partial = folder.begin(&lock).unwrap();
        fs::write(partial.path().join("half"), "half").unwrap();
        panic!("a maker's own mistake");
    });
    assert!(unwound.is_err());
    assert_eq!(place.names(), ["folder.lock"]);
}

#[test]
fn what_a_killed_maker_has_left_is_no_part_of_the_next_entry() {
    let place = Place::new();
    fs::create_dir(place.path("folder.partial")).unwrap();
    fs::write(place.path("folder.partial/stale"), "x").unwrap();
    fs::write(place.path("file.partial"), "more than the whole").unwrap();
    drop(place.folder("folder"));
    drop(place.file("file"));
    assert!(!place.path("folder/stale").exists());
    assert_eq!(fs::read(place.path("file")).unwrap(), b"whole");
}

#[test]
fn a_file_that_is_removed_while_it_is_made_gets_no_name() {
    let place = Place::new();
    let path = place.path("file.partial");
    let partial = Partial::lock(path.clone()).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another maker's").unwrap();
    let error = partial.publish(&place.path("file")).unwrap_err();
    assert!(error.source.to_string().contains("removed"), "{error}");
    assert_eq!(place.names(), ["file.partial"]);
}

#[test]
fn an_entry_that_is_used_is_not_removed() {
    let place = Place::new();
    let (file, _) = place.file("file");
    let (held, _) = place.folder("folder");
    let folder = Folder::new(place.path("folder"));
    assert!(folder.try_lock().unwrap().is_none());
    assert!(!tree::remove_if_unlocked(&place.path("file")));
    drop((file, held));
    let cleared = folder.remove(folder.try_lock().unwrap().unwrap());
    assert_eq!(cleared.whole().unwrap(), 5);
    assert!(tree::remove_if_unlocked(&place.path("file")));
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn a_lock_that_was_removed_with_its_entry_is_taken_anew() {
    let place = Place::new();
    let folder = Folder::new(place.path("folder"));
    let made = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let (held, new) = place.folder("folder");
                    made.fetch_add(u32::from(new), Ordering::Relaxed);
                    assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"whole");
                    drop(held);
                    if let Some(lock) = folder.try_lock().unwrap() {
                        folder.remove(lock).whole().unwrap();
                    }
                }
            });
        }
    });
    assert!(made.into_inner() >= 1);
    folder.remove(folder.lock().unwrap()).whole().unwrap();
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn a_part_of_what_was_made_can_be_the_entry() {
    let place = Place::new();
    let folder = Folder::new(place.path("tool"));
    let lock = folder.lock().unwrap();
    let partial = folder.begin(&lock).unwrap();
    fs::create_dir(partial.path().join("unpacked")).unwrap();
    fs::write(partial.path().join("unpacked/program"), "x").unwrap();
    fs::write(partial.path().join("package"), "x").unwrap();
    let path = place.path("tool-1.0");
    partial.publish_part("unpacked", &path).unwrap();
    assert_eq!(place.names(), ["tool-1.0", "tool.lock"]);
    assert!(path.join("program").is_file());
}

#[test]
fn a_maker_that_does_nothing_is_not_waited_for_without_end() {
    let place = Place::new();
    let path = place.path("x");
    let first = Partial::lock(path.clone()).unwrap();
    let second = File::open(&path).unwrap();
    let wait = |progress: &dyn Fn() -> u64, patience| {
        let operation = FlockOperation::NonBlockingLockExclusive;
        lock::wait(&path, &second, operation, progress, patience)
    };
    let error = wait(&|| 0, Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().contains("does nothing"), "{error}");
    // One that gets on is waited for longer.
    let steps = AtomicU32::new(0);
    let gets_on = || u64::from(steps.fetch_add(1, Ordering::Relaxed).min(3));
    wait(&gets_on, Duration::ZERO).unwrap_err();
    assert!(steps.into_inner() > 4);
    drop(first);
    wait(&|| 0, Duration::ZERO).unwrap();
}

#[test]
fn what_is_made_is_its_owners_alone() {
    let place = Place::new();
    let folder = Folder::new(place.path("new/folder"));
    drop(folder.open_or_make(|_| true, |_, _| Ok::<_, FileError>(())));
    for (name, mode) in [
        ("new", 0o040_700),
        ("new/folder", 0o040_700),
        ("new/folder.lock", 0o100_600),
    ] {
        let path = place.path(name);
        assert_eq!(fs::metadata(&path).unwrap().mode(), mode, "{path:?}");
    }
}
