//! The zero page: `struct boot_params`, a boot loader's report to the kernel.
//!
//! (`Documentation/arch/x86/zero-page.rst`, "Zero Page"; `boot.rst`, "64-bit Boot Protocol".)

use linux_loader::loader::bootparam::{SETUP_RNG_SEED, boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::initramfs::Placed;
use crate::layout;

/// e820 types (ACPI 6.5, 15.5 "System Address Map Interfaces").
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// "0x55aa", at the end of a boot sector.
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS": the setup header is there.
const HDRS: u32 = 0x5372_6448;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// The version of the boot protocol in an ELF kernel's zero page: such a kernel has no header of its own.
const PROTOCOL: u16 = 0x020f;

/// Bytes of seed for the kernel's random number generator, which takes so many at once.
pub(crate) const SEED_LEN: usize = 32;

/// Writes the zero page, the command line and the random seed.
pub(crate) fn write(
    memory: &GuestMemoryMmap,
    ram_bytes: u64,
    header: Option<setup_header>,
    cmdline: &str,
    initramfs: Placed,
    seed: [u8; SEED_LEN],
) -> Result<(), GuestMemoryError> {
    memory.write_slice(cmdline.as_bytes(), layout::CMDLINE)?;
    memory.write_obj(0u8, GuestAddress(layout::CMDLINE.0 + cmdline.len() as u64))?;
    memory.write_slice(&setup_data(seed), layout::SETUP_DATA)?;
    memory.write_obj(zero_page(ram_bytes, header, initramfs), layout::ZERO_PAGE)
}

fn zero_page(ram_bytes: u64, header: Option<setup_header>, initramfs: Placed) -> boot_params {
    let mut hdr = header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: HDRS,
        version: PROTOCOL,
        kernel_alignment: 0x100_0000,
        ..Default::default()
    });
    hdr.type_of_loader = LOADER_UNDEFINED;
    hdr.cmd_line_ptr = low_half(layout::CMDLINE.0);
    hdr.setup_data = layout::SETUP_DATA.0;
    hdr.ramdisk_image = low_half(initramfs.start);
    hdr.ramdisk_size = low_half(initramfs.size);

    let mut params = boot_params {
        hdr,
        acpi_rsdp_addr: layout::ACPI.0,
        ..Default::default()
    };
    for (slot, entry) in params.e820_table.iter_mut().zip(e820(ram_bytes)) {
        *slot = entry;
        params.e820_entries += 1;
    }
    params
}

/// Returns an address or size as 32 bits: all of those here lie below 4 GiB.
fn low_half(value: u64) -> u32 {
    u32::try_from(value).expect("low RAM ends at 3 GiB")
}

/// Returns the memory map that the kernel sees.
fn e820(ram_bytes: u64) -> Vec<boot_e820_entry> {
    let entry = |start: u64, end: u64, kind| boot_e820_entry {
        addr: start,
        size: end - start,
        r#type: kind,
    };
    let mut map = vec![
        entry(0, layout::LOW_RAM_END.0, E820_RAM),
        entry(layout::ACPI.0, layout::ACPI_END.0, E820_RESERVED),
    ];
    for (base, size) in layout::ram(ram_bytes) {
        map.push(entry(
            base.0.max(layout::HIGH_RAM.0),
            base.0 + size,
            E820_RAM,
        ));
    }
    map
}

/// Returns the node of the setup_data list (`boot.rst`, "setup_data"): next, type, length, and the seed. Without it the first
/// `getrandom` in the guest waits until the kernel has scraped together entropy of its own, which can take seconds.
fn setup_data(seed: [u8; SEED_LEN]) -> Vec<u8> {
    let mut node = Vec::new();
    node.extend(0u64.to_le_bytes());
    node.extend(SETUP_RNG_SEED.to_le_bytes());
    node.extend(u32::try_from(seed.len()).expect("32").to_le_bytes());
    node.extend(seed);
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_leaves_out_the_hole_and_the_legacy_area() {
        let spans: Vec<_> = e820(4 << 30)
            .iter()
            .map(|entry| {
                ({ entry.addr }, { entry.addr } + { entry.size }, {
                    entry.r#type
                })
            })
            .collect();
        assert_eq!(
            spans,
            [
                (0, 0x9_fc00, E820_RAM),
                (0xe_0000, 0x10_0000, E820_RESERVED),
                (0x10_0000, 0xc000_0000, E820_RAM),
                (0x1_0000_0000, 0x1_4000_0000, E820_RAM),
            ]
        );
    }

    #[test]
    fn a_bzimages_header_is_kept() {
        let header = setup_header {
            version: 0x20c,
            init_size: 77,
            ..Default::default()
        };
        let page = zero_page(
            32 << 20,
            Some(header),
            Placed {
                start: 0x100_0000,
                size: 5,
            },
        );
        assert_eq!(({ page.hdr.version }, { page.hdr.init_size }), (0x20c, 77));
        assert_eq!(
            ({ page.hdr.ramdisk_image }, { page.hdr.ramdisk_size }),
            (0x100_0000, 5)
        );
        assert_eq!({ page.hdr.cmd_line_ptr }, 0x2_0000);
    }

    #[test]
    fn the_seed_is_a_setup_data_node() {
        let node = setup_data([7; SEED_LEN]);
        assert_eq!(
            node[..16],
            [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0]
        );
        assert_eq!(node[16..], [7; 32]);
    }
}
