//! Any bytes as a cpio archive.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use minivm_guest::unpack::Unpack;

fuzz_target!(|data: &[u8]| {
    let mut unpack = Unpack::new(data);
    while let Ok(Some(entry)) = unpack.next() {
        assert!(entry.name.is_relative());
        let _ = io::copy(&mut unpack, &mut io::sink());
    }
});
