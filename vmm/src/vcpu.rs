//! A vCPU's loop: enter the guest, serve the exit, again.
//!
//! With the local APICs in KVM, a guest that waits (HLT), starts its other processors, or handles a timer does not leave
//! KVM for it. What comes here are accesses to ports and to memory-mapped registers, and the end.

use std::sync::{Arc, Mutex};

use kvm_bindings::{
    CpuId, KVM_EXIT_X86_BUS_LOCK, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::{SIGRTMIN, unblock_signal};

use crate::arch::ioapic::{IoApic, Routing};
use crate::arch::restraint;
use crate::arch::vcpu_state::{Inventory, VcpuState};
use crate::devices::bus::{Bus, Request, lock};
use crate::devices::uart::Uart;
use crate::error::{Error, Result};
use crate::gate::{Gate, Passage};
use crate::observer::ExitKind;
use crate::outcome::{Outcome, Reset};
use crate::recorder::{NoNote, Note, Recorder};

/// RFLAGS: maskable interrupts are on.
const RFLAGS_IF: u64 = 1 << 9;

/// The platform that the vCPUs of one machine share: the gate, the devices and the buses that lead to them.
pub(crate) struct Platform {
    pub(crate) gate: Arc<Gate>,
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) ioapic: Arc<Mutex<IoApic>>,
    pub(crate) com1: Arc<Mutex<Uart>>,
    pub(crate) com2: Arc<Mutex<Uart>>,
    /// Locked before the UARTs, by the pumps that move input into them and by a snapshot.
    pub(crate) intake: Arc<Mutex<()>>,
    pub(crate) vm: Arc<VmFd>,
}

/// A virtual processor.
pub(crate) struct Vcpu {
    pub(crate) id: u8,
    pub(crate) fd: VcpuFd,
    /// The CPUID table that its guest sees.
    pub(crate) cpuid: CpuId,
    /// Where the machine has an observer, the connection to it.
    pub(crate) recorder: Option<Box<Recorder>>,
}

impl Vcpu {
    /// Runs the vCPU on the calling thread until the machine ends.
    pub(crate) fn run(mut self, platform: &Platform) {
        // A thread inherits blocked signals; with this one blocked, the gate could not get it out of the guest.
        let _ = unblock_signal(SIGRTMIN());
        platform
            .gate
            .join(self.id, &raw mut self.fd.get_kvm_run().immediate_exit);
        // A local, so that it is dropped before the vCPU's descriptor, whose memory the gate writes to until then.
        let _joined = Joined {
            gate: &platform.gate,
            id: self.id,
        };
        match self.serve(platform) {
            Ok(Some(outcome)) => platform.gate.end(Ok(outcome)),
            Ok(None) => {}
            Err(error) => platform.gate.end(Err(error)),
        }
    }

    /// Serves exits until one of them ends the machine, which gives an outcome, or the machine has ended otherwise (`None`).
    fn serve(&mut self, platform: &Platform) -> Result<Option<Outcome>> {
        while self.pass_gate(platform) {
            if let Stay::Ended(outcome) = self.step(platform)? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    /// Passes the gate, at once or when a paused machine is resumed. Returns whether the guest may be entered; if not, the
    /// machine has ended.
    fn pass_gate(&mut self, platform: &Platform) -> bool {
        let gate = &platform.gate;
        if gate.is_open() {
            return true;
        }
        match self.settle(platform) {
            Ok(Stay::Ended(outcome)) => gate.end(Ok(outcome)),
            Ok(_) => {}
            Err(error) => gate.end(Err(error)),
        }
        let save = |inventory: &Inventory| VcpuState::of(self, inventory);
        match gate.wait_at(self.id, self.is_halted_for_ever(), &save) {
            Passage::Open { paused } => {
                if paused {
                    self.mark_pause();
                }
                true
            }
            Passage::Ended => false,
        }
    }

    /// Marks for the guest that it was paused, before it runs on.
    fn mark_pause(&self) {
        // A guest that finds its clock further on than it should be takes itself for hung (Linux: "soft lockup"). This sets
        // a flag in the page that kvm-clock shares with the guest: it was paused. For a guest without kvm-clock it fails
        // with EINVAL, which does no harm. (KVM API 4.70, KVM_KVMCLOCK_CTRL.)
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Brings the vCPU to rest between two instructions. While KVM waits for the result of an access to a device, the vCPU is
    /// in the middle of one: entered with `immediate_exit` set, KVM takes the result, finishes the instruction and returns.
    /// KVM doesn't show the unfinished part, so a state that were read before would have lost it. A string instruction can make
    /// another access first; KVM stops it after at most 1024.
    ///
    /// A fresh vCPU whose thread finds the gate closed comes here too. Its first `KVM_RUN` is then an empty one: nothing is
    /// unfinished, and `immediate_exit` keeps the guest from its first instruction. (KVM API 5 "The kvm_run structure",
    /// `immediate_exit`.)
    fn settle(&mut self, platform: &Platform) -> Result<Stay> {
        loop {
            self.fd.set_kvm_immediate_exit(1);
            match self.step(platform)? {
                Stay::Served => {}
                stay => return Ok(stay),
            }
        }
    }

    /// Enters the guest once, and serves the exit.
    fn step(&mut self, platform: &Platform) -> Result<Stay> {
        match self.recorder {
            None => self.enter(platform, &mut NoNote),
            Some(_) => self.observed_step(platform),
        }
    }

    /// A step that the observer sees afterwards, whether or not it ends the machine.
    fn observed_step(&mut self, platform: &Platform) -> Result<Stay> {
        let mut recorder = self.recorder.take().expect("the vCPU is observed");
        recorder.entering(&mut self.fd);
        let stay = self.enter(platform, &mut *recorder);
        recorder.served(&self.fd);
        self.recorder = Some(recorder);
        stay
    }

    /// Enters the guest and serves the exit, while `note` is taken of it.
    fn enter(&mut self, platform: &Platform, note: &mut impl Note) -> Result<Stay> {
        // KVM_RUN makes this thread the processor until the guest does something that KVM doesn't handle. The reason
        // stands in the kvm_run structure that is mapped beside the descriptor; kvm-ioctls shows it as an enum. An
        // access to a port or register counts as done only when KVM_RUN is called again, which is when KVM takes the
        // data of a read. (KVM API 4.10, KVM_RUN.)
        let exit = self.fd.run();
        note.returned();
        let request = match exit {
            Ok(VcpuExit::IoOut(port, data)) => {
                note.kind(ExitKind::IoOut { port, data });
                platform.ports.write(port.into(), data)?
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                platform.ports.read(port.into(), data);
                note.kind(ExitKind::IoIn { port, data });
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                note.kind(ExitKind::MmioWrite { address, data });
                platform.mmio.write(address, data)?
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                platform.mmio.read(address, data);
                note.kind(ExitKind::MmioRead { address, data });
                None
            }
            // A third exception while the second was being delivered: a PC resets, and so the machine ends.
            Ok(VcpuExit::Shutdown) => {
                note.kind(ExitKind::Shutdown);
                return Ok(Stay::Ended(platform.reset(Reset::TripleFault)));
            }
            // KVM keeps halted vCPUs to itself when it has the local APICs; this is for a KVM that doesn't.
            Ok(VcpuExit::Hlt) => {
                note.kind(ExitKind::Halt);
                return Ok(Stay::Ended(Outcome::Stuck));
            }
            Ok(VcpuExit::Intr) => {
                note.kind(ExitKind::Interrupted);
                None
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_X86_BUS_LOCK)) => {
                note.kind(ExitKind::BusLock);
                restraint::rest();
                None
            }
            Ok(other) => {
                let reason = describe(&other);
                note.kind(ExitKind::Other(&reason));
                return Err(self.unexpected(reason));
            }
            Err(errno) => {
                note.kind(failure(errno));
                return self.interrupted(errno, platform);
            }
        };
        Ok(match request {
            Some(Request::PowerOff) => Stay::Ended(Outcome::PowerOff),
            Some(Request::Reset) => Stay::Ended(platform.reset(Reset::Line)),
            None => Stay::Served,
        })
    }

    /// Handles a failure of KVM_RUN: EINTR where the gate kicked this thread, EAGAIN where the vCPU had nothing to run.
    fn interrupted(&mut self, errno: kvm_ioctls::Error, platform: &Platform) -> Result<Stay> {
        match errno.errno() {
            libc::EINTR => {
                // `note_halted` takes the gate's lock, which is the fence between this and a kick: see there. Nothing that
                // reads the phase may come in between.
                self.fd.set_kvm_immediate_exit(0);
                platform
                    .gate
                    .note_halted(self.id, self.is_halted_for_ever());
                Ok(Stay::Interrupted)
            }
            libc::EAGAIN => Ok(Stay::Interrupted),
            _ => Err(Error::kvm("KVM_RUN")(errno)),
        }
    }

    /// Returns whether only another vCPU could wake this one: it waits with its interrupts off, or was never started.
    fn is_halted_for_ever(&self) -> bool {
        // With the local APIC in KVM, a halted vCPU sleeps inside KVM_RUN; the multiprocessing state says that it
        // does, or that it still waits for another vCPU's INIT and SIPI. A state that can't be read counts as running.
        // (KVM API 4.38, KVM_GET_MP_STATE.)
        match self.fd.get_mp_state().map(|state| state.mp_state) {
            Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => true,
            Ok(KVM_MP_STATE_HALTED) => {
                // With its interrupts off, nothing of its own wakes it. (KVM API 4.11, KVM_GET_REGS.)
                let regs = self.fd.get_regs();
                // A non-maskable interrupt may be on its way. (KVM API 4.31, KVM_GET_VCPU_EVENTS.)
                let events = self.fd.get_vcpu_events();
                regs.is_ok_and(|regs| regs.rflags & RFLAGS_IF == 0)
                    && events.is_ok_and(|events| events.nmi.pending == 0)
            }
            _ => false,
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

/// The end of one stay in the guest.
enum Stay {
    /// An exit that has been served.
    Served,
    /// No exit: the gate kicked the thread, or the vCPU had nothing to run.
    Interrupted,
    /// An exit that ends the machine.
    Ended(Outcome),
}

/// A vCPU's place at the gate. Its drop gives the place up, also where the writer of the guest's output panics.
struct Joined<'a> {
    gate: &'a Gate,
    id: u8,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let source = std::io::Error::other("the writer panicked");
            self.gate.end(Err(Error::Output(source)));
        }
        self.gate.leave(self.id);
    }
}

impl Platform {
    fn reset(&self, reset: Reset) -> Outcome {
        Outcome::of_reset(reset, self.routing())
    }

    /// Returns the use that the guest has made of its interrupts.
    pub(crate) fn routing(&self) -> Routing {
        lock(&self.ioapic).routing()
    }
}

/// Returns the observer's kind of a failure of KVM_RUN.
fn failure(errno: kvm_ioctls::Error) -> ExitKind<'static> {
    match errno.errno() {
        libc::EINTR => ExitKind::Interrupted,
        libc::EAGAIN => ExitKind::NotRunnable,
        _ => ExitKind::Other("KVM_RUN failed"),
    }
}

/// Describes an exit that `enter` doesn't handle, in the manual's words where they help.
fn describe(exit: &VcpuExit) -> String {
    match exit {
        VcpuExit::InternalError => {
            "KVM_EXIT_INTERNAL_ERROR: the guest executed code outside RAM, or an instruction that KVM cannot emulate"
                .into()
        }
        VcpuExit::FailEntry(reason, _) => {
            format!(
                "KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest, reason {reason:#x}"
            )
        }
        other => format!("unexpected exit {other:?}"),
    }
}
