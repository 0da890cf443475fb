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
            midr: registers::get(&vcpu.fd, registers::MIDR_EL1)?,
            frequency: frequency(),
        })
    }

    /// Checks that a processor of this identity can continue what one of the other has begun.
    pub(super) fn check(self, other: Identity) -> Result<()> {
        let named = |identity: Identity| {
            [
                format!("processor of KVM's target {}", identity.target),
                format!("processor with the MIDR_EL1 {:#x}", identity.midr),
                format!("counter of {} Hz", identity.frequency),
            ]
        };
        let mut both = named(other).into_iter().zip(named(self));
        match both.find(|(wanted, own)| wanted != own) {
            Some((wanted, own)) => Err(Error::HostLacks(format!("{wanted} (it has a {own})"))),
            None => Ok(()),
        }
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
