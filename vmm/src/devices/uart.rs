//! A UART: vm-superio's 16550A with an interrupt line, a writer for the guest's output, and a rule for when input may
//! come.
//!
//! Output goes out byte by byte, as the guest writes it: a reader sees a prompt at once, and nothing is in a buffer when the
//! machine ends.
//!
//! Input waits until the guest asks for it, as a modem would: with "request to send" raised and the interrupt on. Linux
//! raises it last when a port is opened, after it has emptied the receiver several times; earlier input would be lost
//! (`echo cmd | minivm …`).

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{Error as SerialError, Serial, SerialEvents, SerialState};
use vmm_sys_util::eventfd::EventFd;

use super::bus::{Device, Request};
use crate::arch::board::IrqLine;
use crate::error::{Error, Result};
use crate::gate::Gate;

/// Registers and bits (National Semiconductor PC16550D, "Registers").
const IER: u8 = 1;
const IER_RECEIVED_DATA: u8 = 1 << 0;
const IIR: u8 = 2;
/// With its FIFO on, "received data available".
const IIR_RECEIVED_DATA: u8 = 0xc4;
const LCR: u8 = 3;
const LCR_DLAB: u8 = 1 << 7;
const MCR: u8 = 4;
const MCR_RTS: u8 = 1 << 1;
const MCR_LOOP: u8 = 1 << 4;
const LSR: u8 = 5;
const LSR_DATA_READY: u8 = 1 << 0;

/// The most input that a UART holds, in bytes, with its FIFO on or not: vm-superio's own limit.
const FIFO: usize = 64;

/// The wait before output that would block is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// The writer of the guest's output, which stops waiting for its reader when the machine has ended.
pub(crate) struct Output {
    pub(crate) writer: Box<dyn Write + Send>,
    pub(crate) gate: Arc<Gate>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.writer.write(bytes) {
                // Another kind of error: after an interruption, `write_all` would try again.
                Err(_) if self.gate.has_ended() => {
                    return Err(io::Error::other("the machine has ended"));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process that has it open may have made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The report that there is room for input. It is made only where the input waits for it: a guest can make room as often as it
/// likes, 4096 times in one exit (`rep insb`), and each report would wake the thread that moves input.
pub(crate) struct Room {
    event: EventFd,
    awaited: AtomicBool,
}

impl Room {
    /// Returns a report that is awaited.
    fn new() -> io::Result<Self> {
        Ok(Room {
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            awaited: AtomicBool::new(true),
        })
    }

    /// Returns the descriptor that becomes readable with the report.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    fn report(&self) {
        if self.awaited.swap(false, Ordering::Relaxed) {
            // The write can only fail if 2^64 - 2 of these were unread.
            let _ = self.event.write(1);
        }
    }
}

/// The event of the UART that its input waits for: its buffer is empty.
pub(crate) struct Emptied(Arc<Room>);

impl SerialEvents for Emptied {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.report();
    }
}

/// The state of a UART: its registers, and input that the guest hasn't taken yet. By default, that after reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State(#[serde(with = "Registers")] SerialState);

/// The parts of it, in the order in which a state file has them.
#[derive(Serialize, Deserialize)]
#[serde(remote = "SerialState")]
struct Registers {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl State {
    /// Checks that a UART can be in this state.
    pub(crate) fn check(&self) -> std::result::Result<(), &'static str> {
        if self.0.in_buffer.len() > FIFO {
            return Err("no UART holds so much input");
        }
        Ok(())
    }
}

/// A UART with its interrupt line, its output, and the report that there is room for input.
pub(crate) struct Uart {
    serial: Serial<IrqLine, Emptied, Output>,
    room: Arc<Room>,
}

impl Uart {
    /// Makes a UART in a given state that sends to `output`. It raises an interrupt that the guest hasn't taken yet again: one
    /// too many does no harm.
    pub(crate) fn new(irq: IrqLine, output: Output, state: State) -> io::Result<Self> {
        let room = Arc::new(Room::new()?);
        let serial = Serial::from_state(&state.0, irq, Emptied(room.clone()), output);
        let mut uart = Uart {
            serial: serial.map_err(|error| match error {
                SerialError::Trigger(error) | SerialError::IOError(error) => error,
                SerialError::FullFifo => io::ErrorKind::InvalidData.into(),
            })?,
            room,
        };
        if uart.capacity() > 0 {
            uart.room.report();
        }
        Ok(uart)
    }

    /// Returns a copy of the state.
    pub(crate) fn state(&self) -> State {
        State(self.serial.state())
    }

    /// Returns the report that [`capacity`](Self::capacity) may have grown since [`await_room`](Self::await_room).
    pub(crate) fn room(&self) -> Arc<Room> {
        self.room.clone()
    }

    /// Has the next growth of [`capacity`](Self::capacity) reported, once. From the UART's start, the first one is.
    pub(crate) fn await_room(&self) {
        self.room.awaited.store(true, Ordering::Relaxed);
    }

    /// Returns how many bytes of input the UART takes now.
    pub(crate) fn capacity(&mut self) -> usize {
        if self.takes_input() {
            self.serial.fifo_capacity()
        } else {
            0
        }
    }

    /// Gives input to the guest: at most [`capacity`](Self::capacity) bytes.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.serial.enqueue_raw_bytes(bytes) {
            Ok(_) => Ok(()),
            Err(SerialError::Trigger(error)) => Err(error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Reads a register. Received data is the first cause of an interrupt for as long as there is some (PC16550D, "Interrupt
    /// Identification Register"): a driver may take a part, as Linux takes 256 bytes at most, and asks for causes until there is
    /// none. vm-superio forgets this cause when the first byte is read, and the rest would lie there with no interrupt to come.
    fn read_register(&mut self, register: u8) -> u8 {
        if register == IIR
            && self.serial.read(LSR) & LSR_DATA_READY != 0
            && self.interrupts_for_input()
        {
            return IIR_RECEIVED_DATA;
        }
        self.serial.read(register)
    }

    /// Returns whether a driver waits for input. Reading these three registers changes nothing.
    fn takes_input(&mut self) -> bool {
        self.interrupts_for_input() && self.serial.read(MCR) & (MCR_RTS | MCR_LOOP) == MCR_RTS
    }

    /// Returns whether received data raises an interrupt. With DLAB set, IER can't be seen, and reads as a part of the divisor.
    fn interrupts_for_input(&mut self) -> bool {
        self.serial.read(LCR) & LCR_DLAB == 0 && self.serial.read(IER) & IER_RECEIVED_DATA != 0
    }
}

impl Device for Uart {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers have one byte. More come from a string instruction (`rep insb`): so many accesses in one exit.
        for byte in data {
            *byte = self.read_register(register(offset));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<Option<Request>> {
        let register = register(offset);
        for &byte in data {
            match self.serial.write(register, byte) {
                Ok(()) => {}
                Err(SerialError::IOError(error)) => return Err(Error::Output(error)),
                Err(SerialError::Trigger(error)) => {
                    return Err(Error::Kvm {
                        call: IrqLine::CALL.into(),
                        source: error,
                    });
                }
                Err(SerialError::FullFifo) => {}
            }
        }
        if matches!(register, IER | LCR | MCR) && self.takes_input() {
            self.room.report();
        }
        Ok(None)
    }
}

/// Returns the register behind an offset: a UART has eight.
fn register(offset: u64) -> u8 {
    u8::try_from(offset & 7).expect("masked to 3 bits")
}

#[cfg(any(test, fuzzing))]
pub(crate) mod model;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn uart(writer: Box<dyn Write + Send>) -> Uart {
        let output = Output {
            writer,
            gate: Gate::new(1).unwrap(),
        };
        Uart::new(IrqLine::unconnected(), output, State::default()).unwrap()
    }

    fn read(uart: &mut Uart, offset: u64) -> u8 {
        let mut data = [0xff];
        uart.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn output_is_written_at_once() {
        let out = Shared::default();
        let mut uart = uart(Box::new(out.clone()));
        uart.write(0, b"h").unwrap();
        assert_eq!(*out.0.lock().unwrap(), b"h");
        uart.write(0, b"ello").unwrap();
        assert_eq!(*out.0.lock().unwrap(), b"hello");
        assert_eq!(
            read(&mut uart, LSR.into()) & 0x60,
            0x60,
            "the transmitter is always empty"
        );
    }

    #[test]
    fn input_waits_until_the_guest_asks_for_it() {
        let mut uart = uart(Box::new(io::sink()));
        assert_eq!(uart.capacity(), 0);
        // What Linux does while it finds out what kind of UART this is.
        uart.write(IER.into(), &[0x0f]).unwrap();
        assert_eq!(uart.capacity(), 0);
        uart.write(MCR.into(), &[MCR_RTS]).unwrap();
        assert_eq!(uart.room().event().read().unwrap(), 1);
        assert_eq!(uart.capacity(), 64);
        uart.receive(&[0, 0xff]).unwrap();
        uart.await_room();
        assert_eq!(read(&mut uart, LSR.into()) & 1, 1, "data ready");
        assert_eq!((read(&mut uart, 0), read(&mut uart, 0)), (0, 0xff));
        assert_eq!(read(&mut uart, LSR.into()) & 1, 0);
        assert_eq!(uart.room().event().read().unwrap(), 1);
        uart.write(MCR.into(), &[MCR_RTS | MCR_LOOP]).unwrap();
        assert_eq!(uart.capacity(), 0);
    }

    #[test]
    fn a_guest_reports_room_only_where_it_is_awaited() {
        let mut uart = uart(Box::new(io::sink()));
        let reports = |uart: &Uart| uart.room().event().read().unwrap_or(0);
        let make_room = |uart: &mut Uart| {
            uart.write(IER.into(), &[IER_RECEIVED_DATA]).unwrap();
            (0..9).for_each(|_| uart.write(MCR.into(), &[MCR_RTS]).map(drop).unwrap());
            uart.read(0, &mut [0xff; 4096]);
        };
        make_room(&mut uart);
        assert_eq!(reports(&uart), 1);
        make_room(&mut uart);
        assert_eq!(reports(&uart), 0);
        uart.await_room();
        make_room(&mut uart);
        assert_eq!(reports(&uart), 1);
    }

    #[test]
    fn unread_input_is_still_an_interrupts_cause() {
        let mut uart = uart(Box::new(io::sink()));
        uart.write(IER.into(), &[IER_RECEIVED_DATA]).unwrap();
        uart.write(MCR.into(), &[MCR_RTS]).unwrap();
        assert_eq!(read(&mut uart, IIR.into()), 0xc1, "no cause");
        uart.receive(b"abc").unwrap();
        for byte in *b"abc" {
            assert_eq!(read(&mut uart, IIR.into()), 0xc4, "received data");
            assert_eq!(read(&mut uart, 0), byte);
        }
        assert_eq!(read(&mut uart, IIR.into()), 0xc1, "no cause any more");
    }

    #[test]
    fn an_empty_transmitter_is_a_cause_after_received_data() {
        let mut uart = uart(Box::new(io::sink()));
        uart.receive(b"x").unwrap();
        uart.write(IER.into(), &[0x03]).unwrap();
        assert_eq!(read(&mut uart, IIR.into()), 0xc4, "received data");
        assert_eq!(read(&mut uart, 0), b'x');
        assert_eq!(read(&mut uart, IIR.into()), 0xc2, "transmitter empty");
        assert_eq!(read(&mut uart, IIR.into()), 0xc1);
    }

    #[test]
    fn a_closed_output_ends_the_machine() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut uart = uart(Box::new(Closed));
        assert!(matches!(uart.write(0, b"x"), Err(Error::Output(_))));
    }

    #[test]
    fn no_sequence_of_writes_panics() {
        let mut uart = uart(Box::new(io::sink()));
        for byte in 0..=u8::MAX {
            for offset in 0..8 {
                uart.write(offset, &[byte]).unwrap();
                read(&mut uart, offset);
                uart.capacity();
            }
        }
    }
}
