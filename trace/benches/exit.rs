//! The cost of a trace for each exit, on the vCPU's thread: the time of an exit with and without an observer, and with each output.
//!
//! ```console
//! $ cargo bench -p minivm-trace --bench exit
//! ```
//!
//! The guest writes to a port where no device is, again and again, so that nearly all of the time is KVM's and the trace's. `cargo xtask
//! bench trace` runs this too.

#![allow(clippy::unwrap_used, reason = "a benchmark that can't continue fails")]

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minivm_trace::output::{Form, Forward, Style};
use minivm_trace::{Sink, Trace, Tracer};
use minivm_vmm::{Builder, Config, Exit, Kernel, Observer};

/// Exits of one run, and the runs of each kind.
const EXITS: u32 = 50_000;
const RUNS: usize = 15;
/// The time that a trace is to add at most.
const GOAL: Duration = Duration::from_micros(2);

/// `mov ecx, EXITS; again: out 0x80, al; dec ecx; jnz again; mov al, 0xfe; out 0x64, al`.
fn guest() -> Vec<u8> {
    let [a, b, c, d] = EXITS.to_le_bytes();
    vec![
        0xb9, a, b, c, d, 0xe6, 0x80, 0xff, 0xc9, 0x75, 0xfa, 0xb0, 0xfe, 0xe6, 0x64,
    ]
}

/// Runs the guest; returns the nanoseconds of each exit, with a part of the machine's start and end that is the same for all.
fn run(observer: Option<Arc<dyn Observer>>) -> f64 {
    let builder = Builder::new(Config::new(Kernel::Code(guest())));
    let machine = match observer {
        Some(observer) => builder.observer(observer),
        None => builder,
    };
    let machine = machine.build().unwrap();
    let start = Instant::now();
    machine.run().unwrap();
    start.elapsed().as_nanos() as f64 / f64::from(EXITS)
}

/// Runs the guest with a tracer; returns the nanoseconds of each exit.
fn traced(sink: impl Sink) -> f64 {
    let tracer = Tracer::start(sink, Instant::now()).unwrap();
    let took = run(Some(tracer.clone()));
    tracer.finish();
    took
}

fn form(form: Form) -> f64 {
    let file = File::create("/dev/null").unwrap();
    let style = Style::default();
    traced(Trace::new().output(form.writer(Box::new(file), style), |_, _| {}))
}

fn main() {
    let kinds: [(&str, Run); 7] = [
        ("no observer", || run(None)),
        ("an observer that does nothing", || {
            run(Some(Arc::new(Silent)))
        }),
        ("counts", || traced(Trace::new())),
        ("text", || form(Form::Text)),
        ("JSON lines", || form(Form::Lines)),
        ("Chrome's format", || form(Form::Chrome)),
        ("events for another process", || {
            traced(Forward::new(File::create("/dev/null").unwrap()))
        }),
    ];
    let mut times = vec![Vec::new(); kinds.len()];
    // In turn, so that what else the host does meets all alike.
    for _ in 0..RUNS {
        for ((_, run), times) in kinds.iter().zip(&mut times) {
            times.push(run());
        }
    }
    println!(
        "{:<32} {:>8} {:>8} {:>8} {:>8}",
        format!("ns an exit, {RUNS} runs of {EXITS}"),
        "median",
        "min",
        "max",
        "added"
    );
    let mut off = 0.0;
    for ((name, _), times) in kinds.iter().zip(&mut times) {
        times.sort_unstable_by(f64::total_cmp);
        let median = times[times.len() / 2];
        if off == 0.0 {
            off = median;
        }
        let added = median - off;
        println!(
            "{name:<32} {median:>8.0} {:>8.0} {:>8.0} {added:>8.0}",
            times[0],
            times[times.len() - 1]
        );
        assert!(
            added < GOAL.as_nanos() as f64,
            "{name}: more than {GOAL:?} an exit"
        );
    }
}

/// Runs the guest; returns the nanoseconds of each exit.
type Run = fn() -> f64;

/// Sees nothing.
struct Silent;

impl Observer for Silent {
    fn on_exit(&self, _: &Exit<'_>) {}
}
