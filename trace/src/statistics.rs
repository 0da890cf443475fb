//! The format of the files in which KVM counts. (KVM API 4.133, KVM_GET_STATS_FD.)

use std::io;

use minivm_vmm::Statistics;
use serde::{Deserialize, Serialize};

/// The length of `struct kvm_stats_header`, and of `struct kvm_stats_desc` without the name behind it.
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;
/// `KVM_STATS_TYPE_MASK`, and of the types the one that only grows: `KVM_STATS_TYPE_CUMULATIVE`.
const TYPE_MASK: u32 = 0xf;
const TYPE_CUMULATIVE: u32 = 0;
/// More than any KVM has; a file that claims more is not a file of counts.
const NAME_MAX: usize = 4096;
const COUNTS_MAX: usize = 4096;

/// One of KVM's counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistic {
    /// The vCPU that it is about, or `None` for one about the whole machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u8>,
    /// KVM's name for it, such as `exits`: all exits of the hardware. The kernel's source has the list (`kvm_vcpu_stats_desc` and
    /// `kvm_vm_stats_desc` in `arch/x86/kvm/x86.c`).
    pub name: String,
    /// The count since the machine was made.
    pub count: u64,
}

/// Reads all counts of a machine and its vCPUs.
pub(crate) fn read(files: &[Statistics]) -> io::Result<Vec<Statistic>> {
    let mut all = Vec::new();
    for file in files {
        let counts = counts(|buffer, offset| file.read_exact_at(buffer, offset))?;
        all.extend(counts.into_iter().map(|(name, count)| Statistic {
            vcpu: file.vcpu(),
            name,
            count,
        }));
    }
    Ok(all)
}

/// Reads the counts that only grow, with their names. The others are histograms, sizes and peaks.
fn counts(
    read_exact_at: impl Fn(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<Vec<(String, u64)>> {
    let mut header = [0; HEADER];
    read_exact_at(&mut header, 0)?;
    let field = |index: usize| word(&header, index * 4);
    let size = |index| usize::try_from(field(index)).map_err(io::Error::other);
    let (name_size, number) = (size(1)?, size(2)?);
    if name_size > NAME_MAX || number > COUNTS_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (descriptions, data) = (u64::from(field(4)), u64::from(field(5)));
    let mut blob = vec![0; number * (DESCRIPTOR + name_size)];
    read_exact_at(&mut blob, descriptions)?;
    let mut counts = Vec::new();
    for description in blob.chunks(DESCRIPTOR + name_size) {
        if word(description, 0) & TYPE_MASK != TYPE_CUMULATIVE {
            continue;
        }
        let mut count = [0; 8];
        read_exact_at(&mut count, data + u64::from(word(description, 8)))?;
        let name = description[DESCRIPTOR..].split(|&byte| byte == 0).next();
        let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        counts.push((name, u64::from_ne_bytes(count)));
    }
    Ok(counts)
}

/// Returns the 32-bit number at `offset`.
fn word(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as the manual describes it: name size 8, the counts `kind` and `name` each.
    fn file(counts: &[(u32, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let number = u32::try_from(counts.len()).unwrap();
        let data = 32 + number * 24;
        for word in [0, 8, number, 24, 32, data] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(b"kvm-1\0\0\0");
        for (index, (kind, name)) in (0u32..).zip(counts) {
            for word in [*kind, 1 << 16, index * 8, 0] {
                bytes.extend(word.to_ne_bytes());
            }
            let mut padded = [0; 8];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend(padded);
        }
        for (index, _) in (100u64..).zip(counts) {
            bytes.extend(index.to_ne_bytes());
        }
        bytes
    }

    fn counts_of(file: &[u8]) -> io::Result<Vec<(String, u64)>> {
        counts(|buffer, offset| {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let from = file.get(start..start.saturating_add(buffer.len()));
            buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    #[test]
    fn counts_that_only_grow_are_read_with_their_names() {
        let file = file(&[(0, "exits"), (1, "pages"), (0x10, "bytes"), (4, "hist")]);
        let counts = counts_of(&file).unwrap();
        let found: Vec<_> = counts.iter().map(|(name, n)| (&**name, *n)).collect();
        assert_eq!(found, [("exits", 100), ("bytes", 102)]);
    }

    #[test]
    fn a_file_that_is_not_one_of_counts_is_an_error() {
        for bytes in [&[0; 8][..], &[0xff; 64]] {
            assert!(counts_of(bytes).is_err());
        }
    }
}
