//! Folding: repeated exits, and the bytes of a text that goes through a UART, become one line.

use std::time::{Duration, Instant};

use crate::event::{Exit, Kind};
use crate::meaning::{LINE_STATUS, Meaning, Text};

/// The most bytes of text in one line.
const TEXT_MAX: usize = 120;
/// How long a line stays open for exits that belong to it.
const PATIENCE: Duration = Duration::from_millis(200);

/// One line: an exit, or several that say the same.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// The first of the exits.
    pub(crate) exit: Exit,
    pub(crate) meaning: Meaning,
    /// The name of the place in the guest where the first came from.
    pub(crate) symbol: Option<String>,
    /// The number of exits.
    pub(crate) exits: u64,
    /// The bytes that were transmitted, of a text.
    pub(crate) text: Vec<u8>,
}

/// Folds exits into lines.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    open: Option<(Line, Instant)>,
}

impl Folder {
    /// Takes an exit; returns the line before it, or up to it, if that is complete.
    pub(crate) fn exit(
        &mut self,
        exit: &Exit,
        meaning: &Meaning,
        symbol: Option<String>,
    ) -> [Option<Line>; 2] {
        if let Some((line, last)) = &mut self.open
            && line.takes(exit, meaning)
        {
            line.add(meaning);
            *last = Instant::now();
            return [self.close_if(Line::is_full), None];
        }
        let before = self.close();
        let mut line = Line {
            exit: exit.clone(),
            meaning: meaning.clone(),
            symbol,
            exits: 0,
            text: Vec::new(),
        };
        line.add(meaning);
        self.open = Some((line, Instant::now()));
        [before, self.close_if(Line::is_full)]
    }

    /// Returns the open line if no exit has come to it for a while.
    pub(crate) fn idle(&mut self) -> Option<Line> {
        let (_, last) = self.open.as_ref()?;
        (last.elapsed() > PATIENCE).then(|| self.close())?
    }

    /// Returns the open line.
    pub(crate) fn close(&mut self) -> Option<Line> {
        self.open.take().map(|(line, _)| line)
    }

    fn close_if(&mut self, complete: impl Fn(&Line) -> bool) -> Option<Line> {
        let (line, _) = self.open.as_ref()?;
        complete(line).then(|| self.close())?
    }
}

impl Line {
    /// Returns whether an exit belongs to this line.
    fn takes(&self, exit: &Exit, meaning: &Meaning) -> bool {
        if exit.vcpu != self.exit.vcpu || meaning.device != self.meaning.device {
            return false;
        }
        match (self.meaning.text, meaning.text) {
            (Some(_), Some(_)) => true,
            (None, None) => {
                let key = |exit: &Exit| (exit.kind, exit.address, exit.data);
                key(exit) == key(&self.exit) && *meaning == self.meaning && exit.kind.is_access()
            }
            _ => false,
        }
    }

    fn add(&mut self, meaning: &Meaning) {
        self.exits += 1;
        if let Some(Text::Transmit(byte)) = meaning.text {
            self.text.push(byte);
        }
    }

    /// A line of text ends with its newline, or when it is long.
    fn is_full(&self) -> bool {
        self.text.last() == Some(&b'\n') || self.text.len() >= TEXT_MAX
    }

    /// Returns whether it stands for a text: more than its first exit says.
    pub(crate) fn is_text(&self) -> bool {
        !self.text.is_empty() && self.exits > 1
    }

    /// Returns the meaning of all its exits.
    pub(crate) fn words(&self) -> String {
        if self.is_text() {
            let text = shown(&self.text);
            let polls = self.exits - self.text.len() as u64;
            let asked = match polls {
                0 => String::new(),
                polls => format!(", line status? ×{polls}"),
            };
            return format!("{}: transmit {text}{asked}", self.meaning.device.name());
        }
        match self.exits {
            1 => self.meaning.to_string(),
            exits => format!("{} (×{exits})", self.meaning),
        }
    }

    /// Returns whether the access of the first exit is that of all.
    pub(crate) fn is_one_access(&self) -> bool {
        self.exit.kind.is_access() && !self.is_text()
    }

    /// Returns the access that transmits a text: its kind, and the port or address of the UART's data register.
    pub(crate) fn transmission(&self) -> (Kind, u64) {
        let Exit { kind, address, .. } = self.exit;
        let transmits = match kind.is_port() {
            true => Kind::Out,
            false => Kind::MmioWrite,
        };
        // The text may begin with a look at the line status.
        match kind.is_read() {
            true => (transmits, address - u64::from(LINE_STATUS)),
            false => (transmits, address),
        }
    }
}

/// Returns bytes in quotes: as text where they are some, else each byte without a character as its number.
fn shown(bytes: &[u8]) -> String {
    let is_text = |text: &&str| !text.contains(|c: char| c.is_control() && !c.is_whitespace());
    match str::from_utf8(bytes).ok().filter(is_text) {
        Some(text) => format!("{text:?}"),
        None => format!("\"{}\"", bytes.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meaning::tests::access;
    use crate::meaning::{Architecture, Decoder};

    fn lines(of: Architecture, exits: &[(Kind, u64, u8)]) -> Vec<Line> {
        let (mut folder, mut decoder) = (Folder::default(), Decoder::of(of));
        let mut lines = Vec::new();
        for (kind, address, value) in exits {
            let exit = access(*kind, *address, &[*value]);
            let meaning = decoder.decode(&exit);
            lines.extend(folder.exit(&exit, &meaning, None).into_iter().flatten());
        }
        lines.extend(folder.close());
        lines
    }

    fn folded(exits: &[(Kind, u64, u8)]) -> Vec<String> {
        let lines = lines(Architecture::X86_64, exits);
        lines.iter().map(Line::words).collect()
    }

    #[test]
    fn a_text_is_transmitted_where_the_uart_takes_it() {
        let pc = [(Kind::In, 0x2fd, 0x60), (Kind::Out, 0x2f8, b'x')];
        let arm = [
            (Kind::MmioRead, 0x901_0005, 0x60),
            (Kind::MmioWrite, 0x901_0000, b'x'),
        ];
        for (of, exits, expected) in [
            (Architecture::X86_64, pc, (Kind::Out, 0x2f8)),
            (Architecture::Arm64, arm, (Kind::MmioWrite, 0x901_0000)),
        ] {
            // With the look at the line status, and without.
            for exits in [&exits[..], &exits[1..]] {
                let lines = lines(of, exits);
                assert_eq!(lines.len(), 1);
                assert_eq!(lines[0].transmission(), expected);
            }
        }
    }

    #[test]
    fn a_text_is_put_together_line_by_line() {
        let mut exits = Vec::new();
        for byte in b"hi\r\nyou" {
            exits.push((Kind::In, 0x3fd, 0x60));
            exits.push((Kind::Out, 0x3f8, *byte));
        }
        exits.push((Kind::Out, 0x2f8, b'x'));
        assert_eq!(
            folded(&exits),
            [
                r#"COM1: transmit "hi\r\n", line status? ×4"#,
                r#"COM1: transmit "you", line status? ×3"#,
                "COM2: transmit 'x'",
            ]
        );
    }

    #[test]
    fn bytes_without_a_character_are_numbers() {
        assert_eq!(shown("né\r\n".as_bytes()), r#""né\r\n""#);
        assert_eq!(shown(b"\0mini\xc3\x1b"), r#""\x00mini\xc3\x1b""#);
    }

    #[test]
    fn repeats_are_counted_and_others_kept_apart() {
        assert_eq!(
            folded(&[
                (Kind::Out, 0x80, 1),
                (Kind::Out, 0x80, 1),
                (Kind::Out, 0x80, 2),
                (Kind::In, 0x3fd, 0x60),
                (Kind::In, 0x3fd, 0x60),
                (Kind::In, 0x3fe, 0xb0),
                (Kind::Interrupted, 0, 0),
                (Kind::Interrupted, 0, 0),
            ])
            .iter()
            .map(|line| line.split("used for a short delay").last().unwrap())
            .collect::<Vec<_>>(),
            [
                "): ignored: 0x01 (×2)",
                "): ignored: 0x02",
                "COM1: line status? transmitter empty, idle (×2)",
                "COM1: modem status? clear to send, data set ready, carrier",
                "no exit of the guest's: minivm called the thread out of the guest",
                "no exit of the guest's: minivm called the thread out of the guest",
            ]
        );
    }
}
