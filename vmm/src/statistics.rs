//! KVM's own counts of a machine: among them the exits that it handles by itself, which this process never sees.
//!
//! Only a machine with an observer has them opened. What is in the files is the observer's to read.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use crate::error::{Error, Result};
use crate::vcpu::Vcpu;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// An open file with KVM's counts of a machine or of a vCPU.
pub struct Statistics {
    vcpu: Option<u8>,
    // It must not outlive the machine: kernels before 6.5 would read memory that they have freed.
    file: File,
}

impl Statistics {
    /// Opens the files of a machine and its vCPUs.
    pub(crate) fn open_all(vm: &VmFd, vcpus: &[Vcpu]) -> Result<Vec<Self>> {
        let mut all = vec![Statistics::open(None, vm)?];
        for vcpu in vcpus {
            all.push(Statistics::open(Some(vcpu.id), &vcpu.fd)?);
        }
        Ok(all)
    }

    fn open(vcpu: Option<u8>, of: &impl AsRawFd) -> Result<Self> {
        // The file describes itself: a header, a description of each count, and the counts, which KVM makes anew at each read. It
        // needs no rights but those to the descriptor. Linux 5.14 and newer have it. (KVM API 4.133, KVM_GET_STATS_FD.)
        #[allow(unsafe_code, reason = "kvm-ioctls doesn't have this call")]
        // SAFETY: the call takes no argument, and `of` is open.
        let descriptor = unsafe { ioctl(of, KVM_GET_STATS_FD()) };
        if descriptor < 0 {
            return Err(Error::Kvm {
                call: "KVM_GET_STATS_FD".into(),
                source: io::Error::last_os_error(),
            });
        }
        #[allow(unsafe_code, reason = "the call returns a bare number")]
        // SAFETY: the descriptor is new, and nothing else has it.
        let file = unsafe { File::from_raw_fd(descriptor) };
        Ok(Statistics { vcpu, file })
    }

    /// Returns the vCPU that the counts are about, or `None` for those about the whole machine.
    pub fn vcpu(&self) -> Option<u8> {
        self.vcpu
    }

    /// Fills the buffer with the file's bytes from an offset on.
    ///
    /// # Errors
    ///
    /// The operating system's, where the file has fewer.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}
