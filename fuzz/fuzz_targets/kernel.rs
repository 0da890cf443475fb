//! Any bytes as a kernel's file.
#![no_main]

#[path = "../bodies/kernel.rs"]
mod kernel;

libfuzzer_sys::fuzz_target!(|data: &[u8]| kernel::run(data));
