//! The IOAPIC's registers. (Intel 82093AA, "IOAPIC Registers".)

use super::{Device, Meaning, hexadecimal};
use crate::event::Exit;

/// Bytes of its address space.
pub(super) const SIZE: u64 = 0x1000;

/// The memory-mapped registers: the number of an indirect register, and its value.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

/// What the meaning of its registers depends on.
#[derive(Debug, Default)]
pub(super) struct IoApic {
    /// The register that was selected last; not known before the first time.
    selected: Option<u8>,
}

/// An indirect register.
enum Register {
    Id,
    Version,
    Arbitration,
    /// The low half of a pin's entry: how its interrupt is delivered.
    Low(u8),
    /// The high half: to which processor.
    High(u8),
    Undefined(u8),
}

impl Register {
    fn of(number: u8) -> Self {
        match number {
            0 => Register::Id,
            1 => Register::Version,
            2 => Register::Arbitration,
            // The data sheet's has 24 pins, and numbers would suffice for 120.
            0x10.. if number.is_multiple_of(2) => Register::Low((number - 0x10) / 2),
            0x10.. => Register::High((number - 0x10) / 2),
            _ => Register::Undefined(number),
        }
    }

    fn name(&self) -> String {
        match self {
            Register::Id => "its ID".into(),
            Register::Version => "its version".into(),
            Register::Arbitration => "its arbitration ID".into(),
            Register::Low(pin) => format!("pin {pin}'s delivery"),
            Register::High(pin) => format!("pin {pin}'s destination"),
            Register::Undefined(number) => format!("register {number:#04x}, which is undefined"),
        }
    }
}

impl IoApic {
    pub(super) fn decode(&mut self, offset: u64, exit: &Exit) -> Meaning {
        let meaning = |action: &'static str| Meaning::new(Device::IoApic, action);
        match (offset, exit.kind.is_read()) {
            (SELECT, true) => meaning("which register is selected?").with(hexadecimal(exit)),
            (SELECT, false) => {
                let number = exit.data.bytes().first().copied().unwrap_or_default();
                self.selected = Some(number);
                meaning("select").with(Register::of(number).name())
            }
            (WINDOW, read) => match self.selected.map(Register::of) {
                None => meaning("access to the register that was selected before the trace:")
                    .with(hexadecimal(exit)),
                Some(register) => window(&register, read, exit),
            },
            (_, true) => meaning("read where it has no register"),
            (_, false) => meaning("write where it has no register: ignored"),
        }
    }
}

/// The meaning of an access to the selected register.
fn window(register: &Register, read: bool, exit: &Exit) -> Meaning {
    let Ok(value) = u32::try_from(exit.data.value()) else {
        return Meaning::new(Device::IoApic, "access of a wrong size: ignored");
    };
    let action = match (register, read) {
        (Register::Low(_) | Register::High(_), true) => "read a pin's entry:",
        (Register::Low(_) | Register::High(_), false) => "set a pin's entry:",
        (_, true) => "read",
        (_, false) => "set",
    };
    Meaning::new(Device::IoApic, action).with(match register {
        Register::Id | Register::Arbitration => {
            format!("{} = {}", register.name(), value >> 24 & 0xf)
        }
        Register::Version => {
            let pins = (value >> 16 & 0xff) + 1;
            format!("{} = {:#04x}, {pins} pins", register.name(), value & 0xff)
        }
        Register::Low(pin) => format!("pin {pin} → {}", delivery(value)),
        Register::High(pin) => format!("pin {pin} → destination {}", value >> 24),
        Register::Undefined(_) => format!("{} = {value:#010x}", register.name()),
    })
}

/// Describes the low half of an entry: vector, delivery mode, destination mode, polarity, trigger mode and mask.
fn delivery(entry: u32) -> String {
    let mode = match entry >> 8 & 7 {
        0 => "",
        1 => ", lowest priority",
        2 => ", SMI",
        4 => ", NMI",
        5 => ", INIT",
        7 => ", as from an 8259",
        _ => ", undefined mode",
    };
    let logical = if entry & 1 << 11 != 0 {
        ", logical"
    } else {
        ", physical"
    };
    let polarity = if entry & 1 << 13 != 0 {
        ", active low"
    } else {
        ""
    };
    let trigger = if entry & 1 << 15 != 0 {
        ", level"
    } else {
        ", edge"
    };
    let mask = if entry & 1 << 16 != 0 {
        ", masked"
    } else {
        ", unmasked"
    };
    format!(
        "vector {:#04x}{mode}{logical}{trigger}{polarity}{mask}",
        entry & 0xff
    )
}

#[cfg(test)]
mod tests {
    use crate::event::Kind::{MmioRead, MmioWrite};
    use crate::meaning::tests::meaning;

    const SELECT: u64 = 0xfec0_0000;
    const WINDOW: u64 = 0xfec0_0010;

    /// The meaning of an access to the window, after `number` was selected.
    fn selected(number: u8, read: bool, value: u32) -> String {
        let kind = if read { MmioRead } else { MmioWrite };
        let value = value.to_le_bytes();
        meaning(&[
            (MmioWrite, SELECT, &[number, 0, 0, 0]),
            (kind, WINDOW, &value),
        ])
    }

    #[test]
    fn the_window_is_the_selected_register() {
        for (number, read, value, expected) in [
            (0x00, true, 0x0800_0000, "IOAPIC: read its ID = 8"),
            (
                0x01,
                true,
                0x0007_0011,
                "IOAPIC: read its version = 0x11, 8 pins",
            ),
            (
                0x18,
                false,
                0x24,
                "IOAPIC: set a pin's entry: pin 4 → vector 0x24, physical, edge, unmasked",
            ),
            (
                0x16,
                false,
                0x1_a931,
                "IOAPIC: set a pin's entry: pin 3 → vector 0x31, lowest priority, logical, level, active low, masked",
            ),
            (
                0x19,
                false,
                0x0200_0000,
                "IOAPIC: set a pin's entry: pin 4 → destination 2",
            ),
            (
                0x19,
                true,
                0,
                "IOAPIC: read a pin's entry: pin 4 → destination 0",
            ),
            (
                0x05,
                true,
                0xffff_ffff,
                "IOAPIC: read register 0x05, which is undefined = 0xffffffff",
            ),
        ] {
            assert_eq!(selected(number, read, value), expected);
        }
    }

    #[test]
    fn a_selection_is_named_by_what_it_selects() {
        for (number, expected) in [
            (1, "IOAPIC: select its version"),
            (0x18, "IOAPIC: select pin 4's delivery"),
            (0x19, "IOAPIC: select pin 4's destination"),
            (3, "IOAPIC: select register 0x03, which is undefined"),
        ] {
            assert_eq!(
                meaning(&[(MmioWrite, SELECT, &[number, 0, 0, 0])]),
                expected
            );
        }
    }

    #[test]
    fn a_selection_from_before_the_trace_is_not_made_up() {
        assert_eq!(
            meaning(&[(MmioRead, WINDOW, &[1, 2, 3, 4])]),
            "IOAPIC: access to the register that was selected before the trace: 0x04030201"
        );
    }
}
