//! Boards: where each architecture's machine has its devices. All others of a trace's modules are the same for both.

use std::ops::RangeInclusive;

use super::{absent, ioapic};
use crate::event::Exit;

/// The registers of a UART, one byte each.
const UART_SIZE: u64 = 8;

/// The architecture of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64: a PC's devices, at I/O ports most of them.
    X86_64,
    /// arm64: all devices are in memory.
    Arm64,
}

/// A device's register, or a place without a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The number of a UART, from 0 on, and of its register.
    Uart(usize, u8),
    /// The offset of a register of the IOAPIC's.
    IoApic(u64),
    SleepControl,
    SleepStatus,
    KeyboardCommand,
    Nothing,
}

/// Names of places where no device is.
pub(super) type Names = &'static [(RangeInclusive<u64>, &'static str)];

impl Architecture {
    /// The architecture of this program's own machines.
    pub const HERE: Architecture = if cfg!(target_arch = "aarch64") {
        Architecture::Arm64
    } else {
        Architecture::X86_64
    };

    /// Returns the ports or addresses of the data registers of COM1, COM2 and COM3.
    pub(crate) fn uarts(self) -> [u64; 3] {
        match self {
            Architecture::X86_64 => [0x3f8, 0x2f8, 0x3e8],
            Architecture::Arm64 => [0x900_0000, 0x901_0000, 0x902_0000],
        }
    }

    /// Returns the place that an access goes to.
    pub(super) fn place(self, exit: &Exit) -> Place {
        let register = |(number, first): (usize, u64)| {
            let offset = exit.address.checked_sub(first)?;
            let register = u8::try_from(offset).ok().filter(|_| offset < UART_SIZE)?;
            Some(Place::Uart(number, register))
        };
        let uart = self.uarts().into_iter().enumerate().find_map(register);
        match (self, exit.kind.is_port()) {
            (Architecture::X86_64, true) => uart.unwrap_or_else(|| pc_port(exit.address)),
            (Architecture::Arm64, false) => uart.unwrap_or(Place::Nothing),
            (Architecture::X86_64, false) => pc_address(exit.address),
            (Architecture::Arm64, true) => Place::Nothing,
        }
    }

    /// Returns the names of ports without a device.
    pub(super) fn absent_ports(self) -> Names {
        match self {
            Architecture::X86_64 => absent::PC_PORTS,
            Architecture::Arm64 => &[],
        }
    }

    /// Returns the names of addresses without RAM or a device.
    pub(super) fn absent_addresses(self) -> Names {
        match self {
            Architecture::X86_64 => absent::PC_ADDRESSES,
            Architecture::Arm64 => &[],
        }
    }
}

/// Returns the place of a PC's port that isn't a UART's.
fn pc_port(port: u64) -> Place {
    match port {
        0x64 => Place::KeyboardCommand,
        0x600 => Place::SleepControl,
        0x601 => Place::SleepStatus,
        _ => Place::Nothing,
    }
}

/// Returns the place of a PC's address.
fn pc_address(address: u64) -> Place {
    match address.checked_sub(0xfec0_0000) {
        Some(offset) if offset < ioapic::SIZE => Place::IoApic(offset),
        _ => Place::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Kind::{self, In, MmioRead, MmioWrite, Out};
    use crate::meaning::tests::access;
    use minivm_vmm::layout;

    fn place(of: Architecture, kind: Kind, address: u64) -> Place {
        of.place(&access(kind, address, &[0]))
    }

    #[test]
    fn the_devices_of_arm64_are_in_memory() {
        for (kind, address, expected) in [
            (MmioWrite, 0x900_0000, Place::Uart(0, 0)),
            (MmioRead, 0x900_0007, Place::Uart(0, 7)),
            (MmioRead, 0x900_0008, Place::Nothing),
            (MmioWrite, 0x901_0000, Place::Uart(1, 0)),
            (MmioRead, 0x902_0001, Place::Uart(2, 1)),
            (MmioRead, 0x903_0000, Place::Nothing),
            (MmioRead, 0x8ff_ffff, Place::Nothing),
            (MmioRead, 0xfec0_0000, Place::Nothing),
            (Out, 0x3f8, Place::Nothing),
            (In, 0x64, Place::Nothing),
        ] {
            assert_eq!(place(Architecture::Arm64, kind, address), expected);
        }
    }

    #[test]
    fn neighbours_of_a_pcs_device_are_not_the_device() {
        for (kind, address) in [
            (Out, 0x3f7),
            (Out, 0x400),
            (In, 0x2f7),
            (In, 0x300),
            (Out, 0x3e7),
            (In, 0x3f0),
            (Out, 0x63),
            (Out, 0x602),
            (MmioRead, 0x900_0000),
            (MmioRead, 0x3f8),
            (MmioRead, 0xfebf_fffc),
            (MmioRead, 0xfec0_1000),
        ] {
            let found = place(Architecture::X86_64, kind, address);
            assert_eq!(found, Place::Nothing, "{address:#x}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_places_are_those_of_the_machine() {
        let here = Architecture::HERE;
        assert_eq!(here.uarts(), layout::UARTS.map(|(port, _)| u64::from(port)));
        assert_eq!(
            pc_port(layout::I8042_COMMAND_PORT.into()),
            Place::KeyboardCommand
        );
        assert_eq!(pc_port(layout::ACPI_SLEEP_PORT.into()), Place::SleepControl);
        assert_eq!(pc_address(layout::IOAPIC.0), Place::IoApic(0));
    }

    #[test]
    #[cfg(target_arch = "aarch64")]
    fn the_places_are_those_of_the_machine() {
        let uarts = layout::UARTS.map(|(address, _)| address.0);
        assert_eq!(Architecture::HERE.uarts(), uarts);
    }
}
