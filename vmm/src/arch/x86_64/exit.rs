//! The exits that only x86-64 has.

use kvm_bindings::{KVM_EXIT_NOTIFY, KVM_EXIT_X86_BUS_LOCK};
use kvm_ioctls::VcpuExit;

use super::board::Board;
use super::restraint;
use crate::error::Result;
use crate::observer::ExitKind;
use crate::outcome::{Outcome, Reset};
use crate::recorder::Note;
use crate::vcpu::Served;

/// Serves an exit that is no access to memory-mapped registers, while `note` is taken of it.
#[inline]
pub(crate) fn serve(exit: VcpuExit<'_>, board: &Board, note: &mut impl Note) -> Result<Served> {
    Ok(match exit {
        VcpuExit::IoOut(port, data) => {
            note.kind(ExitKind::IoOut(port), data);
            Served::Access(board.ports.write(port.into(), data)?)
        }
        VcpuExit::IoIn(port, data) => {
            board.ports.read(port.into(), data);
            note.kind(ExitKind::IoIn(port), data);
            Served::Access(None)
        }
        // A third exception while the second was being delivered: a PC resets, and so the machine ends.
        VcpuExit::Shutdown => {
            note.kind(ExitKind::Shutdown, &[]);
            Served::Ended(board.reset(Reset::TripleFault))
        }
        // KVM keeps halted vCPUs to itself when it has the local APICs; this is for a KVM that doesn't.
        VcpuExit::Hlt => {
            note.kind(ExitKind::Halt, &[]);
            Served::Ended(Outcome::Stuck)
        }
        VcpuExit::Unsupported(KVM_EXIT_X86_BUS_LOCK) => {
            note.kind(ExitKind::BusLock, &[]);
            restraint::rest();
            Served::Access(None)
        }
        // The one exception that KVM on Intel's processors leaves to this process. The thread is sent SIGBUS as well, of which std's
        // handler lets the process survive the first. (Linux, `handle_exception_nmi`, `handle_guest_split_lock`.)
        VcpuExit::Exception => Served::Unexpected(
            "KVM_EXIT_EXCEPTION: the guest locked memory across two cache lines, which this host forbids (split_lock_detect=fatal)"
                .into(),
        ),
        // See `restraint`. (KVM API 5 "The kvm_run structure", KVM_EXIT_NOTIFY.)
        VcpuExit::Unsupported(KVM_EXIT_NOTIFY) => Served::Unexpected(
            "KVM_EXIT_NOTIFY: the guest kept its core from taking interrupts, and cannot continue".into(),
        ),
        VcpuExit::InternalError => Served::Unexpected(
            "KVM_EXIT_INTERNAL_ERROR: the guest executed code outside RAM, or an instruction that KVM cannot emulate (on a device, or to write to persistent memory)"
                .into(),
        ),
        other => Served::unexpected(&other),
    })
}
