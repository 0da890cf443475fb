//! A UART against a small model of the PC16550D: any accesses by a guest, and input whenever there is room.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::*;

/// The registers that the tests above have no use for.
const SCR: u8 = 7;
const MSR: u8 = 6;
/// Bits that never change: the transmitter is empty.
const LSR_EMPTY: u8 = 0x60;
const MSR_RESET: u8 = 0xb0;

/// What a UART is supposed to be.
#[derive(Default)]
struct Model {
    divisor: [u8; 2],
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl Model {
    fn has_divisor(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn is_loop(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn interrupts_for_input(&self) -> bool {
        !self.has_divisor() && self.ier & IER_RECEIVED_DATA != 0
    }

    fn takes_input(&self) -> bool {
        self.interrupts_for_input() && self.mcr & MCR_RTS != 0 && !self.is_loop()
    }

    fn write(&mut self, register: u8, byte: u8) {
        match register {
            0 | 1 if self.has_divisor() => self.divisor[usize::from(register)] = byte,
            0 if self.is_loop() && self.input.len() < FIFO => self.input.push_back(byte),
            0 if self.is_loop() => {}
            0 => self.output.push(byte),
            IER => self.ier = byte & 0x0f,
            LCR => self.lcr = byte,
            MCR => self.mcr = byte,
            SCR => self.scr = byte,
            _ => {}
        }
    }

    /// Returns what a register reads as; `None` where the causes of interrupts that have been acknowledged decide.
    fn read(&mut self, register: u8) -> Option<u8> {
        Some(match register {
            0 | 1 if self.has_divisor() => self.divisor[usize::from(register)],
            0 => self.input.pop_front().unwrap_or(0),
            IER => self.ier,
            IIR if !self.input.is_empty() && self.interrupts_for_input() => IIR_RECEIVED_DATA,
            IIR => return None,
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => LSR_EMPTY | u8::from(!self.input.is_empty()),
            MSR if self.is_loop() => {
                // Outputs are inputs: RTS is CTS, DTR is DSR, and the two auxiliary ones are RI and DCD.
                let bit = |from: u8, to: u8| (self.mcr >> from & 1) << to;
                bit(1, 4) | bit(0, 5) | bit(2, 6) | bit(3, 7)
            }
            MSR => MSR_RESET,
            _ => self.scr,
        })
    }
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panics").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A UART beside its model.
struct Pair {
    uart: Uart,
    model: Model,
    written: Written,
    /// Whether there has been nothing in the way of input.
    was_ready: bool,
}

impl Pair {
    fn new() -> Self {
        let written = Written::default();
        let uart = made(written.clone(), State::default());
        let model = Model {
            divisor: [0x0c, 0],
            lcr: 3,
            mcr: 8,
            ..Model::default()
        };
        Pair {
            uart,
            model,
            written,
            was_ready: false,
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let request = self.uart.write(offset, bytes).expect("memory takes it");
        assert_eq!(request, None);
        for byte in bytes {
            self.model.write(register(offset), *byte);
        }
    }

    fn read(&mut self, offset: u64, len: usize) {
        let mut data = vec![0xff; len];
        self.uart.read(offset, &mut data);
        for byte in data {
            match self.model.read(register(offset)) {
                Some(expected) => assert_eq!(byte, expected, "register {}", register(offset)),
                None => assert!([0xc1, 0xc2, 0xc4, 0xc6].contains(&byte), "{byte:#x}"),
            }
        }
    }

    /// Gives it at most so much input.
    fn receive(&mut self, bytes: &[u8]) {
        let room = match self.model.takes_input() {
            true => FIFO - self.model.input.len(),
            false => 0,
        };
        assert_eq!(self.uart.capacity(), room);
        let bytes = &bytes[..bytes.len().min(room)];
        self.uart.receive(bytes).expect("there is room");
        self.model.input.extend(bytes);
    }

    /// Saves it and makes it anew.
    fn restore(&mut self) {
        let state = self.uart.state();
        state.check().expect("it is in this state");
        self.uart = made(self.written.clone(), state);
        self.was_ready = false;
    }

    /// Checks what holds after each step: the output, and that input which can come now was announced.
    fn check(&mut self) {
        let written = self.written.0.lock().expect("no writer panics");
        assert_eq!(*written, self.model.output);
        drop(written);
        let announced = self.uart.room.event().read().is_ok();
        // As whatever has input does that the UART didn't take.
        self.uart.await_room();
        let ready = self.model.takes_input() && self.model.input.is_empty();
        assert!(
            announced || self.was_ready || !ready,
            "input would wait for ever"
        );
        self.was_ready = ready;
    }
}

fn made(written: Written, state: State) -> Uart {
    let output = Output {
        writer: Box::new(written),
        gate: Gate::new(1).expect("a gate can be made"),
    };
    Uart::new(IrqLine::unconnected(), output, state).expect("a UART can be made")
}

/// Does what the bytes say, four of them a step.
pub fn run(data: &[u8]) {
    let mut pair = Pair::new();
    for step in data.chunks_exact(4) {
        let (offset, len) = (u64::from(step[1] % 16), usize::from(step[1] >> 4) % 5);
        match step[0] % 8 {
            0..=2 => pair.write(offset, &[step[2], step[3], 0, step[2]][..len]),
            3 | 4 => pair.read(offset, len),
            // Usual values, which random bytes seldom are: input is asked for.
            5 => {
                pair.write(LCR.into(), &[3]);
                pair.write(IER.into(), &[step[2] & 3]);
                pair.write(MCR.into(), &[step[3] & (MCR_RTS | MCR_LOOP)]);
            }
            6 => pair.receive(&step.repeat(usize::from(step[1]))),
            _ => pair.restore(),
        }
        pair.check();
    }
}
