//! x86-64: the content of memory and processor that a kernel's 64-bit entry expects, and a vCPU's state.

pub(crate) mod acpi;
pub(crate) mod boot_params;
pub(crate) mod cpuid;
pub(crate) mod features;
pub(crate) mod ioapic;
pub(crate) mod kernel;
pub mod layout;
mod msrs;
pub(crate) mod paging;
pub(crate) mod power;
pub(crate) mod registers;
pub(crate) mod restraint;
pub(crate) mod vcpu_state;
