//! Any bytes as a cpio archive.
#![no_main]

#[path = "../bodies/unpack.rs"]
mod unpack;

libfuzzer_sys::fuzz_target!(|data: &[u8]| unpack::run(data));
