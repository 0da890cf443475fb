//! Any bytes as two layers of an image. Run it with `-detect_leaks=0`: memory that a thread still holds when it has just ended
//! counts as a leak otherwise.
#![no_main]

#[path = "../bodies/layer.rs"]
mod layer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| layer::run(data));
