//! Any bytes as what a registry answers.
#![no_main]

#[path = "../bodies/registry.rs"]
mod registry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| registry::run(data));
