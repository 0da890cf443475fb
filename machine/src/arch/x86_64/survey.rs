//! What x86-64's KVM and processor have of what restrains a guest, see the monitor's
//! `restraint`. Machines run without.

use kvm_bindings::{
    KVM_BUS_LOCK_DETECTION_EXIT, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_BUS_LOCK_EXIT,
    KVM_CAP_X86_NOTIFY_VMEXIT, KVM_PMU_CAP_DISABLE, KVM_X86_NOTIFY_VMEXIT_ENABLED,
};
use kvm_ioctls::{Kvm, VmFd};

use crate::survey::Finding;

/// Makes a machine without memory and processors.
pub(crate) fn empty_machine(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    kvm.create_vm()
}

/// Returns whether KVM offers `mode` of a capability: the value of these capabilities is the set of their modes.
fn offers(vm: &VmFd, cap: u32, mode: u32) -> bool {
    // (KVM API 4.4, KVM_CHECK_EXTENSION.)
    let modes = vm.check_extension_raw(cap.into());
    u32::try_from(modes).is_ok_and(|modes| modes & mode != 0)
}

/// Returns the findings.
pub(crate) fn findings(_kvm: &Kvm, vm: &VmFd) -> Vec<Finding> {
    let mut all = vec![
        Finding::new(
            "kvm: counters",
            offers(vm, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE),
            [
                "guests have no performance counters",
                "only CPUID hides the performance counters, unless KVM gives them to no guest at all",
            ],
            "Linux 5.18 or newer",
        ),
        Finding::new(
            "kvm: bus locks",
            offers(vm, KVM_CAP_X86_BUS_LOCK_EXIT, KVM_BUS_LOCK_DETECTION_EXIT),
            [
                "a guest that locks the memory bus is slowed down",
                "a guest can lock the memory bus again and again, for which all of the host's processors wait",
            ],
            "a processor that detects bus locks, and Linux 5.12 or newer",
        ),
    ];
    // Intel's alone.
    if offers(vm, KVM_CAP_X86_NOTIFY_VMEXIT, KVM_X86_NOTIFY_VMEXIT_ENABLED) {
        let what = "a guest that takes no interrupts is called out of its core";
        all.push(Finding::new("kvm: notify", true, [what, ""], ""));
    }
    all
}
