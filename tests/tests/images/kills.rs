//! `minivm` killed at any moment leaves nothing that a later run takes for whole.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use minivm_tests::program::{ends_until, run};
use minivm_tests::stress;

use crate::bad::ERROR;
use crate::cached::{listed, running};
use crate::made::images;
use crate::tools::{Minivm, PATIENCE, Registry, files, folder};

/// What a run makes of an image.
const FORMATS: [&str; 2] = ["initramfs", "erofs"];

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
fn a_killed_removal_leaves_no_half_an_image_that_counts_as_whole() {
    let (images, registry) = (images(), Registry::start());
    let image = registry.push(&images.oci("random"), "local/random:1");
    let expected = Minivm::new().build(&image);
    let as_erofs = Minivm::new().build_as(&image, &["--format=erofs"]);
    let filled = || {
        let minivm = Minivm::new();
        for format in FORMATS {
            let ended = run(&mut running(&minivm, format, &image), PATIENCE);
            assert_eq!(ended.code, Some(ERROR), "{ended:?}");
        }
        minivm
    };
    let removing = |minivm: &Minivm| {
        let mut command = minivm.command();
        command.args(["rmi", &image]);
        command
    };
    let whole = {
        let filled = [(); 3].map(|()| filled());
        let mut next = filled.iter();
        duration(|| drop(run(&mut removing(next.next().unwrap()), PATIENCE)))
    };
    let mut hits = 0;
    let moments = moments();
    for moment in 0..moments {
        let minivm = filled();
        let what = format!("killed at {moment}/{moments} of {whole:?}");
        hits += u32::from(killed(&mut removing(&minivm), whole * moment / moments));
        for (format, expected) in FORMATS.iter().zip([&expected, &as_erofs]) {
            for path in minivm.kept(format) {
                assert!(fs::read(path).unwrap() == *expected, "{format} {what}");
            }
        }
        let rows = listed(&minivm);
        let complete = rows.iter().any(|row| row["complete"] == true);
        let output = minivm.cache.path().join("built");
        let mut command = minivm.building(&image, &["--pull", "never"], &output);
        match run(&mut command, PATIENCE).code {
            Some(0) => assert!(fs::read(&output).unwrap() == expected, "{what}"),
            code => assert_eq!((code, complete), (Some(ERROR), false), "{what}"),
        }
        let again = run(&mut removing(&minivm), PATIENCE);
        assert!(
            rows.is_empty() || again.code == Some(0),
            "{what}: {again:?}"
        );
        assert_eq!(listed(&minivm).len(), 0, "{what}");
        assert!(minivm.build(&image) == expected, "{what}");
        minivm.assert_sound(&what);
    }
    assert!(hits > 0, "all had ended before they were killed");
}

#[test]
fn a_killed_run_leaves_no_half_an_archive() {
    a_killed_run_leaves_nothing_half("initramfs");
}

#[test]
fn a_killed_run_leaves_no_half_an_erofs_image() {
    a_killed_run_leaves_nothing_half("erofs");
}

fn a_killed_run_leaves_nothing_half(format: &str) {
    let images = images();
    let image = images.oci("random");
    let expected = Minivm::new().build_as(&image, &["--format", format]);
    let running = |minivm: &Minivm| running(minivm, format, &image);
    let ends = |minivm: &Minivm| {
        let ended = run(&mut running(minivm), PATIENCE);
        assert_eq!(ended.code, Some(ERROR), "{ended:?}");
        assert_eq!(minivm.kept(format).len(), 1, "{ended:?}");
    };
    let whole = duration(|| ends(&Minivm::new()));
    let mut hits = 0;
    let moments = moments();
    for moment in 0..moments {
        let minivm = Minivm::new();
        let what = format!("killed at {moment}/{moments} of {whole:?}");
        hits += u32::from(killed(&mut running(&minivm), whole * moment / moments));
        for made in minivm.kept(format) {
            assert!(fs::read(made).unwrap() == expected, "{what}");
        }
        ends(&minivm);
        let made = minivm.kept(format).remove(0);
        assert!(fs::read(made).unwrap() == expected, "{what}");
        // What was begun became whole.
        for folder in FORMATS {
            for (name, _) in files(&minivm.cache.path().join("minivm").join(folder)) {
                assert!(!name.ends_with(".partial"), "{what}: {name} is left");
            }
        }
    }
    assert!(hits > 0, "all had ended before they were killed");
}
