//! The two ports that end a machine: ACPI's sleep control, and the keyboard controller's reset line.
//!
//! The rest of the keyboard controller isn't here. Its status reads as 0, "ready for a command", which is what a kernel
//! waits for before it pulses the reset line.

use crate::devices::bus::{Device, Request};
use crate::error::Result;

/// The keyboard controller's command that pulses the processor's reset line (8042 "pulse output port", bit 0 low).
pub(crate) const RESET_PULSE: u8 = 0xfe;
/// The code in a firmware's place at the reset vector, in real mode: `mov al, 0xfe; out 0x64, al; hlt`.
///
/// A stock kernel comes here when it reboots without a method from `reboot=`: hardware-reduced ACPI means EFI to it
/// (`efi_reboot_required`), and without EFI's services it turns to the BIOS (`native_machine_emergency_restart`).
pub(crate) const RESET_CODE: [u8; 5] = [0xb0, RESET_PULSE, 0xe6, 0x64, 0xf4];
/// The sleep type that stands for S5, "soft off", in the DSDT. Its value is ours to choose.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

/// ACPI 6.5, 4.8.3.7 "Sleep Control and Status Registers": sleep type in bits 2 to 4, sleep enable in bit 5.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;

/// ACPI's sleep control register, with the sleep status register behind it.
pub(crate) struct SleepControl;

impl Device for SleepControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<Option<Request>> {
        let off = SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT | SLEEP_ENABLE;
        Ok((offset == 0 && data.first() == Some(&off)).then_some(Request::PowerOff))
    }
}

/// The keyboard controller's command port.
pub(crate) struct ResetLine;

impl Device for ResetLine {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Result<Option<Request>> {
        Ok((data.first() == Some(&RESET_PULSE)).then_some(Request::Reset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_byte_ends_the_machine() {
        assert_eq!(
            SleepControl.write(0, &[0x34]).unwrap(),
            Some(Request::PowerOff)
        );
        assert_eq!(SleepControl.write(0, &[0x14]).unwrap(), None);
        assert_eq!(SleepControl.write(1, &[0x34]).unwrap(), None);
        assert_eq!(ResetLine.write(0, &[0xfe]).unwrap(), Some(Request::Reset));
        assert_eq!(ResetLine.write(0, &[0xd1]).unwrap(), None);
    }
}
