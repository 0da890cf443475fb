//! What arm64's KVM and processor have of what machines use.

use kvm_bindings::{
    KVM_CAP_ARM_NISV_TO_USER, kvm_create_device, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use minivm_vmm::{MEMORY_MAX, layout};

use crate::survey::Finding;

/// The bits of a guest-physical address where KVM leaves no choice.
const ADDRESS_BITS_FIXED: u32 = 40;

/// Makes a machine without memory and processors: one of the most address bits, which every KVM that leaves a choice takes.
pub(crate) fn empty_machine(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    kvm.create_vm_with_type(match kvm.check_extension(Cap::ArmVmIPASize) {
        true => address_bits(kvm).into(),
        false => 0,
    })
}

/// Returns the findings.
pub(crate) fn findings(kvm: &Kvm, vm: &VmFd) -> Vec<Finding> {
    vec![
        memory(kvm),
        Finding::new(
            "kvm: gicv3",
            has_gicv3(vm),
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

/// Returns whether KVM makes an interrupt controller of version 3. (KVM API 4.79, KVM_CREATE_DEVICE.)
fn has_gicv3(vm: &VmFd) -> bool {
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        ..Default::default()
    };
    vm.create_device(&mut device).is_ok()
}

/// Returns the most bits of a guest-physical address. (KVM API 4.4, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE.)
fn address_bits(kvm: &Kvm) -> u32 {
    match kvm.check_extension(Cap::ArmVmIPASize) {
        true => u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(ADDRESS_BITS_FIXED),
        false => ADDRESS_BITS_FIXED,
    }
}

/// The guest-physical addresses, and so the most memory.
fn memory(kvm: &Kvm) -> Finding {
    let bits = address_bits(kvm);
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
