//! The processor architecture. This module alone chooses one.
//!
//! Each architecture's module has the same names, which the rest of the crate uses:
//!
//! | name | what it is |
//! |---|---|
//! | `CMDLINE` | a kernel's default command line |
//! | `FOR_INIT` | what `minivm-init` needs beside it |
//! | `survey` | what a host's KVM and processor have of what only this architecture's machines use |
//! | `processor` | what identifies this host's kind of processor |
//! | `device` | the device that an exit is about |
//! | `channel_byte` | the byte that an exit writes to the channel |

use minivm_vmm::ExitKind;

#[cfg_attr(target_arch = "aarch64", path = "arch/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "arch/x86_64.rs")]
mod current;

pub use current::CMDLINE;
pub(crate) use current::{FOR_INIT, channel_byte, device, processor, survey};

/// A device of a machine, as an exit's access has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Console,
    Channel,
    Bell,
    InterruptController,
    Power,
    Nothing,
}

/// The registers of a UART.
const UART_SIZE: u64 = 8;

/// Returns the UART that has an address among its registers, given those of the first registers of COM1, COM2 and COM3.
fn uart(address: u64, uarts: [u64; 3]) -> Option<Device> {
    let devices = [Device::Console, Device::Channel, Device::Bell];
    let mut uarts = uarts.into_iter().zip(devices);
    let uart = uarts.find(|(first, _)| (*first..first + UART_SIZE).contains(&address));
    uart.map(|(_, device)| device)
}

/// Returns the address of an access to memory-mapped registers.
fn address(exit: ExitKind) -> Option<u64> {
    match exit {
        ExitKind::MmioRead(address)
        | ExitKind::MmioWrite(address)
        | ExitKind::PmemWrite(address) => Some(address),
        _ => None,
    }
}
