//! A vCPU's loop: enter the guest, serve the exit, again.
//!
//! With the processors' own interrupt controllers in KVM, a guest that waits, starts its other processors, or handles a timer
//! does not leave KVM for it. What comes here are accesses to devices, and the end.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::{SIGRTMIN, unblock_signal};

use crate::arch::board::Board;
use crate::arch::exit;
use crate::arch::processor::{self, Features};
use crate::arch::vcpu_state::{Inventory, VcpuState};
use crate::devices::bus::Request;
use crate::devices::uart::Uart;
use crate::error::{Error, Result};
use crate::gate::{Gate, Passage};
use crate::observer::ExitKind;
use crate::outcome::{Outcome, Reset};
use crate::recorder::{NoNote, Note, Recorder};

/// The platform that the vCPUs of one machine share: the gate, the devices and the buses that lead to them.
pub(crate) struct Platform {
    pub(crate) gate: Arc<Gate>,
    pub(crate) board: Board,
    /// COM1, COM2, and COM3 where the machine has it.
    pub(crate) uarts: Vec<Arc<Mutex<Uart>>>,
    /// Locked before the UARTs, by the pumps that move input into them and by a snapshot.
    pub(crate) intake: Arc<Mutex<()>>,
    /// The addresses of persistent memory; empty for a machine without.
    pub(crate) pmem: Range<u64>,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) kvm: Arc<Kvm>,
}

/// A virtual processor.
pub(crate) struct Vcpu {
    pub(crate) id: u8,
    pub(crate) fd: VcpuFd,
    /// What KVM has made it with.
    pub(crate) features: Features,
    /// Where the machine has an observer, the connection to it.
    pub(crate) recorder: Option<Box<Recorder>>,
}

impl Vcpu {
    /// Makes a vCPU of KVM's, which is not observed.
    pub(crate) fn new(id: u8, fd: VcpuFd, features: Features) -> Self {
        Vcpu {
            id,
            fd,
            features,
            recorder: None,
        }
    }

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
        let halted = || processor::is_halted_for_ever(&self.fd);
        match gate.wait_at(self.id, &halted, &save) {
            Passage::Open { paused } => {
                if paused {
                    processor::mark_pause(&self.fd);
                }
                true
            }
            Passage::Ended => false,
        }
    }

    /// Brings the vCPU to rest between two instructions. While KVM waits for the result of an access to a device, the vCPU is
    /// in the middle of one: entered with `immediate_exit` set, KVM takes the result, finishes the instruction and returns.
    /// KVM doesn't show the unfinished part, so a state that were read before would have lost it. A string instruction of
    /// x86-64 can make another access first; KVM stops it after at most 1024.
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
        let served = match exit {
            // KVM can't write there for the guest, and nothing else does.
            Ok(VcpuExit::MmioWrite(address, data)) if platform.pmem.contains(&address) => {
                note.kind(ExitKind::PmemWrite(address), data);
                log::trace!("write of {data:x?} to {address:#x}, which is persistent memory");
                Served::Access(None)
            }
            // KVM could not read there either, and emulates the instruction, or gives the address. (KVM API 5 "The kvm_run
            // structure", KVM_EXIT_MEMORY_FAULT.)
            Ok(VcpuExit::MmioRead(address, _)) if platform.pmem.contains(&address) => {
                return self.failed(libc::EFAULT, platform, note);
            }
            Ok(VcpuExit::MemoryFault { .. }) => return self.failed(libc::EFAULT, platform, note),
            Ok(VcpuExit::MmioWrite(address, data)) => {
                note.kind(ExitKind::MmioWrite(address), data);
                Served::Access(platform.board.mmio.write(address, data)?)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                platform.board.mmio.read(address, data);
                note.kind(ExitKind::MmioRead(address), data);
                Served::Access(None)
            }
            Ok(VcpuExit::Intr) => {
                note.kind(ExitKind::Interrupted, &[]);
                Served::Access(None)
            }
            Ok(other) => exit::serve(other, &platform.board, note)?,
            Err(errno) => return self.failed(errno.errno(), platform, note),
        };
        match served {
            Served::Access(None) => Ok(Stay::Served),
            Served::Access(Some(Request::PowerOff)) => Ok(Stay::Ended(Outcome::PowerOff)),
            Served::Access(Some(Request::Reset)) => {
                Ok(Stay::Ended(platform.board.reset(Reset::Line)))
            }
            Served::Ended(outcome) => Ok(Stay::Ended(outcome)),
            Served::Unexpected(reason) => {
                note.kind(ExitKind::Other, reason.as_bytes());
                Err(Error::Exit {
                    vcpu: self.id,
                    reason,
                    rip: processor::instruction_pointer(&self.fd, false),
                })
            }
        }
    }

    /// Handles a failure of KVM_RUN: EINTR where the gate kicked this thread, EAGAIN where the vCPU had nothing to run.
    fn failed(&mut self, errno: i32, platform: &Platform, note: &mut impl Note) -> Result<Stay> {
        match errno {
            libc::EINTR => {
                note.kind(ExitKind::Interrupted, &[]);
                // `note_halted` takes the gate's lock, which is the fence between this and a kick: see there. Nothing that
                // reads the phase may come in between.
                self.fd.set_kvm_immediate_exit(0);
                platform
                    .gate
                    .note_halted(self.id, processor::is_halted_for_ever(&self.fd));
                Ok(Stay::Interrupted)
            }
            libc::EAGAIN => {
                note.kind(ExitKind::NotRunnable, &[]);
                Ok(Stay::Interrupted)
            }
            _ => {
                note.kind(ExitKind::Other, b"KVM_RUN failed");
                Err(Error::kvm("KVM_RUN")(kvm_ioctls::Error::new(errno)))
            }
        }
    }
}

/// What serving an exit has come to.
pub(crate) enum Served {
    /// The exit is served, and may have made a request to the machine.
    Access(Option<Request>),
    /// The exit ends the machine.
    Ended(Outcome),
    /// No guest should cause this exit: its description.
    Unexpected(String),
}

impl Served {
    /// Describes an exit that isn't handled, in the manual's words where they help.
    pub(crate) fn unexpected(exit: &VcpuExit<'_>) -> Self {
        Served::Unexpected(match exit {
            VcpuExit::FailEntry(reason, _) => format!(
                "KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest, reason {reason:#x}"
            ),
            other => format!("unexpected exit {other:?}"),
        })
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
