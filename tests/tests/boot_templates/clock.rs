//! What time it is in a clone.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::guest::{answer, code, create, python_image, serve, templates, text_of};

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

fn template() -> minivm::templates::Template {
    static MADE: std::sync::OnceLock<()> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        text_of(create("clock", &python_image(), &["--warm", WARM]));
        thread::sleep(BETWEEN);
    });
    templates().open_named("clock").unwrap()
}

fn now() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64()
}

#[test]
fn a_clones_wall_clock_is_the_hosts() {
    let template = template();
    let ((stdin, mut ask), (answers, stdout)) = (io::pipe().unwrap(), io::pipe().unwrap());
    let mut answers = BufReader::new(File::from(OwnedFd::from(answers)));
    let asked = "for line in sys.stdin: print(time.time())";
    let mut request = code(asked);
    request.stdin = true;
    let (delay, offset) = thread::scope(|scope| {
        let template = &template;
        scope.spawn(move || serve(template, request, Some(stdin.into()), stdout, io::stderr()));
        let mut best = (f64::INFINITY, 0.0);
        for _ in 0..QUESTIONS {
            let before = now();
            ask.write_all(b"\n").unwrap();
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            let after = now();
            let there: f64 = line.trim().parse().unwrap();
            let delay = after - before;
            if delay < best.0 {
                best = (delay, there - (before + after) / 2.0);
            }
        }
        drop(ask);
        best
    });
    println!(
        "off by {:.2} ms, told within {:.2} ms",
        offset * 1e3,
        delay * 1e3
    );
    assert!(
        offset.abs() <= OFF + delay / 2.0,
        "off by {offset} s, told within {delay} s"
    );
}

#[test]
fn clocks_that_count_from_the_boot_go_on_where_they_were() {
    let template = template();
    let asked = "for then, now in zip(saved, clocks()): print(now - then)";
    let text = answer(&template, code(asked));
    let since: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(since.len(), 2, "{text}");
    for since in since {
        assert!(since > 0.0, "it went back by {since} s");
        assert!(since < BETWEEN.as_secs_f64(), "it jumped by {since} s");
    }
}

#[test]
fn a_timer_takes_as_long_as_it_says() {
    let template = template();
    let asked = r"
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
