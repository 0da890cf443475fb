//! Any bytes as what a guest asks the folder server.
#![no_main]

#[path = "../bodies/folders.rs"]
mod folders;

libfuzzer_sys::fuzz_target!(|data: &[u8]| folders::run(data));
