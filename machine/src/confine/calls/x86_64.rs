//! What x86-64 has alone: older forms of calls, and a PC's part of KVM.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_lapic_state, kvm_msi, kvm_msr_list, kvm_msrs,
    kvm_pre_fault_memory, kvm_regs, kvm_sregs, kvm_xcrs, kvm_xsave,
};
use rustix::ioctl::Opcode;
use rustix::ioctl::opcode::{none, read, read_write, write};

use super::KVM;

/// Calls of [`PROCESS`](super::PROCESS).
#[rustfmt::skip]
pub(in super::super) const PROCESS: &[i64] = &[
    libc::SYS_epoll_wait, // the event loop of serial input
    libc::SYS_poll,       // also: input from a device without RWF_NOWAIT
];

/// Calls of [`REFUSED`](super::REFUSED).
#[rustfmt::skip]
pub(in super::super) const REFUSED: &[i64] = &[
    libc::SYS_access,   // also: as faccessat
    libc::SYS_lstat,    // also: as newfstatat
    libc::SYS_open,     // also: as openat
    libc::SYS_readlink, // also: as readlinkat
    libc::SYS_stat,     // also: as newfstatat
];

/// Requests of [`VCPU_REQUESTS`](super::VCPU_REQUESTS).
#[rustfmt::skip]
pub(in super::super) const VCPU_REQUESTS: &[Opcode] = &[
    write::<kvm_msi>(KVM, 0xa5),        // KVM_SIGNAL_MSI: a UART's interrupt
    read::<kvm_regs>(KVM, 0x81),        // KVM_GET_REGS: whether it is halted, the instruction pointer; snapshots
    none(KVM, 0xad),                    // KVM_KVMCLOCK_CTRL: the guest was paused
    read::<kvm_sregs>(KVM, 0x83),       // KVM_GET_SREGS: snapshots, as all below
    read_write::<kvm_msrs>(KVM, 0x88),  // KVM_GET_MSRS
    read::<kvm_lapic_state>(KVM, 0x8e), // KVM_GET_LAPIC
    read::<kvm_debugregs>(KVM, 0xa1),   // KVM_GET_DEBUGREGS
    none(KVM, 0xa3),                    // KVM_GET_TSC_KHZ
    read::<kvm_xsave>(KVM, 0xa4),       // KVM_GET_XSAVE
    read::<kvm_xcrs>(KVM, 0xa6),        // KVM_GET_XCRS
];

/// Requests of [`PROCESS_REQUESTS`](super::PROCESS_REQUESTS).
#[rustfmt::skip]
pub(in super::super) const PROCESS_REQUESTS: &[Opcode] = &[
    read_write::<kvm_msr_list>(KVM, 0x02),         // KVM_GET_MSR_INDEX_LIST: snapshots
    read_write::<kvm_cpuid2>(KVM, 0x05),           // KVM_GET_SUPPORTED_CPUID
    none(KVM, 0x47),                               // KVM_SET_TSS_ADDR
    write::<kvm_clock_data>(KVM, 0x7b),            // KVM_SET_CLOCK: clones
    read::<kvm_clock_data>(KVM, 0x7c),             // KVM_GET_CLOCK: snapshots
    write::<kvm_regs>(KVM, 0x82),                  // KVM_SET_REGS
    write::<kvm_sregs>(KVM, 0x84),                 // KVM_SET_SREGS
    write::<kvm_msrs>(KVM, 0x89),                  // KVM_SET_MSRS
    write::<kvm_lapic_state>(KVM, 0x8f),           // KVM_SET_LAPIC
    write::<kvm_cpuid2>(KVM, 0x90),                // KVM_SET_CPUID2
    none(KVM, 0xa2),                               // KVM_SET_TSC_KHZ: also: clones, on another host's clock
    write::<kvm_debugregs>(KVM, 0xa2),             // KVM_SET_DEBUGREGS: clones
    write::<kvm_xsave>(KVM, 0xa5),                 // KVM_SET_XSAVE: clones
    write::<kvm_xcrs>(KVM, 0xa7),                  // KVM_SET_XCRS: clones
    read_write::<kvm_pre_fault_memory>(KVM, 0xd5), // KVM_PRE_FAULT_MEMORY: clones' working sets
];

/// Calls of [`fetcher::CALLS`](super::fetcher::CALLS).
#[rustfmt::skip]
pub(in super::super) const FETCHER: &[i64] = &[
    libc::SYS_chmod,      // folders of a root that can't be read
    libc::SYS_epoll_wait, // the event loop of requests
    libc::SYS_lstat,      // also: another C library's
    libc::SYS_mkdir,      // folders of the cache
    libc::SYS_open,       // entries of the cache, files of a folder
    libc::SYS_poll,       // the same as the loop's, of requests without one
    libc::SYS_readlink,   // paths of folders
    libc::SYS_rename,     // entries of the cache
    libc::SYS_stat,       // also: another C library's
    libc::SYS_unlink,     // entries of the cache
];
