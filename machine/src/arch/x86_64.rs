//! x86-64.

use std::arch::x86_64::__cpuid_count;

use minivm_guest::channel::COM2;
use minivm_vmm::{ExitKind, layout};

use super::{Device, address, uart};

#[path = "x86_64/survey.rs"]
pub(crate) mod survey;

/// The console on COM1, few messages, and an end of the machine where the kernel ends.
pub const CMDLINE: &str = "console=ttyS0 quiet reboot=t panic=-1";
/// Nothing: ports are permitted by a system call.
pub(crate) const FOR_INIT: &str = "";

/// The IOAPIC's registers.
const IOAPIC_SIZE: u64 = 0x1000;

/// The leaves of CPUID that identify a kind of processor: the vendor, the model and its features. Masks remove what differs between the
/// processors of one host, and what software sets.
const LEAVES: [(u32, [u32; 4]); 5] = [
    (0, [!0; 4]),
    // EBX has the APIC's number; the kernel sets bit 27 of ECX (OSXSAVE).
    (1, [!0, 0, !(1 << 27), !0]),
    (7, [!0, !0, !0, !0]),
    (0x8000_0001, [!0; 4]),
    (0x8000_0008, [!0, !0, 0, 0]),
];

/// Returns bytes that identify this host's kind of processor.
pub(crate) fn processor() -> Vec<u8> {
    let leaves = LEAVES.iter().flat_map(|(leaf, mask)| {
        let found = __cpuid_count(*leaf, 0);
        let registers = [found.eax, found.ebx, found.ecx, found.edx];
        let masked: Vec<_> = registers.iter().zip(mask).map(|(r, m)| r & m).collect();
        masked
    });
    leaves.flat_map(|register| register.to_le_bytes()).collect()
}

/// Returns the device that an exit's access is for; `None` where it is no access.
pub(crate) fn device(exit: ExitKind) -> Option<Device> {
    if let ExitKind::IoIn(port) | ExitKind::IoOut(port) = exit {
        return Some(at_port(port));
    }
    let ioapic = layout::IOAPIC.0..layout::IOAPIC.0 + IOAPIC_SIZE;
    Some(match ioapic.contains(&address(exit)?) {
        true => Device::InterruptController,
        false => Device::Nothing,
    })
}

fn at_port(port: u16) -> Device {
    let uarts = layout::UARTS.map(|(port, _)| u64::from(port));
    match port {
        layout::I8042_COMMAND_PORT => Device::Power,
        _ if port & !1 == layout::ACPI_SLEEP_PORT => Device::Power,
        _ => uart(port.into(), uarts).unwrap_or(Device::Nothing),
    }
}

/// Returns the byte that an exit writes to COM2's data register.
pub(crate) fn channel_byte(exit: ExitKind, data: &[u8]) -> Option<u8> {
    match (exit, data) {
        (ExitKind::IoOut(COM2), &[byte]) => Some(byte),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_for_its_device() {
        let (out, read) = (ExitKind::IoOut, ExitKind::MmioRead);
        for (exit, expected) in [
            (out(0x3f8), Some(Device::Console)),
            (out(0x3ff), Some(Device::Console)),
            (out(0x2fd), Some(Device::Channel)),
            (out(0x3ef), Some(Device::Bell)),
            (out(0x3f0), Some(Device::Nothing)),
            (out(0x64), Some(Device::Power)),
            (out(0x601), Some(Device::Power)),
            (out(0x80), Some(Device::Nothing)),
            (read(0xfec0_0010), Some(Device::InterruptController)),
            (read(0xfed0_0000), Some(Device::Nothing)),
            (ExitKind::Interrupted, None),
            (ExitKind::Shutdown, None),
        ] {
            assert_eq!(device(exit), expected, "{exit:?}");
        }
    }

    #[test]
    fn a_byte_for_the_channel_goes_to_its_data_register() {
        let byte = |port, data| channel_byte(ExitKind::IoOut(port), data);
        assert_eq!(byte(layout::COM2_PORT, &[7]), Some(7));
        assert_eq!(byte(layout::COM2_PORT + 1, &[7]), None);
        assert_eq!(byte(layout::COM2_PORT, &[7, 7]), None);
        assert_eq!(byte(layout::COM1_PORT, &[7]), None);
    }
}
