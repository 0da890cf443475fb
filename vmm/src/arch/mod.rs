//! The processor architecture. This module alone chooses one.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("minivm-vmm builds x86-64 machines only, so far");
