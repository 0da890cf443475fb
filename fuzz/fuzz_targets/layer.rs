//! Any bytes as two layers of an image. To be run with `-detect_leaks=0`: what a thread that has just ended still holds counts
//! as a leak otherwise.
#![no_main]

#[path = "../bodies/layer.rs"]
mod layer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| layer::run(data));
