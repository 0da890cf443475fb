//! The identity of a host's processor, as a vCPU has it: what a snapshot's machine can't have elsewhere.

#![allow(
    unsafe_code,
    reason = "a system register is read by an instruction of its own"
)]

use std::arch::asm;

use serde::{Deserialize, Serialize};

use super::registers;
use crate::error::{Error, Result};
use crate::vcpu::Vcpu;

/// The identity of a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// KVM's number of the kind of vCPU.
    pub(super) target: u32,
    /// Maker, part and revision (Arm ARM, "MIDR_EL1").
    pub(super) midr: u64,
    /// The frequency of the counter in Hz, which KVM can't change for a guest (Arm ARM, "CNTFRQ_EL0").
    pub(super) frequency: u64,
}

impl Identity {
    /// Returns the identity of a vCPU's processor.
    pub(super) fn of(vcpu: &Vcpu) -> Result<Self> {
        Ok(Identity {
            target: vcpu.features.target,
            midr: registers::midr(&vcpu.fd)?,
            frequency: frequency(),
        })
    }

    /// Checks that a processor of this identity can continue what one of the other has begun.
    pub(super) fn check(self, other: Identity) -> Result<()> {
        let lack = if self.target != other.target {
            format!(
                "processor of KVM's target {} (its own is of {})",
                other.target, self.target
            )
        } else if self.midr != other.midr {
            format!(
                "processor with the MIDR_EL1 {:#x} (its own has {:#x})",
                other.midr, self.midr
            )
        } else if self.frequency != other.frequency {
            format!(
                "counter of {} Hz (its own has {} Hz)",
                other.frequency, self.frequency
            )
        } else {
            return Ok(());
        };
        Err(Error::HostLacks(lack))
    }
}

/// Returns the counter's frequency as firmware has set it.
fn frequency() -> u64 {
    let hertz: u64;
    // SAFETY: it reads one register, which Linux lets processes read.
    unsafe {
        asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack, preserves_flags));
    }
    hertz
}
