//! Any bytes as what the other side does to rings in guest memory.
#![no_main]

#[path = "../bodies/ring.rs"]
mod ring;

libfuzzer_sys::fuzz_target!(|data: &[u8]| ring::run(data));
