//! The guest-physical memory map.
//!
//! ```text
//!            0 ┌──────────────────────────────┐
//!              │ real-mode leftovers (unused) │
//!        0x500 │ GDT, empty IDT               │
//!       0x7000 │ zero page (boot_params)      │
//!       0x8000 │ boot stack, downwards 0x8ff0 │
//!       0x9000 │ page tables: PML4, PDPT, PD  │
//!      0x20000 │ kernel command line          │
//!      0x9fc00 ├──────────────────────────────┤ end of conventional memory
//!              │ (where a PC has its screen)  │
//!      0xe0000 │ ACPI tables                  │
//!      0xf0000 │ setup_data: the random seed  │
//!      0xffff0 │ where real mode resets to    │
//!     0x100000 ├──────────────────────────────┤ 1 MiB: RAM again
//!              │ kernel, where it asks to be  │
//!              │  …                           │
//!              │ initramfs, at the top        │
//!   ≤ 0xc0000000 ├────────────────────────────┤ 3 GiB: the hole
//!   0xfec00000 │ IOAPIC (emulated here)       │
//!   0xfee00000 │ local APICs (in KVM)         │
//!   0xfffbd000 │ three pages that KVM needs   │
//!  0x100000000 ├──────────────────────────────┤ 4 GiB: the rest of RAM
//!   at a GiB   ├──────────────────────────────┤ persistent memory
//!              └──────────────────────────────┘
//! ```
//!
//! The public names are for authors of bare machine code ([`Kernel::Code`](crate::Kernel::Code)): the ends of RAM, and the devices.
//! Kernels get the addresses of the boot data in registers and in the zero page.
//!
//! The low addresses are the conventional ones of x86 boot loaders. None of this data has to survive the first moments
//! of the kernel, except the part from 0xe0000 on that the e820 map reserves.

use vm_memory::GuestAddress;

use crate::error::Result;

/// The global descriptor table.
pub(crate) const GDT: GuestAddress = GuestAddress(0x500);
/// An interrupt descriptor table with no entry: an exception before the kernel has its own is a triple fault.
pub(crate) const IDT: GuestAddress = GuestAddress(0x540);
/// The zero page: `struct boot_params`.
pub(crate) const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The first stack; it grows down from here.
pub(crate) const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// The top-level page table.
pub(crate) const PML4: GuestAddress = GuestAddress(0x9000);
/// The page directory pointer table.
pub(crate) const PDPT: GuestAddress = GuestAddress(0xa000);
/// The page directory: 512 entries of 2 MiB map the first GiB to itself.
pub(crate) const PD: GuestAddress = GuestAddress(0xb000);
/// The first address that the page tables don't map to itself. A kernel has to end below it.
pub(crate) const MAPPED_END: GuestAddress = GuestAddress(0x4000_0000);
/// The kernel's command line.
pub(crate) const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// The longest command line in bytes, without the closing NUL: x86's `COMMAND_LINE_SIZE` is 2048.
pub(crate) const CMDLINE_MAX: usize = 2047;
/// The `setup_data` node with the random seed. It lies where the e820 map has no RAM: elsewhere the kernel would cut the
/// map in pieces around it, and look through a longer map all the while it boots.
pub(crate) const SETUP_DATA: GuestAddress = GuestAddress(0xf_0000);
/// End of conventional memory, as a PC's firmware reports it.
pub(crate) const LOW_RAM_END: GuestAddress = GuestAddress(0x9_fc00);
/// The ACPI tables' first byte; the RSDP stands here, where old kernels search for it.
pub(crate) const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// The reset vector, where a PC's firmware starts in real mode. A kernel that asks the firmware for a reset jumps there.
pub(crate) const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// The first byte behind the ACPI tables and the reset vector.
pub(crate) const ACPI_END: GuestAddress = GuestAddress(0x10_0000);
/// RAM above 1 MiB: kernels are loaded at or above it.
pub const HIGH_RAM: GuestAddress = GuestAddress(0x10_0000);
/// The lowest address of a kernel or of bare code, and the first one behind those that they can have.
pub(crate) const KERNEL: GuestAddress = HIGH_RAM;
pub(crate) const KERNEL_END: GuestAddress = MAPPED_END;
/// The first address of the hole in RAM, which reaches to 4 GiB and has the interrupt controllers' registers.
pub const HOLE: GuestAddress = GuestAddress(0xc000_0000);
/// The IOAPIC's registers.
pub const IOAPIC: GuestAddress = GuestAddress(0xfec0_0000);
/// The local APIC's registers.
pub const LOCAL_APIC: GuestAddress = GuestAddress(0xfee0_0000);
/// Three pages that KVM uses on Intel processors to emulate real mode.
pub(crate) const KVM_TSS: GuestAddress = GuestAddress(0xfffb_d000);
/// The first address behind the hole, where RAM continues.
pub const ABOVE_HOLE: GuestAddress = GuestAddress(0x1_0000_0000);

/// COM1's first I/O port: the console.
pub const COM1_PORT: u16 = 0x3f8;
/// COM2's first I/O port: the control channel.
pub const COM2_PORT: u16 = 0x2f8;
/// COM3's first I/O port, in machines that have it: the bell of shared folders.
pub const COM3_PORT: u16 = 0x3e8;
/// Each UART's first I/O port and interrupt. A PC's COM3 has COM1's interrupt, but two edges can't share a line.
pub const UARTS: [(u16, u8); 3] = [(COM1_PORT, 4), (COM2_PORT, 3), (COM3_PORT, 5)];
/// A UART's eight registers.
pub(crate) const COM_PORTS: u16 = 8;
/// The keyboard controller's command port; the pulse of its reset line is the only command that is emulated.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// ACPI's sleep control and sleep status registers, one port each.
pub const ACPI_SLEEP_PORT: u16 = 0x600;

/// Returns the layout of `bytes` of RAM: address and size of the part below the hole, and of the part above it if there is one.
pub(crate) fn ram(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(HOLE.0);
    let mut parts = vec![(GuestAddress(0), low)];
    if bytes > low {
        parts.push((ABOVE_HOLE, bytes - low));
    }
    parts
}

/// Returns the place of persistent memory beside `bytes` of RAM: the next GiB behind RAM and the hole.
///
/// # Errors
///
/// None on x86-64. Machines of arm64 have no persistent memory.
pub fn pmem(bytes: u64) -> Result<GuestAddress> {
    let ends = ram(bytes).into_iter().map(|(base, size)| base.0 + size);
    let end = ends.fold(ABOVE_HOLE.0, u64::max);
    Ok(GuestAddress(end.next_multiple_of(1 << 30)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_everything_is_in_order() {
        let map = [
            (GDT.0, 0x40),
            (IDT.0, 0x10),
            (ZERO_PAGE.0, 0x1000),
            (BOOT_STACK.0 - 0xff0, 0xff0),
            (PML4.0, 0x1000),
            (PDPT.0, 0x1000),
            (PD.0, 0x1000),
            (CMDLINE.0, CMDLINE_MAX as u64 + 1),
            (LOW_RAM_END.0, 0),
            (ACPI.0, SETUP_DATA.0 - ACPI.0),
            (SETUP_DATA.0, 0x1000),
            (RESET_VECTOR.0, ACPI_END.0 - RESET_VECTOR.0),
            (HIGH_RAM.0, HOLE.0 - HIGH_RAM.0),
            (IOAPIC.0, 0x1000),
            (LOCAL_APIC.0, 0x1000),
            (KVM_TSS.0, 0x3000),
            (ABOVE_HOLE.0, 0),
        ];
        for pair in map.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:#x?}");
        }
    }

    #[test]
    fn ram_is_split_at_the_hole() {
        assert_eq!(ram(256 << 20), [(GuestAddress(0), 256 << 20)]);
        assert_eq!(ram(3 << 30), [(GuestAddress(0), 3 << 30)]);
        assert_eq!(
            ram(4 << 30),
            [(GuestAddress(0), 3 << 30), (ABOVE_HOLE, 1 << 30)]
        );
    }

    #[test]
    fn persistent_memory_begins_behind_ram_and_the_hole() {
        const GIB: u64 = 1 << 30;
        let places = [
            (32 << 20, 4),
            (3 * GIB, 4),
            (3 * GIB + 4096, 5),
            (4 * GIB, 5),
            (1 << 40, 1025),
        ];
        for (ram, place) in places {
            assert_eq!(pmem(ram).unwrap().0, place * GIB, "{ram:#x}");
        }
    }
}
