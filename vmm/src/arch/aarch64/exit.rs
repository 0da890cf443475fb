//! The exits that only arm64 has: the ends by PSCI, and accesses that KVM can't decode.

use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::VcpuExit;

use super::board::Board;
use crate::devices::bus::Request;
use crate::error::Result;
use crate::observer::ExitKind;
use crate::outcome::{Outcome, Reset};
use crate::recorder::Note;
use crate::vcpu::Served;

/// Serves an exit that is no access to memory-mapped registers, while `note` is taken of it.
pub(crate) fn serve(exit: VcpuExit<'_>, _board: &Board, note: &mut impl Note) -> Result<Served> {
    Ok(match exit {
        // KVM answers the guest's calls of PSCI; these two it leaves to this process. (KVM API 5 "The kvm_run structure",
        // KVM_EXIT_SYSTEM_EVENT.)
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => {
            note.kind(ExitKind::PowerOff, &[]);
            Served::Access(Some(Request::PowerOff))
        }
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, data) => {
            note.kind(ExitKind::Reset, &[]);
            // With `reboot=panic_warm` on its command line, Linux asks for a warm one (SYSTEM_RESET2) when it panics, and for a
            // cold one otherwise.
            let warm = u64::from(KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2);
            match data.first().is_some_and(|flags| flags & warm != 0) {
                true => Served::Ended(Outcome::Panic(Reset::Line)),
                false => Served::Access(Some(Request::Reset)),
            }
        }
        VcpuExit::Unsupported(KVM_EXIT_ARM_NISV) => Served::Unexpected(
            "KVM_EXIT_ARM_NISV: the guest accessed an address without RAM by an instruction that KVM cannot decode"
                .into(),
        ),
        VcpuExit::InternalError => Served::Unexpected("KVM_EXIT_INTERNAL_ERROR".into()),
        other => Served::unexpected(&other),
    })
}
