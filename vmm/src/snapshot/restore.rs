//! The restore of a snapshot: a machine in KVM, with the snapshot's state.
//!
//! Making a machine takes the longest, and can be done before it is needed: that is [`prepare`]. [`Prepared::wake`] does the
//! rest; from then on the guest's clocks run.

use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::Snapshot;
use super::state::Devices;
use crate::arch::create;
use crate::error::Result;
use crate::kvm::{self, Created};
use crate::observer::{Step, Steps};

/// A machine made ahead of time: it exists in KVM, with a snapshot's memory and features, and waits for its state and its
/// serial ports, which come from [`Builder::restore_prepared`](crate::Builder::restore_prepared).
pub struct Prepared {
    snapshot: Snapshot,
    created: Created,
}

/// Makes the machine of a snapshot, without its state.
pub(crate) fn prepare(snapshot: &Snapshot, steps: Steps<'_>) -> Result<Prepared> {
    let host = snapshot.host()?;
    steps.reached(Step::Opened);
    let ram = snapshot.ram()?;
    steps.reached(Step::MemoryReserved);
    // `wake` checks it again. This is for machines made ahead of time, none of which would be of use.
    snapshot.check_unchanged()?;
    let vcpus = |vm: &VmFd| create::create_vcpus_of(vm, &snapshot.0.state.vcpus);
    let ram = Arc::new(ram.with_pagemap(host.pagemap.clone()));
    Ok(Prepared {
        snapshot: snapshot.clone(),
        created: kvm::create(host.kvm.clone(), ram, vcpus, steps)?,
    })
}

impl Prepared {
    /// Sets the snapshot's state in the machine, except the devices', which it returns.
    pub(crate) fn wake(self) -> Result<(Created, Devices)> {
        let Prepared { snapshot, created } = self;
        let state = &snapshot.0.state;
        // After the memory was mapped: what has changed before that shows here.
        snapshot.check_unchanged()?;
        for (vcpu, state) in created.vcpus.iter().zip(&state.vcpus) {
            state.set(vcpu)?;
        }
        state.devices.board.set(&created)?;
        Ok((created, state.devices.clone()))
    }
}
