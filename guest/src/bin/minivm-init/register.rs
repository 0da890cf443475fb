//! A UART's data register, written to directly.
//!
//! A byte that goes through the kernel's serial driver costs a system call, several accesses to the UART's registers, and
//! an interrupt. Written to the register, it costs one exit. Where the kernel doesn't permit it, init uses the driver instead.
//!
//! Each processor has a `Register` of its own: its permission (`permitted`, `forbid`) and a way to write bytes.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::Register;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::Register;
