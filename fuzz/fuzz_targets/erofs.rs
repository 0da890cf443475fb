//! Any bytes as an EROFS image.
#![no_main]

#[path = "../bodies/erofs.rs"]
mod erofs;

libfuzzer_sys::fuzz_target!(|data: &[u8]| erofs::run(data));
