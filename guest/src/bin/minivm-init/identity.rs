//! The machine's identity, and its time. All clones of a machine are identical until each gets its own with its request.
//!
//! A request doesn't change everything. All clones of a machine share what it had before it was saved: the addresses of programs
//! that were loaded by then, the boot's identity (`/proc/sys/kernel/random/boot_id`) if a program has read it, and the clocks
//! that count from the boot, which continue from where they were.

#![allow(
    unsafe_code,
    reason = "the random number generator's ioctls have no safe interface"
)]

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use minivm_guest::channel::Request;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::{Error, cannot, surroundings};

/// Mixes bytes into the kernel's random number generator, and counts them as random (random(4), "Ioctls").
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// Makes the generator start anew from all that was mixed in. Each processor's own generator follows: it carries the number of
/// the start that it comes from.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
/// The file of the machine's ID (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";

/// Gives the machine the request's identity: clock, random bytes, name.
pub(crate) fn assume(request: &Request) -> Result<(), Error> {
    // First, because the time passes.
    set_clock(request.now)?;
    // From here on, a program that draws a random number draws one of this machine's own.
    add_entropy(&request.entropy).map_err(cannot("seed the random number generator"))?;
    name_machine(&request.hostname)
}

/// Writes the identity into its files: the names, and a new machine ID.
pub(crate) fn write_down(hostname: &str) {
    surroundings::write_names(hostname);
    write_machine_id();
}

fn write_machine_id() {
    let mut id = [0; 16];
    let drawn = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut id));
    // An image without /etc, such as one with a single static program, does without.
    if drawn.is_ok() && fs::exists("/etc").unwrap_or(false) {
        let id = format!("{:032x}\n", u128::from_be_bytes(id));
        let _ = surroundings::write(MACHINE_ID, &id);
    }
}

/// Sets the machine's name.
pub(crate) fn name_machine(name: &str) -> Result<(), Error> {
    rustix::system::sethostname(name.as_bytes()).map_err(cannot("set the host name"))
}

/// Sets the wall clock, in nanoseconds since 1970.
pub(crate) fn set_clock(now: u64) -> Result<(), Error> {
    let now = Timespec {
        tv_sec: i64::try_from(now / 1_000_000_000)?,
        tv_nsec: i64::try_from(now % 1_000_000_000)?,
    };
    // A clock that can't be set runs from 1970; most commands don't care.
    let _ = clock_settime(ClockId::Realtime, now);
    Ok(())
}

/// The structure that RNDADDENTROPY reads: `struct rand_pool_info`, with room for as many bytes as a request has.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    pool: [u8; 32],
}

fn add_entropy(entropy: &[u8; 32]) -> io::Result<()> {
    let generator = File::options().write(true).open("/dev/urandom")?;
    let info = RandPoolInfo {
        entropy_bits: 256,
        bytes: 32,
        pool: *entropy,
    };
    // SAFETY: it reads a `rand_pool_info` with 32 bytes, which this is.
    check(unsafe { libc::ioctl(generator.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: it takes no argument.
    check(unsafe { libc::ioctl(generator.as_raw_fd(), RNDRESEEDCRNG) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
