//! Meanings: what the guest did with an exit, in words.
//!
//! Each device has a table of its registers here, written from its data sheet and not from the code that emulates it. Some registers mean
//! one thing or another by what was written before, so the decoders keep that much state: they have to see every exit of a machine. A
//! machine that was restored had a life before its trace: what the decoders can't know then, they say.

mod absent;
mod board;
mod ioapic;
mod power;
mod uart;

use std::borrow::Cow;
use std::fmt;

pub use board::Architecture;

use crate::event::{Exit, Kind};
use board::Place;
use ioapic::IoApic;
pub(crate) use uart::LINE_STATUS;
use uart::{INTERRUPTS, Uart};

/// The UARTs, by their numbers.
const UARTS: [Device; 3] = [Device::Com1, Device::Com2, Device::Com3];

/// The part of the machine that an exit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The first UART: the console.
    Com1,
    /// The second UART: in `minivm run`, the channel to the guest's init.
    Com2,
    /// The third UART, of machines that have it: in `minivm run`, the bell of shared folders.
    Com3,
    /// The IOAPIC.
    IoApic,
    /// ACPI's sleep registers.
    Acpi,
    /// The keyboard controller, of which there is the reset line.
    Keyboard,
    /// Persistent memory, which the guest can only read.
    Pmem,
    /// No device: nothing is at that port or address.
    Nothing,
    /// The vCPU itself: an exit that is no access.
    Processor,
}

/// The meaning of an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// What it is about.
    pub device: Device,
    /// What the guest did, without values: the same for exits that tables count together.
    pub action: Cow<'static, str>,
    /// The values, in words; empty where the access has no values to name.
    pub detail: String,
    /// Whether a table explains the exit. If not, the other fields say no more than the access itself.
    pub known: bool,
    /// A byte that goes through a UART, or the look whether it is ready for one: text that is put together again.
    pub text: Option<Text>,
}

/// The part that an exit has in a text that goes through a UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// The guest transmits this byte.
    Transmit(u8),
    /// The guest looks whether it can transmit.
    Poll,
}

impl Meaning {
    pub(crate) fn new(device: Device, action: impl Into<Cow<'static, str>>) -> Self {
        Meaning {
            device,
            action: action.into(),
            detail: String::new(),
            known: true,
            text: None,
        }
    }

    /// Returns the device and the action: the same for exits that tables count together.
    pub(crate) fn name(&self) -> String {
        match self.device {
            Device::Processor | Device::Nothing => self.action.clone().into(),
            device => format!("{}: {}", device.name(), self.action),
        }
    }

    fn with(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.detail {
            "" => write!(f, "{}", self.name()),
            detail => write!(f, "{} {detail}", self.name()),
        }
    }
}

impl Device {
    /// All devices.
    pub const ALL: [Device; 9] = [
        Device::Com1,
        Device::Com2,
        Device::Com3,
        Device::IoApic,
        Device::Acpi,
        Device::Keyboard,
        Device::Pmem,
        Device::Nothing,
        Device::Processor,
    ];

    /// Returns its name in words.
    pub fn name(self) -> &'static str {
        match self {
            Device::Com1 => "COM1",
            Device::Com2 => "COM2",
            Device::Com3 => "COM3",
            Device::IoApic => "IOAPIC",
            Device::Acpi => "ACPI",
            Device::Keyboard => "keyboard controller",
            Device::Pmem => "persistent memory",
            Device::Nothing => "nothing",
            Device::Processor => "processor",
        }
    }

    /// Returns its name in filters and JSON.
    pub fn id(self) -> &'static str {
        match self {
            Device::Com1 => "com1",
            Device::Com2 => "com2",
            Device::Com3 => "com3",
            Device::IoApic => "ioapic",
            Device::Acpi => "acpi",
            Device::Keyboard => "keyboard",
            Device::Pmem => "pmem",
            Device::Nothing => "nothing",
            Device::Processor => "processor",
        }
    }
}

/// Finds the meanings of one machine's exits.
#[derive(Debug)]
pub struct Decoder {
    architecture: Architecture,
    uarts: [Uart; UARTS.len()],
    /// Whether the guest has found that its machine has no COM3.
    lacks_com3: bool,
    ioapic: IoApic,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::new()
    }
}

impl Decoder {
    /// Makes the decoder of a machine that has just booted or been restored, of this program's architecture.
    pub fn new() -> Self {
        Decoder::of(Architecture::HERE)
    }

    /// Makes the decoder of a machine of another architecture.
    pub fn of(architecture: Architecture) -> Self {
        Decoder {
            architecture,
            uarts: Default::default(),
            lacks_com3: false,
            ioapic: IoApic::default(),
        }
    }

    /// Returns the meaning of the next exit.
    pub fn decode(&mut self, exit: &Exit) -> Meaning {
        match exit.kind {
            Kind::PmemWrite => {
                Meaning::new(Device::Pmem, "write, which is ignored:").with(hexadecimal(exit))
            }
            kind if kind.is_access() => self.access(exit),
            _ => processor(exit),
        }
    }

    fn access(&mut self, exit: &Exit) -> Meaning {
        match self.architecture.place(exit) {
            Place::Uart(number, register) => {
                let device = UARTS[number];
                if (device, register, exit.kind.is_read()) == (Device::Com3, INTERRUPTS, true) {
                    // Half of the bits are always zero, so that a driver looks here whether there is a UART.
                    self.lacks_com3 = *exit.data.bytes() == [0xff];
                }
                match (device, self.lacks_com3) {
                    (Device::Com3, true) => absent::access(self.architecture, exit),
                    _ => self.uarts[number].decode(device, register, exit),
                }
            }
            Place::IoApic(offset) => self.ioapic.decode(offset, exit),
            Place::SleepControl => power::sleep_control(exit),
            Place::SleepStatus => power::sleep_status(exit),
            Place::KeyboardCommand => power::keyboard(exit),
            Place::Nothing => absent::access(self.architecture, exit),
        }
    }
}

/// Returns the meaning of an exit that is no access.
fn processor(exit: &Exit) -> Meaning {
    let action = match exit.kind {
        Kind::Shutdown => "triple fault: a fault without a handler, which resets the machine",
        Kind::Halt => "halt with no interrupt to come",
        Kind::PowerOff => "power off, by PSCI",
        Kind::Reset => "reset, by PSCI",
        Kind::BusLock => "an access that locked the memory bus: the vCPU rests for a millisecond",
        Kind::Interrupted => "no exit of the guest's: minivm called the thread out of the guest",
        Kind::NotRunnable => "no exit of the guest's: the vCPU waits for another one to start it",
        _ => {
            let mut meaning = Meaning::new(Device::Processor, "an exit that ends the machine:");
            meaning.known = false;
            return meaning.with(exit.reason.as_deref().unwrap_or_default());
        }
    };
    Meaning::new(Device::Processor, action)
}

/// Returns a value as a register's width shows it.
fn hexadecimal(exit: &Exit) -> String {
    match exit.data.size() {
        1 => format!("{:#04x}", exit.data.value()),
        2 => format!("{:#06x}", exit.data.value()),
        4 => format!("{:#010x}", exit.data.value()),
        8 => format!("{:#018x}", exit.data.value()),
        size => format!("{size} bytes"),
    }
}

/// Returns the names of the bits that are set, or the word `none` where no bit is set.
fn bits(value: u8, names: &[(u8, &'static str)], none: &'static str) -> String {
    let set = names.iter().filter(|(bit, _)| value & bit != 0);
    let set: Vec<_> = set.map(|(_, name)| *name).collect();
    match set.is_empty() {
        true => none.into(),
        false => set.join(", "),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::event::Data;

    /// An access of `kind`.
    pub(crate) fn access(kind: Kind, address: u64, data: &[u8]) -> Exit {
        Exit {
            at: 0,
            took: 0,
            vcpu: 0,
            kind,
            address,
            data: Data::new(data),
            rip: 0,
            reason: None,
        }
    }

    /// Decodes accesses in their order; returns the meaning of the last.
    pub(crate) fn meaning(accesses: &[(Kind, u64, &[u8])]) -> String {
        let mut decoder = Decoder::of(Architecture::X86_64);
        let mut last = String::new();
        for (kind, address, data) in accesses {
            last = decoder.decode(&access(*kind, *address, data)).to_string();
        }
        last
    }

    #[test]
    fn a_write_to_persistent_memory_is_called_so() {
        assert_eq!(
            meaning(&[(Kind::PmemWrite, 0x1_0000_0000, &[7])]),
            "persistent memory: write, which is ignored: 0x07"
        );
    }

    #[test]
    fn an_exit_without_an_access_has_a_meaning() {
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_access()) {
            let meaning = Decoder::new().decode(&access(kind, 0, &[]));
            assert_eq!(meaning.device, Device::Processor);
            assert_eq!(meaning.known, kind != Kind::Other);
        }
    }
}
