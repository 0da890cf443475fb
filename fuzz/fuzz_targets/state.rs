//! Any bytes as the body of a snapshot's state file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minivm_vmm::fuzzing::state(data));
