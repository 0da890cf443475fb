//! The KVM calls that make a machine, in their order: from `/dev/kvm` to processors that have memory.
//!
//! "KVM API 4.2" is a section of the kernel's manual, `Documentation/virt/kvm/api.rst` as of Linux 6.12, which is also at
//! <https://docs.kernel.org/virt/kvm/api.html>. Each call is explained where it is made.

use std::sync::Arc;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::arch::cpuid::Topology;
use crate::arch::ioapic;
use crate::arch::restraint;
use crate::arch::{cpuid, registers};
use crate::error::{Error, Result};
use crate::layout;
use crate::memory::GuestRam;
use crate::observer::{Step, Steps};
use crate::vcpu::Vcpu;

/// A machine in KVM, with everything but its devices.
pub(crate) struct Created {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) vm: Arc<VmFd>,
    // Behind KVM's descriptors, so that it is unmapped when they are closed.
    pub(crate) ram: Arc<GuestRam>,
}

/// Creates a machine in KVM, with its RAM and its processors: all calls of this file, in the order that KVM wants.
pub(crate) fn create(cpus: u8, ram: &GuestRam, steps: Steps<'_>) -> Result<(Arc<VmFd>, Vec<Vcpu>)> {
    let kvm = open_kvm()?;
    steps.reached(Step::Opened);
    let vm = Arc::new(create_vm(&kvm)?);
    steps.reached(Step::VmCreated);
    lend_memory(&vm, ram)?;
    steps.reached(Step::MemoryLent);
    split_irqchip(&vm)?;
    steps.reached(Step::IrqchipSplit);
    let vcpus = create_vcpus(&kvm, &vm, cpus)?;
    steps.reached(Step::VcpusCreated);
    Ok((vm, vcpus))
}

/// Opens `/dev/kvm`, the door to everything else, and checks that it is the KVM that this program was written for.
pub(crate) fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|errno| match errno.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => Error::KvmMissing,
        libc::EACCES | libc::EPERM => Error::KvmPermission,
        _ => Error::kvm("opening /dev/kvm")(errno),
    })?;
    // The API's version has been 12 since Linux 2.6.22; the manual says to refuse any other. Capabilities say what a
    // given KVM can do. (KVM API 4.1, KVM_GET_API_VERSION.)
    if kvm.get_api_version() != 12 {
        return Err(Error::KvmLacks("API version 12"));
    }
    for (cap, name) in [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
        (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    ] {
        // Zero means that this KVM lacks it; the meaning of other numbers depends on the capability.
        // (KVM API 4.4, KVM_CHECK_EXTENSION.)
        if !kvm.check_extension(cap) {
            return Err(Error::KvmLacks(name));
        }
    }
    Ok(kvm)
}

/// Creates the machine: an address space without memory, and no processor.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd> {
    // The descriptor is the machine: when the last reference to it is gone, so is the machine, which is why nothing can
    // be left behind. (KVM API 4.2, KVM_CREATE_VM.) kvm-ioctls then asks for the size of the structures in which the vCPUs'
    // exits will be described. (KVM API 4.5, KVM_GET_VCPU_MMAP_SIZE.)
    // The kernel starts threads for it, and a signal to this thread interrupts that: it is tried again, as after any EINTR.
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            created => break created.map_err(Error::kvm("KVM_CREATE_VM"))?,
        }
    };
    // Intel processors that can't run real mode need three pages that no RAM may overlap; AMD's ignore it. It has to
    // come before any vCPU. (KVM API 4.36, KVM_SET_TSS_ADDR.)
    let address = usize::try_from(layout::KVM_TSS.0).expect("below 4 GiB");
    vm.set_tss_address(address)
        .map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    restraint::apply(&vm)?;
    Ok(vm)
}

/// Lends the guest this process's memory as its RAM.
pub(crate) fn lend_memory(vm: &VmFd, ram: &GuestRam) -> Result<()> {
    for (slot, (base, size, host)) in (0u32..).zip(ram.regions()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: base.0,
            memory_size: size,
            userspace_addr: host,
        };
        // KVM translates guest-physical addresses in the slot to addresses of this process, and takes a page when the
        // guest first touches it; nothing is copied or pinned. It comes before the interrupt controllers: with them
        // there, each slot costs a grace period of KVM's locks, measured 6 to 10 ms against 0.2.
        // (KVM API 4.35, KVM_SET_USER_MEMORY_REGION.)
        #[allow(
            unsafe_code,
            reason = "KVM lets the guest write to all memory of a slot"
        )]
        // SAFETY: the region is mapped, is `GuestRam`'s own, and `Machine` keeps it until the VM's descriptors are
        // closed. Rust code reaches it only through vm-memory's volatile accesses.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// Has KVM emulate local APICs, with their timers, and nothing else of a PC's interrupt controllers.
pub(crate) fn split_irqchip(vm: &VmFd) -> Result<()> {
    // With the local APICs in KVM a guest's timer and inter-processor interrupts cost no exit to this process. The
    // number is that of the IOAPIC pins that will be emulated here, see devices/ioapic.rs. It decides what every vCPU is
    // made with, so it comes before the first of them. (KVM API 4.37, KVM_ENABLE_CAP; 7.5, KVM_CAP_SPLIT_IRQCHIP.)
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = ioapic::PINS.into();
    vm.enable_cap(&cap)
        .map_err(Error::kvm("KVM_ENABLE_CAP (KVM_CAP_SPLIT_IRQCHIP)"))
}

/// Creates the processors. Number 0 is the one that starts; the others wait for its signal.
pub(crate) fn create_vcpus(kvm: &Kvm, vm: &VmFd, cpus: u8) -> Result<Vec<Vcpu>> {
    // All features that this processor and this KVM can give to a guest. (KVM API 4.46, KVM_GET_SUPPORTED_CPUID.)
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    // The table leaves this feature of the local APIC out. (KVM API 4.4, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER.)
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut vcpus = Vec::new();
    for id in 0..cpus {
        // A vCPU is a descriptor of its own; the thread that calls KVM_RUN on it is the processor. Its number becomes
        // its APIC ID. (KVM API 4.7, KVM_CREATE_VCPU.)
        let fd = vm
            .create_vcpu(id.into())
            .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
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
        vcpus.push(Vcpu {
            id,
            fd,
            cpuid: table,
            recorder: None,
        });
    }
    Ok(vcpus)
}

/// Returns the function by which the IOAPIC's messages reach the local APICs.
pub(crate) fn message_sink(vm: Arc<VmFd>) -> ioapic::Sink {
    Box::new(move |msi| {
        let msi = kvm_msi {
            address_lo: msi.address,
            data: msi.data,
            ..Default::default()
        };
        // Delivers the message as if a device had written `data` to `address`. The result says whether a local APIC took
        // it, or EPERM that none was meant; an edge doesn't care. (KVM API 4.71, KVM_SIGNAL_MSI.)
        match vm.signal_msi(msi) {
            Err(errno) if errno.errno() != libc::EPERM => Err(errno.into()),
            _ => Ok(()),
        }
    })
}
