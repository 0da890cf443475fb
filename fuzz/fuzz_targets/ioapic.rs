//! Any bytes as a guest's accesses to the IOAPIC, and edges.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minivm_vmm::fuzzing::ioapic(data));
