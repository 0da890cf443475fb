//! The devices of an arm64 machine beside its UARTs, and their interrupt lines: KVM has the GICv3, and there is nothing else.

use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI};
use kvm_ioctls::VmFd;
use vm_superio::Trigger;

use super::create::Irqchip;
use super::layout;
use crate::devices::bus::{Bus, Device, Request, lock};
use crate::devices::uart::Uart;
use crate::error::Result;
use crate::outcome::{Outcome, Reset};

/// The state of the board, in a snapshot: there is the GIC's alone.
pub(crate) use super::gic_state::State;

/// The number of the first shared peripheral interrupt among all interrupts.
const SPI_FIRST: u32 = 32;

/// Makes the UARTs' interrupt lines, which lead to the interrupt controller.
pub(crate) fn lines(vm: &Arc<VmFd>, irqchip: Irqchip, _state: State) -> ([IrqLine; 3], Irqchip) {
    let line = |(_, spi)| IrqLine(Some((vm.clone(), spi)));
    (layout::UARTS.map(line), irqchip)
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
    pub(crate) fn new(irqchip: Irqchip, uarts: &[Arc<Mutex<Uart>>]) -> Self {
        let mut mmio = Bus::default();
        for ((first, _), uart) in layout::UARTS.into_iter().zip(uarts) {
            let registers = Arc::new(Mutex::new(Registers(uart.clone())));
            mmio.attach(first.0..first.0 + layout::COM_SIZE, registers);
        }
        Board { mmio, irqchip }
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
        &self.irqchip
    }
}

/// The devices of a machine that is being saved.
pub(crate) type Frozen<'a> = &'a Irqchip;
