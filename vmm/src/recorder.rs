//! A vCPU's part of observation: gathers what an exit was while it is served, and hands it to the observer.
//!
//! The reason of an exit and its data lie in memory that is borrowed from the vCPU, and so does the instruction pointer. So a [`Note`]
//! is taken while the exit is served, and the pointer is read when that is done.

use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::{VcpuFd, VmFd};

use crate::arch::processor::PointerReader;
use crate::observer::{Exit, ExitKind, Observer, Step};

/// Takes notes while an exit is served.
pub(crate) trait Note {
    /// `KVM_RUN` has returned.
    fn returned(&mut self);
    /// The exit is being served, or has been.
    fn kind(&mut self, kind: ExitKind<'_>);
}

/// Takes no notes: it compiles to nothing.
pub(crate) struct NoNote;

impl Note for NoNote {
    fn returned(&mut self) {}
    fn kind(&mut self, _: ExitKind<'_>) {}
}

/// A vCPU's connection to the observer.
pub(crate) struct Recorder {
    observer: Arc<dyn Observer>,
    vcpu: u8,
    pointer: PointerReader,
    entered: bool,
    came: Instant,
    kind: Shape,
    data: Vec<u8>,
}

/// An [`ExitKind`] whose data lie elsewhere.
#[derive(Clone, Copy)]
enum Shape {
    IoIn(u16),
    IoOut(u16),
    MmioRead(u64),
    MmioWrite(u64),
    Shutdown,
    Halt,
    PowerOff,
    Reset,
    BusLock,
    Interrupted,
    NotRunnable,
    Other,
}

impl Recorder {
    /// Connects vCPU `vcpu` with the observer.
    pub(crate) fn new(observer: Arc<dyn Observer>, vcpu: u8, vm: &VmFd, fd: &mut VcpuFd) -> Self {
        Recorder {
            observer,
            vcpu,
            pointer: PointerReader::new(vm, fd),
            entered: false,
            came: Instant::now(),
            kind: Shape::Other,
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
            kind: self.exit_kind(),
            came: self.came,
            rip: self.pointer.read(fd),
        });
    }

    fn exit_kind(&self) -> ExitKind<'_> {
        let data = &self.data[..];
        match self.kind {
            Shape::IoIn(port) => ExitKind::IoIn { port, data },
            Shape::IoOut(port) => ExitKind::IoOut { port, data },
            Shape::MmioRead(address) => ExitKind::MmioRead { address, data },
            Shape::MmioWrite(address) => ExitKind::MmioWrite { address, data },
            Shape::Shutdown => ExitKind::Shutdown,
            Shape::Halt => ExitKind::Halt,
            Shape::PowerOff => ExitKind::PowerOff,
            Shape::Reset => ExitKind::Reset,
            Shape::BusLock => ExitKind::BusLock,
            Shape::Interrupted => ExitKind::Interrupted,
            Shape::NotRunnable => ExitKind::NotRunnable,
            Shape::Other => ExitKind::Other(str::from_utf8(data).unwrap_or_default()),
        }
    }
}

impl Note for Recorder {
    fn returned(&mut self) {
        self.came = Instant::now();
    }

    fn kind(&mut self, kind: ExitKind<'_>) {
        let (shape, data) = match kind {
            ExitKind::IoIn { port, data } => (Shape::IoIn(port), data),
            ExitKind::IoOut { port, data } => (Shape::IoOut(port), data),
            ExitKind::MmioRead { address, data } => (Shape::MmioRead(address), data),
            ExitKind::MmioWrite { address, data } => (Shape::MmioWrite(address), data),
            ExitKind::Shutdown => (Shape::Shutdown, &[][..]),
            ExitKind::Halt => (Shape::Halt, &[][..]),
            ExitKind::PowerOff => (Shape::PowerOff, &[][..]),
            ExitKind::Reset => (Shape::Reset, &[][..]),
            ExitKind::BusLock => (Shape::BusLock, &[][..]),
            ExitKind::Interrupted => (Shape::Interrupted, &[][..]),
            ExitKind::NotRunnable => (Shape::NotRunnable, &[][..]),
            ExitKind::Other(reason) => (Shape::Other, reason.as_bytes()),
        };
        self.kind = shape;
        self.data.clear();
        self.data.extend_from_slice(data);
    }
}
