//! The devices of an arm64 machine beside its UARTs, and their interrupt lines: KVM has the GICv3, and there is nothing else.

use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vm_superio::Trigger;

use super::create::Irqchip;
use super::{gic_state, layout};
use crate::devices::bus::{Bus, Device, Request, lock};
use crate::devices::uart::Uart;
use crate::error::Result;
use crate::kvm::Created;
use crate::outcome::{Outcome, Reset};

/// The number of the first shared peripheral interrupt among all interrupts.
const SPI_FIRST: u32 = 32;

/// The interrupt lines of a machine.
pub(crate) struct Interrupts {
    vm: Arc<VmFd>,
    irqchip: Irqchip,
}

impl Interrupts {
    /// Makes the lines that lead to the interrupt controller.
    pub(crate) fn new(vm: &Arc<VmFd>, irqchip: Irqchip, _state: State) -> Self {
        Interrupts {
            vm: vm.clone(),
            irqchip,
        }
    }

    /// Returns COM1's line.
    pub(crate) fn com1(&self) -> IrqLine {
        self.line(layout::COM1_SPI)
    }

    /// Returns COM2's line.
    pub(crate) fn com2(&self) -> IrqLine {
        self.line(layout::COM2_SPI)
    }

    fn line(&self, spi: u8) -> IrqLine {
        IrqLine(Some((self.vm.clone(), spi)))
    }
}

/// An interrupt line from a UART to the GIC, or to nothing.
pub(crate) struct IrqLine(Option<(Arc<VmFd>, u8)>);

impl IrqLine {
    /// The KVM call that raises an interrupt.
    pub(crate) const CALL: &'static str = "KVM_IRQ_LINE";
}

impl Trigger for IrqLine {
    type E = io::Error;

    /// Raises an edge.
    fn trigger(&self) -> io::Result<()> {
        let Some((vm, spi)) = &self.0 else {
            return Ok(());
        };
        let irq = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (SPI_FIRST + u32::from(*spi));
        // Sets the level of an input of the GIC. When both have returned, the interrupt is the GIC's, where a snapshot finds it;
        // one that came by an eventfd would still be on its way. (KVM API 4.25, KVM_IRQ_LINE.)
        vm.set_irq_line(irq, true)?;
        vm.set_irq_line(irq, false)?;
        Ok(())
    }
}

#[cfg(any(test, fuzzing))]
impl IrqLine {
    /// Returns a line whose interrupts are lost, for tests of UARTs.
    pub(crate) fn unconnected() -> Self {
        IrqLine(None)
    }
}

/// A UART's registers in memory, of one byte each. A wider access reaches the first alone.
struct Registers(Arc<Mutex<Uart>>);

impl Device for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let first = data.len().min(1);
        lock(&self.0).read(offset, &mut data[..first]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<Option<Request>> {
        lock(&self.0).write(offset, &data[..data.len().min(1)])
    }
}

/// The bus of a machine, with its devices behind it.
pub(crate) struct Board {
    /// The bus of memory-mapped registers.
    pub(crate) mmio: Bus,
    irqchip: Irqchip,
}

impl Board {
    /// Connects the devices.
    pub(crate) fn new(
        interrupts: Interrupts,
        com1: &Arc<Mutex<Uart>>,
        com2: &Arc<Mutex<Uart>>,
    ) -> Self {
        let mut mmio = Bus::default();
        for (first, uart) in [(layout::COM1, com1), (layout::COM2, com2)] {
            let registers = Arc::new(Mutex::new(Registers(uart.clone())));
            mmio.attach(first.0..first.0 + layout::COM_SIZE, registers);
        }
        Board {
            mmio,
            irqchip: interrupts.irqchip,
        }
    }

    /// Returns the outcome of a reset.
    pub(crate) fn reset(&self, reset: Reset) -> Outcome {
        Outcome::Reboot(reset)
    }

    /// Returns the outcome where every vCPU is off.
    pub(crate) fn halt(&self) -> Outcome {
        Outcome::Stuck
    }

    /// Keeps the devices from changing.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        Frozen(&self.irqchip)
    }
}

/// The state of the board, in a snapshot; by default that of a machine that boots.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(super) gic: gic_state::State,
}

impl State {
    /// Sets the state in a machine whose vCPUs have theirs.
    pub(crate) fn set(&self, created: &Created) -> Result<()> {
        self.gic.set(&created.irqchip)
    }

    /// Checks what a checksum can't, of a machine with so many vCPUs.
    pub(crate) fn check(&self, vcpus: usize) -> std::result::Result<(), &'static str> {
        self.gic.check(vcpus)
    }
}

#[cfg(test)]
impl State {
    /// A made-up state, with a number in it.
    pub(crate) fn sample(number: u64) -> Self {
        State {
            gic: gic_state::State::sample(number),
        }
    }

    /// Returns the number of a made-up state.
    pub(crate) fn number(&self) -> u64 {
        self.gic.number()
    }
}

/// The devices of a machine that is being saved. No vCPU is in KVM_RUN.
pub(crate) struct Frozen<'a>(&'a Irqchip);

impl Frozen<'_> {
    /// Returns the state.
    pub(crate) fn state(&self, _vm: &VmFd) -> Result<State> {
        Ok(State {
            gic: gic_state::State::of(self.0)?,
        })
    }
}
