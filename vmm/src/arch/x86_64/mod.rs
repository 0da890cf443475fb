//! x86-64: the content of memory and processor that a kernel's 64-bit entry expects, a PC's few devices, and a vCPU's state.

mod acpi;
pub(crate) mod board;
pub(crate) mod boot_data;
mod boot_params;
mod cpuid;
pub(crate) mod create;
pub(crate) mod exit;
mod features;
mod ioapic;
pub(crate) mod kernel;
pub mod layout;
mod msrs;
mod paging;
mod power;
pub(crate) mod processor;
mod registers;
mod restraint;
pub(crate) mod text;
pub(crate) mod vcpu_state;

/// The entries of fuzz targets.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    pub use super::ioapic::model::run as ioapic;
}

#[cfg(test)]
mod forged;
