//! The UART's registers. (National Semiconductor PC16550D, "Registers".)

use super::{Device, Meaning, Text, bits, hexadecimal};
use crate::event::Exit;

/// The interrupt enable register.
pub(super) const INTERRUPTS: u8 = 1;
/// The line status register.
pub(crate) const LINE_STATUS: u8 = 5;

const LCR_DLAB: u8 = 1 << 7;
/// No line format: on chips after the 16550A (16C950 and others) it shows another set of registers, and drivers look for that.
const LCR_ENHANCED: u8 = 0xbf;
const MCR_LOOP: u8 = 1 << 4;
/// The clock of a PC's UART, divided by 16.
const BAUD_BASE: u32 = 115_200;

const IER: &[(u8, &str)] = &[
    (1 << 0, "received data"),
    (1 << 1, "transmitter empty"),
    (1 << 2, "line status"),
    (1 << 3, "modem status"),
];
const FCR: &[(u8, &str)] = &[
    (1 << 0, "on"),
    (1 << 1, "receiver cleared"),
    (1 << 2, "transmitter cleared"),
];
const MCR: &[(u8, &str)] = &[
    (1 << 0, "data terminal ready"),
    (1 << 1, "request to send"),
    (1 << 2, "OUT1"),
    (1 << 3, "OUT2 (interrupts pass)"),
    (MCR_LOOP, "loopback"),
];
const LSR: &[(u8, &str)] = &[
    (1 << 0, "data ready"),
    (1 << 1, "overrun"),
    (1 << 2, "parity error"),
    (1 << 3, "framing error"),
    (1 << 4, "break"),
    (1 << 5, "transmitter empty"),
    (1 << 6, "idle"),
    (1 << 7, "error in the FIFO"),
];
const MSR: &[(u8, &str)] = &[
    (1 << 0, "clear to send changed"),
    (1 << 1, "data set ready changed"),
    (1 << 2, "ring ended"),
    (1 << 3, "carrier changed"),
    (1 << 4, "clear to send"),
    (1 << 5, "data set ready"),
    (1 << 6, "ring"),
    (1 << 7, "carrier"),
];

/// What the meaning of a UART's registers depends on.
#[derive(Debug, Default)]
pub(super) struct Uart {
    /// Whether the first two registers are the divisor's halves ("divisor latch access bit").
    divisor_shows: bool,
    divisor: [u8; 2],
    /// Whether what is transmitted is received by the UART itself.
    loops: bool,
}

impl Uart {
    pub(super) fn decode(&mut self, device: Device, register: u8, exit: &Exit) -> Meaning {
        let meaning = |action: &'static str| Meaning::new(device, action);
        // More than one byte is a string instruction's, which a UART takes one by one.
        let [value] = *exit.data.bytes() else {
            return meaning("several bytes at a time").with(hexadecimal(exit));
        };
        match (register, exit.kind.is_read()) {
            (0 | 1, _) if self.divisor_shows => self.divisor(device, register, exit, value),
            (0, true) => meaning("receive").with(character(value)),
            (0, false) if self.loops => meaning("transmit to itself").with(character(value)),
            (0, false) => Meaning {
                text: Some(Text::Transmit(value)),
                ..meaning("transmit").with(character(value))
            },
            (1, true) => meaning("which interrupts are on?").with(bits(value, IER, "none")),
            (1, false) => meaning("switch interrupts on:").with(bits(value, IER, "none")),
            (2, true) => meaning("why was there an interrupt?").with(cause(value)),
            (2, false) => meaning("set the FIFOs:").with(bits(value, FCR, "off")),
            (3, true) => meaning("which line format?").with(line(value)),
            (3, false) => {
                self.divisor_shows = value & LCR_DLAB != 0;
                meaning("set the line format:").with(line(value))
            }
            (4, true) => meaning("which modem signals are on?").with(bits(value, MCR, "none")),
            (4, false) => {
                self.loops = value & MCR_LOOP != 0;
                meaning("switch modem signals on:").with(bits(value, MCR, "none"))
            }
            (LINE_STATUS, true) => Meaning {
                // Data that waits is no part of a transmission.
                text: (value & 1 == 0).then_some(Text::Poll),
                ..meaning("line status?").with(bits(value, LSR, "transmitter full"))
            },
            (6, true) => meaning("modem status?").with(bits(value, MSR, "no signal")),
            (LINE_STATUS | 6, false) => meaning("write to a status register: ignored"),
            (_, true) => meaning("read the scratch register:").with(format!("{value:#04x}")),
            (_, false) => meaning("write the scratch register:").with(format!("{value:#04x}")),
        }
    }

    /// One of the two halves of the divisor, by which the clock becomes the baud rate.
    fn divisor(&mut self, device: Device, register: u8, exit: &Exit, value: u8) -> Meaning {
        if exit.kind.is_read() {
            return Meaning::new(device, "which divisor?").with(format!("{value:#04x}"));
        }
        self.divisor[usize::from(register)] = value;
        let detail = match u16::from_le_bytes(self.divisor) {
            0 => format!("{value:#04x}"),
            divisor => format!("{value:#04x}, so {} baud", BAUD_BASE / u32::from(divisor)),
        };
        let half = [
            "set the divisor's low half:",
            "set the divisor's high half:",
        ];
        Meaning::new(device, half[usize::from(register)]).with(detail)
    }
}

/// Returns a byte as a character in quotes, or as its number where it has none.
fn character(byte: u8) -> String {
    match byte {
        b'\n' => r"'\n'".into(),
        b'\r' => r"'\r'".into(),
        b'\t' => r"'\t'".into(),
        b' '..=b'~' => format!("'{}'", char::from(byte)),
        _ => format!("{byte:#04x}"),
    }
}

fn cause(value: u8) -> &'static str {
    match value & 0x0f {
        0x01 => "there was none",
        0x06 => "line status",
        0x04 => "received data",
        0x0c => "received data, for a while",
        0x02 => "transmitter empty",
        0x00 => "modem status",
        _ => "an undefined cause",
    }
}

/// Returns the line's format, such as `8N1`.
fn line(value: u8) -> String {
    if value == LCR_ENHANCED {
        return "0xbf, which shows a later chip's enhanced features".into();
    }
    let data = 5 + (value & 3);
    let parity = match value >> 3 & 7 {
        0 | 2 | 4 | 6 => 'N',
        1 => 'O',
        3 => 'E',
        5 => 'M',
        _ => 'S',
    };
    let stop = match (value & 4 != 0, data) {
        (false, _) => "1",
        (true, 5) => "1.5",
        (true, _) => "2",
    };
    let latch = if value & LCR_DLAB != 0 {
        ", divisor shows"
    } else {
        ""
    };
    let stopped = if value & (1 << 6) != 0 { ", break" } else { "" };
    format!("{data}{parity}{stop}{stopped}{latch}")
}

#[cfg(test)]
mod tests {
    use crate::event::Kind::{In, Out};
    use crate::meaning::tests::{access, meaning};
    use crate::meaning::{Architecture, Decoder, Text};

    #[test]
    fn registers_have_the_data_sheets_meanings() {
        for (kind, port, value, expected) in [
            (Out, 0x3f8, b'L', "COM1: transmit 'L'"),
            (Out, 0x2f8, 0x07, "COM2: transmit 0x07"),
            (Out, 0x3e8, 0x07, "COM3: transmit 0x07"),
            (In, 0x3f8, b'\n', r"COM1: receive '\n'"),
            (
                Out,
                0x3f9,
                0x05,
                "COM1: switch interrupts on: received data, line status",
            ),
            (Out, 0x3f9, 0x00, "COM1: switch interrupts on: none"),
            (
                In,
                0x3fa,
                0xc1,
                "COM1: why was there an interrupt? there was none",
            ),
            (
                In,
                0x3fa,
                0x04,
                "COM1: why was there an interrupt? received data",
            ),
            (
                Out,
                0x3fa,
                0x07,
                "COM1: set the FIFOs: on, receiver cleared, transmitter cleared",
            ),
            (Out, 0x3fb, 0x13, "COM1: set the line format: 8N1"),
            (
                Out,
                0x3fb,
                0x9e,
                "COM1: set the line format: 7E2, divisor shows",
            ),
            (
                Out,
                0x3fb,
                0xbf,
                "COM1: set the line format: 0xbf, which shows a later chip's enhanced features",
            ),
            (
                Out,
                0x3fc,
                0x0b,
                "COM1: switch modem signals on: data terminal ready, request to send, OUT2 (interrupts pass)",
            ),
            (
                In,
                0x3fd,
                0x60,
                "COM1: line status? transmitter empty, idle",
            ),
            (
                In,
                0x3fd,
                0x61,
                "COM1: line status? data ready, transmitter empty, idle",
            ),
            (
                In,
                0x3fe,
                0xb0,
                "COM1: modem status? clear to send, data set ready, carrier",
            ),
            (Out, 0x3ff, 0x5a, "COM1: write the scratch register: 0x5a"),
        ] {
            assert_eq!(meaning(&[(kind, port, &[value])]), expected);
        }
    }

    #[test]
    fn the_first_registers_are_the_divisor_while_it_shows() {
        let (open, low, high) = (
            (Out, 0x3fb, &[0x83][..]),
            (Out, 0x3f8, &[0x0c][..]),
            (Out, 0x3f9, &[0][..]),
        );
        assert_eq!(
            meaning(&[open, low, high]),
            "COM1: set the divisor's high half: 0x00, so 9600 baud"
        );
        assert_eq!(
            meaning(&[open, (Out, 0x3fb, &[0x03]), low]),
            "COM1: transmit 0x0c"
        );
        // The other UART has a latch of its own.
        assert_eq!(meaning(&[open, (Out, 0x2f8, b"x")]), "COM2: transmit 'x'");
    }

    #[test]
    fn com3_is_there_unless_its_interrupts_read_as_ones() {
        let (look, ring) = ((In, 0x3e9), (Out, 0x3e8, &[0x07][..]));
        let [there, absent] = [&[0x05][..], &[0xff]].map(|read| (look.0, look.1, read));
        assert_eq!(
            meaning(&[absent]),
            "nothing is at port 0x3e9 (COM3): reads as ones"
        );
        let nothing = "nothing is at port 0x3e8 (COM3): ignored: 0x07";
        assert_eq!(meaning(&[absent, ring]), nothing);
        assert_eq!(meaning(&[there, ring]), "COM3: transmit 0x07");
        // The other UARTs are always there.
        assert_eq!(
            meaning(&[absent, (Out, 0x2f8, &[0x07])]),
            "COM2: transmit 0x07"
        );
    }

    #[test]
    fn a_looped_byte_is_no_output() {
        let mut decoder = Decoder::of(Architecture::X86_64);
        decoder.decode(&access(Out, 0x3fc, &[0x10]));
        let looped = decoder.decode(&access(Out, 0x3f8, b"x"));
        assert_eq!(
            (looped.to_string(), looped.text),
            ("COM1: transmit to itself 'x'".into(), None)
        );
        decoder.decode(&access(Out, 0x3fc, &[0x03]));
        let sent = decoder.decode(&access(Out, 0x3f8, b"x"));
        assert_eq!(sent.text, Some(Text::Transmit(b'x')));
    }
}
