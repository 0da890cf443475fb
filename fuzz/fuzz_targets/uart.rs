//! Any bytes as a guest's accesses to a UART, and its input.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minivm_vmm::fuzzing::uart(data));
