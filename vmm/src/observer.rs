//! The observer: sees each return of `KVM_RUN`, the steps of a machine's life, and KVM's own counts of what it kept to itself.
//!
//! *Exit* has two meanings. The processor leaves the guest and enters KVM: that is an exit of the hardware, and KVM handles most of
//! them by itself. Where it can't, `KVM_RUN` returns to this process, and that is an exit too. An [`Exit`] is one of the second kind.
//! The first kind is only counted, by KVM: [`Observer::on_statistics`].
//!
//! Without an observer, the vCPU's loop is what it would be without this file, but for one branch an exit (see
//! [`Vcpu::step`](crate::vcpu::Vcpu)).

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::statistics::Statistics;

/// Sees what a machine does. [`Builder::observer`](crate::Builder::observer) gives it to a machine.
///
/// The methods run on the machine's own threads, which wait for them.
pub trait Observer: Send + Sync {
    /// Sees a return of `KVM_RUN`, after it was served and before the guest is entered again. Runs on the vCPU's thread.
    fn on_exit(&self, exit: &Exit<'_>);

    /// Sees that the machine has come to `step`. Runs on the thread that has made the step; the steps of a boot's two threads come in
    /// any order.
    fn on_step(&self, step: Step) {
        let _ = step;
    }

    /// Sees the files with KVM's counts, of the machine and of each vCPU, once, when its vCPUs have left the guest for ever. Where KVM
    /// doesn't count, or can't be asked, the reason. Runs on the thread that calls [`Machine::run`](crate::Machine::run).
    fn on_statistics(&self, files: &Result<Vec<Statistics>>) {
        let _ = files;
    }
}

/// A return of `KVM_RUN` that has been served.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Exit<'a> {
    /// The vCPU's number, from 0.
    pub vcpu: u8,
    /// The reason.
    pub kind: ExitKind,
    /// The bytes of an access: what the guest got, or has written. Of [`ExitKind::Other`], the reason in words.
    pub data: &'a [u8],
    /// The time when `KVM_RUN` returned, before the exit was served.
    pub came: Instant,
    /// The guest's instruction pointer. For an access to a device it is the address of the instruction or that of the next one: KVM
    /// advances it before the exit, or when the vCPU is entered again.
    pub rip: u64,
}

/// The reason for a return of `KVM_RUN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitKind {
    /// The guest has read from this port. A string instruction (`rep insb`) reads several times in one exit.
    IoIn(u16),
    /// The guest has written to this port. The bytes of a string instruction (`rep outsb`) come in an exit each.
    IoOut(u16),
    /// The guest has read from this guest-physical address, where there is no RAM.
    MmioRead(u64),
    /// The guest has written to this guest-physical address, where there is no RAM.
    MmioWrite(u64),
    /// The guest has tried to write to this guest-physical address, which is persistent memory.
    PmemWrite(u64),
    /// A triple fault, which ends the machine.
    Shutdown,
    /// A halt, which ends the machine. A KVM with local APICs keeps halts to itself.
    Halt,
    /// A call of PSCI that switches the machine off.
    PowerOff,
    /// A call of PSCI that resets the machine.
    Reset,
    /// The guest has locked the memory bus, and its vCPU pauses.
    BusLock,
    /// No exit of the guest's: a signal has interrupted `KVM_RUN`, or it was told to return at once.
    Interrupted,
    /// No exit of the guest's: the vCPU has nothing to run, as before it is started by another one.
    NotRunnable,
    /// Any other reason; it ends the machine.
    Other,
}

/// A step in a machine's life. The observer's clock gives its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Step {
    /// [`Builder::build`](crate::Builder::build) was called. A machine that was made ahead of time comes to `StateSet` next.
    Begun,
    /// Memory for the guest is reserved; of a snapshot, its file is mapped.
    MemoryReserved,
    /// `/dev/kvm` is open, and has what minivm needs. Machines and snapshots keep it open.
    Opened,
    /// KVM has made the machine: `KVM_CREATE_VM`.
    VmCreated,
    /// The guest's memory is KVM's to give: `KVM_SET_USER_MEMORY_REGION`.
    MemoryLent,
    /// KVM emulates local APICs: `KVM_CAP_SPLIT_IRQCHIP`. On arm64, a GICv3: `KVM_CREATE_DEVICE`.
    IrqchipSplit,
    /// The vCPUs are made: `KVM_CREATE_VCPU`, `KVM_SET_CPUID2` and, for a boot, what firmware sets. On arm64 `KVM_ARM_VCPU_INIT`
    /// instead, and the GICv3 is initialized.
    VcpusCreated,
    /// The kernel is in the guest's memory.
    KernelLoaded,
    /// The initramfs is in the guest's memory, if there is one.
    InitramfsLoaded,
    /// The tables that firmware and a boot loader leave are in the guest's memory.
    BootDataWritten,
    /// The vCPUs have the registers with which the guest starts, or those of the snapshot.
    StateSet,
    /// The pages of the working set are present.
    Prefaulted,
    /// The devices are connected, and the machine is ready to run.
    Built,
    /// vCPU 0 enters the guest for the first time: `KVM_RUN`.
    Entered,
    /// The machine has ended, and its vCPUs have left the guest for ever.
    Ended,
    /// The machine is gone: KVM's descriptors are closed, and the guest's memory is given back. A handle that keeps its memory
    /// ([`Memory`](crate::Memory)) also keeps this from being true.
    Closed,
}

/// Sends a machine's steps to its observer, if there is one.
#[derive(Clone, Copy, Default)]
pub(crate) struct Steps<'a>(Option<&'a dyn Observer>);

impl<'a> Steps<'a> {
    pub(crate) fn to(observer: Option<&'a Arc<dyn Observer>>) -> Self {
        Steps(observer.map(Arc::as_ref))
    }

    pub(crate) fn reached(self, step: Step) {
        if let Some(observer) = self.0 {
            observer.on_step(step);
        }
    }
}
