//! The first vCPU's registers at a kernel's 64-bit entry, and the few that every vCPU needs set.

use kvm_bindings::{Msrs, kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;

use super::paging;
use crate::error::{Error, Result};
use crate::layout;

/// Protection enable, extension type, paging (AMD APM vol. 2, "CR0 Register").
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// Physical-address extension (AMD APM vol. 2, "CR4 Register").
const CR4_PAE: u64 = 1 << 5;
/// Long mode enabled and active (AMD APM vol. 2, "Extended Feature Enable Register").
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always 1; interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// The memory type of addresses that no MTRR covers (AMD APM vol. 2, "MTRRs").
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;
/// Intel's switches for optional features (Intel SDM vol. 4, "IA32_MISC_ENABLE").
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;

/// Offsets in the local APIC's register page (AMD APM vol. 2, "APIC Registers").
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const LVT_MASKED: u32 = 1 << 16;
const LVT_DELIVERY_NMI: u32 = 4 << 8;

/// Sets the registers of `vcpu` as a boot loader hands over to the kernel at `entry`: in 64-bit mode with flat segments, with
/// interrupts off, and with RSI pointing to the zero page.
/// (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"; each bit's reason stands in docs/learn/first-kvm-run.md.)
pub(crate) fn set_entry(vcpu: &VcpuFd, entry: GuestAddress) -> Result<()> {
    // KVM_GET_SREGS first: the reset state has fields (the local APIC's base, the CR8 shadow) that must stay as they are.
    // With KVM_SET_SREGS the segments, control registers and descriptor tables change together; set one by one they would
    // pass through modes that no processor allows. KVM checks the combination and answers EINVAL where it makes no sense.
    // (KVM API 4.13 and 4.14, KVM_GET_SREGS, KVM_SET_SREGS.)
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    sregs.cs = paging::code_segment();
    let data = paging::data_segment();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = paging::task_segment();
    sregs.gdt = kvm_dtable {
        base: layout::GDT.0,
        limit: paging::GDT_SIZE - 1,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: layout::IDT.0,
        limit: 7,
        ..Default::default()
    };
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PML4.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(Error::kvm("KVM_SET_SREGS"))?;

    // The general registers are independent of the mode, so they may come last. (KVM API 4.12, KVM_SET_REGS.)
    let regs = kvm_regs {
        rip: entry.0,
        rsi: layout::ZERO_PAGE.0,
        rsp: layout::BOOT_STACK.0,
        rbp: layout::BOOT_STACK.0,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))
}

/// Sets the MSRs that firmware sets on every processor of a PC.
///
/// Memory is cached (write-back) where no MTRR says otherwise: the reset value means uncached, which a kernel would
/// believe, and be slow. Fast string operations are on, for kernels that look before they use them.
pub(crate) fn set_firmware_msrs(vcpu: &VcpuFd) -> Result<()> {
    let entries = [
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
        (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    ];
    let entries = entries.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).expect("two entries are few");
    // KVM_SET_MSRS sets them in order and stops at the first that it doesn't know; the number of those set is its
    // result. A guest boots without either, only slower. After KVM_SET_CPUID2, which decides what MSRs the vCPU has.
    // (KVM API 4.19, KVM_SET_MSRS.)
    let set = vcpu.set_msrs(&msrs).map_err(Error::kvm("KVM_SET_MSRS"))?;
    if let Some(entry) = entries.get(set) {
        log::debug!("this KVM does not let MSR {:#x} be set", entry.index);
    }
    Ok(())
}

/// Wires the local APIC's two pins: LINT1 is the non-maskable interrupt, as on a PC; LINT0, where a PC has its 8259
/// interrupt controller, has nothing, for there is none here.
pub(crate) fn set_local_apic(vcpu: &VcpuFd) -> Result<()> {
    // The local APIC's whole register page is read and written; KVM_SET_LAPIC also recomputes what KVM derives from it.
    // (KVM API 4.57 and 4.58, KVM_GET_LAPIC, KVM_SET_LAPIC.)
    let mut apic = vcpu.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?;
    set_apic_register(&mut apic, APIC_LVT_LINT0, LVT_MASKED);
    set_apic_register(&mut apic, APIC_LVT_LINT1, LVT_DELIVERY_NMI);
    vcpu.set_lapic(&apic).map_err(Error::kvm("KVM_SET_LAPIC"))
}

pub(crate) fn set_apic_register(apic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (slot, byte) in apic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
        *slot = i8::from_le_bytes([byte]);
    }
}
