//! A vCPU's loop: enter the guest, serve the exit, again.
//!
//! With the local APICs in KVM, a guest that waits (HLT), starts its other processors, or handles a timer does not leave
//! KVM for it. What comes here are accesses to ports and to memory-mapped registers, and the end.

use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, unblock_signal};

use crate::control::Gate;
use crate::devices::bus::{Bus, Request};
use crate::devices::ioapic::IoApic;
use crate::error::{Error, Result};
use crate::outcome::{Outcome, Reset};

/// RFLAGS: maskable interrupts are on.
const RFLAGS_IF: u64 = 1 << 9;

/// What a vCPU's exits are served with; all vCPUs share it.
pub(crate) struct Surroundings {
    pub(crate) gate: Arc<Gate>,
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) ioapic: Arc<Mutex<IoApic>>,
}

/// A virtual processor.
pub(crate) struct Vcpu {
    pub(crate) id: u8,
    pub(crate) fd: VcpuFd,
}

impl Vcpu {
    /// Runs on the calling thread until the machine ends, whoever ends it.
    pub(crate) fn run(mut self, around: &Surroundings) {
        // A caller that blocks every signal in its threads would make this one deaf.
        let _ = unblock_signal(SIGRTMIN());
        around
            .gate
            .join(self.id, &raw mut self.fd.get_kvm_run().immediate_exit);
        let ended = self.serve(around);
        around.gate.leave(self.id);
        match ended {
            Ok(Some(outcome)) => around.gate.end(Ok(outcome)),
            Ok(None) => {}
            Err(error) => around.gate.end(Err(error)),
        }
    }

    /// Serves exits until one of them ends the machine, or somebody else has.
    fn serve(&mut self, around: &Surroundings) -> Result<Option<Outcome>> {
        while around.gate.enter(self.id) {
            if let Some(outcome) = self.step(around)? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    /// One stay in the guest, and what it ended with.
    fn step(&mut self, around: &Surroundings) -> Result<Option<Outcome>> {
        // KVM_RUN makes this thread the processor until the guest does something that KVM doesn't handle. What that
        // was stands in the kvm_run structure that is mapped beside the descriptor; kvm-ioctls shows it as an enum. An
        // access to a port or register counts as done only when KVM_RUN is called again, which is when KVM takes the
        // data of a read. (KVM API 4.10, KVM_RUN.)
        let request = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => around.ports.write(port.into(), data)?,
            Ok(VcpuExit::IoIn(port, data)) => {
                around.ports.read(port.into(), data);
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => around.mmio.write(address, data)?,
            Ok(VcpuExit::MmioRead(address, data)) => {
                around.mmio.read(address, data);
                None
            }
            // A third exception while the second was being delivered: a PC resets, and so the machine ends.
            Ok(VcpuExit::Shutdown) => return Ok(Some(around.reset(Reset::TripleFault))),
            // KVM keeps halted vCPUs to itself when it has the local APICs; this is for a KVM that doesn't.
            Ok(VcpuExit::Hlt) => return Ok(Some(Outcome::Halted)),
            Ok(VcpuExit::Intr) => None,
            Ok(other) => {
                let reason = describe(&other);
                return Err(self.unexpected(reason));
            }
            Err(errno) => return self.interrupted(errno, around),
        };
        Ok(request.map(|request| match request {
            Request::PowerOff => Outcome::PowerOff,
            Request::Reset => around.reset(Reset::Line),
        }))
    }

    /// KVM_RUN failed: with EINTR because somebody kicked this thread, with EAGAIN because nothing was to be done.
    fn interrupted(
        &mut self,
        errno: kvm_ioctls::Error,
        around: &Surroundings,
    ) -> Result<Option<Outcome>> {
        match errno.errno() {
            libc::EINTR => {
                self.fd.set_kvm_immediate_exit(0);
                around.gate.note_halted(self.id, self.is_halted_for_ever()?);
                Ok(None)
            }
            libc::EAGAIN => Ok(None),
            _ => Err(Error::kvm("KVM_RUN")(errno)),
        }
    }

    /// Whether only another vCPU could wake this one: it waits with its interrupts off, or was never started.
    fn is_halted_for_ever(&self) -> Result<bool> {
        // With the local APIC in KVM, a halted vCPU sleeps inside KVM_RUN; the multiprocessing state tells that it
        // does, or that it still waits for another vCPU's INIT and SIPI. (KVM API 4.38, KVM_GET_MP_STATE.)
        let state = self
            .fd
            .get_mp_state()
            .map_err(Error::kvm("KVM_GET_MP_STATE"))?;
        match state.mp_state {
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Ok(true),
            KVM_MP_STATE_HALTED => {
                let regs = self.fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
                Ok(regs.rflags & RFLAGS_IF == 0)
            }
            _ => Ok(false),
        }
    }

    fn unexpected(&self, reason: String) -> Error {
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        Error::Exit {
            vcpu: self.id,
            reason,
            rip,
        }
    }
}

impl Surroundings {
    fn reset(&self, reset: Reset) -> Outcome {
        Outcome::of_reset(
            reset,
            self.ioapic.lock().expect("devices don't panic").routing(),
        )
    }
}

/// An exit that nothing here handles, in the manual's words where they are of use.
fn describe(exit: &VcpuExit) -> String {
    match exit {
        VcpuExit::InternalError => {
            "KVM_EXIT_INTERNAL_ERROR: KVM cannot emulate the guest's instruction; run `minivm doctor`".into()
        }
        VcpuExit::FailEntry(reason, _) => {
            format!("KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest, reason {reason:#x}")
        }
        other => format!("unexpected exit {other:?}"),
    }
}
