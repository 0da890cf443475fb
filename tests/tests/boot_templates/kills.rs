//! `minivm template create`, killed at any moment: a template is there whole or not at all.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use minivm_tests::stress;
use rustix::process::{Pid, Signal, kill_process};

use crate::guest::{
    Made, PATIENCE, answer, cache, create, end_of, request, small_image, templates, text_of,
};

/// What of the templates' folder belongs to this one, other than its lock.
fn parts(name: &str) -> Vec<String> {
    let entries = fs::read_dir(cache().join("templates")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|entry| entry.split('.').next() == Some(name) && !entry.ends_with(".lock"))
        .collect()
}

#[test]
fn a_template_whose_making_was_killed_is_whole_or_not_there() {
    let name = "killed";
    let make = || {
        let mut command = create(name, &small_image(), &[]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    let start = Instant::now();
    text_of(create(name, &small_image(), &[]));
    let whole = start.elapsed();
    templates().remove(name).unwrap();
    let mut there = 0;
    let kills = stress::count(5_u32, 60);
    for kill in 0..kills {
        // From its very start to a bit after its usual end: the moments lie close to each other in all.
        let moment = whole.mul_f64(f64::from(kill * 7 % kills) / f64::from(kills) * 1.1);
        let mut child = make().spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        match templates().open_named(name) {
            Ok(template) => {
                there += 1;
                assert_eq!(parts(name), [name]);
                assert_eq!(answer(&template, request(&["echo", "well"])), "well\n");
                templates().remove(name).unwrap();
            }
            Err(minivm_machine::templates::Error::Missing(_)) => {
                let listed = templates().list().unwrap();
                assert!(
                    listed.iter().all(|listed| listed.name != name),
                    "at {moment:?}"
                );
            }
            Err(error) => panic!("killed after {moment:?}: {error}"),
        }
    }
    println!("{kills} kills within {whole:?}, {there} of them too late");
    let _made = Made::new(name, &small_image(), &[]);
    assert_eq!(parts(name), [name]);
    let template = templates().open_named(name).unwrap();
    assert_eq!(answer(&template, request(&["echo", "well"])), "well\n");
}

#[test]
fn while_one_makes_a_template_nobody_else_does() {
    let name = "contested";
    let _made = Made::of(name);
    let mut first = create(name, &small_image(), &[]).spawn().unwrap();
    let partial = cache().join("templates/contested.partial");
    let deadline = Instant::now() + PATIENCE;
    while !partial.exists() {
        assert!(Instant::now() < deadline, "it never begins");
        std::thread::sleep(Duration::from_millis(1));
    }
    // It stands still at its work, however long the second one takes to look.
    let pid = Pid::from_child(&first);
    kill_process(pid, Signal::STOP).unwrap();
    let second = end_of(create(name, &small_image(), &[]));
    let busy = "minivm: the template contested is being made or removed by another process\n";
    assert_eq!((second.code, second.stderr.as_str()), (Some(125), busy));
    kill_process(pid, Signal::CONT).unwrap();
    assert!(first.wait().unwrap().success());
    assert_eq!(parts(name), [name]);
}
