//! A vCPU's whole state: reading it from KVM, and setting it in another machine.
//!
//! KVM keeps a processor's state in a dozen places, each with ioctls of its own, and some of them change others. So both
//! directions have an order. The calls are described where the state is set, in [`VcpuState::set`].

#![allow(
    unsafe_code,
    reason = "KVM_SET_XSAVE may read more than the structure that it is given"
)]

use kvm_bindings::{
    CpuId, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::{cpuid, msrs};
use crate::error::{Error, Result};
use crate::vcpu::Vcpu;

/// The number of this architecture in a state file, of the time when there was no other.
pub(crate) const MACHINE: u16 = 0;
/// The time stamp counter (AMD APM vol. 2, "Time-Stamp Counter"), and a bit that takes any of its values far away.
const MSR_TSC: u32 = 0x10;
const FAR: u64 = 1 << 62;
/// The local APIC timer's deadline (Intel SDM vol. 4, "IA32_TSC_DEADLINE").
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The most CPUID entries that KVM takes, and more MSRs by far than it has: a state with more is no machine's.
const CPUID_MAX: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;
const MSRS_MAX: usize = 1024;
/// The deviation, in millionths, that a time stamp counter may have from the frequency that the guest knows: Linux puts so
/// much down to bad measuring.
const TSC_TOLERANCE_PPM: u64 = 250;

/// The parts of a vCPU's state that depend on the host.
#[derive(Debug)]
pub(crate) struct Inventory {
    msrs: Vec<u32>,
    xcrs: bool,
}

impl Inventory {
    /// Asks this host's KVM, also about a machine of it.
    pub(crate) fn of_this_host(kvm: &Kvm, vm: &VmFd) -> Result<Self> {
        // The MSRs that KVM keeps for a guest on this host and lists as readable and settable from outside: hardware's and
        // its own paravirtual ones (kvm-clock's pages, for one). There are more, see `msrs`.
        // (KVM API 4.3, KVM_GET_MSR_INDEX_LIST.)
        let msrs = kvm
            .get_msr_index_list()
            .map_err(Error::kvm("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(Inventory {
            msrs: msrs.as_slice().to_vec(),
            xcrs: vm.check_extension(Cap::Xcrs),
        })
    }
}

/// The whole state of a vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    /// The guest's CPUID table.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    /// The frequency of its time stamp counter in kHz, where that is steady.
    pub(crate) tsc_khz: Option<u32>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// The parts of the extended state that are in use; `None` for a processor without XSAVE.
    xcrs: Option<kvm_xcrs>,
    xsave: kvm_xsave,
    debug_regs: kvm_debugregs,
    /// Without the deadline.
    msrs: Vec<kvm_msr_entry>,
    tsc_deadline: Option<kvm_msr_entry>,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state of a vCPU that is at rest: no thread is in KVM_RUN, and no access to a device is half done, because
    /// KVM doesn't show that.
    ///
    /// - The multiprocessing state is first, because asking for it makes KVM take INITs and SIPIs that have arrived, which
    ///   changes the rest.
    /// - The MSRs come before the local APIC. If the timer fires in between, its interrupt is in the APIC's state and its
    ///   deadline is still among the MSRs: the guest gets one timer interrupt too many, which is harmless. The other way
    ///   round it could get none, and sleep for ever.
    /// - The events (exceptions and interrupts on their way into the guest) are last, since all of the others may raise
    ///   one.
    pub(crate) fn of(vcpu: &Vcpu, inventory: &Inventory) -> Result<Self> {
        let (vcpu, cpuid) = (&vcpu.fd, &vcpu.features);
        let mp_state = vcpu
            .get_mp_state()
            .map_err(Error::kvm("KVM_GET_MP_STATE"))?;
        let regs = vcpu.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
        let sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        // Which parts of the extended state are in use. (KVM API 4.44, KVM_GET_XCRS.)
        let xcrs = match inventory.xcrs {
            true => Some(vcpu.get_xcrs().map_err(Error::kvm("KVM_GET_XCRS"))?),
            false => None,
        };
        // The extended state itself: x87, SSE, AVX. (KVM API 4.42, KVM_GET_XSAVE.)
        let xsave = vcpu.get_xsave().map_err(Error::kvm("KVM_GET_XSAVE"))?;
        // The breakpoints of the guest's own debugger. (KVM API 4.33, KVM_GET_DEBUGREGS.)
        let debug_regs = vcpu
            .get_debug_regs()
            .map_err(Error::kvm("KVM_GET_DEBUGREGS"))?;
        let (deadline, msrs) = msrs::all(vcpu, &inventory.msrs)?
            .into_iter()
            .partition::<Vec<_>, _>(|msr| msr.index == MSR_TSC_DEADLINE);
        let lapic = vcpu.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?;
        let events = vcpu
            .get_vcpu_events()
            .map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?;
        Ok(VcpuState {
            cpuid: cpuid.as_slice().to_vec(),
            // Fails where the host's own counter isn't steady. (KVM API 4.56, KVM_GET_TSC_KHZ.)
            tsc_khz: vcpu.get_tsc_khz().ok(),
            mp_state,
            regs,
            sregs,
            xcrs,
            xsave,
            debug_regs,
            msrs,
            tsc_deadline: deadline.first().copied(),
            lapic,
            events,
        })
    }

    /// Sets the state in a vCPU that has never run and that [`set_cpuid`](Self::set_cpuid) has given its features. The order
    /// is from the processor's mode to its pending events; the comments have the reasons.
    pub(crate) fn set(&self, vcpu: &Vcpu) -> Result<()> {
        let (id, vcpu) = (vcpu.id, &vcpu.fd);
        self.set_tsc_frequency(vcpu)?;
        // The mode, the segments and the local APIC's base and mode (xAPIC or x2APIC), by which KVM_SET_LAPIC reads what it
        // is given. The general registers don't depend on any of it. (KVM API 4.14, KVM_SET_SREGS; 4.12, KVM_SET_REGS.)
        vcpu.set_sregs(&as_the_processor_has_it(self.sregs))
            .map_err(Error::kvm("KVM_SET_SREGS"))?;
        vcpu.set_regs(&self.regs)
            .map_err(Error::kvm("KVM_SET_REGS"))?;
        self.set_extended_state(vcpu)?;
        // The breakpoints. (KVM API 4.34, KVM_SET_DEBUGREGS.)
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(Error::kvm("KVM_SET_DEBUGREGS"))?;
        if id == 0 {
            self.part_tsc(vcpu)?;
        }
        msrs::set(vcpu, &self.msrs)?;
        // After the counter, in terms of which KVM reckons when the APIC's timer is to fire: from here on it runs.
        // (KVM API 4.58, KVM_SET_LAPIC.)
        vcpu.set_lapic(&self.lapic)
            .map_err(Error::kvm("KVM_SET_LAPIC"))?;
        // After the local APIC, which ignores a deadline unless its timer is in deadline mode.
        msrs::set(vcpu, self.tsc_deadline.as_slice())?;
        // Whether it runs, halts, or waits to be started. (KVM API 4.39, KVM_SET_MP_STATE.)
        vcpu.set_mp_state(self.mp_state)
            .map_err(Error::kvm("KVM_SET_MP_STATE"))?;
        // The events that were about to be delivered: last, since KVM_SET_REGS forgets a pending exception, and KVM_SET_SREGS
        // sets a pending interrupt without its details. (KVM API 4.32, KVM_SET_VCPU_EVENTS.)
        vcpu.set_vcpu_events(&self.events)
            .map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))
    }

    /// Gives the vCPU the features that the guest has seen, which may be fewer than this host has. Hidden features stay hidden
    /// also where the state has them, which only a forged one does.
    pub(crate) fn set_cpuid(&self, vcpu: &VcpuFd) -> Result<CpuId> {
        let mut entries = self.cpuid.clone();
        cpuid::hide(&mut entries);
        let table = CpuId::from_entries(&entries).expect("checked by `check`");
        vcpu.set_cpuid2(&table)
            .map_err(Error::kvm("KVM_SET_CPUID2"))?;
        Ok(table)
    }

    /// Checks the sizes of the parts that aren't of a fixed size.
    pub(crate) fn check(&self) -> std::result::Result<(), &'static str> {
        if self.cpuid.is_empty() || self.cpuid.len() > CPUID_MAX {
            return Err("no vCPU has so many CPUID leaves");
        }
        if self.msrs.len() > MSRS_MAX {
            return Err("no vCPU has so many MSRs");
        }
        Ok(())
    }

    /// Makes the time stamp counter as quick as the guest believes it to be.
    fn set_tsc_frequency(&self, vcpu: &VcpuFd) -> Result<()> {
        let (Some(khz), Ok(host)) = (self.tsc_khz, vcpu.get_tsc_khz()) else {
            return Ok(());
        };
        if u64::from(khz.abs_diff(host)) * 1_000_000 <= u64::from(khz) * TSC_TOLERANCE_PPM {
            return Ok(());
        }
        // The guest has measured its counter once and for all. Some processors can scale it for a guest; on another one the
        // guest's clock would run wrong. Before the counter's value is set. (KVM API 4.55, KVM_SET_TSC_KHZ.)
        vcpu.set_tsc_khz(khz).map_err(|_| {
            Error::HostLacks(format!(
                "time stamp counter of {khz} kHz (it has {host} kHz)"
            ))
        })
    }

    /// Sets the time stamp counter of the machine's first vCPU far off, so that it can be set to its saved value.
    ///
    /// KVM takes a value that is less than a second off the counter as it runs for an attempt to set all vCPUs' counters
    /// alike, and so makes it. That is right between a machine's vCPUs, whose values were read one after the other. But
    /// before Linux 6.8 it also holds between the first value set and the new vCPU's own counter, which starts at 0: a guest
    /// that had run for half a second would find itself half a second back. (Linux, `kvm_synchronize_tsc`.)
    fn part_tsc(&self, vcpu: &VcpuFd) -> Result<()> {
        let tsc = self.msrs.iter().filter(|msr| msr.index == MSR_TSC);
        let far: Vec<_> = tsc
            .map(|msr| kvm_msr_entry {
                data: msr.data ^ FAR,
                ..*msr
            })
            .collect();
        msrs::set(vcpu, &far)
    }

    /// Sets the registers of the FPU, SSE, AVX and so on.
    fn set_extended_state(&self, vcpu: &VcpuFd) -> Result<()> {
        if let Some(xcrs) = &self.xcrs {
            // Which of the extended state's parts the guest has switched on (XCR0). (KVM API 4.45, KVM_SET_XCRS.)
            vcpu.set_xcrs(xcrs).map_err(Error::kvm("KVM_SET_XCRS"))?;
        }
        // The parts themselves, in the layout of the XSAVE instruction. KVM refuses parts that the host lacks. A guest whose
        // parts take more than 4 KiB (AMX) would need KVM_GET_XSAVE2, but KVM offers AMX only to a process that has asked
        // for it. (KVM API 4.43, KVM_SET_XSAVE.)
        // SAFETY: KVM reads more than 4 KiB only if the process has enabled a feature with such state by arch_prctl, which
        // this crate never does; had other code, KVM_GET_XSAVE would have failed when the state was saved.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(Error::kvm("KVM_SET_XSAVE"))
    }
}

/// The leaf with the hypervisor's name, which exists where leaf 1 has the hypervisor's bit, and the name of QEMU's emulation.
const HYPERVISOR_NAME: u32 = 0x4000_0000;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EMULATION: [u8; 12] = *b"TCGTCGTCGTCG";
/// The bit of a task state segment's type that says that it is in use (AMD APM vol. 2, "TSS Descriptor").
const TSS_BUSY: u8 = 1 << 1;

/// Returns the segment registers as the host's processor takes them. The task register's segment is busy, on AMD's processors
/// as on Intel's; AMD's ignore the bit. QEMU's emulation of one takes a busy segment for an invalid one, and with it the
/// guest's permissions for I/O ports (ioperm(2)): programs that had one when they were saved would be killed. So there, and
/// nowhere else, the bit is cleared.
fn as_the_processor_has_it(mut sregs: kvm_sregs) -> kvm_sregs {
    if is_emulated() {
        sregs.tr.type_ &= !TSS_BUSY;
    }
    sregs
}

/// Returns whether the processor is QEMU's emulation of one, as it is in the lab.
fn is_emulated() -> bool {
    use std::arch::x86_64::__cpuid;
    if __cpuid(cpuid::FEATURES).ecx & ECX_HYPERVISOR == 0 {
        return false;
    }
    let name = __cpuid(HYPERVISOR_NAME);
    [name.ebx, name.ecx, name.edx]
        .map(u32::to_le_bytes)
        .concat()
        == EMULATION
}

#[cfg(test)]
mod tests;

#[cfg(test)]
impl VcpuState {
    /// The state's MSRs, for tests that forge them.
    pub(crate) fn msrs(&mut self) -> &mut Vec<kvm_msr_entry> {
        &mut self.msrs
    }

    /// Makes the state one that no vCPU has; returns a part of the refusal.
    pub(crate) fn spoil(&mut self) -> &'static str {
        self.cpuid.clear();
        "CPUID"
    }

    /// A made-up state, in which each optional part is present.
    pub(crate) fn sample() -> Self {
        VcpuState {
            cpuid: vec![kvm_cpuid_entry2::default(); 3],
            tsc_khz: Some(2_000_000),
            mp_state: Default::default(),
            regs: kvm_regs {
                rip: 0x1234,
                ..Default::default()
            },
            sregs: Default::default(),
            xcrs: Some(Default::default()),
            xsave: Default::default(),
            debug_regs: Default::default(),
            msrs: vec![kvm_msr_entry {
                index: MSR_TSC,
                data: 5,
                ..Default::default()
            }],
            tsc_deadline: Some(Default::default()),
            lapic: Default::default(),
            events: Default::default(),
        }
    }
}
