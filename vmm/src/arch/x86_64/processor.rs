//! A vCPU's state as KVM shows it while its thread is not in `KVM_RUN`.

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::{Cap, SyncReg, VcpuFd, VmFd};

/// RFLAGS: maskable interrupts are on.
const RFLAGS_IF: u64 = 1 << 9;

/// A vCPU's own features: the CPUID table that its guest sees.
pub(crate) type Features = kvm_bindings::CpuId;

/// Returns whether only another vCPU could wake this one: it waits with its interrupts off, or was never started.
pub(crate) fn is_halted_for_ever(vcpu: &VcpuFd) -> bool {
    // With the local APIC in KVM, a halted vCPU sleeps inside KVM_RUN; the multiprocessing state says that it
    // does, or that it still waits for another vCPU's INIT and SIPI. A state that can't be read counts as running.
    // (KVM API 4.38, KVM_GET_MP_STATE.)
    match vcpu.get_mp_state().map(|state| state.mp_state) {
        Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => true,
        Ok(KVM_MP_STATE_HALTED) => {
            // With its interrupts off, nothing of its own wakes it. (KVM API 4.11, KVM_GET_REGS.)
            let regs = vcpu.get_regs();
            // A non-maskable interrupt may be on its way. (KVM API 4.31, KVM_GET_VCPU_EVENTS.)
            let events = vcpu.get_vcpu_events();
            regs.is_ok_and(|regs| regs.rflags & RFLAGS_IF == 0)
                && events.is_ok_and(|events| events.nmi.pending == 0)
        }
        _ => false,
    }
}

/// Marks for the guest that it was paused, before it runs on.
pub(crate) fn mark_pause(vcpu: &VcpuFd) {
    // A guest that finds its clock further on than it should be takes itself for hung (Linux: "soft lockup"). This sets
    // a flag in the page that kvm-clock shares with the guest: it was paused. For a guest without kvm-clock it fails
    // with EINVAL, which does no harm. (KVM API 4.70, KVM_KVMCLOCK_CTRL.)
    let _ = vcpu.kvmclock_ctrl();
}

/// Has KVM leave the registers beside the reason of each exit, and returns whether it does.
pub(crate) fn sync_registers(vm: &VmFd, vcpu: &mut VcpuFd) -> bool {
    // KVM copies the general registers into the kvm_run structure at each return of KVM_RUN, where that flag is set: a
    // system call less an exit. Linux 4.17 and newer can do that. (KVM API 6.74, KVM_CAP_SYNC_REGS.)
    let synced = vm.check_extension(Cap::SyncRegs);
    if synced {
        vcpu.set_sync_valid_reg(SyncReg::Register);
    }
    synced
}

/// Returns the guest's instruction pointer, or 0 where KVM doesn't give it; after an exit that of the `synced` registers.
pub(crate) fn instruction_pointer(vcpu: &VcpuFd, synced: bool) -> u64 {
    match synced {
        true => vcpu.sync_regs().regs.rip,
        // A failure of KVM_RUN's may be one of this call, too.
        false => vcpu.get_regs().map_or(0, |regs| regs.rip),
    }
}
