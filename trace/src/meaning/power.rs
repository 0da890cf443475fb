//! The two registers that end a machine: ACPI's sleep control, and the keyboard controller's command port.
//!
//! (ACPI 6.5, 4.8.3.7 "Sleep Control and Status Registers"; Intel 8042, "pulse output port".)

use minivm_vmm::layout;

use super::{Device, Meaning, hexadecimal};
use crate::event::Exit;

/// The sleep status register's port, behind that of the sleep control register.
pub(super) const SLEEP_STATUS_PORT: u16 = layout::ACPI_SLEEP_PORT + 1;

const SLEEP_ENABLE: u8 = 1 << 5;
/// Set when a machine wakes; writing a one clears it.
const WAKE_STATUS: u8 = 1 << 7;
/// The sleep type that the machine's DSDT gives to S5, "soft off".
const SLEEP_TYPE_S5: u8 = 5;

/// Commands of the keyboard controller's.
const PULSE_RESET: u8 = 0xfe;

/// An access to ACPI's registers.
pub(super) fn acpi(port: u16, exit: &Exit) -> Meaning {
    let meaning = |action: &'static str| Meaning::new(Device::Acpi, action);
    let first = exit.data.bytes().first().copied().unwrap_or_default();
    match (port, exit.kind.is_read()) {
        (SLEEP_STATUS_PORT, true) => meaning("sleep status?").with(hexadecimal(exit)),
        (SLEEP_STATUS_PORT, false) if first == WAKE_STATUS => {
            meaning("clear the wake status, which is never set")
        }
        (SLEEP_STATUS_PORT, false) => meaning("write the sleep status: ignored"),
        (_, true) => meaning("sleep control?").with(hexadecimal(exit)),
        (_, false) if first == SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE => meaning("power off"),
        (_, false) => meaning("sleep control for another state: ignored").with(hexadecimal(exit)),
    }
}

/// An access to the keyboard controller's command and status port.
pub(super) fn keyboard(exit: &Exit) -> Meaning {
    let meaning = |action: &'static str| Meaning::new(Device::Keyboard, action);
    let first = exit.data.bytes().first().copied().unwrap_or_default();
    match (exit.kind.is_read(), first) {
        (true, 0) => meaning("ready for a command?").with("yes"),
        (true, _) => meaning("status?").with(hexadecimal(exit)),
        (false, PULSE_RESET) => meaning("pulse the processor's reset line"),
        (false, _) => meaning("another command: ignored").with(hexadecimal(exit)),
    }
}

#[cfg(test)]
mod tests {
    use crate::event::Kind::{In, Out};
    use crate::meaning::tests::meaning;

    #[test]
    fn what_ends_a_machine_is_named() {
        for (kind, port, value, expected) in [
            (Out, 0x600, 0x34, "ACPI: power off"),
            (
                Out,
                0x600,
                0x14,
                "ACPI: sleep control for another state: ignored 0x14",
            ),
            (In, 0x601, 0x00, "ACPI: sleep status? 0x00"),
            (
                Out,
                0x601,
                0x80,
                "ACPI: clear the wake status, which is never set",
            ),
            (
                Out,
                0x64,
                0xfe,
                "keyboard controller: pulse the processor's reset line",
            ),
            (
                Out,
                0x64,
                0xd1,
                "keyboard controller: another command: ignored 0xd1",
            ),
            (
                In,
                0x64,
                0x00,
                "keyboard controller: ready for a command? yes",
            ),
        ] {
            assert_eq!(meaning(&[(kind, port, &[value])]), expected);
        }
    }
}
