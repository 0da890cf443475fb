//! `minivm` killed at any moment leaves nothing that a later run takes for whole.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use minivm_tests::program::{ends_until, run};
use minivm_tests::stress;

use crate::bad::ERROR;
use crate::made::images;
use crate::tools::{Minivm, PATIENCE, Registry, files, folder};

/// How many moments, spread over the time that the whole takes.
fn moments() -> u32 {
    stress::count(8, 100)
}

/// Starts the command and kills it after this time; returns whether it was still running.
fn killed(command: &mut Command, after: Duration) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let in_time = ends_until(&child, Instant::now() + after);
    child.kill().unwrap();
    child.wait().unwrap();
    !in_time
}

/// How long it takes when it isn't killed.
fn duration(mut start: impl FnMut()) -> Duration {
    let time = |start: &mut dyn FnMut()| {
        let started = Instant::now();
        start();
        started.elapsed()
    };
    (0..3).map(|_| time(&mut start)).min().unwrap()
}

#[test]
fn a_killed_pull_or_build_is_no_trouble_for_the_next() {
    let (images, registry, output) = (images(), Registry::start(), folder());
    let image = registry.push(&images.oci("random"), "local/random:1");
    let formats = ["--format=initramfs", "--format=erofs"].map(|format| {
        let expected = Minivm::new().build_as(&image, &[format]);
        let whole = duration(|| drop(Minivm::new().build_as(&image, &[format])));
        (format, expected, whole)
    });
    let mut hits = 0;
    let moments = moments();
    for (moment, (format, expected, whole)) in (0..moments).zip(formats.iter().cycle()) {
        let minivm = Minivm::new();
        let path = output.path().join("built");
        let mut command = minivm.building(&image, &[format], &path);
        let what = format!("{format} killed at {moment}/{moments} of {whole:?}");
        hits += u32::from(killed(&mut command, *whole * moment / moments));
        if path.exists() {
            assert!(fs::read(&path).unwrap() == *expected, "{what}");
            fs::remove_file(path).unwrap();
        }
        assert_eq!(files(output.path()), [], "{what}");
        minivm.assert_sound(&what);
        assert!(minivm.build_as(&image, &[format]) == *expected, "{what}");
        minivm.assert_sound(&what);
        let kept = minivm.build_as(&image, &[format, "--pull", "never"]);
        assert!(kept == *expected, "{what}");
    }
    assert!(hits > 0, "all had ended before they were killed");
}

#[test]
fn a_killed_run_leaves_no_half_an_archive() {
    let images = images();
    let image = images.oci("random");
    let expected = Minivm::new().build(&image);
    // Without a kernel it ends as soon as the archive is there.
    let running = |minivm: &Minivm| {
        let mut command = minivm.command();
        command.args(["run", "--accel", "kvm", "--kernel", "/nowhere/vmlinux"]);
        command.arg(&image);
        command
    };
    let ends = |minivm: &Minivm| {
        let ended = run(&mut running(minivm), PATIENCE);
        assert_eq!(ended.code, Some(ERROR), "{ended:?}");
        assert_eq!(minivm.archives().len(), 1, "{ended:?}");
    };
    let whole = duration(|| ends(&Minivm::new()));
    let mut hits = 0;
    let moments = moments();
    for moment in 0..moments {
        let minivm = Minivm::new();
        let what = format!("killed at {moment}/{moments} of {whole:?}");
        hits += u32::from(killed(&mut running(&minivm), whole * moment / moments));
        for archive in minivm.archives() {
            assert!(fs::read(archive).unwrap() == expected, "{what}");
        }
        ends(&minivm);
        assert!(
            fs::read(&minivm.archives()[0]).unwrap() == expected,
            "{what}"
        );
        // What was begun became the archive.
        for (name, _) in files(&minivm.cache.path().join("minivm/initramfs")) {
            assert!(name.ends_with(".cpio"), "{what}: {name} is left");
        }
    }
    assert!(hits > 0, "all had ended before they were killed");
}
