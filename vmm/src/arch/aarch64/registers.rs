//! The registers of a vCPU, by KVM's names for them.

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_ARM64_SYSREG_CRM_SHIFT,
    KVM_REG_ARM64_SYSREG_CRN_SHIFT, KVM_REG_ARM64_SYSREG_OP0_SHIFT, KVM_REG_ARM64_SYSREG_OP1_SHIFT,
    KVM_REG_ARM64_SYSREG_OP2_SHIFT, KVM_REG_SIZE_U64,
};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;

use crate::error::{Error, Result};

/// X0, and the program counter. A core register's number is its offset in `struct kvm_regs`, in words of four bytes.
const X0: u64 = core(0);
pub(super) const PC: u64 = core(64);
/// The maker, part and revision of a processor (Arm ARM, "MIDR_EL1").
pub(super) const MIDR_EL1: u64 = system(3, 0, 0, 0, 0);
/// A vCPU's own address among the machine's processors (Arm ARM, "MPIDR_EL1").
const MPIDR_EL1: u64 = system(3, 0, 0, 0, 5);
/// Its four affinity fields.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// The counters that the virtual and the physical timer compare with (`KVM_REG_ARM_TIMER_CNT`, `KVM_REG_ARM_PTIMER_CNT`). The
/// first has the number of the virtual timer's comparator: KVM had them the wrong way round, and keeps it so.
pub(super) const COUNTER: u64 = system(3, 3, 14, 3, 2);
pub(super) const PHYSICAL_COUNTER: u64 = system(3, 3, 14, 0, 1);

const fn core(number: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | number
}

const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    KVM_REG_ARM64
        | KVM_REG_SIZE_U64
        | KVM_REG_ARM64_SYSREG as u64
        | op0 << KVM_REG_ARM64_SYSREG_OP0_SHIFT
        | op1 << KVM_REG_ARM64_SYSREG_OP1_SHIFT
        | crn << KVM_REG_ARM64_SYSREG_CRN_SHIFT
        | crm << KVM_REG_ARM64_SYSREG_CRM_SHIFT
        | op2 << KVM_REG_ARM64_SYSREG_OP2_SHIFT
}

/// Sets the registers with which a kernel starts: the program counter, and the device tree's address in X0. The rest is as after
/// a reset, which is what the boot protocol asks for: at EL1, with the MMU off and all interrupts masked.
/// (`Documentation/arch/arm64/booting.rst`, "Call the kernel image".)
pub(super) fn set_entry(vcpu: &VcpuFd, entry: GuestAddress, tree: GuestAddress) -> Result<()> {
    set(vcpu, PC, entry.0)?;
    set(vcpu, X0, tree.0)
}

/// Returns the address that KVM has given to a vCPU, by which PSCI and the GIC name it.
pub(super) fn affinity(vcpu: &VcpuFd) -> Result<u64> {
    Ok(get(vcpu, MPIDR_EL1)? & AFFINITY)
}

/// Reads one register, of so many bytes, by its number.
pub(super) fn read(vcpu: &VcpuFd, register: u64, size: usize) -> Result<Vec<u8>> {
    let mut value = vec![0; size];
    // After KVM_ARM_VCPU_INIT, before which a vCPU has none. (KVM API 4.69, KVM_GET_ONE_REG.)
    vcpu.get_one_reg(register, &mut value)
        .map_err(Error::kvm("KVM_GET_ONE_REG"))?;
    Ok(value)
}

/// Returns a register of eight bytes.
pub(super) fn get(vcpu: &VcpuFd, register: u64) -> Result<u64> {
    let value = read(vcpu, register, 8)?;
    Ok(u64::from_le_bytes(value.try_into().expect("eight bytes")))
}

pub(super) fn set(vcpu: &VcpuFd, register: u64, value: u64) -> Result<()> {
    // (KVM API 4.68, KVM_SET_ONE_REG.)
    vcpu.set_one_reg(register, &value.to_le_bytes())
        .map(drop)
        .map_err(Error::kvm("KVM_SET_ONE_REG"))
}
