//! arm64.

use std::fs;

use minivm_guest::channel::COM2;
use minivm_vmm::{ExitKind, layout};

use super::{Device, address, uart};

#[path = "aarch64/survey.rs"]
pub(crate) mod survey;

/// The console on COM1, few messages, and an end of the machine where the kernel ends: a warm reset where it panics, which the monitor
/// tells from a reboot.
pub const CMDLINE: &str = "console=ttyS0 quiet reboot=panic_warm panic=-1";
/// The permission for init to map COM2's registers, which the kernel's driver has claimed (`CONFIG_IO_STRICT_DEVMEM`).
pub(crate) const FOR_INIT: &str = " iomem=relaxed";

/// The model of the first processor and its revision, as the kernel has read them (MIDR_EL1 and REVIDR_EL1 in the Arm ARM).
const MODEL: [&str; 2] = [
    "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1",
    "/sys/devices/system/cpu/cpu0/regs/identification/revidr_el1",
];

/// Returns bytes that identify this host's kind of processor: its model and its features (`Documentation/arch/arm64/elf_hwcaps.rst`).
pub(crate) fn processor() -> Vec<u8> {
    let (first, second) = rustix::param::linux_hwcap();
    let mut bytes: Vec<u8> = [first, second]
        .into_iter()
        .flat_map(usize::to_le_bytes)
        .collect();
    for file in MODEL {
        // A kernel without these files leaves the features.
        bytes.extend(fs::read(file).unwrap_or_default());
    }
    bytes
}

/// Returns the device that an exit is for; `None` where it is for none.
pub(crate) fn device(exit: ExitKind) -> Option<Device> {
    if let ExitKind::PowerOff | ExitKind::Reset = exit {
        return Some(Device::Power);
    }
    let uarts = layout::UARTS.map(|(address, _)| address.0);
    Some(uart(address(exit)?, uarts).unwrap_or(Device::Nothing))
}

/// Returns the byte that an exit writes to COM2's data register.
pub(crate) fn channel_byte(exit: ExitKind, data: &[u8]) -> Option<u8> {
    match (exit, data) {
        (ExitKind::MmioWrite(COM2), &[byte]) => Some(byte),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_for_its_device() {
        let read = ExitKind::MmioRead;
        for (exit, expected) in [
            (read(0x900_0000), Some(Device::Console)),
            (read(0x900_0007), Some(Device::Console)),
            (read(0x900_0008), Some(Device::Nothing)),
            (read(0x901_0005), Some(Device::Channel)),
            (read(0x902_0000), Some(Device::Bell)),
            (read(0xfec0_0000), Some(Device::Nothing)),
            (ExitKind::PowerOff, Some(Device::Power)),
            (ExitKind::Interrupted, None),
            (ExitKind::Shutdown, None),
        ] {
            assert_eq!(device(exit), expected, "{exit:?}");
        }
    }

    #[test]
    fn a_byte_for_the_channel_goes_to_its_data_register() {
        let byte = |address, data| channel_byte(ExitKind::MmioWrite(address), data);
        assert_eq!(byte(layout::COM2.0, &[7]), Some(7));
        assert_eq!(byte(layout::COM2.0 + 1, &[7]), None);
        assert_eq!(byte(layout::COM2.0, &[7, 7]), None);
        assert_eq!(byte(layout::COM1.0, &[7]), None);
    }
}
