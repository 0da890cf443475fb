//! Persistent memory: a file that the guest reads in place, from the host's page cache, which all machines of the file share.
//!
//! ```text
//!   layout::pmem ┌──────────────────┐
//!        + 4 KiB │ info block       │ this process's own, as the zeros around it
//!        + 2 MiB ├──────────────────┤
//!                │ the file         │ the guest's /dev/pmem0
//!                │ zeros, to 2 MiB  │
//!                └──────────────────┘
//! ```
//!
//! Linux learns of the range from ACPI's NFIT. A file system is mounted with DAX only where pages have page structures, and those of
//! such a range get some only if an info block asks for them: `/dev/pmem0` begins behind it then.
//!
//! Nothing can write: the mapping is read-only, and so is KVM's slot. This process doesn't even read: where the file was cut short
//! it would get SIGBUS. KVM, which reads for the guest, returns EFAULT.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vm_memory::GuestAddress;

use crate::error::{Error, Result};
use crate::layout;
use crate::memory::{HUGE_PAGE, Mapping, PAGE};
use crate::opened::OpenFile;

/// The most bytes of a file. The guest spends a 64th of them on page structures.
pub(crate) const FILE_MAX: u64 = 64 << 30;
/// The bytes before the file, and the multiple that all is padded to: Linux makes page structures for 2 MiB at a time.
const HEADER: u64 = HUGE_PAGE as u64;
/// The info block's place in the header, and its size.
const INFO: usize = 4096;
/// The bytes by which a snapshot knows a file again: an EROFS image has the UUID of its content there.
const BEGINNING: u64 = 64 << 10;

/// A mapped file.
pub(crate) struct Pmem {
    pub(crate) file: Arc<OpenFile>,
    base: GuestAddress,
    mapping: Mapping,
}

impl Pmem {
    /// Maps the file for a machine with `ram` bytes of RAM.
    pub(crate) fn map(file: Arc<OpenFile>, ram: u64) -> Result<Self> {
        let base = layout::pmem(ram)?;
        let size = (HEADER + file.size).next_multiple_of(HEADER);
        let map = || {
            let mapping = Mapping::reserve(usize::try_from(size).expect("at most FILE_MAX"))?;
            mapping.seal(INFO, &info_block(size))?;
            mapping.show(HEADER..HEADER + file.size, &file.file)?;
            mapping.keep_out_of_dumps();
            Ok(mapping)
        };
        let mapping = map().map_err(Error::host::<io::Error>("a mapping of persistent memory"))?;
        Ok(Pmem {
            file,
            base,
            mapping,
        })
    }

    /// Returns the guest-physical base, the size in bytes, and the address in this process.
    pub(crate) fn region(&self) -> (GuestAddress, u64, u64) {
        let (host, size) = self.mapping.place();
        (self.base, size, host)
    }

    /// Returns the guest-physical addresses.
    pub(crate) fn range(&self) -> Range<u64> {
        let (base, size, _) = self.region();
        base.0..base.0 + size
    }

    /// Returns the error for a page that KVM can't read: the file was cut short or, where it is `sure` that the page is of this file,
    /// the disk fails.
    pub(crate) fn failure(&self, sure: bool) -> Option<Error> {
        let (was, is) = (self.file.size, self.file.size_now().ok()?);
        let text = match is < was {
            true => format!("it was cut short while the machine ran, from {was} bytes to {is}"),
            false if sure => "the host cannot read a part of it, or has no memory left".into(),
            false => return None,
        };
        Some(self.file.unreadable(io::Error::other(text)))
    }
}

/// A snapshot's record of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its path, for messages alone: a snapshot must not make this process open a file.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// SHA-256 of its beginning.
    pub(crate) digest: [u8; 32],
}

impl Record {
    /// Makes the record of a file, whose beginning is read.
    pub(crate) fn of(file: &OpenFile) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(file.size.min(BEGINNING)).expect("64 KiB")];
        file.file.read_exact_at(&mut bytes, 0)?;
        Ok(Record {
            path: file.path.to_string_lossy().into_owned(),
            bytes: file.size,
            digest: Sha256::digest(&bytes).into(),
        })
    }
}

/// Returns the info block of a range of `size` bytes. (Linux 6.12, `drivers/nvdimm/pfn.h`, `struct nd_pfn_sb`.)
fn info_block(size: u64) -> Vec<u8> {
    // The signature and a UUID.
    let mut block = b"NVDIMM_PFN_INFO\0minivm's header.".to_vec();
    // The UUID of the range's label, which it has none of; flags; version 1.4.
    block.extend([0; 16 + 4]);
    block.extend([1, 0, 4, 0]);
    // Where the pages begin, and how many they are.
    block.extend(
        [HEADER, (size - HEADER) / PAGE as u64]
            .map(u64::to_le_bytes)
            .concat(),
    );
    // Page structures are in RAM (mode 1); nothing is left out at either end; the alignment, a page's size.
    let alignment = u32::try_from(HEADER).expect("2 MiB");
    block.extend([1, 0, 0, alignment, 4096].map(u32::to_le_bytes).concat());
    // The most bytes of a page structure.
    block.push(64);
    block.resize(INFO, 0);
    let sum = fletcher64(&block);
    block[INFO - 8..].copy_from_slice(&sum.to_le_bytes());
    block
}

/// Fletcher's checksum over words of four bytes (Linux, `nd_fletcher64`).
fn fletcher64(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let words = words.map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
    let (low, high) = words.fold((0u32, 0u32), |(low, high), word| {
        let low = low.wrapping_add(word);
        (low, high.wrapping_add(low))
    });
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(block: &[u8], at: usize, bytes: usize) -> u64 {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(&block[at..at + bytes]);
        u64::from_le_bytes(number)
    }

    /// The checksum by its definition: the sum of all words, and the sum of all sums on the way.
    fn checksum(bytes: &[u8]) -> u64 {
        let words: Vec<_> = (0..bytes.len())
            .step_by(4)
            .map(|at| number(bytes, at, 4))
            .collect();
        let many = words.len() as u64;
        let low: u64 = words.iter().sum();
        let high: u128 = (0..)
            .zip(&words)
            .map(|(at, word)| u128::from(many - at) * u128::from(*word))
            .sum();
        let high = u64::try_from(high & 0xffff_ffff).unwrap();
        high << 32 | low & 0xffff_ffff
    }

    proptest! {
        #[test]
        fn checksums_are_fletchers(words in prop::collection::vec(any::<u32>(), 0..2000)) {
            let bytes: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            prop_assert_eq!(fletcher64(&bytes), checksum(&bytes));
        }

        /// What `nd_pfn_validate` and `__nvdimm_setup_pfn` look at, by the structure's offsets.
        #[test]
        fn an_info_block_is_what_linux_wants(blocks in 2..1u64 << 16) {
            let size = blocks * HEADER;
            let mut block = info_block(size);
            prop_assert_eq!(block.len(), 4096);
            prop_assert_eq!(&block[..16], b"NVDIMM_PFN_INFO\0");
            prop_assert!(block[16..32].iter().any(|byte| *byte != 0), "a UUID");
            prop_assert!(block[32..52].iter().all(|byte| *byte == 0), "no parent, no flags");
            prop_assert_eq!((number(&block, 52, 2), number(&block, 54, 2)), (1, 4));
            prop_assert_eq!(number(&block, 56, 8), HEADER);
            prop_assert_eq!(number(&block, 64, 8), (size - HEADER) / 4096);
            prop_assert_eq!(number(&block, 72, 4), 1, "mode");
            prop_assert_eq!((number(&block, 76, 4), number(&block, 80, 4)), (0, 0));
            prop_assert_eq!((number(&block, 84, 4), number(&block, 88, 4)), (HEADER, 4096));
            prop_assert_eq!(number(&block, 92, 2), 64);
            prop_assert!(block[94..4088].iter().all(|byte| *byte == 0));
            let sum = number(&block, 4088, 8);
            block[4088..].fill(0);
            prop_assert_eq!(sum, checksum(&block));
        }
    }
}
