//! A vCPU's whole state, which can't be read or set yet.

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::vcpu::Vcpu;

/// The parts of a vCPU's state that depend on the host.
#[derive(Debug)]
pub(crate) struct Inventory {}

impl Inventory {
    pub(crate) fn of_this_host(_vm: &VmFd) -> Result<Self> {
        Err(unsupported())
    }
}

/// The whole state of a vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VcpuState {}

impl VcpuState {
    /// Reads the state of a vCPU that is at rest.
    pub(crate) fn of(_vcpu: &Vcpu, _inventory: &Inventory) -> Result<Self> {
        Err(unsupported())
    }

    /// Creates a vCPU that can have this state.
    pub(super) fn create(&self) -> Result<Vcpu> {
        Err(unsupported())
    }

    /// Sets the state in a vCPU that has never run.
    pub(crate) fn set(&self, _vcpu: &Vcpu) -> Result<()> {
        Err(unsupported())
    }

    /// Checks what a checksum can't.
    pub(crate) fn check(&self) -> std::result::Result<(), &'static str> {
        Err("no snapshot of an arm64 machine can be read yet")
    }
}

/// Returns the error of everything that has to do with snapshots.
pub(super) fn unsupported() -> Error {
    Error::Config("snapshots of arm64 machines are not supported yet".into())
}
