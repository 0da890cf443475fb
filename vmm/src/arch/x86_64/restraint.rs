//! KVM's capabilities that leave a guest less of the host: no counters, no core to itself, no bus to itself.
//!
//! A machine runs without them, and hosts differ: a capability that KVM doesn't offer is left out.

use std::thread;
use std::time::Duration;

use kvm_bindings::{
    KVM_BUS_LOCK_DETECTION_EXIT, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_BUS_LOCK_EXIT,
    KVM_CAP_X86_NOTIFY_VMEXIT, KVM_PMU_CAP_DISABLE, KVM_X86_NOTIFY_VMEXIT_ENABLED, kvm_enable_cap,
};
use kvm_ioctls::VmFd;

use crate::error::{Error, Result};

/// The pause of a vCPU that has locked the bus, for which all other processors of the host have waited.
const REST: Duration = Duration::from_millis(1);

/// Enables all of them, before the machine has a vCPU.
pub(crate) fn apply(vm: &VmFd) -> Result<()> {
    // Counters of the processor's events are precise clocks, and much of KVM's code. CPUID hides them as well; this makes
    // their registers go away. (KVM API 8.35, KVM_CAP_PMU_CAPABILITY.)
    enable(
        vm,
        KVM_CAP_PMU_CAPABILITY,
        KVM_PMU_CAP_DISABLE,
        "KVM_ENABLE_CAP (KVM_CAP_PMU_CAPABILITY)",
    )?;
    // Some sequences of instructions keep Intel's processors from ever taking an interrupt: with a limit, here the
    // processor's own, the guest leaves its core for a moment and continues. KVM reports it (KVM_EXIT_NOTIFY) only where the
    // guest can't continue. (KVM API 7.33, KVM_CAP_X86_NOTIFY_VMEXIT.)
    enable(
        vm,
        KVM_CAP_X86_NOTIFY_VMEXIT,
        KVM_X86_NOTIFY_VMEXIT_ENABLED,
        "KVM_ENABLE_CAP (KVM_CAP_X86_NOTIFY_VMEXIT)",
    )?;
    // An atomic access across two cache lines, or to memory that isn't cached, stops every core of the host: after each
    // there is an exit, see `rest`. (KVM API 7.22, KVM_CAP_X86_BUS_LOCK_EXIT.)
    enable(
        vm,
        KVM_CAP_X86_BUS_LOCK_EXIT,
        KVM_BUS_LOCK_DETECTION_EXIT,
        "KVM_ENABLE_CAP (KVM_CAP_X86_BUS_LOCK_EXIT)",
    )
}

/// Returns whether KVM offers `mode` of a capability: the value of these capabilities is the set of their modes.
fn offers(vm: &VmFd, cap: u32, mode: u32) -> bool {
    let modes = vm.check_extension_raw(cap.into());
    u32::try_from(modes).is_ok_and(|modes| modes & mode != 0)
}

/// Enables `mode` of a capability where KVM offers it.
fn enable(vm: &VmFd, cap: u32, mode: u32, call: &'static str) -> Result<()> {
    if !offers(vm, cap, mode) {
        return Ok(());
    }
    let mut request = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    request.args[0] = mode.into();
    vm.enable_cap(&request).map_err(Error::kvm(call))
}

/// Pauses the calling thread, whose vCPU has locked the bus.
pub(crate) fn rest() {
    thread::sleep(REST);
}
