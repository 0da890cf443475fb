//! A vCPU's state as KVM shows it while its thread is not in `KVM_RUN`.

use kvm_bindings::{KVM_MP_STATE_STOPPED, kvm_vcpu_init};
use kvm_ioctls::{VcpuFd, VmFd};

use super::registers;

/// A vCPU's own features: the processor that it is, and what was asked of KVM for it.
pub(crate) type Features = kvm_vcpu_init;

/// Returns whether only another vCPU could wake this one: it is off, or was never started.
///
/// A vCPU that waits with its interrupts masked (WFI) can't be told from one that waits for an interrupt: KVM doesn't show it.
pub(crate) fn is_halted_for_ever(vcpu: &VcpuFd) -> bool {
    // A vCPU that PSCI's CPU_OFF has switched off sleeps inside KVM_RUN. (KVM API 4.38, KVM_GET_MP_STATE.)
    vcpu.get_mp_state()
        .is_ok_and(|state| state.mp_state == KVM_MP_STATE_STOPPED)
}

/// Marks for the guest that it was paused: arm64 has no such mark.
pub(crate) fn mark_pause(_vcpu: &VcpuFd) {}

/// Has KVM leave the registers beside the reason of each exit, and returns whether it does: arm64's KVM can't.
pub(crate) fn sync_registers(_vm: &VmFd, _vcpu: &mut VcpuFd) -> bool {
    false
}

/// Returns the guest's program counter, or 0 where KVM doesn't give it.
pub(crate) fn instruction_pointer(vcpu: &VcpuFd, _synced: bool) -> u64 {
    registers::get(vcpu, registers::PC).unwrap_or(0)
}
