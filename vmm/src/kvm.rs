//! The KVM calls that make a machine, in their order: from `/dev/kvm` to processors that have memory.
//!
//! "KVM API 4.2" is a section of the kernel's manual, `Documentation/virt/kvm/api.rst` as of Linux 6.12, which is also at
//! <https://docs.kernel.org/virt/kvm/api.html>. Each call is explained where it is made: those that only one architecture has,
//! in its `create` below `arch`.

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::arch::create::{self, Irqchip};
use crate::error::{Error, Result};
use crate::memory::{GuestRam, check_page_size};
use crate::observer::{Step, Steps};
use crate::pmem::Pmem;
use crate::vcpu::Vcpu;

/// A machine in KVM, with everything but its devices.
pub(crate) struct Created {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) irqchip: Irqchip,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) kvm: Arc<Kvm>,
    // Behind KVM's descriptors, so that it is unmapped when they are closed.
    pub(crate) ram: Arc<GuestRam>,
}

/// Creates a machine in KVM, with its RAM and the processors that `vcpus` makes, in the order that KVM wants.
pub(crate) fn create(
    kvm: Arc<Kvm>,
    ram: Arc<GuestRam>,
    vcpus: impl FnOnce(&VmFd) -> Result<Vec<Vcpu>>,
    steps: Steps<'_>,
) -> Result<Created> {
    let vm = Arc::new(create_vm(&kvm, ram.bytes())?);
    steps.reached(Step::VmCreated);
    lend_memory(&vm, &ram)?;
    steps.reached(Step::MemoryLent);
    let mut irqchip = Irqchip::create(&vm)?;
    steps.reached(Step::IrqchipSplit);
    let vcpus = vcpus(&vm)?;
    irqchip.complete(&vcpus)?;
    steps.reached(Step::VcpusCreated);
    Ok(Created {
        vcpus,
        irqchip,
        vm,
        kvm,
        ram,
    })
}

/// Opens `/dev/kvm`, the door to everything else, and checks that it is the KVM that this program was written for.
pub(crate) fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|errno| match errno.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => Error::KvmMissing,
        libc::EACCES | libc::EPERM => Error::KvmPermission,
        _ => Error::kvm("opening /dev/kvm")(errno),
    })?;
    check_page_size()?;
    // The API's version has been 12 since Linux 2.6.22; the manual says to refuse any other. Capabilities say what a
    // given KVM can do. (KVM API 4.1, KVM_GET_API_VERSION.)
    if kvm.get_api_version() != 12 {
        return Err(Error::KvmLacks("API version 12".into()));
    }
    let needed = [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ];
    for (cap, name) in needed.into_iter().chain(create::NEEDED) {
        // Zero means that this KVM lacks it; the meaning of other numbers depends on the capability.
        // (KVM API 4.4, KVM_CHECK_EXTENSION.)
        if !kvm.check_extension(cap) {
            return Err(Error::KvmLacks(name.into()));
        }
    }
    Ok(kvm)
}

/// Creates the machine: an address space, for `bytes` of RAM and still without, and no processor.
pub(crate) fn create_vm(kvm: &Kvm, bytes: u64) -> Result<VmFd> {
    let kind = create::vm_type(kvm, bytes)?;
    // The descriptor is the machine: when the last reference to it is gone, so is the machine, which is why nothing can
    // be left behind. (KVM API 4.2, KVM_CREATE_VM.) kvm-ioctls then asks for the size of the structures in which the vCPUs'
    // exits will be described. (KVM API 4.5, KVM_GET_VCPU_MMAP_SIZE.)
    // The kernel starts threads for it, and a signal to this thread interrupts that: it is tried again, as after any EINTR.
    let vm = loop {
        match kvm.create_vm_with_type(kind) {
            Err(error) if error.errno() == libc::EINTR => {}
            created => break created.map_err(Error::kvm("KVM_CREATE_VM"))?,
        }
    };
    create::prepare_vm(&vm)?;
    Ok(vm)
}

/// Creates processor `id` of the machine.
pub(crate) fn create_vcpu(vm: &VmFd, id: u8) -> Result<VcpuFd> {
    // A vCPU is a descriptor of its own; the thread that calls KVM_RUN on it is the processor. Its number becomes its APIC ID
    // on x86-64; on arm64 KVM makes its address among the processors (MPIDR) of it. (KVM API 4.7, KVM_CREATE_VCPU.)
    vm.create_vcpu(id.into())
        .map_err(Error::kvm("KVM_CREATE_VCPU"))
}

/// Lends the guest this process's memory as its RAM.
fn lend_memory(vm: &VmFd, ram: &GuestRam) -> Result<()> {
    let pmem = ram.pmem().map(Pmem::region);
    // (KVM API 4.4, KVM_CHECK_EXTENSION.)
    if pmem.is_some() && !vm.check_extension(Cap::ReadonlyMem) {
        return Err(Error::KvmLacks("KVM_CAP_READONLY_MEM".into()));
    }
    // Of a slot that is read-only, KVM hands the guest's writes to this process, as those to a device.
    let pmem = pmem.map(|region| (region, KVM_MEM_READONLY));
    let regions = ram.regions().map(|region| (region, 0)).chain(pmem);
    for (slot, ((base, size, host), flags)) in (0u32..).zip(regions) {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
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
        // closed. Rust code reaches it only through vm-memory's volatile accesses, and persistent memory not at all.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}
