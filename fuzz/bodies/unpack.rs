//! Any bytes as a cpio archive.

use std::io;

use minivm_guest::unpack::Unpack;

pub(crate) fn run(data: &[u8]) {
    let mut unpack = Unpack::new(data);
    while let Ok(Some(entry)) = unpack.next() {
        assert!(entry.name.is_relative());
        let _ = io::copy(&mut unpack, &mut io::sink());
    }
}
