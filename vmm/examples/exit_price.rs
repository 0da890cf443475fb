//! The price of an exit: of one that KVM serves, and of one that this process serves.
//!
//! ```console
//! $ cargo run --release -p minivm-vmm --example exit_price
//! ```
//!
//! A guest repeats one instruction between two bytes to COM1, and the time between the bytes is taken. `docs/learn/exits.md` has
//! what came out, on a host's KVM and in the lab, and what it means.

use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use minivm_vmm::{Builder, Config, Kernel, layout};

/// The instructions that a guest runs in all.
const COUNT: u32 = 10_000;
/// The bytes of a string instruction.
const STRING: u32 = 1000;
/// The guests that are run for each instruction.
const RUNS: usize = 5;

/// An instruction that a guest repeats, with those that it needs before it.
struct Repeated {
    name: &'static str,
    before: &'static [u8],
    code: &'static [u8],
    /// The rounds of the loop.
    rounds: u32,
}

/// The first is the empty loop, which all others contain.
#[rustfmt::skip]
const REPEATED: [Repeated; 7] = [
    Repeated { name: "nothing", before: &[], code: &[], rounds: COUNT },
    Repeated {
        name: "cpuid: an exit to KVM",
        before: &[],
        code: &[0x31, 0xc0, 0x0f, 0xa2],             // xor eax, eax; cpuid
        rounds: COUNT,
    },
    Repeated {
        name: "in, a port: an exit to this process",
        before: &[0x66, 0xba, 0x34, 0x12],           // mov dx, 0x1234 (nothing is there)
        code: &[0xec],                               // in al, dx
        rounds: COUNT,
    },
    Repeated {
        name: "out, the same port",
        before: &[0x66, 0xba, 0x34, 0x12],
        code: &[0xee],                               // out dx, al
        rounds: COUNT,
    },
    Repeated {
        name: "rep outsb, the same port, each byte",
        before: &[0x66, 0xba, 0x34, 0x12],
        code: &[
            0xbe, 0x00, 0x00, 0x10, 0x00,            // mov esi, 0x100000 (any bytes)
            0xb9, 0xe8, 0x03, 0x00, 0x00,            // mov ecx, STRING
            0xf3, 0x6e,                              // rep outsb
        ],
        rounds: COUNT / STRING,
    },
    Repeated {
        name: "rep insb, the same port, each byte",
        before: &[0x66, 0xba, 0x34, 0x12],
        code: &[
            0xbf, 0x00, 0x00, 0x20, 0x00,            // mov edi, 0x200000
            0xb9, 0xe8, 0x03, 0x00, 0x00,            // mov ecx, STRING
            0xf3, 0x6c,                              // rep insb
        ],
        rounds: COUNT / STRING,
    },
    Repeated {
        name: "mov, memory without RAM",
        before: &[0xbb, 0x00, 0x00, 0x00, 0x20],     // mov ebx, 0x20000000 (512 MiB)
        code: &[0x8b, 0x03],                         // mov eax, [rbx]
        rounds: COUNT,
    },
];

/// A writer that sends the time of each byte to a channel.
struct Stopwatch(Sender<Instant>);

impl Write for Stopwatch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(Instant::now());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn main() -> minivm_vmm::Result<()> {
    let title = format!("{COUNT} of each, {RUNS} runs; ns each");
    println!(
        "{title:<38} {:>8} {:>8} {:>8}   more than nothing",
        "median", "min", "max"
    );
    let mut empty = 0;
    for repeated in &REPEATED {
        let mut times = Vec::new();
        for _ in 0..RUNS {
            times.push(run(repeated)?.as_nanos() / u128::from(COUNT));
        }
        times.sort_unstable();
        let (min, median, max) = (times[0], times[RUNS / 2], times[RUNS - 1]);
        if repeated.code.is_empty() {
            empty = median;
        }
        let more = median.saturating_sub(empty);
        println!(
            "{:<38} {median:>8} {min:>8} {max:>8} {more:>19}",
            repeated.name
        );
    }
    Ok(())
}

/// Runs a guest that repeats an instruction; returns the time that all its rounds took.
fn run(repeated: &Repeated) -> minivm_vmm::Result<Duration> {
    let (sender, times) = channel();
    let config = Config::new(Kernel::Code(guest(repeated)));
    let machine = Builder::new(config)
        .console_output(Stopwatch(sender))
        .build()?;
    machine.run()?;
    let times: Vec<_> = times.iter().collect();
    Ok(times[1] - times[0])
}

/// Returns a guest's code: a byte, the rounds, a byte, a reset.
fn guest(repeated: &Repeated) -> Vec<u8> {
    let [low, high] = layout::COM1_PORT.to_le_bytes();
    let byte = [0x66, 0xba, low, high, 0xee]; // mov dx, COM1; out dx, al
    let count = [&[0x41, 0xb8][..], &repeated.rounds.to_le_bytes()].concat(); // mov r8d, rounds
    // The loop is its code, `dec r8d` and the jump itself.
    let back = i8::try_from(repeated.code.len() + 5).map_or(i8::MIN, |length| -length);
    let again = [0x41, 0xff, 0xc8, 0x75, back.to_le_bytes()[0]]; // dec r8d; jnz
    let reset = [0xb0, 0xfe, 0xe6, 0x64]; // mov al, 0xfe; out 0x64, al
    [
        &byte[..],
        repeated.before,
        &count,
        repeated.code,
        &again,
        &byte,
        &reset,
    ]
    .concat()
}
