//! The restore of a snapshot: a machine in KVM, with the snapshot's state.
//!
//! Making a machine takes the longest, and can be done before it is needed: that is [`prepare`]. [`Prepared::wake`] does the
//! rest; from then on the guest's clocks run.

use std::sync::Arc;

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;

use super::Snapshot;
use super::state::Devices;
use crate::error::{Error, Result};
use crate::kvm::{Created, create_vm, lend_memory, split_irqchip};
use crate::observer::{Step, Steps};
use crate::vcpu::Vcpu;

/// A machine made ahead of time: it exists in KVM, with a snapshot's memory and features, and waits for its state and its
/// serial ports, which come from [`Builder::restore_prepared`](crate::Builder::restore_prepared).
///
/// ```no_run
/// use minivm_vmm::{Builder, Snapshot};
///
/// let snapshot = Snapshot::open("warm")?;
/// let mut ahead: Vec<_> = (0..10).map(|_| snapshot.prepare()).collect::<Result<_, _>>()?;
/// // … when one is wanted:
/// let prepared = ahead.pop().expect("there are ten");
/// let outcome = Builder::restore_prepared(prepared).console_output(std::io::stdout()).build()?.run()?;
/// # minivm_vmm::Result::Ok(())
/// ```
pub struct Prepared {
    snapshot: Snapshot,
    created: Created,
}

/// Makes the machine of a snapshot, without its state.
pub(crate) fn prepare(snapshot: &Snapshot, steps: Steps<'_>) -> Result<Prepared> {
    let kvm = snapshot.kvm()?;
    steps.reached(Step::Opened);
    let ram = snapshot.ram()?;
    steps.reached(Step::MemoryReserved);
    // `wake` checks it again. This is for machines made ahead of time, none of which would be of use.
    snapshot.check_unchanged()?;
    let vm = Arc::new(create_vm(kvm)?);
    steps.reached(Step::VmCreated);
    lend_memory(&vm, &ram)?;
    steps.reached(Step::MemoryLent);
    split_irqchip(&vm)?;
    steps.reached(Step::IrqchipSplit);
    let vcpus = create_vcpus(&vm, snapshot)?;
    steps.reached(Step::VcpusCreated);
    let created = Created {
        vcpus,
        vm,
        ram: Arc::new(ram),
    };
    Ok(Prepared {
        snapshot: snapshot.clone(),
        created,
    })
}

/// Creates the processors, with the features that the guest has seen.
fn create_vcpus(vm: &VmFd, snapshot: &Snapshot) -> Result<Vec<Vcpu>> {
    let mut vcpus = Vec::new();
    for (id, state) in (0..).zip(&snapshot.0.state.vcpus) {
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let cpuid = state.set_cpuid(&fd)?;
        vcpus.push(Vcpu {
            id,
            fd,
            cpuid,
            recorder: None,
        });
    }
    Ok(vcpus)
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
        if let Some(clock) = state.devices.clock {
            set_clock(&created.vm, clock)?;
        }
        Ok((created, state.devices.clone()))
    }
}

/// Sets the guest's paravirtual clock, so that it continues where it was.
fn set_clock(vm: &VmFd, nanoseconds: u64) -> Result<()> {
    // kvm-clock counts nanoseconds since the machine began, in a page that a guest shares with KVM and reads together with
    // the time stamp counter. So it comes after the counters, on whose being alike it depends whether all vCPUs can share
    // one reading (the "master clock"). Without it the guest's clock would start at 0, and Linux would stand still until it
    // has caught up. With KVM_CLOCK_REALTIME KVM would add the time that passed since the snapshot was saved; the time stamp
    // counter and the timers wouldn't follow. (KVM API 4.30, KVM_SET_CLOCK.)
    let clock = kvm_clock_data {
        clock: nanoseconds,
        ..Default::default()
    };
    vm.set_clock(&clock).map_err(Error::kvm("KVM_SET_CLOCK"))
}
