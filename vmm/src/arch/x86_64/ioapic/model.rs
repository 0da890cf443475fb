//! An IOAPIC against a small model of the 82093AA: any accesses by a guest, and edges at any time.

use std::sync::{Arc, Mutex};

use super::*;

/// What an IOAPIC is supposed to be: its registers as a guest sees them, each of 32 bits.
struct Model {
    select: u8,
    id: u32,
    table: [[u32; 2]; PINS as usize],
    waiting: [bool; PINS as usize],
    used: bool,
    sent: Vec<Msi>,
}

/// Bits of an entry's lower half: masked, and those that only the IOAPIC sets.
const MASKED: u32 = 1 << 16;
const STATUS: u32 = 1 << 12 | 1 << 14;

impl Model {
    fn new() -> Self {
        Model {
            select: 0,
            id: u32::from(ID) << 24,
            table: [[MASKED, 0]; PINS as usize],
            waiting: [false; PINS as usize],
            used: false,
            sent: Vec::new(),
        }
    }

    /// Returns the pin and the half of the selected register, if it is one of the table's.
    fn place(&self) -> Option<(usize, usize)> {
        let index = usize::from(self.select).checked_sub(0x10)?;
        (index < 2 * usize::from(PINS)).then_some((index / 2, index % 2))
    }

    fn register(&self) -> u32 {
        match (self.select, self.place()) {
            (0 | 2, _) => self.id,
            (1, _) => 0x11 | (u32::from(PINS) - 1) << 16,
            (_, Some((pin, half))) => self.table[pin][half],
            _ => u32::MAX,
        }
    }

    fn set_register(&mut self, value: u32) {
        match self.place() {
            Some((pin, half)) => {
                let writable = if half == 0 { !STATUS } else { u32::MAX };
                self.table[pin][half] = value & writable;
                self.used |= self.table[pin][0] & MASKED == 0;
                if self.waiting[pin] {
                    self.edge(pin);
                }
            }
            None if self.select == 0 => self.id = value & 0x0f00_0000,
            None => {}
        }
    }

    fn edge(&mut self, pin: usize) {
        let [low, high] = self.table[pin];
        self.waiting[pin] = low & MASKED != 0;
        if !self.waiting[pin] {
            self.sent.push(Msi {
                address: 0xfee0_0000 + (high >> 24) * 0x1000 + (low >> 11 & 1) * 4,
                data: low & 0x7ff,
            });
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            0 => self.select = data.first().copied().unwrap_or(self.select),
            0x10 => {
                if let Ok(value) = data.try_into() {
                    self.set_register(u32::from_le_bytes(value));
                }
            }
            _ => {}
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            0 => u32::from(self.select),
            0x10 => self.register(),
            _ => return,
        };
        let len = data.len().min(4);
        data[..len].copy_from_slice(&value.to_le_bytes()[..len]);
    }

    fn routing(&self) -> Routing {
        match (
            self.used,
            self.table.iter().any(|entry| entry[0] & MASKED == 0),
        ) {
            (false, _) => Routing::Never,
            (true, true) => Routing::Active,
            (true, false) => Routing::Quiesced,
        }
    }
}

fn made(sent: &Arc<Mutex<Vec<Msi>>>, state: State) -> IoApic {
    let sent = sent.clone();
    let sink = move |msi| {
        sent.lock().expect("no sink panics").push(msi);
        Ok(())
    };
    IoApic::new(Box::new(sink), state)
}

/// Does what the bytes say, eight of them a step.
pub fn run(data: &[u8]) {
    let sent = Arc::default();
    let (mut ioapic, mut model) = (made(&sent, State::default()), Model::new());
    for step in data.chunks_exact(8) {
        let near = [IOREGSEL, IOWIN, IOWIN, u64::from(step[1])][usize::from(step[1] % 4)];
        let len = [4, 4, 1, 2, 8, 3, 0, 5][usize::from(step[2] % 8)];
        let bytes = [&step[3..], &step[..3]].concat();
        match step[0] % 8 {
            0 | 1 => {
                let register = [step[3] % 0x22];
                ioapic
                    .write(IOREGSEL, &register)
                    .expect("it takes anything");
                model.write(0, &register);
            }
            2 | 3 => {
                ioapic
                    .write(near, &bytes[..len])
                    .expect("it takes anything");
                model.write(near, &bytes[..len]);
            }
            4 => {
                let (mut read, mut expected) = (vec![0xff; len], vec![0xff; len]);
                ioapic.read(near, &mut read);
                model.read(near, &mut expected);
                assert_eq!(
                    read, expected,
                    "offset {near:#x}, register {:#x}",
                    model.select
                );
            }
            5 | 6 => {
                ioapic.pulse(step[3] % PINS).expect("the sink takes it");
                model.edge(usize::from(step[3] % PINS));
            }
            _ => ioapic = made(&sent, ioapic.state()),
        }
        assert_eq!(*sent.lock().expect("no sink panics"), model.sent);
        assert_eq!(ioapic.routing(), model.routing());
    }
}
