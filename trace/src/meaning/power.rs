//! The two registers that end a machine: ACPI's sleep control, and the keyboard controller's command port.
//!
//! (ACPI 6.5, 4.8.3.7 "Sleep Control and Status Registers"; Intel 8042, "pulse output port".)

use super::{Device, Meaning, hexadecimal};
use crate::event::Exit;

const SLEEP_ENABLE: u8 = 1 << 5;
/// Set when a machine wakes; writing a one clears it.
const WAKE_STATUS: u8 = 1 << 7;
/// The sleep type that the machine's DSDT gives to S5, "soft off".
const SLEEP_TYPE_S5: u8 = 5;

/// Commands of the keyboard controller's.
const PULSE_RESET: u8 = 0xfe;

/// An access to ACPI's sleep control register.
pub(super) fn sleep_control(exit: &Exit) -> Meaning {
    let meaning = |action: &'static str| Meaning::new(Device::Acpi, action);
    match exit.kind.is_read() {
        true => meaning("sleep control?").with(hexadecimal(exit)),
        false if first(exit) == SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE => meaning("power off"),
        false => meaning("sleep control for another state: ignored").with(hexadecimal(exit)),
    }
}

/// An access to ACPI's sleep status register.
pub(super) fn sleep_status(exit: &Exit) -> Meaning {
    let meaning = |action: &'static str| Meaning::new(Device::Acpi, action);
    match exit.kind.is_read() {
        true => meaning("sleep status?").with(hexadecimal(exit)),
        false if first(exit) == WAKE_STATUS => meaning("clear the wake status, which is never set"),
        false => meaning("write the sleep status: ignored"),
    }
}

/// An access to the keyboard controller's command and status port.
pub(super) fn keyboard(exit: &Exit) -> Meaning {
    let meaning = |action: &'static str| Meaning::new(Device::Keyboard, action);
    match (exit.kind.is_read(), first(exit)) {
        (true, 0) => meaning("ready for a command?").with("yes"),
        (true, _) => meaning("status?").with(hexadecimal(exit)),
        (false, PULSE_RESET) => meaning("pulse the processor's reset line"),
        (false, _) => meaning("another command: ignored").with(hexadecimal(exit)),
    }
}

/// Returns an access's first byte.
fn first(exit: &Exit) -> u8 {
    exit.data.bytes().first().copied().unwrap_or_default()
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
