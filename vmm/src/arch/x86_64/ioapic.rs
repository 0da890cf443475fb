//! The IOAPIC: takes the UARTs' interrupt lines and sends each as a message to a local APIC.
//!
//! The IOAPIC is emulated here and not in KVM ("split irqchip"): it is small, its state is at hand for a snapshot, and the
//! host's kernel is spared the 8259, the 8254 and an IOAPIC of its own, which no kernel needs any more. That also makes the end
//! of a machine quick: tearing down KVM's full set takes up to 20 ms.
//!
//! All lines here are edges, as on ISA. A pin that the guest sets to "level" is taken for an edge too.
//! (Intel 82093AA, "IOAPIC Registers"; Intel SDM vol. 3, "Message Signalled Interrupts".)

use std::io;

use serde::{Deserialize, Serialize};

use crate::devices::bus::{Device, Request};
use crate::error::Result;

/// Number of pins. A PC has 24, and a kernel looks at each several times, with an exit each; at most three are in use.
pub(crate) const PINS: u8 = 8;
/// Its ID at reset: behind those of all local APICs.
pub(crate) const ID: u8 = crate::config::CPUS_MAX;
/// Bytes of address space that its registers take.
pub(crate) const SIZE: u64 = 0x1000;

/// The memory-mapped registers: the number of an indirect register, and its value.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;

/// Indirect registers.
const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_TABLE: u8 = 0x10;

/// The version of an IOAPIC without an EOI register.
const VERSION: u32 = 0x11;

/// Fields of a redirection table entry.
const RTE_DELIVERY_STATUS: u64 = 1 << 12;
const RTE_REMOTE_IRR: u64 = 1 << 14;
const RTE_MASKED: u64 = 1 << 16;
const RTE_READ_ONLY: u64 = RTE_DELIVERY_STATUS | RTE_REMOTE_IRR;

/// A message signalled interrupt: the address and data that a device writes to raise it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Msi {
    pub(crate) address: u32,
    pub(crate) data: u32,
}

/// The function that takes the messages.
pub(crate) type Sink = Box<dyn Fn(Msi) -> io::Result<()> + Send>;

/// The use that a guest has made of its interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routing {
    /// No pin was ever unmasked.
    Never,
    /// A pin is unmasked.
    Active,
    /// Pins were unmasked and are masked again. Linux does so when it shuts down in good order (`clear_IO_APIC` in
    /// `native_machine_shutdown`), and doesn't when it panics: the machine's outcome follows from that.
    Quiesced,
}

/// The state of an IOAPIC; by default that after reset, with every pin masked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    select: u8,
    id: u32,
    table: [u64; PINS as usize],
    /// Edges that came while their pin was masked: a bit a pin.
    pending: u32,
    ever_routed: bool,
}

impl Default for State {
    fn default() -> Self {
        State {
            select: 0,
            id: u32::from(ID) << 24,
            table: [RTE_MASKED; PINS as usize],
            pending: 0,
            ever_routed: false,
        }
    }
}

/// An IOAPIC.
pub(crate) struct IoApic {
    state: State,
    sink: Sink,
}

impl IoApic {
    /// Makes an IOAPIC in a given state.
    pub(crate) fn new(sink: Sink, state: State) -> Self {
        IoApic { state, sink }
    }

    /// Returns a copy of the state.
    pub(crate) fn state(&self) -> State {
        self.state.clone()
    }

    /// Raises an edge on `pin`. Where it is masked, the edge waits, lest an interrupt be lost while a driver reconfigures.
    ///
    /// # Errors
    ///
    /// The operating system's, where KVM doesn't take the message.
    pub(crate) fn pulse(&mut self, pin: u8) -> io::Result<()> {
        let entry = self.state.table[usize::from(pin)];
        if entry & RTE_MASKED != 0 {
            self.state.pending |= 1 << pin;
            return Ok(());
        }
        self.state.pending &= !(1 << pin);
        (self.sink)(message(entry))
    }

    /// Returns the use that the guest has made of its interrupts.
    pub(crate) fn routing(&self) -> Routing {
        match (
            self.state.ever_routed,
            self.state.table.iter().all(|entry| entry & RTE_MASKED != 0),
        ) {
            (false, _) => Routing::Never,
            (true, false) => Routing::Active,
            (true, true) => Routing::Quiesced,
        }
    }

    fn register(&self) -> u32 {
        match self.state.select {
            REG_ID | REG_ARBITRATION => self.state.id,
            REG_VERSION => VERSION | (u32::from(PINS) - 1) << 16,
            select => match entry_half(select) {
                Some((pin, shift)) => u32::try_from(self.state.table[pin] >> shift & 0xffff_ffff)
                    .expect("masked to 32 bits"),
                None => u32::MAX,
            },
        }
    }

    fn set_register(&mut self, value: u32) {
        if self.state.select == REG_ID {
            self.state.id = value & 0x0f00_0000;
        } else if let Some((pin, shift)) = entry_half(self.state.select) {
            let kept = self.state.table[pin] & (!(0xffff_ffff << shift) | RTE_READ_ONLY);
            self.state.table[pin] = kept | (u64::from(value) << shift & !RTE_READ_ONLY);
            self.deliver_pending(pin);
        }
    }

    fn deliver_pending(&mut self, pin: usize) {
        if self.state.table[pin] & RTE_MASKED != 0 {
            return;
        }
        self.state.ever_routed = true;
        if self.state.pending & 1 << pin != 0
            && let Err(error) = self.pulse(u8::try_from(pin).expect("few pins"))
        {
            log::debug!("interrupt {pin} is lost: {error}");
        }
    }
}

/// Returns the half of a table entry that a register number stands for: the pin, and the shift of the half in bits.
fn entry_half(select: u8) -> Option<(usize, u32)> {
    let index = usize::from(select.checked_sub(REG_TABLE)?);
    (index / 2 < usize::from(PINS))
        .then_some((index / 2, if index.is_multiple_of(2) { 0 } else { 32 }))
}

/// Returns the message that an entry stands for: destination, destination mode; vector, delivery mode.
fn message(entry: u64) -> Msi {
    let field =
        |shift: u32, mask: u64| u32::try_from(entry >> shift & mask).expect("masked to 8 bits");
    Msi {
        address: 0xfee0_0000 | field(56, 0xff) << 12 | field(11, 1) << 2,
        data: field(0, 0xff) | field(8, 7) << 8,
    }
}

impl Device for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => u32::from(self.state.select),
            IOWIN => self.register(),
            _ => return,
        };
        for (slot, byte) in data.iter_mut().zip(value.to_le_bytes()) {
            *slot = byte;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<Option<Request>> {
        match (offset, data) {
            (IOREGSEL, &[select, ..]) => self.state.select = select,
            (IOWIN, &[a, b, c, d]) => self.set_register(u32::from_le_bytes([a, b, c, d])),
            _ => log::debug!("write of {data:x?} to the IOAPIC at {offset:#x} is ignored"),
        }
        Ok(None)
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod model;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use minivm_tests::stress;
    use proptest::prelude::*;

    use super::*;

    fn ioapic() -> (IoApic, Arc<Mutex<Vec<Msi>>>) {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = sent.clone();
        let sink = move |msi| {
            log.lock().unwrap().push(msi);
            Ok(())
        };
        (IoApic::new(Box::new(sink), State::default()), sent)
    }

    fn write(ioapic: &mut IoApic, register: u8, value: u32) {
        ioapic.write(IOREGSEL, &[register, 0, 0, 0]).unwrap();
        ioapic.write(IOWIN, &value.to_le_bytes()).unwrap();
    }

    fn read(ioapic: &mut IoApic, register: u8) -> u32 {
        ioapic.write(IOREGSEL, &[register]).unwrap();
        let mut data = [0; 4];
        ioapic.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn an_edge_becomes_its_entrys_message() {
        let (mut ioapic, sent) = ioapic();
        write(&mut ioapic, REG_TABLE + 9, 2 << 24);
        write(&mut ioapic, REG_TABLE + 8, 1 << 11 | 0x31);
        ioapic.pulse(4).unwrap();
        assert_eq!(
            *sent.lock().unwrap(),
            [Msi {
                address: 0xfee0_2004,
                data: 0x31
            }]
        );
    }

    #[test]
    fn an_edge_on_a_masked_pin_waits() {
        let (mut ioapic, sent) = ioapic();
        ioapic.pulse(4).unwrap();
        assert!(sent.lock().unwrap().is_empty());
        write(&mut ioapic, REG_TABLE + 8, 0x31);
        assert_eq!(sent.lock().unwrap().len(), 1);
        write(&mut ioapic, REG_TABLE + 8, 0x31);
        assert_eq!(sent.lock().unwrap().len(), 1);
    }

    #[test]
    fn routing_differs_between_shutdown_and_panic() {
        let (mut ioapic, _) = ioapic();
        assert_eq!(ioapic.routing(), Routing::Never);
        write(&mut ioapic, REG_TABLE + 8, 0x31);
        assert_eq!(ioapic.routing(), Routing::Active);
        write(&mut ioapic, REG_TABLE + 8, 0x1_0000);
        assert_eq!(ioapic.routing(), Routing::Quiesced);
    }

    #[test]
    fn registers_read_as_documented_and_the_rest_is_harmless() {
        let (mut ioapic, _) = ioapic();
        assert_eq!(read(&mut ioapic, REG_VERSION), 0x0007_0011);
        assert_eq!(read(&mut ioapic, REG_TABLE + 14), 0x0001_0000);
        assert_eq!(read(&mut ioapic, REG_TABLE + 16), u32::MAX);
        write(&mut ioapic, REG_TABLE, !0);
        assert_eq!(read(&mut ioapic, REG_TABLE), !0x5000);
        for register in 0..=u8::MAX {
            write(&mut ioapic, register, 0x5555_5555);
            read(&mut ioapic, register);
        }
        ioapic.write(IOWIN, &[1]).unwrap();
        ioapic.write(0xfff, &[1; 8]).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(stress::count(400, 100_000)))]

        #[test]
        fn it_does_what_its_model_does(steps in prop::collection::vec(any::<u8>(), 0..600)) {
            model::run(&steps);
        }
    }
}
