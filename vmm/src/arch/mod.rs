//! The processor architecture. This module alone chooses one.
//!
//! Each architecture's module has the same names, which the rest of the crate uses:
//!
//! | name | what it is |
//! |---|---|
//! | `layout` | the guest-physical memory map |
//! | `text` | the words of messages that differ |
//! | `kernel` | the loaders of kernels' files |
//! | `boot_data` | the data that firmware and a boot loader leave, and the first vCPU's registers |
//! | `create` | the KVM calls that make a machine |
//! | `board` | the devices and interrupt lines that a machine has beside its UARTs, and their state in a snapshot |
//! | `exit` | the exits that only this architecture has |
//! | `processor` | a vCPU's state while its thread is not in `KVM_RUN` |
//! | `vcpu_state` | a vCPU's whole state |

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::layout;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub use aarch64::layout;
#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::*;

/// The parts of arm64 that need no KVM, for their tests on other processors.
#[cfg(all(test, not(target_arch = "aarch64")))]
#[path = "aarch64"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the parts that use them aren't here"
)]
mod arm64 {
    mod layout;
    mod tree;

    mod kernel {
        use super::layout;

        mod image;
        mod packed;
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("minivm-vmm builds machines for x86-64 and arm64 only");
