//! Page tables and segments for the 64-bit entry.
//!
//! The boot protocol wants the kernel, the zero page and the command line mapped to themselves, and flat segments:
//! selector 0x10 for code, 0x18 for data. One GiB in pages of 2 MiB is enough; the kernel soon makes its own tables.
//! (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"; AMD APM vol. 2, "Long-Mode Page Translation".)

use kvm_bindings::kvm_segment;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout;

const PTE_PRESENT: u64 = 1 << 0;
const PTE_WRITABLE: u64 = 1 << 1;
const PTE_PAGE_SIZE: u64 = 1 << 7;
const ENTRIES: u64 = 512;

/// `__BOOT_CS`: the code segment's selector.
const BOOT_CS: u16 = 0x10;
/// `__BOOT_DS`: the data segment's selector.
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Segment types (AMD APM vol. 2, "Code-Segment Descriptors", "Data-Segment Descriptors", "System Descriptors").
const TYPE_CODE_EXECUTE_READ: u8 = 0xb;
const TYPE_DATA_READ_WRITE: u8 = 0x3;
const TYPE_BUSY_TSS: u8 = 0xb;

/// Bytes of the GDT: null, unused, code, data, and a TSS of two entries.
pub(crate) const GDT_SIZE: u16 = 6 * 8;

/// The flat 64-bit code segment.
pub(crate) fn code_segment() -> kvm_segment {
    kvm_segment {
        selector: BOOT_CS,
        type_: TYPE_CODE_EXECUTE_READ,
        l: 1,
        ..flat()
    }
}

/// The flat data segment.
pub(crate) fn data_segment() -> kvm_segment {
    kvm_segment {
        selector: BOOT_DS,
        type_: TYPE_DATA_READ_WRITE,
        db: 1,
        ..flat()
    }
}

/// A task state segment: a processor can't be in 64-bit mode without one, and no code uses it.
pub(crate) fn task_segment() -> kvm_segment {
    kvm_segment {
        selector: BOOT_TSS,
        type_: TYPE_BUSY_TSS,
        present: 1,
        limit: 0x67,
        ..Default::default()
    }
}

fn flat() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// Writes the GDT, an empty IDT, and the page tables.
pub(crate) fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let gdt = [
        0,
        0,
        descriptor(&code_segment()),
        descriptor(&data_segment()),
        descriptor(&task_segment()),
        0,
    ];
    for (index, entry) in (0u64..).zip(gdt) {
        memory.write_obj(entry, GuestAddress(layout::GDT.0 + index * 8))?;
    }
    memory.write_obj(0u64, layout::IDT)?;

    memory.write_obj(layout::PDPT.0 | PTE_PRESENT | PTE_WRITABLE, layout::PML4)?;
    memory.write_obj(layout::PD.0 | PTE_PRESENT | PTE_WRITABLE, layout::PDPT)?;
    for index in 0..ENTRIES {
        let page = (index << 21) | PTE_PRESENT | PTE_WRITABLE | PTE_PAGE_SIZE;
        memory.write_obj(page, GuestAddress(layout::PD.0 + index * 8))?;
    }
    Ok(())
}

/// A segment as the eight bytes of a descriptor table (AMD APM vol. 2, "Legacy Segment Descriptors").
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let bit = |value: u8, at: u32| u64::from(value) << at;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(segment.avl, 52)
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_that_linux_itself_uses() {
        // arch/x86/kernel/head_64.S, "gdt": __KERNEL_CS and __KERNEL_DS, with the accessed bit set.
        assert_eq!(descriptor(&code_segment()), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data_segment()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task_segment()), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_first_gib_is_mapped_to_itself() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        write(&memory).unwrap();
        let read = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(read(layout::PML4.0), 0xa003);
        assert_eq!(read(layout::PDPT.0), 0xb003);
        assert_eq!(read(layout::PD.0), 0x83);
        assert_eq!(read(layout::PD.0 + 511 * 8), (511 << 21) | 0x83);
        assert_eq!(
            read(layout::GDT.0 + u64::from(BOOT_CS)),
            descriptor(&code_segment())
        );
        assert_eq!(
            read(layout::GDT.0 + u64::from(BOOT_DS)),
            descriptor(&data_segment())
        );
    }
}
