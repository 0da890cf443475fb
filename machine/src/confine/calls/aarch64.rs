//! What arm64 has alone: its processors' registers in KVM, and the interrupt controller's.

use kvm_bindings::{
    kvm_create_device, kvm_device_attr, kvm_irq_level, kvm_one_reg, kvm_reg_list, kvm_vcpu_init,
};
use rustix::ioctl::Opcode;
use rustix::ioctl::opcode::{read, read_write, write};

use super::KVM;

/// Calls of [`PROCESS`](super::PROCESS): arm64 has no older forms.
pub(in super::super) const PROCESS: &[i64] = &[];

/// Calls of [`REFUSED`](super::REFUSED).
pub(in super::super) const REFUSED: &[i64] = &[];

/// Requests of [`VCPU_REQUESTS`](super::VCPU_REQUESTS).
#[rustfmt::skip]
pub(in super::super) const VCPU_REQUESTS: &[Opcode] = &[
    write::<kvm_irq_level>(KVM, 0x61),     // KVM_IRQ_LINE: a UART's interrupt
    write::<kvm_one_reg>(KVM, 0xab),       // KVM_GET_ONE_REG: the instruction pointer; snapshots
    read_write::<kvm_reg_list>(KVM, 0xb0), // KVM_GET_REG_LIST: snapshots
];

/// Requests of [`PROCESS_REQUESTS`](super::PROCESS_REQUESTS).
#[rustfmt::skip]
pub(in super::super) const PROCESS_REQUESTS: &[Opcode] = &[
    write::<kvm_one_reg>(KVM, 0xac),            // KVM_SET_ONE_REG
    write::<kvm_vcpu_init>(KVM, 0xae),          // KVM_ARM_VCPU_INIT
    read::<kvm_vcpu_init>(KVM, 0xaf),           // KVM_ARM_PREFERRED_TARGET
    read_write::<kvm_create_device>(KVM, 0xe0), // KVM_CREATE_DEVICE: the GICv3
    write::<kvm_device_attr>(KVM, 0xe1),        // KVM_SET_DEVICE_ATTR: the same
    write::<kvm_device_attr>(KVM, 0xe2),        // KVM_GET_DEVICE_ATTR: the same, for snapshots
];

/// Calls of [`fetcher::CALLS`](super::fetcher::CALLS).
pub(in super::super) const FETCHER: &[i64] = &[];
