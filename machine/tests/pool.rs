//! Machines of a few bytes of code, made ahead of time: handed out once, made again, and gone with their pool.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0, as the monitor's `machine_code.rs` does.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use minivm_machine::{Pool, SnapshotFolder};
use minivm_tests::output::Shared;
use minivm_tests::patience::wait_until;
use minivm_tests::stress;
use minivm_vmm::{Builder, Config, Error, Kernel, Outcome, Reset, Snapshot, SnapshotError};
use tempfile::TempDir;

/// Tests share this process, and count what it has.
static PROCESS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    PROCESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Saves a guest, before its first instruction, that counts its runs in memory, writes the count, and resets.
#[rustfmt::skip]
fn saved() -> (TempDir, Snapshot) {
    let code = [
        0xfe, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, // inc byte [0x200000]
        0x8a, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, // mov al, [0x200000]
        0x66, 0xba, 0xf8, 0x03, 0xee,             // mov dx, 0x3f8; out dx, al
        0xb0, 0xfe, 0xe6, 0x64,                   // mov al, 0xfe; out 0x64, al
    ];
    let folder = tempfile::tempdir().unwrap();
    let config = Config { memory: 64 << 20, ..Config::new(Kernel::Code(code.into())) };
    let machine = Builder::new(config).build().unwrap();
    SnapshotFolder::save(folder.path(), |files| machine.snapshot_into(files)).unwrap();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    (folder, snapshot)
}

/// Takes a machine and runs it to its end, and checks that it had not run before.
fn take_and_run(pool: &Pool) {
    let console = Shared::default();
    let machine = Builder::restore_prepared(pool.take().unwrap())
        .console_output(console.clone())
        .build()
        .unwrap();
    assert_eq!(machine.run().unwrap(), Outcome::Reboot(Reset::Line));
    assert_eq!(console.bytes(), [1]);
}

/// Returns the number of this process's descriptors of KVM's, and of its threads of pools.
fn in_use() -> (usize, usize) {
    let entries = |path: &str| {
        fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
    };
    let is_kvms =
        |path: &Path| fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains("kvm"));
    let is_pools =
        |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "pool\n");
    (
        entries("/proc/self/fd")
            .filter(|path| is_kvms(path))
            .count(),
        entries("/proc/self/task")
            .filter(|path| is_pools(path))
            .count(),
    )
}

#[test]
fn each_machine_is_handed_out_once() {
    let _alone = alone();
    let (_folder, snapshot) = saved();
    let pool = Pool::new(&snapshot, 3).unwrap();
    let each = stress::count(25, 2000);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..each).for_each(|_| take_and_run(&pool)));
        }
    });
}

#[test]
fn a_pool_is_refilled() {
    let _alone = alone();
    let (_folder, snapshot) = saved();
    let pool = Pool::new(&snapshot, 3).unwrap();
    for round in 0..5 {
        wait_until("three are ready", || pool.ready() == 3);
        let taken: Vec<_> = (0..=round).map(|_| pool.take().unwrap()).collect();
        wait_until("three others are ready", || pool.ready() == 3);
        drop(taken);
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(pool.ready(), 3, "and no more than that");
}

#[test]
fn a_pool_that_keeps_none_ready_makes_machines_in_the_call() {
    let _alone = alone();
    let (_folder, snapshot) = saved();
    let pool = Pool::new(&snapshot, 0).unwrap();
    (0..3).for_each(|_| take_and_run(&pool));
    assert_eq!(pool.ready(), 0);
}

#[test]
fn a_dropped_pool_leaves_no_thread_and_no_descriptor() {
    let _alone = alone();
    let (_folder, snapshot) = saved();
    snapshot.check_host().unwrap();
    // A thread of the test before may still be listed.
    wait_until("no pool's thread is left", || in_use().1 == 0);
    let before = in_use();
    // At any moment of its life, also while it makes one.
    let moments = stress::count(20, 1000);
    for moment in 0..moments {
        let pool = Pool::new(&snapshot, 4).unwrap();
        std::thread::sleep(Duration::from_millis(4) * moment / moments);
        drop(pool);
        // A thread that was joined may be listed for a moment longer.
        wait_until(&format!("moment {moment}"), || in_use() == before);
    }
    let pool = Pool::new(&snapshot, 4).unwrap();
    wait_until("four are ready", || pool.ready() == 4);
    assert!(
        in_use().0 >= before.0 + 8 && in_use().1 == before.1 + 1,
        "{:?}",
        in_use()
    );
    let taken = pool.take().unwrap();
    drop(pool);
    // A machine that was taken outlives its pool.
    assert_eq!(
        Builder::restore_prepared(taken)
            .build()
            .unwrap()
            .run()
            .unwrap(),
        Outcome::Reboot(Reset::Line)
    );
    wait_until("all of it is gone", || in_use() == before);
}

#[test]
fn a_memory_file_that_has_changed_is_refused_by_name() {
    let _alone = alone();
    let (folder, snapshot) = saved();
    let pool = Pool::new(&snapshot, 2).unwrap();
    wait_until("two are ready", || pool.ready() == 2);
    let mut files = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let memory = files
        .find(|path| path.to_str().unwrap().contains("memory-"))
        .unwrap();
    fs::set_permissions(&memory, fs::Permissions::from_mode(0o600)).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&memory)
        .unwrap()
        .write_all(&[0xf4])
        .unwrap();
    for _ in 0..5 {
        let refused = pool.take().map(drop).unwrap_err();
        assert!(
            matches!(&refused, Error::Snapshot { source: SnapshotError::MemoryChanged, path } if path == folder.path()),
            "{refused:?}"
        );
    }
    // The pool makes none of it either.
    assert!(snapshot.prepare().is_err() && pool.ready() <= 2);
}

#[test]
fn a_pool_still_makes_machines_of_a_deleted_snapshot() {
    let _alone = alone();
    let (folder, snapshot) = saved();
    let pool = Pool::new(&snapshot, 2).unwrap();
    drop(folder);
    (0..6).for_each(|_| take_and_run(&pool));
}

/// This test runs in two processes: the other one may have few descriptors.
#[test]
fn an_error_is_returned_once_and_the_pools_thread_rests() {
    let _alone = alone();
    let name = "an_error_is_returned_once_and_the_pools_thread_rests";
    if std::env::var_os("MINIVM_TEST_FEW_DESCRIPTORS").is_some() {
        return with_few_descriptors();
    }
    let status = Command::new("sh")
        .args(["-c", "ulimit -n 60; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env("MINIVM_TEST_FEW_DESCRIPTORS", "1")
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

fn with_few_descriptors() {
    let (_folder, snapshot) = saved();
    // Opened while that is possible.
    let stat = fs::File::open("/proc/self/stat").unwrap();
    let pool = Pool::new(&snapshot, 1000).unwrap();
    // It makes as many as it can, and doesn't try for ever to make more.
    let mut error = None;
    wait_until("it rests, and returns its error", || {
        let before = processor_time(&stat);
        std::thread::sleep(Duration::from_millis(500));
        let hundredths = processor_time(&stat) - before;
        // On a busy host it may only be slow: then a machine is taken, and it goes on.
        if pool.ready() > 0 && hundredths <= 2 {
            error = pool.take().map(drop).err();
        }
        error.is_some()
    });
    let made = pool.ready();
    let error = error.unwrap();
    assert!(
        matches!(error, Error::Kvm { .. } | Error::Host { .. }),
        "{error:?}"
    );
    // The ready ones can still be taken; each leaves room for another, or for the failure to make it.
    let taken = pool.take().unwrap();
    drop(taken);
    let mut had = 0;
    wait_until("all can be had", || {
        had += usize::from(pool.take().is_ok());
        had > made
    });
}

/// Returns the processor time that a process has used, in hundredths of a second.
fn processor_time(stat: &fs::File) -> u64 {
    let mut text = [0; 1024];
    let len = stat.read_at(&mut text, 0).unwrap();
    let stat = String::from_utf8_lossy(&text[..len]);
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn threads_can_share_a_pool() {
    fn shared<T: Send + Sync>() {}
    shared::<Pool>();
}
