//! The guest-physical memory map.
//!
//! ```text
//!            0 ┌──────────────────────────────┐
//!    0x8000000 │ GICv3: distributor (in KVM)  │
//!    0x80a0000 │ redistributors, one a vCPU   │
//!    0x9000000 │ COM1 (emulated here)         │
//!    0x9010000 │ COM2 (emulated here)         │
//!    0x9020000 │ COM3 (emulated here)         │
//!   0x80000000 ├──────────────────────────────┤ 2 GiB: RAM
//!              │ device tree                  │
//!   0x80200000 │ kernel                       │
//!              │  …                           │
//!              │ initramfs, at the top        │
//!              └──────────────────────────────┘
//! ```
//!
//! The constants are for authors of bare machine code ([`Kernel::Code`](crate::Kernel::Code)): the beginning of RAM, and the
//! devices. Kernels get the addresses from the device tree.

use vm_memory::GuestAddress;

use crate::config::MEMORY_MAX;
use crate::error::{Error, Result};

/// The GIC's distributor, and the bytes that its registers take.
pub const GIC_DISTRIBUTOR: GuestAddress = GuestAddress(0x800_0000);
pub(crate) const GIC_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// The GIC's redistributors, one behind the other, and the bytes that the registers of one take.
pub const GIC_REDISTRIBUTORS: GuestAddress = GuestAddress(0x80a_0000);
pub(crate) const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// COM1's first register: the console. Each UART has a page of its own, of the largest size that there is.
pub const COM1: GuestAddress = GuestAddress(0x900_0000);
/// COM2's first register: the control channel.
pub const COM2: GuestAddress = GuestAddress(0x901_0000);
/// COM3's first register, in machines that have it: the bell of shared folders.
pub const COM3: GuestAddress = GuestAddress(0x902_0000);
/// Each UART's first register and interrupt, a shared peripheral one (SPI).
pub const UARTS: [(GuestAddress, u8); 3] = [(COM1, 0), (COM2, 1), (COM3, 2)];
/// A UART's eight registers, one byte each.
pub(crate) const COM_SIZE: u64 = 8;

/// RAM's first address.
pub const RAM: GuestAddress = GuestAddress(0x8000_0000);
/// The device tree, which a kernel maps by 2 MiB.
pub(crate) const TREE: GuestAddress = RAM;
/// The most bytes of a device tree.
pub(crate) const TREE_MAX: usize = 2 << 20;
/// The lowest address of a kernel or of bare code, and the first one behind those that they can have.
pub const KERNEL: GuestAddress = GuestAddress(RAM.0 + TREE_MAX as u64);
pub(crate) const KERNEL_END: GuestAddress = GuestAddress(RAM.0 + MEMORY_MAX);
/// The bytes of RAM in which a kernel finds its initramfs: "a window of up to 32 GB", aligned to 1 GiB, that has the kernel in it
/// too. (`Documentation/arch/arm64/booting.rst`.)
pub(crate) const INITRAMFS_WINDOW: u64 = 32 << 30;

/// The longest command line in bytes, without the closing NUL: arm64's `COMMAND_LINE_SIZE` is 2048.
pub(crate) const CMDLINE_MAX: usize = 2047;

/// Returns the layout of `bytes` of RAM: address and size of its one part.
pub(crate) fn ram(bytes: u64) -> Vec<(GuestAddress, u64)> {
    vec![(RAM, bytes)]
}

/// Returns the error for a machine that should have persistent memory: no device tree describes it here.
pub fn pmem(_bytes: u64) -> Result<GuestAddress> {
    let text = "an arm64 machine has no persistent memory: leave --pmem out";
    Err(Error::Config(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CPUS_MAX;

    #[test]
    fn nothing_overlaps_and_everything_is_in_order() {
        let map = [
            (GIC_DISTRIBUTOR.0, GIC_DISTRIBUTOR_SIZE),
            (
                GIC_REDISTRIBUTORS.0,
                GIC_REDISTRIBUTOR_SIZE * u64::from(CPUS_MAX),
            ),
            (COM1.0, 0x1_0000),
            (COM2.0, 0x1_0000),
            (COM3.0, 0x1_0000),
            (TREE.0, TREE_MAX as u64),
            (KERNEL.0, 0),
        ];
        for pair in map.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:#x?}");
        }
    }
}
