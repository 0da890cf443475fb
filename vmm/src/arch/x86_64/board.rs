//! A PC's devices beside its UARTs: the IOAPIC that carries their interrupts, and the ports that end the machine.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{kvm_clock_data, kvm_msi};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vm_superio::Trigger;

use super::create::Irqchip;
use super::ioapic::{self, IoApic, Routing};
use super::layout;
use super::power::{ResetLine, SleepControl};
use crate::devices::bus::{Bus, lock};
use crate::devices::uart::Uart;
use crate::error::{Error, Result};
use crate::kvm::Created;
use crate::outcome::{Outcome, Reset};

/// Makes the IOAPIC, in a given state, and the UARTs' interrupt lines to it.
pub(crate) fn lines(
    vm: &Arc<VmFd>,
    _irqchip: Irqchip,
    state: State,
) -> ([IrqLine; 3], Arc<Mutex<IoApic>>) {
    let ioapic = IoApic::new(message_sink(vm.clone()), state.ioapic);
    let ioapic = Arc::new(Mutex::new(ioapic));
    let line = |pin| IrqLine {
        ioapic: ioapic.clone(),
        pin,
    };
    (layout::UARTS.map(|(_, irq)| line(irq)), ioapic)
}

/// An interrupt line from a UART to a pin of the IOAPIC.
pub(crate) struct IrqLine {
    ioapic: Arc<Mutex<IoApic>>,
    pin: u8,
}

impl IrqLine {
    /// The KVM call that raises an interrupt.
    pub(crate) const CALL: &'static str = "KVM_SIGNAL_MSI";
}

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        lock(&self.ioapic).pulse(self.pin)
    }
}

#[cfg(any(test, fuzzing))]
impl IrqLine {
    /// Returns a line whose interrupts are lost, for tests of UARTs.
    pub(crate) fn unconnected() -> Self {
        let ioapic = IoApic::new(Box::new(|_| Ok(())), ioapic::State::default());
        IrqLine {
            ioapic: Arc::new(Mutex::new(ioapic)),
            pin: layout::UARTS[0].1,
        }
    }
}

/// Returns the function by which the IOAPIC's messages reach the local APICs.
fn message_sink(vm: Arc<VmFd>) -> ioapic::Sink {
    Box::new(move |msi| {
        let msi = kvm_msi {
            address_lo: msi.address,
            data: msi.data,
            ..Default::default()
        };
        // Delivers the message as if a device had written `data` to `address`. The result says whether a local APIC took
        // it, or EPERM that none was meant; an edge doesn't care. (KVM API 4.71, KVM_SIGNAL_MSI.)
        match vm.signal_msi(msi) {
            Err(errno) if errno.errno() != libc::EPERM => Err(errno.into()),
            _ => Ok(()),
        }
    })
}

/// The buses of a machine, with its devices behind them.
pub(crate) struct Board {
    pub(super) ports: Bus,
    /// The bus of memory-mapped registers.
    pub(crate) mmio: Bus,
    ioapic: Arc<Mutex<IoApic>>,
}

impl Board {
    /// Connects the devices.
    pub(crate) fn new(ioapic: Arc<Mutex<IoApic>>, uarts: &[Arc<Mutex<Uart>>]) -> Self {
        let mut mmio = Bus::default();
        let registers = layout::IOAPIC.0..layout::IOAPIC.0 + ioapic::SIZE;
        mmio.attach(registers, ioapic.clone());
        Board {
            ports: port_bus(uarts),
            mmio,
            ioapic,
        }
    }

    /// Returns the outcome of a reset.
    pub(crate) fn reset(&self, reset: Reset) -> Outcome {
        of_reset(reset, lock(&self.ioapic).routing())
    }

    /// Returns the outcome where every vCPU is halted for ever.
    pub(crate) fn halt(&self) -> Outcome {
        match lock(&self.ioapic).routing() {
            Routing::Quiesced => Outcome::Halted,
            Routing::Never | Routing::Active => Outcome::Stuck,
        }
    }

    /// Keeps the devices from changing.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        Frozen(lock(&self.ioapic))
    }
}

/// Returns the outcome of a reset, given the use that the guest had made of its interrupts.
fn of_reset(reset: Reset, routing: Routing) -> Outcome {
    match (reset, routing) {
        (reset, Routing::Active) => Outcome::Panic(reset),
        (Reset::TripleFault, Routing::Never) => Outcome::TripleFault,
        (reset, _) => Outcome::Reboot(reset),
    }
}

fn port_bus(uarts: &[Arc<Mutex<Uart>>]) -> Bus {
    let ports = |first: u16, count: u16| u64::from(first)..u64::from(first) + u64::from(count);
    let mut bus = Bus::default();
    for (uart, (first, _)) in uarts.iter().zip(layout::UARTS) {
        bus.attach(ports(first, layout::COM_PORTS), uart.clone());
    }
    bus.attach(
        ports(layout::I8042_COMMAND_PORT, 1),
        Arc::new(Mutex::new(ResetLine)),
    );
    bus.attach(
        ports(layout::ACPI_SLEEP_PORT, 2),
        Arc::new(Mutex::new(SleepControl)),
    );
    bus
}

/// The state of the board, in a snapshot; by default that of a machine that boots.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// The clock that KVM shows to the guest (kvm-clock), in nanoseconds; `None` in a machine that boots, whose clock is
    /// KVM's own.
    pub(super) clock: Option<u64>,
    pub(super) ioapic: ioapic::State,
}

impl State {
    /// Sets the part of the state that KVM keeps for the machine, after the vCPUs' states. [`lines`] takes the rest.
    pub(crate) fn set(&self, created: &Created) -> Result<()> {
        match self.clock {
            Some(clock) => set_clock(&created.vm, clock),
            None => Ok(()),
        }
    }

    /// Checks what a checksum can't: the IOAPIC takes any value.
    pub(crate) fn check(&self, _vcpus: usize) -> std::result::Result<(), &'static str> {
        Ok(())
    }
}

/// The devices of a machine that is being saved.
pub(crate) struct Frozen<'a>(MutexGuard<'a, IoApic>);

impl Frozen<'_> {
    /// Returns the state.
    pub(crate) fn state(&self, vm: &VmFd) -> Result<State> {
        // The time that kvm-clock shows to the guest now; see `set_clock`. (KVM API 4.29, KVM_GET_CLOCK.)
        let clock = vm.get_clock().map_err(Error::kvm("KVM_GET_CLOCK"))?;
        Ok(State {
            clock: Some(clock.clock),
            ioapic: self.0.state(),
        })
    }
}

/// Sets the guest's paravirtual clock, so that it continues where it was.
fn set_clock(vm: &VmFd, nanoseconds: u64) -> Result<()> {
    // kvm-clock counts nanoseconds since the machine began, in a page that a guest shares with KVM and reads together with
    // the time stamp counter. So it comes after the counters, on whose being alike it depends whether all vCPUs can share
    // one reading (the "master clock"). Without it the guest's clock would start at 0, and Linux would stand still until it
    // has caught up. With KVM_CLOCK_REALTIME KVM would add the time that passed since the snapshot was saved; the time stamp
    // counter and the timers wouldn't follow. (KVM API 4.30, KVM_SET_CLOCK.)
    let clock = kvm_clock_data {
        clock: nanoseconds,
        ..Default::default()
    };
    vm.set_clock(&clock).map_err(Error::kvm("KVM_SET_CLOCK"))
}

#[cfg(test)]
impl State {
    /// A made-up state, with a number in it.
    pub(crate) fn sample(number: u64) -> Self {
        State {
            clock: Some(number),
            ..State::default()
        }
    }

    /// Returns the number of a made-up state.
    pub(crate) fn number(&self) -> u64 {
        self.clock.unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::devices::bus::Request;
    use crate::devices::uart::{self, Output};
    use crate::gate::Gate;

    fn bus(uarts: usize) -> Bus {
        let uart = || {
            let output = Output {
                writer: Box::new(io::sink()),
                gate: Gate::new(1).unwrap(),
            };
            let uart = Uart::new(IrqLine::unconnected(), output, uart::State::default());
            Arc::new(Mutex::new(uart.unwrap()))
        };
        port_bus(&(0..uarts).map(|_| uart()).collect::<Vec<_>>())
    }

    /// Returns the first port of the device at a port, in a machine with so many UARTs.
    fn device(port: u64, uarts: usize) -> Option<u64> {
        let of = |first: u16, count: u64| {
            let first = u64::from(first);
            (first..first + count).contains(&port).then(|| port - first)
        };
        let first = |offset: u64| port - offset;
        let found = [
            of(layout::COM1_PORT, 8),
            of(layout::COM2_PORT, 8),
            of(layout::COM3_PORT, 8).filter(|_| uarts == 3),
            of(layout::I8042_COMMAND_PORT, 1),
            of(layout::ACPI_SLEEP_PORT, 2),
        ];
        let mut found = found.into_iter().flatten();
        let one = found.next().map(first);
        assert!(found.next().is_none(), "port {port:#x} has two devices");
        one
    }

    #[test]
    fn every_port_leads_to_one_device_or_to_none_with_every_width() {
        ports_lead_to_one_device_or_to_none(2);
        ports_lead_to_one_device_or_to_none(3);
    }

    fn ports_lead_to_one_device_or_to_none(uarts: usize) {
        let bus = bus(uarts);
        for (com, mark) in [
            (layout::COM1_PORT, 1),
            (layout::COM2_PORT, 2),
            (layout::COM3_PORT, 3),
        ] {
            assert_eq!(bus.write(u64::from(com) + 7, &[mark]).unwrap(), None);
        }
        // And addresses that no port has.
        let beyond = [0x1_0000, 0x1_03f8, 0x64 + (1 << 32), u64::MAX];
        for port in (0..0x1_0000).chain(beyond) {
            let device = device(port, uarts);
            for width in [1, 2, 4] {
                let mut read = [0; 4];
                bus.read(port, &mut read[..width]);
                let expected = match device {
                    None => [0xff],
                    Some(0x3f8) if port == 0x3ff => [1],
                    Some(0x2f8) if port == 0x2ff => [2],
                    Some(0x3e8) if port == 0x3ef => [3],
                    Some(0x3f8 | 0x2f8 | 0x3e8) => [read[0]],
                    Some(_) => [0],
                };
                assert!(
                    read[..width].iter().all(|byte| [*byte] == expected),
                    "{port:#x}"
                );
                assert_ne!(device.map(|_| read[0]), Some(0xff), "{port:#x}");
            }
        }
    }

    #[test]
    fn a_request_is_made_by_one_byte_at_one_port() {
        let bus = bus(3);
        for port in 0..0x1_0000 {
            // All values where there are devices, and those that make requests everywhere.
            let values = match device(port, 3) {
                Some(_) => (0..=u8::MAX).collect(),
                None => vec![0x34, 0xfe],
            };
            for (value, width) in values
                .into_iter()
                .flat_map(|value| [1, 2, 4].map(|width| (value, width)))
            {
                let request = match (port, value) {
                    (0x64, 0xfe) => Some(Request::Reset),
                    (0x600, 0x34) => Some(Request::PowerOff),
                    _ => None,
                };
                // The other bytes would make one.
                let mut bytes = [0xfe, 0x34, 0xfe, 0x34];
                bytes[0] = value;
                let made = bus.write(port, &bytes[..width]).unwrap();
                assert_eq!(made, request, "{value:#x} to {port:#x}");
            }
        }
    }

    #[test]
    fn a_resets_outcome_depends_on_the_interrupts() {
        let of = of_reset;
        assert_eq!(
            of(Reset::Line, Routing::Never),
            Outcome::Reboot(Reset::Line)
        );
        assert_eq!(
            of(Reset::Line, Routing::Quiesced),
            Outcome::Reboot(Reset::Line)
        );
        assert_eq!(
            of(Reset::Line, Routing::Active),
            Outcome::Panic(Reset::Line)
        );
        assert_eq!(of(Reset::TripleFault, Routing::Never), Outcome::TripleFault);
        assert_eq!(
            of(Reset::TripleFault, Routing::Quiesced),
            Outcome::Reboot(Reset::TripleFault)
        );
        assert_eq!(
            of(Reset::TripleFault, Routing::Active),
            Outcome::Panic(Reset::TripleFault)
        );
    }
}
