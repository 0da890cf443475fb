//! What time it is in a clone.

use std::io::{self, BufRead, BufReader, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use minivm_machine::templates::Template;

use crate::guest::{Made, answer, code, python, python_image, serve, templates};

/// How often the two clocks are compared. The comparison that took the least time counts.
const QUESTIONS: usize = 50;
/// How far the guest's clock may be off.
const OFF: f64 = 0.010;
/// How long the template lies about before a clone of it is looked at.
const BETWEEN: Duration = Duration::from_secs(3);

const WARM: &str = r"
import sys, time
def clocks():
    return time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
saved = clocks()
";

/// One that has lain about for a while.
fn made(name: &'static str) -> Made {
    let made = Made::new(name, &python_image(), &["--warm", WARM]);
    thread::sleep(BETWEEN);
    made
}

fn now() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64()
}

#[test]
fn a_clones_wall_clock_is_the_hosts() {
    let made = made("wall-clock");
    // A processor may be taken away from a guest just before it sets its clock: then another clone is asked.
    let is_right = |_| {
        let (offset, within, setup) = compared(&made.open());
        println!("off by {offset:.4} s, told within {within:.4} s, after {setup:?} of set-up");
        offset.abs() <= OFF + within / 2.0
    };
    assert!((0..3).any(is_right), "the clocks are off");
}

/// Compares a clone's clock with the host's: how far it is off, how long the comparison took, both in seconds, and the clone's set-up.
fn compared(template: &Template) -> (f64, f64, Duration) {
    let ((stdin, mut ask), (answers, stdout)) = (io::pipe().unwrap(), io::pipe().unwrap());
    let mut answers = BufReader::new(answers);
    let mut request = code("for line in sys.stdin: print(time.time())");
    request.stdin = true;
    thread::scope(|scope| {
        let serving =
            scope.spawn(move || serve(template, request, Some(stdin.into()), stdout, io::stderr()));
        let mut best = (0.0, f64::INFINITY);
        for _ in 0..QUESTIONS {
            let before = now();
            ask.write_all(b"\n").unwrap();
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            let after = now();
            let there: f64 = line.trim().parse().unwrap();
            if after - before < best.1 {
                best = (there - (before + after) / 2.0, after - before);
            }
        }
        drop(ask);
        (best.0, best.1, serving.join().unwrap().setup)
    })
}

#[test]
fn clocks_that_count_from_the_boot_go_on_where_they_were() {
    let start = Instant::now();
    let made = made("counted");
    let asked = "for then, now in zip(saved, clocks()): print(now - then)";
    let text = answer(&made.open(), code(asked));
    // All but the time that the template lay about.
    let most = (start.elapsed() - BETWEEN).as_secs_f64();
    let since: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(since.len(), 2, "{text}");
    for since in since {
        assert!(since > 0.0, "it went back by {since} s");
        assert!(since < most, "it jumped by {since} s of {most} s");
    }
}

#[test]
fn a_timer_takes_as_long_as_it_says() {
    let template = templates().open_named(python()).unwrap();
    let asked = r"
import time
for clock in time.monotonic, time.time:
    before = clock()
    time.sleep(0.5)
    print(clock() - before)
";
    let start = Instant::now();
    let text = answer(&template, code(asked));
    let whole = start.elapsed().as_secs_f64();
    for line in text.lines() {
        let slept: f64 = line.parse().unwrap();
        assert!((0.5..whole).contains(&slept), "{slept} s of {whole} s");
    }
    assert!(whole >= 1.0, "two sleeps of half a second took {whole} s");
}
