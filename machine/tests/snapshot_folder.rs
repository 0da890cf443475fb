//! A folder has the old snapshot or the new one, whatever becomes of its saver; and what isn't a saver's stays as it is.
//!
//! The machines are a few bytes of code that never runs, and memory.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use minivm_machine::SnapshotFolder;
use minivm_tests::code::LOOP;
use minivm_tests::stress;
use minivm_vmm::{Builder, Config, Error, Kernel, Machine, SaveFiles, Snapshot};
use tempfile::TempDir;

/// The address of the memory that holds something.
const FILLED: u64 = 8 << 20;

fn machine() -> Machine {
    let config = Config {
        memory: 64 << 20,
        ..Config::new(Kernel::Code(LOOP.to_vec()))
    };
    Builder::new(config).build().unwrap()
}

/// Saves a machine whose memory holds so many pages of the byte.
fn save_pages(machine: &Machine, pages: u64, byte: u8, folder: &Path) -> io::Result<()> {
    for page in 0..pages {
        let address = FILLED + page * 4096;
        machine.memory().write(address, &[byte; 4096]).unwrap();
    }
    let saved = SnapshotFolder::save(folder, |files| machine.snapshot_into(files));
    saved.map_err(|error| match error {
        Error::Save { path, source } => {
            assert_eq!(path, folder);
            source
        }
        other => panic!("{other}"),
    })
}

fn save(folder: &Path, byte: u8) -> io::Result<()> {
    save_pages(&machine(), 3, byte, folder)
}

fn saved() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), 1).unwrap();
    folder
}

fn state_file(folder: &TempDir) -> Vec<u8> {
    fs::read(folder.path().join(SaveFiles::STATE)).unwrap()
}

fn memory_path(folder: &Path) -> PathBuf {
    folder.join(Snapshot::memory_file(folder).unwrap())
}

/// Returns the byte of which the snapshot has so many pages.
fn byte_of(snapshot: &Snapshot, pages: u64) -> u8 {
    snapshot.verify().unwrap();
    let memory = Builder::restore(snapshot).build().unwrap().memory();
    let mut bytes = vec![0; usize::try_from(pages * 4096).unwrap()];
    memory.read(FILLED, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "it is mixed");
    bytes[0]
}

#[test]
fn the_new_snapshot_takes_the_old_ones_place() {
    let folder = saved();
    let old = Snapshot::open(folder.path()).unwrap();
    save(folder.path(), 2).unwrap();
    assert_eq!(byte_of(&Snapshot::open(folder.path()).unwrap(), 3), 2);
    assert_eq!(byte_of(&old, 3), 1, "it is open");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_snapshot_is_readable_by_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("warm/template");
    save(&inside, 1).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(
        (
            mode(&inside),
            mode(&inside.join(SaveFiles::STATE)),
            mode(&memory_path(&inside))
        ),
        (0o700, 0o600, 0o400)
    );
}

#[test]
fn other_files_in_its_folder_are_left_alone() {
    let folder = saved();
    let own = ["memory-of-a-summer.txt", "memory-0123456789abcdef.bak"];
    for name in own {
        fs::write(folder.path().join(name), name).unwrap();
    }
    save(folder.path(), 2).unwrap();
    for name in own {
        assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), name);
    }
    fs::write(folder.path().join(SaveFiles::STATE), "of affairs").unwrap();
    let refused = save(folder.path(), 3).unwrap_err();
    assert!(
        refused.to_string().contains("is not a snapshot's"),
        "{refused}"
    );
    assert_eq!(state_file(&folder), b"of affairs");
}

#[test]
fn a_folder_that_others_may_change_is_refused() {
    let folder = saved();
    let before = state_file(&folder);
    let refusal = || {
        let error = save(folder.path(), 3).unwrap_err();
        assert_eq!(state_file(&folder), before);
        error.to_string()
    };
    for mode in [0o777, 0o775, 0o1777] {
        fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let said = refusal();
        assert!(said.contains(&format!("mode {mode:04o}")), "{said}");
        assert!(said.contains("chmod go-w"), "{said}");
    }
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    save(folder.path(), 2).unwrap();
    // Only root can give a folder away.
    let before = state_file(&folder);
    if std::os::unix::fs::chown(folder.path(), Some(1234), None).is_ok() {
        let error = save(folder.path(), 3).unwrap_err();
        assert!(error.to_string().contains("is user 1234's"), "{error}");
        assert_eq!(state_file(&folder), before);
    }
}

#[test]
fn a_hard_link_named_like_the_new_state_is_not_written_through() {
    let (folder, elsewhere) = (saved(), tempfile::tempdir().unwrap());
    let victim = elsewhere.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let new = folder.path().join("state.new");
    fs::hard_link(&victim, &new).unwrap();
    save(folder.path(), 3).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"safe");
    Snapshot::open(folder.path()).unwrap().verify().unwrap();
}

#[test]
fn only_a_regular_file_is_replaced_by_a_state() {
    let elsewhere = tempfile::tempdir().unwrap();
    let victim = elsewhere.path().join("victim");
    fs::copy(saved().path().join(SaveFiles::STATE), &victim).unwrap();
    type Make<'a> = (&'a str, &'a dyn Fn(&Path));
    let make: [Make<'_>; 5] = [
        ("a FIFO", &|path| {
            let made = std::process::Command::new("mkfifo").arg(path).status();
            assert!(made.unwrap().success());
        }),
        ("a socket", &|path| {
            drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        }),
        ("a link", &|path| {
            std::os::unix::fs::symlink(&victim, path).unwrap()
        }),
        ("a dangling link", &|path| {
            std::os::unix::fs::symlink("nowhere", path).unwrap()
        }),
        ("a folder", &|path| fs::create_dir(path).unwrap()),
    ];
    for (what, make) in make {
        for name in [SaveFiles::STATE, "state.new"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            make(&path);
            let before = fs::symlink_metadata(&path).unwrap();
            let error = save(folder.path(), 2).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(name) && text.contains("not a regular file"),
                "{what}: {text}"
            );
            let after = fs::symlink_metadata(&path).unwrap();
            assert_eq!(
                (after.ino(), after.mode()),
                (before.ino(), before.mode()),
                "{what}"
            );
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{what}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(SaveFiles::STATE), "").unwrap();
    let error = save(folder.path(), 2).unwrap_err();
    assert!(error.to_string().contains("is not a snapshot's"), "{error}");
}

#[test]
fn a_link_of_the_users_own_is_followed() {
    let (folder, elsewhere) = (saved(), tempfile::tempdir().unwrap());
    let link = elsewhere.path().join("link");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let before = state_file(&folder);
    save(&link, 2).unwrap();
    assert!(link.is_symlink());
    assert_ne!(state_file(&folder), before);
}

#[test]
fn a_second_saver_in_one_folder_is_refused() {
    let folder = saved();
    let lock = File::open(folder.path()).unwrap();
    lock.lock().unwrap();
    let error = save(folder.path(), 2).unwrap_err();
    assert!(
        error.to_string().contains("another process or thread"),
        "{error}"
    );
}

#[test]
fn new_files_that_are_not_published_leave_the_old_snapshot() {
    let folder = saved();
    let before = state_file(&folder);
    let new = SnapshotFolder::prepare(folder.path()).unwrap();
    assert!(folder.path().join(&new.files().name).is_file());
    machine().snapshot_into(new.files()).unwrap();
    assert!(SnapshotFolder::prepare(folder.path()).is_err(), "locked");
    assert_eq!(state_file(&folder), before);
    Snapshot::open(folder.path()).unwrap().verify().unwrap();
    drop(new);
    assert_eq!(state_file(&folder), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    Snapshot::open(folder.path()).unwrap().verify().unwrap();
}

#[test]
fn a_snapshot_that_is_replaced_again_and_again_can_always_be_opened() {
    let folder = saved();
    let path = folder.path().to_path_buf();
    let replacing = std::thread::spawn(move || {
        let machine = machine();
        for _ in 0..stress::count(20, 500) {
            save_pages(&machine, 3, 2, &path).unwrap();
        }
    });
    while !replacing.is_finished() {
        Snapshot::open(folder.path()).unwrap();
    }
    replacing.join().unwrap();
}

/// The variable that makes a test be the process that is killed: the folder where it saves.
const FOLDER: &str = "MINIVM_TEST_SAVE";

/// The pages that each snapshot of [`save_for_ever`] has.
const PAGES: u64 = 64;

/// Saves one snapshot after another, each with a byte of its own.
fn save_for_ever(folder: &Path) -> ! {
    let machine = machine();
    for byte in 1..=u8::MAX {
        save_pages(&machine, PAGES, byte, folder).unwrap();
    }
    panic!("this process was not killed");
}

#[test]
fn a_saver_that_is_killed_leaves_a_whole_snapshot() {
    let name = "a_saver_that_is_killed_leaves_a_whole_snapshot";
    if let Some(folder) = std::env::var_os(FOLDER) {
        save_for_ever(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let saving = folder.path().join("snapshot");
    save_pages(&machine(), PAGES, 1, &saving).unwrap();
    // In steps that have nothing to do with those of the saver, which takes some 30 ms a snapshot.
    for round in 0..stress::count(20, 1000) {
        let mut saver = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(FOLDER, &saving)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(5000 + round * 7919 % 45_000));
        saver.kill().unwrap();
        saver.wait().unwrap();
        byte_of(&Snapshot::open(&saving).unwrap(), PAGES);
        let left = fs::read_dir(&saving).unwrap().count();
        assert!(
            left <= 4,
            "{left} files: what one leaves behind the next one clears away"
        );
    }
}

#[test]
fn memory_files_that_savers_have_left_are_deleted() {
    let folder = saved();
    for number in 0..16 {
        File::create_new(folder.path().join(SaveFiles::memory_name(number))).unwrap();
    }
    save(folder.path(), 2).unwrap();
    assert_eq!(byte_of(&Snapshot::open(folder.path()).unwrap(), 3), 2);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
#[ignore = "needs a mount namespace"]
fn a_full_disk_leaves_the_old_snapshot() {
    let name = "a_full_disk_leaves_the_old_snapshot";
    let Some(disk) = std::env::var_os("MINIVM_TEST_DISK") else {
        let folder = tempfile::tempdir().unwrap();
        let mount = r#"mount -t tmpfs -o size=16m none "$MINIVM_TEST_DISK" && exec "$0" "$@""#;
        let status = Command::new("unshare")
            .args(["--mount", "sh", "-c", mount])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--include-ignored"])
            .env("MINIVM_TEST_DISK", folder.path())
            .stdout(Stdio::null())
            .status();
        return assert!(status.unwrap().success());
    };
    let folder = Path::new(&disk).join("snapshot");
    let save = |megabytes: u64, byte| save_pages(&machine(), megabytes << 8, byte, &folder);
    save(6, 1).unwrap();
    for megabytes in [11, 20, 50] {
        let refused = save(megabytes, 2).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert_eq!(
            fs::read_dir(&folder).unwrap().count(),
            2,
            "what was written is taken away again"
        );
        Snapshot::open(&folder).unwrap().verify().unwrap();
    }
    save(7, 3).unwrap();
    Snapshot::open(&folder).unwrap().verify().unwrap();
}
