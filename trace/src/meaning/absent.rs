//! Ports and addresses where a PC has a device and this machine has none: what a kernel looked for.
//!
//! (The Linux kernel's `arch/x86/kernel/setup.c`, `standard_io_resources`, and the data sheets of the devices.)

use super::board::{Architecture, Names};
use super::{Device, Meaning, hexadecimal};
use crate::event::Exit;

/// The devices of a PC, by their ports.
pub(super) const PC_PORTS: Names = &[
    (0x00..=0x1f, "first DMA controller"),
    (0x20..=0x21, "first 8259 interrupt controller"),
    (0x2e..=0x2f, "super I/O chip"),
    (0x40..=0x43, "8254 timer"),
    (0x4e..=0x4f, "super I/O chip"),
    (0x60..=0x60, "keyboard controller's data"),
    (0x61..=0x61, "speaker and NMI control"),
    (0x70..=0x71, "real-time clock"),
    (
        0x80..=0x80,
        "power-on self-test's code, also used for a short delay",
    ),
    (0x81..=0x8f, "DMA page registers"),
    (0x92..=0x92, "fast A20 gate"),
    (0xa0..=0xa1, "second 8259 interrupt controller"),
    (0xb2..=0xb3, "system management interrupt"),
    (0xc0..=0xdf, "second DMA controller"),
    (0xe9..=0xe9, "debug console of emulators"),
    (0xed..=0xed, "port for a short delay"),
    (0xf0..=0xff, "coprocessor"),
    (0x170..=0x177, "second IDE controller"),
    (0x1f0..=0x1f7, "first IDE controller"),
    (0x200..=0x207, "game port"),
    (0x278..=0x27f, "parallel port"),
    (0x2e8..=0x2ef, "COM4"),
    (0x376..=0x376, "second IDE controller"),
    (0x378..=0x37f, "parallel port"),
    (0x3b0..=0x3df, "VGA"),
    (0x3e8..=0x3ef, "COM3"),
    (0x3f0..=0x3f7, "floppy disk controller"),
    (0x402..=0x402, "debug console of SeaBIOS"),
    (0x4d0..=0x4d1, "8259's edge and level control"),
    (0x510..=0x51b, "QEMU's firmware configuration"),
    (0xcf8..=0xcff, "PCI configuration"),
    (0x5658..=0x5659, "VMware's back door"),
];

/// The devices of a PC, by their addresses.
pub(super) const PC_ADDRESSES: Names = &[
    (0xb000_0000..=0xbfff_ffff, "PCI Express configuration"),
    (0xe000_0000..=0xefff_ffff, "PCI Express configuration"),
    (0xfed0_0000..=0xfed0_03ff, "HPET timer"),
    (0xfed4_0000..=0xfed4_ffff, "TPM"),
    (0xfed8_0000..=0xfed8_ffff, "AMD's ACPI registers"),
    (0xfee0_0000..=0xfee0_0fff, "local APIC, which is off"),
    (0xff00_0000..=0xffff_ffff, "firmware"),
];

/// An access to a port without a device, or to an address without RAM or a device.
pub(super) fn access(architecture: Architecture, exit: &Exit) -> Meaning {
    let (place, table) = match exit.kind.is_port() {
        true => ("port", architecture.absent_ports()),
        false => ("address", architecture.absent_addresses()),
    };
    let name = table
        .iter()
        .find(|(places, _)| places.contains(&exit.address));
    let name = name.map(|(_, name)| *name);
    let shown = name.map_or(String::new(), |name| format!(" ({name})"));
    let address = exit.address;
    let (outcome, value) = match exit.kind.is_read() {
        true => ("reads as ones", String::new()),
        false => ("ignored:", hexadecimal(exit)),
    };
    let action = format!("nothing is at {place} {address:#x}{shown}: {outcome}");
    let mut meaning = Meaning::new(Device::Nothing, action).with(value);
    meaning.known = name.is_some();
    meaning
}

#[cfg(test)]
mod tests {
    use crate::event::Kind::{In, MmioRead, Out};
    use crate::meaning::tests::{access, meaning};
    use crate::meaning::{Architecture, Decoder};

    #[test]
    fn what_a_pc_has_there_is_named() {
        assert_eq!(
            meaning(&[(Out, 0x80, &[0x12])]),
            "nothing is at port 0x80 (power-on self-test's code, also used for a short delay): ignored: 0x12"
        );
        assert_eq!(
            meaning(&[(In, 0xcfc, &[0xff; 4])]),
            "nothing is at port 0xcfc (PCI configuration): reads as ones"
        );
        assert_eq!(
            meaning(&[(MmioRead, 0xfed0_0000, &[0xff; 4])]),
            "nothing is at address 0xfed00000 (HPET timer): reads as ones"
        );
    }

    #[test]
    fn a_place_where_a_pc_has_nothing_either_is_unknown() {
        let meaning = Decoder::of(Architecture::X86_64).decode(&access(In, 0x1234, &[0xff]));
        assert!(!meaning.known);
        assert_eq!(
            meaning.to_string(),
            "nothing is at port 0x1234: reads as ones"
        );
    }

    #[test]
    fn the_tables_are_in_order() {
        for table in [super::PC_PORTS, super::PC_ADDRESSES] {
            for pair in table.windows(2) {
                assert!(pair[0].0.end() < pair[1].0.start(), "{pair:?}");
            }
        }
    }
}
