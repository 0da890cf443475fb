//! The KVM calls of a machine's creation that only x86-64 has; `kvm` makes them in their order.

use kvm_bindings::{CpuId, KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::cpuid::Topology;
use super::vcpu_state::VcpuState;
use super::{cpuid, features, ioapic, layout, registers, restraint};
use crate::error::{Error, Result};
use crate::kvm;
use crate::vcpu::Vcpu;

/// The capabilities that a machine needs beside those of every architecture.
pub(crate) const NEEDED: [(Cap, &str); 2] = [
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
];

/// Returns the type of a machine with `bytes` of RAM: there is one type.
pub(crate) fn vm_type(_kvm: &Kvm, _bytes: u64) -> Result<u64> {
    Ok(0)
}

/// Prepares a machine that has just been created.
pub(crate) fn prepare_vm(vm: &VmFd) -> Result<()> {
    // Intel processors that can't run real mode need three pages that no RAM may overlap; AMD's ignore it. It has to
    // come before any vCPU. (KVM API 4.36, KVM_SET_TSS_ADDR.)
    let address = usize::try_from(layout::KVM_TSS.0).expect("below 4 GiB");
    vm.set_tss_address(address)
        .map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    restraint::apply(vm)
}

/// KVM's part of a machine's interrupt controllers: local APICs.
pub(crate) struct Irqchip;

impl Irqchip {
    /// Has KVM emulate local APICs, with their timers, and nothing else of a PC's interrupt controllers.
    pub(crate) fn create(vm: &VmFd) -> Result<Self> {
        // With the local APICs in KVM a guest's timer and inter-processor interrupts cost no exit to this process. The
        // number is that of the IOAPIC pins that will be emulated here, see `ioapic`. It decides what every vCPU is
        // made with, so it comes before the first of them. (KVM API 4.37, KVM_ENABLE_CAP; 7.5, KVM_CAP_SPLIT_IRQCHIP.)
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        cap.args[0] = ioapic::PINS.into();
        vm.enable_cap(&cap)
            .map_err(Error::kvm("KVM_ENABLE_CAP (KVM_CAP_SPLIT_IRQCHIP)"))?;
        Ok(Irqchip)
    }

    /// Completes the controllers when all vCPUs are there: each has come with its own.
    pub(crate) fn complete(&mut self, _vcpus: &[Vcpu]) -> Result<()> {
        Ok(())
    }
}

/// Creates the processors. Number 0 is the one that starts; the others wait for its signal.
pub(crate) fn create_vcpus(kvm: &Kvm, vm: &VmFd, cpus: u8) -> Result<Vec<Vcpu>> {
    let supported = supported_cpuid(kvm)?;
    // The table leaves this feature of the local APIC out. (KVM API 4.4, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER.)
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut vcpus = Vec::new();
    for id in 0..cpus {
        let fd = kvm::create_vcpu(vm, id)?;
        let table = cpuid::table(
            &supported,
            Topology {
                vcpu: id,
                vcpus: cpus,
                tsc_deadline,
            },
        );
        // The features in this table are also those that KVM lets the guest use, so it comes before registers and MSRs,
        // which KVM checks against it. (KVM API 4.20, KVM_SET_CPUID, of which KVM_SET_CPUID2 is the newer form.)
        fd.set_cpuid2(&table)
            .map_err(Error::kvm("KVM_SET_CPUID2"))?;
        registers::set_firmware_msrs(&fd)?;
        registers::set_local_apic(&fd)?;
        vcpus.push(Vcpu::new(id, fd, table));
    }
    Ok(vcpus)
}

/// Creates the processors of a snapshot, with the features that its guest has seen.
pub(crate) fn create_vcpus_of(vm: &VmFd, states: &[VcpuState]) -> Result<Vec<Vcpu>> {
    let mut vcpus = Vec::new();
    for (id, state) in (0..).zip(states) {
        let fd = kvm::create_vcpu(vm, id)?;
        let cpuid = state.set_cpuid(&fd)?;
        vcpus.push(Vcpu::new(id, fd, cpuid));
    }
    Ok(vcpus)
}

/// Checks that this host has all features that the guest of a snapshot has seen.
pub(crate) fn check_host(kvm: &Kvm, states: &[VcpuState]) -> Result<()> {
    let supported = supported_cpuid(kvm)?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for state in states {
        if let Some(feature) = features::missing(&state.cpuid, &supported, deadline) {
            return Err(Error::HostLacks(feature));
        }
    }
    Ok(())
}

/// Returns all features that this processor and this KVM can give to a guest.
fn supported_cpuid(kvm: &Kvm) -> Result<CpuId> {
    // (KVM API 4.46, KVM_GET_SUPPORTED_CPUID.)
    kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))
}
