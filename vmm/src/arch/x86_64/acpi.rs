//! The smallest ACPI that a stock kernel accepts: it names the processors, the interrupts of the serial ports, persistent memory
//! where there is some, and the way to switch the machine off.
//!
//! "Hardware-reduced" ACPI has no fixed registers to emulate but two: sleep control, by which the guest powers off, and
//! reset, which is the keyboard controller's. It also keeps the kernel from looking for a PC's old devices, each of which
//! would cost it time: the 8259 interrupt controllers, the 8254 timer, the CMOS clock, the keyboard, VGA.
//! (ACPI 6.5, 4.1 "Hardware-Reduced ACPI", 5.2 "ACPI System Description Tables".)

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate, ZERO};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::power::{RESET_PULSE, SLEEP_TYPE_S5};
use super::{ioapic, layout};

const OEM: [u8; 6] = *b"MINIVM";
const TABLE: [u8; 8] = *b"MINIVM  ";
/// The DSDT's revision from which integers have 64 bits.
const DSDT_REVISION: u8 = 2;
const SDT_HEADER: u32 = 36;
/// FADT, IAPC_BOOT_ARCH: VGA not present, CMOS clock not present (5.2.9.3 "IA-PC Boot Architecture Flags").
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;

/// The handle of the memory device behind persistent memory, and all indices in the NFIT.
const NVDIMM: u8 = 1;
/// The type of a range of persistent memory, 66f0d379-b4f3-4074-ac43-0d3318b78cdb, whose first three parts are little endian, and
/// its attributes: EFI_MEMORY_NV and EFI_MEMORY_WB (5.2.25.2 "System Physical Address (SPA) Range Structure").
const PERSISTENT: [u8; 16] = *b"\x79\xd3\xf0\x66\xf3\xb4\x74\x40\xac\x43\x0d\x33\x18\xb7\x8c\xdb";
const WRITE_BACK: u64 = 0x8008;
/// The flag of a memory device that can't keep what is written to it (5.2.25.3): Linux takes it for read-only.
const NOT_ARMED: u16 = 1 << 3;

/// Returns all tables of a machine with `cpus` vCPUs, `uarts` UARTs and this range of persistent memory, as they stand in memory
/// from [`layout::ACPI`] on, the RSDP first.
pub(crate) fn tables(cpus: u8, uarts: usize, pmem: Option<Range<u64>>) -> Vec<u8> {
    let mut area = Area::default();
    // The RSDP comes first and points to what comes later, so its place is kept free.
    area.bytes.resize(Rsdp::len().next_multiple_of(16), 0);
    let dsdt = area.add(&dsdt(uarts, pmem.is_some()));
    let fadt = area.add(&bytes(&fadt(dsdt)));
    let madt = area.add(&bytes(&madt(cpus)));
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if let Some(range) = pmem {
        xsdt.add_entry(area.add(&nfit(range)));
    }
    let xsdt = area.add(&bytes(&xsdt));
    area.bytes[..Rsdp::len()].copy_from_slice(&bytes(&Rsdp::new(OEM, xsdt)));
    area.bytes
}

/// Tables one behind the other.
#[derive(Default)]
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table; returns its guest-physical address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let at = layout::ACPI.0 + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        at
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The fixed description: no fixed hardware but sleep control and reset.
fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup);
    fadt.reset_reg = port(layout::I8042_COMMAND_PORT);
    fadt.reset_value = RESET_PULSE;
    fadt.sleep_control_reg = port(layout::ACPI_SLEEP_PORT);
    fadt.sleep_status_reg = port(layout::ACPI_SLEEP_PORT + 1);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
    fadt.finalize()
}

/// The interrupt controllers: a local APIC a vCPU, and the IOAPIC.
fn madt(cpus: u8) -> MADT {
    let address = u32::try_from(layout::LOCAL_APIC.0).expect("below 4 GiB");
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(address));
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    let address = u32::try_from(layout::IOAPIC.0).expect("below 4 GiB");
    madt.add_structure(IoApic::new(ioapic::ID, address, 0));
    madt
}

/// The persistent memory: a range of addresses, the memory device that it leads to, and that device's registers, of which it has
/// none. Linux looks for the flag by way of all three. (5.2.25 "NVDIMM Firmware Interface Table"; Linux 6.12,
/// `acpi_nfit_register_dimms`.)
fn nfit(range: Range<u64>) -> Vec<u8> {
    let (index, size) = (NVDIMM.into(), range.end - range.start);
    let mut table = Sdt::new(*b"NFIT", SDT_HEADER + 4, 1, OEM, TABLE, 1);
    // Type 0 of structures: its length, the range's index; no flags, nor a domain of proximity.
    table.append([0, 56, index, 0, 0, 0, 0, 0u16]);
    table.append(PERSISTENT);
    table.append([range.start, size, WRITE_BACK]);
    // Type 1: length, the device's handle (two words), no other identifiers, the indices of the range and of type 4.
    table.append([1, 48, index, 0, 0, 0, index, index]);
    table.append([size, 0, 0]);
    // No interleaving: one way.
    table.append([0, 1, NOT_ARMED, 0]);
    // Type 4: length, index; a device of no vendor, whose serial number is 1, accessed by the byte (0x301), without windows.
    table.append([4, 32, index, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x301, 0u16]);
    table.as_slice().to_vec()
}

/// The definition block: UARTs, persistent memory if there is some, and the value that means "off".
fn dsdt(uarts: usize, has_pmem: bool) -> Vec<u8> {
    let mut aml = Vec::new();
    for ((port, irq), uid) in layout::UARTS.into_iter().take(uarts).zip(1..) {
        serial_port(uid, port, irq, &mut aml);
    }
    if has_pmem {
        // The NVDIMM root device, and the device with that handle (9.20 "NVDIMM Devices").
        let nvdimm = Name::new("_ADR".into(), &NVDIMM);
        let nvdimm = Device::new("NVD1".into(), vec![&nvdimm]);
        let id = Name::new("_HID".into(), &"ACPI0012");
        Device::new("\\_SB_.NVDR".into(), vec![&id, &nvdimm]).to_aml_bytes(&mut aml);
    }
    Name::new(
        "\\_S5_".into(),
        &Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5, &ZERO, &ZERO]),
    )
    .to_aml_bytes(&mut aml);
    let mut table = Sdt::new(*b"DSDT", SDT_HEADER, DSDT_REVISION, OEM, TABLE, 1);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// A 16550A-compatible UART. The interrupt is an edge, active high, as on ISA.
fn serial_port(uid: u8, port: u16, irq: u8, aml: &mut Vec<u8>) {
    let ports = u8::try_from(layout::COM_PORTS).expect("8");
    Device::new(
        (&*format!("\\_SB_.COM{uid}")).into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &uid),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(port, port, 1, ports),
                    &Interrupt::new(true, true, false, false, irq.into()),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn table(area: &[u8], address: u64) -> &[u8] {
        let at = usize::try_from(address - layout::ACPI.0).unwrap();
        let len = u32::from_le_bytes(area[at + 4..at + 8].try_into().unwrap());
        &area[at..at + usize::try_from(len).unwrap()]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_tables_are_linked_and_their_checksums_hold() {
        let area = tables(4, 2, None);
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!(sum(&area[..36]), 0);
        let xsdt = table(&area, u64_at(&area, 24));
        let (fadt, madt) = (
            table(&area, u64_at(xsdt, 36)),
            table(&area, u64_at(xsdt, 44)),
        );
        let dsdt = table(&area, u64_at(fadt, 140));
        for (signature, table) in [
            (b"XSDT", xsdt),
            (b"FACP", fadt),
            (b"APIC", madt),
            (b"DSDT", dsdt),
        ] {
            assert_eq!(&table[..4], signature);
            assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(signature));
        }
        // The MADT's header, four local APICs and one IOAPIC.
        assert_eq!(madt.len(), 44 + 4 * 8 + 12);
        assert!(area.len() < usize::try_from(layout::ACPI_END.0 - layout::ACPI.0).unwrap());
    }

    fn has(table: &[u8], bytes: &[u8]) -> bool {
        table.windows(bytes.len()).any(|part| part == bytes)
    }

    /// The tables of a machine without persistent memory are those from before there was any.
    #[test]
    fn tables_without_persistent_memory_do_not_speak_of_it() {
        let area = tables(4, 2, None);
        assert_eq!(table(&area, u64_at(&area, 24)).len(), 36 + 2 * 8);
        assert!(!has(&area, b"ACPI0012") && !has(&area, b"NFIT"));
        let with = tables(4, 2, Some(1 << 32..3 << 31));
        assert!(has(&with, b"ACPI0012\0") && has(&with, b"NFIT"));
    }

    /// Guests and their templates know the tables of machines without COM3: they stay as they are, byte for byte.
    #[test]
    fn tables_with_com3_have_one_uart_more_and_without_are_as_ever() {
        for (area, known) in [
            (tables(1, 2, None), [0xa0, 0x29, 0xdb, 0xc3]),
            (
                tables(8, 2, Some(1 << 32..3 << 31)),
                [0x07, 0xd2, 0xfc, 0x93],
            ),
        ] {
            assert_eq!(Sha256::digest(&area)[..4], known);
            assert!(!has(&area, b"COM3"));
        }
        let with = tables(1, 3, None);
        let fadt = table(&with, u64_at(table(&with, u64_at(&with, 24)), 36));
        let dsdt = table(&with, u64_at(fadt, 140));
        let com3 = dsdt.windows(4).position(|name| name == b"COM3").unwrap();
        // Ports 0x3e8 to 0x3ef, and interrupt 5: an edge, not shared. (ACPI 6.5, 6.4.2.5 and 6.4.3.6.)
        let ports = [0x47, 1, 0xe8, 0x03, 0xe8, 0x03, 1, 8];
        let interrupt = [0x89, 6, 0, 0b011, 1, 5, 0, 0, 0];
        assert!(has(&dsdt[com3..], &ports) && has(&dsdt[com3..], &interrupt));
        assert_eq!(sum(dsdt), 0);
    }

    #[test]
    fn the_nfit_leads_from_a_range_to_a_device_that_is_not_armed() {
        let (start, size) = (5 << 30, 6 << 20);
        let area = tables(1, 2, Some(start..start + size));
        let xsdt = table(&area, u64_at(&area, 24));
        let nfit = table(&area, u64_at(xsdt, 36 + 2 * 8));
        assert_eq!((&nfit[..4], nfit[8], sum(nfit)), (&b"NFIT"[..], 1, 0));
        let u16_at = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut rest = &nfit[40..];
        let mut structures = Vec::new();
        while !rest.is_empty() {
            let (structure, more) = rest.split_at(u16_at(rest, 2).into());
            structures.push(structure);
            rest = more;
        }
        let [range, device, registers] = *structures else {
            panic!("{structures:?}")
        };
        // As ACPI 6.5 has them, in 5.2.25.2, .3 and .6.
        assert_eq!((u16_at(range, 0), range.len()), (0, 56));
        assert_eq!((u64_at(range, 32), u64_at(range, 40)), (start, size));
        assert_eq!(
            range[16..32],
            [
                0x79, 0xd3, 0xf0, 0x66, 0xf3, 0xb4, 0x74, 0x40, 0xac, 0x43, 0x0d, 0x33, 0x18, 0xb7,
                0x8c, 0xdb
            ]
        );
        assert_eq!((u16_at(device, 0), device.len()), (1, 48));
        assert_eq!(u16_at(device, 12), u16_at(range, 4), "the range's index");
        assert_eq!(
            u16_at(device, 14),
            u16_at(registers, 4),
            "the registers' index"
        );
        assert_eq!(
            (u64_at(device, 16), u16_at(device, 42)),
            (size, 1),
            "size, ways"
        );
        assert_eq!(u16_at(device, 44), 1 << 3, "not armed");
        assert_eq!((u16_at(registers, 0), registers.len()), (4, 32));
        assert_eq!(u16_at(registers, 30), 0, "windows");
        // Name (_ADR, 1), in the device's scope.
        assert_eq!((u16_at(device, 4), u16_at(device, 6)), (1, 0));
        let fadt = table(&area, u64_at(xsdt, 36));
        assert!(has(table(&area, u64_at(fadt, 140)), b"\x08_ADR\x01"));
    }
}
