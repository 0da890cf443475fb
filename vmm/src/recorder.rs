//! A vCPU's part of observation: gathers what an exit was while it is served, and hands it to the observer.
//!
//! The data of an exit lie in memory that is borrowed from the vCPU, and so does the instruction pointer. So a [`Note`]
//! is taken while the exit is served, and the pointer is read when that is done.

use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::{VcpuFd, VmFd};

use crate::arch::processor;
use crate::observer::{Exit, ExitKind, Observer, Step};

/// Takes notes while an exit is served.
pub(crate) trait Note {
    /// `KVM_RUN` has returned.
    fn returned(&mut self);
    /// The exit is being served, or has been.
    fn kind(&mut self, kind: ExitKind, data: &[u8]);
}

/// Takes no notes: it compiles to nothing.
pub(crate) struct NoNote;

impl Note for NoNote {
    fn returned(&mut self) {}
    fn kind(&mut self, _: ExitKind, _: &[u8]) {}
}

/// A vCPU's connection to the observer.
pub(crate) struct Recorder {
    observer: Arc<dyn Observer>,
    vcpu: u8,
    /// Whether KVM leaves the registers beside the reason of each exit.
    synced: bool,
    entered: bool,
    came: Instant,
    kind: ExitKind,
    data: Vec<u8>,
}

impl Recorder {
    /// Connects vCPU `vcpu` with the observer.
    pub(crate) fn new(observer: Arc<dyn Observer>, vcpu: u8, vm: &VmFd, fd: &mut VcpuFd) -> Self {
        Recorder {
            observer,
            vcpu,
            synced: processor::sync_registers(vm, fd),
            entered: false,
            came: Instant::now(),
            kind: ExitKind::Other,
            data: Vec::new(),
        }
    }

    /// The vCPU is about to be entered.
    pub(crate) fn entering(&mut self, fd: &mut VcpuFd) {
        if self.vcpu == 0 && !self.entered && fd.get_kvm_run().immediate_exit == 0 {
            self.entered = true;
            self.observer.on_step(Step::Entered);
        }
    }

    /// The exit has been served.
    pub(crate) fn served(&self, fd: &VcpuFd) {
        self.observer.on_exit(&Exit {
            vcpu: self.vcpu,
            kind: self.kind,
            data: &self.data,
            came: self.came,
            rip: processor::instruction_pointer(fd, self.synced),
        });
    }
}

impl Note for Recorder {
    fn returned(&mut self) {
        self.came = Instant::now();
    }

    fn kind(&mut self, kind: ExitKind, data: &[u8]) {
        self.data.clear();
        self.data.extend_from_slice(data);
        self.kind = kind;
    }
}
