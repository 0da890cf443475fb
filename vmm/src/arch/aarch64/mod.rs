//! arm64: the device tree and the registers that a kernel's entry expects, KVM's GICv3, and a vCPU's state.

pub(crate) mod board;
pub(crate) mod boot_data;
pub(crate) mod create;
pub(crate) mod exit;
mod gic;
mod gic_state;
mod identity;
pub(crate) mod kernel;
pub mod layout;
pub(crate) mod processor;
mod registers;
pub(crate) mod text;
mod tree;
pub(crate) mod vcpu_state;

/// The entries of fuzz targets: none for arm64.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {}

#[cfg(test)]
mod forged;
