//! x86-64: what a kernel's 64-bit entry expects to find in memory and in the processor.

pub(crate) mod acpi;
pub(crate) mod boot_params;
pub(crate) mod cpuid;
pub(crate) mod features;
mod msrs;
pub(crate) mod paging;
pub(crate) mod registers;
pub(crate) mod vcpu_state;
