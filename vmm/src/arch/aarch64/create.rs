//! The KVM calls of a machine's creation that only arm64 has; `kvm` makes them in their order.

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_CAP_ARM_NISV_TO_USER, kvm_enable_cap,
    kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::identity::Identity;
use super::processor::Features;
use super::registers::PHYSICAL_COUNTER;
use super::vcpu_state::VcpuState;
use super::{layout, registers};
use crate::config::MEMORY_MIN;
use crate::error::{Error, Result};
use crate::kvm;
use crate::vcpu::Vcpu;

pub(crate) use super::gic::Irqchip;

/// The capabilities that a machine needs beside those of every architecture.
pub(crate) const NEEDED: [(Cap, &str); 3] = [
    (Cap::DeviceCtrl, "KVM_CAP_DEVICE_CTRL"),
    (Cap::OneReg, "KVM_CAP_ONE_REG"),
    (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2"),
];

/// The bits of a guest-physical address where KVM leaves no choice, and the fewest that it takes.
const ADDRESS_BITS_FIXED: u32 = 40;
const ADDRESS_BITS_MIN: u32 = 32;

/// Returns the type of a machine with `bytes` of RAM: the number of bits of its addresses.
pub(crate) fn vm_type(kvm: &Kvm, bytes: u64) -> Result<u64> {
    let end = layout::RAM.0 + bytes;
    let bits = (u64::BITS - (end - 1).leading_zeros()).max(ADDRESS_BITS_MIN);
    // As few as the RAM needs, for that saves KVM a level of its tables.
    // The most is the value of the capability; without it there is one number for all. (KVM API 4.2, KVM_CREATE_VM; 4.4,
    // KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE.)
    let choice = kvm.check_extension(Cap::ArmVmIPASize);
    let limit = match choice {
        true => u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(ADDRESS_BITS_FIXED),
        false => ADDRESS_BITS_FIXED,
    };
    if bits > limit {
        let most = ((1u64 << limit) - layout::RAM.0) >> 20;
        return Err(Error::Config(format!(
            "{bytes} bytes of guest memory do not fit: this host's KVM has guest-physical addresses of {limit} bits (KVM_CAP_ARM_VM_IPA_SIZE), which is for at most {most}M"
        )));
    }
    Ok(if choice { bits.into() } else { 0 })
}

/// Prepares a machine that has just been created.
pub(crate) fn prepare_vm(vm: &VmFd) -> Result<()> {
    if vm.check_extension_raw(KVM_CAP_ARM_NISV_TO_USER.into()) == 0 {
        return Ok(());
    }
    // An access outside RAM by an instruction that the processor doesn't describe (a pair of registers, a write-back) fails
    // KVM_RUN with ENOSYS; enabled, it is an exit with a name. (KVM API 4.37, KVM_ENABLE_CAP; 5 "The kvm_run
    // structure", KVM_EXIT_ARM_NISV.)
    let cap = kvm_enable_cap {
        cap: KVM_CAP_ARM_NISV_TO_USER,
        ..Default::default()
    };
    vm.enable_cap(&cap)
        .map_err(Error::kvm("KVM_ENABLE_CAP (KVM_CAP_ARM_NISV_TO_USER)"))
}

/// Creates the processors. Number 0 is the one that starts; the others are off until PSCI's CPU_ON.
pub(crate) fn create_vcpus(_kvm: &Kvm, vm: &VmFd, cpus: u8) -> Result<Vec<Vcpu>> {
    let mut init = kvm_vcpu_init::default();
    // The processor that a vCPU can be on this host: that of the host. (KVM API 4.83, KVM_ARM_PREFERRED_TARGET.)
    vm.get_preferred_target(&mut init)
        .map_err(Error::kvm("KVM_ARM_PREFERRED_TARGET"))?;
    let vcpus = create_all(vm, init.target, cpus)?;
    // The physical counter begins at zero, as the virtual one does, and not at the host's. A KVM older than Linux 6.4 can't.
    let _ = registers::set(&vcpus[0].fd, PHYSICAL_COUNTER, 0);
    Ok(vcpus)
}

/// Creates the processors of a snapshot, of the kind that its guest has seen.
pub(crate) fn create_vcpus_of(vm: &VmFd, states: &[VcpuState]) -> Result<Vec<Vcpu>> {
    let cpus = u8::try_from(states.len()).expect("checked against CPUS_MAX");
    create_all(vm, states[0].identity.target, cpus)
}

/// Returns what vCPU `id` is made with.
fn features(target: u32, id: u8) -> Features {
    let mut init = Features {
        target,
        ..Default::default()
    };
    // KVM itself answers calls of PSCI, with which a kernel starts processors and ends the machine.
    init.features[0] = 1 << KVM_ARM_VCPU_PSCI_0_2;
    if id > 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    init
}

fn create_all(vm: &VmFd, target: u32, cpus: u8) -> Result<Vec<Vcpu>> {
    let create = |id| {
        let fd = kvm::create_vcpu(vm, id)?;
        Ok(Vcpu::new(id, fd, features(target, id)))
    };
    let created: Vec<Vcpu> = (0..cpus).map(create).collect::<Result<_>>()?;
    for vcpu in &created {
        // Gives the vCPU its kind and its features, and resets it: at EL1, all interrupts masked, the general registers zero, the
        // system registers as the architecture defines it. When all are there, for some registers reflect the machine's shape.
        // (KVM API 4.82, KVM_ARM_VCPU_INIT.)
        vcpu.fd
            .vcpu_init(&vcpu.features)
            .map_err(Error::kvm("KVM_ARM_VCPU_INIT"))?;
    }
    Ok(created)
}

/// Checks that this host's processor is the one that the guest of a snapshot has seen. What else a vCPU lacks shows when its
/// registers are set.
pub(crate) fn check_host(kvm: &Kvm, states: &[VcpuState]) -> Result<()> {
    // KVM shows the processor only by a vCPU.
    let vm = kvm::create_vm(kvm, MEMORY_MIN)?;
    let host = Identity::of(&create_vcpus(kvm, &vm, 1)?[0])?;
    states
        .iter()
        .try_for_each(|state| host.check(state.identity))
}
