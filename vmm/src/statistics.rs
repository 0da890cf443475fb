//! KVM's own counts of a machine: among them the exits that it handles by itself, which this process never sees.
//!
//! Only a machine with an observer has its counts read.

use std::fs::File;
use std::io::{self, Error as IoError};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use crate::error::{Error, Result};
use crate::vcpu::Vcpu;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

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

/// The files with a machine's counts. They must not outlive it: kernels before 6.5 would read memory that they have freed.
pub(crate) struct Statistics(Vec<(Option<u8>, File)>);

impl Statistics {
    /// Opens the files of a machine and its vCPUs.
    pub(crate) fn open(vm: &VmFd, vcpus: &[Vcpu]) -> Result<Self> {
        let mut files = vec![(None, open(vm)?)];
        for vcpu in vcpus {
            files.push((Some(vcpu.id), open(&vcpu.fd)?));
        }
        Ok(Statistics(files))
    }

    /// Reads all counts.
    pub(crate) fn read(&self) -> Result<Vec<Statistic>> {
        let mut all = Vec::new();
        for (vcpu, file) in &self.0 {
            let counts = counts(file).map_err(|source| Error::Kvm {
                call: "reading the file of KVM_GET_STATS_FD".into(),
                source,
            })?;
            all.extend(counts.into_iter().map(|(name, count)| Statistic {
                vcpu: *vcpu,
                name,
                count,
            }));
        }
        Ok(all)
    }
}

/// Opens the file with the counts of a machine or a vCPU.
fn open(of: &impl AsRawFd) -> Result<File> {
    // The file describes itself: a header, a description of each count, and the counts, which KVM makes anew at each read. It
    // needs no rights but those to the descriptor. Linux 5.14 and newer have it. (KVM API 4.133, KVM_GET_STATS_FD.)
    #[allow(unsafe_code, reason = "kvm-ioctls doesn't have this call")]
    // SAFETY: the call takes no argument, and `of` is open.
    let descriptor = unsafe { ioctl(of, KVM_GET_STATS_FD()) };
    if descriptor < 0 {
        return Err(Error::Kvm {
            call: "KVM_GET_STATS_FD".into(),
            source: IoError::last_os_error(),
        });
    }
    #[allow(unsafe_code, reason = "the call returns a bare number")]
    // SAFETY: the descriptor is new, and nothing else has it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Reads the counts that only grow, with their names. The others are histograms, sizes and peaks.
fn counts(file: &File) -> io::Result<Vec<(String, u64)>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let field = |index: usize| word(&header, index * 4);
    let size = |index| usize::try_from(field(index)).map_err(io::Error::other);
    let (name_size, number) = (size(1)?, size(2)?);
    if name_size > NAME_MAX || number > COUNTS_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (descriptions, data) = (u64::from(field(4)), u64::from(field(5)));
    let mut blob = vec![0; number * (DESCRIPTOR + name_size)];
    file.read_exact_at(&mut blob, descriptions)?;
    let mut counts = Vec::new();
    for description in blob.chunks(DESCRIPTOR + name_size) {
        if word(description, 0) & TYPE_MASK != TYPE_CUMULATIVE {
            continue;
        }
        let mut count = [0; 8];
        file.read_exact_at(&mut count, data + u64::from(word(description, 8)))?;
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
    use std::io::Write;

    use super::*;

    /// A file as the manual describes it: name size 8, the counts `kind` and `name` each.
    fn file(counts: &[(u32, &str)]) -> File {
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
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn counts_that_only_grow_are_read_with_their_names() {
        let file = file(&[(0, "exits"), (1, "pages"), (0x10, "bytes"), (4, "hist")]);
        let counts = counts(&file).unwrap();
        let found: Vec<_> = counts.iter().map(|(name, n)| (&**name, *n)).collect();
        assert_eq!(found, [("exits", 100), ("bytes", 102)]);
    }

    #[test]
    fn a_file_that_is_not_one_of_counts_is_an_error() {
        for bytes in [&[0; 8][..], &[0xff; 64]] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            assert!(counts(&file).is_err());
        }
    }
}
