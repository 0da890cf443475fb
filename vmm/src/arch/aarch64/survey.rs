//! What arm64's KVM and processor have of what machines use.

use kvm_bindings::KVM_CAP_ARM_NISV_TO_USER;
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::create::{Irqchip, address_bits};
use super::layout;
use crate::config::MEMORY_MAX;
use crate::survey::Finding;

/// Returns the findings.
pub(crate) fn findings(kvm: &Kvm, vm: &VmFd) -> Vec<Finding> {
    vec![
        memory(kvm),
        Finding::new(
            "kvm: gicv3",
            Irqchip::create(vm).is_ok(),
            [
                "guests have a GICv3",
                "no machine can be run: KVM has no GICv3 for guests",
            ],
            "a host whose interrupt controller is a GICv3",
        ),
        Finding::new(
            "kvm: accesses",
            vm.check_extension_raw(KVM_CAP_ARM_NISV_TO_USER.into()) > 0,
            [
                "an access that KVM cannot decode ends its machine by name",
                "an access that KVM cannot decode ends its machine as ENOSYS",
            ],
            "Linux 5.5 or newer",
        ),
        Finding::new(
            "kvm: serror",
            vm.check_extension(Cap::VcpuEvents),
            [
                "snapshots keep a pending SError",
                "a snapshot loses an SError that is pending",
            ],
            "Linux 4.19 or newer",
        ),
    ]
}

/// The guest-physical addresses, and so the most memory.
fn memory(kvm: &Kvm) -> Finding {
    let (bits, _) = address_bits(kvm);
    let most = (1u64 << bits.min(63)) - layout::RAM.0;
    let whole = most >= MEMORY_MAX;
    let memory = match whole {
        true => "as much memory as minivm gives".to_owned(),
        false => format!("at most {} GiB of memory", most >> 30),
    };
    Finding {
        name: "kvm: memory",
        has: whole,
        detail: format!("guest-physical addresses have {bits} bits, for {memory}"),
        remedy: "a processor with more, and Linux 4.20 or newer",
    }
}
