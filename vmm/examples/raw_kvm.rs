//! Lesson 0: a whole monitor with every KVM call in view. Its guest, eleven bytes of machine code, prints "hi" and halts.
//!
//! ```console
//! $ cargo run -q -p minivm-vmm --example raw_kvm
//! hi
//! the guest halted after 3 exits: 2 × KVM_EXIT_IO, 1 × KVM_EXIT_HLT
//! ```
//!
//! Read it from top to bottom. The comment at each call gives its section in KVM's manual
//! (`Documentation/virt/kvm/api.rst`, <https://docs.kernel.org/virt/kvm/api.html>), says what the call does, and what breaks
//! without it. Then predict what `what_if.rs` prints: the same monitor with one thing changed.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

/// COM1's data register. The only device behind it is the `match` in `run`.
const COM1: u16 = 0x3f8;
/// The guest's program.
pub(crate) const GUEST: [u8; 11] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'h', 0xee, //       mov al, 'h'; out dx, al
    0xb0, b'i', 0xee, //       mov al, 'i'; out dx, al
    0xf4, //                   hlt
];
/// The guest's memory: 2 MiB with three page tables and the program, all else zero.
const RAM: usize = 2 << 20;
const PML4: GuestAddress = GuestAddress(0x1000);
const PDPT: GuestAddress = GuestAddress(0x2000);
const PD: GuestAddress = GuestAddress(0x3000);
pub(crate) const PROGRAM: GuestAddress = GuestAddress(0x4000);

/// The bits that make 64-bit mode together (AMD APM vol. 2, "Long Mode"): protection and paging, table entries of 64 bits,
/// long mode wanted, and long mode on. A processor sets the last one itself, when a kernel turns paging on.
pub(crate) const CR0_PE: u64 = 1 << 0;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const EFER_LME: u64 = 1 << 8;
pub(crate) const EFER_LMA: u64 = 1 << 10;

fn main() -> ExitCode {
    match monitor() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("raw_kvm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the machine, runs its guest, and prints how that ended.
fn monitor() -> Result<(), Box<dyn Error>> {
    // The guest's RAM is memory of this process. Declared first, it is unmapped last, after KVM's descriptors are closed.
    let ram = ram()?;
    write_page_tables(&ram)?;
    ram.write_slice(&GUEST, PROGRAM)?;

    let kvm = open_kvm()?;
    let vm = create_vm(&kvm)?;
    lend_memory(&vm, &ram)?;
    let mut vcpu = create_vcpu(&vm)?;
    set_features(&kvm, &vcpu)?;
    set_mode(&vcpu, &long_mode(&vcpu)?)?;
    set_start(&vcpu)?;

    let exits = run(&mut vcpu, &mut io::stdout())?;
    let kinds = exits.chunk_by(|one, next| one == next);
    let kinds: Vec<_> = kinds
        .map(|kind| format!("{} × {}", kind.len(), kind[0]))
        .collect();
    let halted = exits.ends_with(&["KVM_EXIT_HLT"]);
    let ended = if halted { "halted" } else { "failed" };
    println!(
        "\nthe guest {ended} after {} exits: {}",
        exits.len(),
        kinds.join(", ")
    );
    Ok(())
}

/// Reserves the guest's memory.
pub(crate) fn ram() -> Result<GuestMemoryMmap, Box<dyn Error>> {
    Ok(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)])?)
}

/// Maps the first 2 MiB to themselves, with one entry in each of three tables; the other entries are zero, "not present".
pub(crate) fn write_page_tables(ram: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    ram.write_obj(PDPT.0 | 0b11, PML4)?; // present, writable
    ram.write_obj(PD.0 | 0b11, PDPT)?;
    ram.write_obj(0x83_u64, PD) // the same, and a page of 2 MiB in place of a fourth table
}

/// Opens KVM.
pub(crate) fn open_kvm() -> io::Result<Kvm> {
    // A descriptor of /dev/kvm is what machines are created with.
    let kvm = Kvm::new().map_err(|errno| {
        io::Error::other(format!(
            "cannot open /dev/kvm: {errno}; `minivm lab -- PROGRAM` runs this where there is KVM"
        ))
    })?;
    // 4.1 KVM_GET_API_VERSION: 12 since Linux 2.6.22; the manual says to refuse any other. Left out, nothing breaks.
    match kvm.get_api_version() {
        12 => Ok(kvm),
        other => Err(io::Error::other(format!(
            "KVM's API version is {other}, not 12"
        ))),
    }
}

/// Creates a machine with no processor and no memory.
pub(crate) fn create_vm(kvm: &Kvm) -> io::Result<VmFd> {
    // 4.2 KVM_CREATE_VM: returns a descriptor that is the machine; when it is closed, the machine is gone. kvm-ioctls also
    // calls 4.5 KVM_GET_VCPU_MMAP_SIZE here: the size of the memory in which KVM describes an exit, see `run`.
    let vm = kvm.create_vm()?;
    // 4.36 KVM_SET_TSS_ADDR: gives KVM three pages of guest-physical addresses, away from RAM. Intel processors that can't run
    // real mode need them; the manual demands the call on Intel hosts. On AMD's, nothing breaks without it.
    vm.set_tss_address(0xfffb_d000)?;
    Ok(vm)
}

/// Lends the machine this process's memory.
pub(crate) fn lend_memory(vm: &VmFd, ram: &GuestMemoryMmap) -> Result<(), Box<dyn Error>> {
    let slot = kvm_userspace_memory_region {
        memory_size: RAM as u64,
        userspace_addr: ram.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // 4.35 KVM_SET_USER_MEMORY_REGION: from now on this memory is what the guest has at its addresses from 0 on; nothing is
    // copied. Without it there are no page tables and no program for the processor to read.
    #[allow(
        unsafe_code,
        reason = "KVM lets the guest write to all memory of a slot"
    )]
    // SAFETY: the memory is mapped, and stays so until the machine's descriptors are closed, see `monitor`.
    Ok(unsafe { vm.set_user_memory_region(slot) }?)
}

/// Creates the processor.
pub(crate) fn create_vcpu(vm: &VmFd) -> io::Result<VcpuFd> {
    // 4.7 KVM_CREATE_VCPU: returns a descriptor that is processor number 0, in the state after a reset: 16-bit real mode.
    // Without it there is nothing to run.
    Ok(vm.create_vcpu(0)?)
}

/// Gives the processor all features that this KVM has for guests.
pub(crate) fn set_features(kvm: &Kvm, vcpu: &VcpuFd) -> io::Result<()> {
    // 4.46 KVM_GET_SUPPORTED_CPUID: returns the features that the host's processor and KVM support together.
    let features = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    // 4.20 KVM_SET_CPUID2: makes them the guest's. Without it the guest's processor has none, not even long mode: some KVMs
    // then refuse to switch it on below.
    Ok(vcpu.set_cpuid2(&features)?)
}

/// Returns the registers of 64-bit mode: those after a reset, but for five.
pub(crate) fn long_mode(vcpu: &VcpuFd) -> io::Result<kvm_sregs> {
    // 4.13 KVM_GET_SREGS: reads segments and control registers. Without it, those that should stay would become zero.
    let mut sregs = vcpu.get_sregs()?;
    sregs.cr0 = CR0_PE | CR0_PG;
    sregs.cr3 = PML4.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    // Code that is 64-bit (`l`). No descriptor table holds this segment: the processor reads a table only when an instruction
    // loads a segment, and this is what it would keep of it.
    sregs.cs = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        type_: 0xb, // code, readable, accessed
        present: 1,
        s: 1,
        g: 1,
        l: 1,
        ..Default::default()
    };
    Ok(sregs)
}

/// Puts the processor into a mode.
pub(crate) fn set_mode(vcpu: &VcpuFd, sregs: &kvm_sregs) -> io::Result<()> {
    // 4.14 KVM_SET_SREGS: sets them all together, and refuses what no processor could be in. Without it the processor starts
    // where a PC has its firmware, below 4 GiB, and there is no memory.
    Ok(vcpu.set_sregs(sregs)?)
}

/// Points the processor to the program.
pub(crate) fn set_start(vcpu: &VcpuFd) -> io::Result<()> {
    // 4.12 KVM_SET_REGS: sets the general registers. Without it the processor starts at 0xfff0, as after a reset, and runs
    // zeros. Bit 1 of RFLAGS is always 1; the rest says: no interrupts.
    let regs = kvm_regs {
        rip: PROGRAM.0,
        rflags: 1 << 1,
        ..Default::default()
    };
    Ok(vcpu.set_regs(&regs)?)
}

/// Runs the guest up to the first exit that isn't a byte for COM1; such bytes go to `console`. Returns the names of all exits.
pub(crate) fn run(vcpu: &mut VcpuFd, console: &mut impl Write) -> io::Result<Vec<&'static str>> {
    let mut exits = Vec::new();
    loop {
        // 4.10 KVM_RUN: makes this thread the processor until the guest does something that KVM leaves to this program, an
        // exit. The next call goes on from there. Without it, the guest does nothing.
        let exit = vcpu.run()?;
        exits.push(name(&exit));
        match exit {
            VcpuExit::IoOut(COM1, data) => console.write_all(data)?,
            _ => return Ok(exits),
        }
    }
}

/// Names an exit as the manual does (5, "The kvm_run structure").
fn name(exit: &VcpuExit) -> &'static str {
    match exit {
        VcpuExit::IoOut(..) | VcpuExit::IoIn(..) => "KVM_EXIT_IO",
        VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..) => "KVM_EXIT_MMIO",
        VcpuExit::Hlt => "KVM_EXIT_HLT",
        VcpuExit::Shutdown => "KVM_EXIT_SHUTDOWN",
        VcpuExit::InternalError => "KVM_EXIT_INTERNAL_ERROR",
        VcpuExit::FailEntry(..) => "KVM_EXIT_FAIL_ENTRY",
        _ => "another exit",
    }
}
