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

/// Returns the guest's program counter, or 0 where KVM doesn't give it.
pub(crate) fn instruction_pointer(vcpu: &VcpuFd) -> u64 {
    registers::program_counter(vcpu)
}

/// The way to the program counter after each exit.
pub(crate) struct PointerReader;

impl PointerReader {
    /// Prepares a vCPU for it: nothing is needed.
    pub(crate) fn new(_vm: &VmFd, _vcpu: &mut VcpuFd) -> Self {
        PointerReader
    }

    /// Returns the program counter.
    pub(crate) fn read(&self, vcpu: &VcpuFd) -> u64 {
        instruction_pointer(vcpu)
    }
}
