//! Totals: the exits of a machine by kind and meaning, and beside them KVM's own counts, as tables.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

use crate::counts::Counts;
use crate::event::{Exit, Kind};
use crate::meaning::{Device, Meaning};

/// A line below the head, and no other.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// The most rows: meanings name addresses, which the guest chooses. Exits with further meanings are counted together.
const ROWS_MAX: usize = 1024;

/// The exits of one machine so far.
#[derive(Debug, Default)]
pub struct Totals {
    rows: BTreeMap<Key, Row>,
    lost: u64,
    /// All exits, those that the filter left out among them.
    seen: u64,
    /// What KVM counts, once it was read.
    pub(crate) counts: Counts,
}

type Key = (Kind, Device, Cow<'static, str>);

/// Exits of one kind with one meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Row {
    exits: u64,
    unknown: u64,
    /// The time that this process took for them, in nanoseconds.
    took: u64,
}

impl Totals {
    /// Counts an exit that the filter may leave out.
    pub(crate) fn see(&mut self) {
        self.seen += 1;
    }

    /// Counts an exit by its kind and meaning.
    pub(crate) fn add(&mut self, exit: &Exit, meaning: &Meaning) {
        let mut key = (exit.kind, meaning.device, meaning.action.clone());
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
            key.2 = "others".into();
        }
        let row = self.rows.entry(key).or_default();
        row.exits += 1;
        row.unknown += u64::from(!meaning.known);
        row.took = row.took.saturating_add(exit.took);
    }

    pub(crate) fn add_lost(&mut self, lost: u64) {
        self.lost = self.lost.saturating_add(lost);
    }

    /// Returns how many exits there were.
    pub fn exits(&self) -> u64 {
        self.rows.values().map(|row| row.exits).sum()
    }

    /// Returns how many exits no table explains.
    pub fn unknown(&self) -> u64 {
        self.rows.values().map(|row| row.unknown).sum()
    }

    /// Returns how many events were lost: they are in no other number.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns the exits of each kind that there were.
    pub fn by_kind(&self) -> Vec<(Kind, u64)> {
        let count = |kind| {
            let rows = self.rows.iter().filter(|((of, ..), _)| *of == kind);
            (kind, rows.map(|(_, row)| row.exits).sum())
        };
        let counts = Kind::ALL.into_iter().map(count);
        counts.filter(|(_, exits)| *exits > 0).collect()
    }

    /// The rows of a kind, the most frequent first.
    fn of_kind(&self, kind: Kind) -> Vec<(String, Row)> {
        let rows = self.rows.iter().filter(|((of, ..), _)| *of == kind);
        let mut rows: Vec<_> = rows
            .map(|((_, device, action), row)| {
                let meaning = Meaning::new(*device, action.clone()).name();
                (meaning.trim_end_matches(':').to_owned(), *row)
            })
            .collect();
        rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.exits));
        rows
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(STYLE);
        table.set_header(["exits", "share", "kind", "meaning", "served in"]);
        let all = self.exits();
        for (kind, of_kind) in self.by_kind() {
            let rows = self.of_kind(kind);
            let mut kind_name = kind.name();
            if rows.len() > 1 {
                table.add_row([of_kind.to_string(), share(of_kind, all), kind_name.into()]);
                kind_name = "";
            }
            for (meaning, row) in rows {
                let served = Duration::from_nanos(row.took / row.exits.max(1));
                table.add_row([
                    row.exits.to_string(),
                    share(row.exits, all),
                    kind_name.into(),
                    meaning,
                    format!("{served:.1?}"),
                ]);
            }
        }
        for column in [0, 1, 4] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

fn share(part: u64, whole: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "for people to read")]
    let percent = part as f64 * 100.0 / whole.max(1) as f64;
    format!("{percent:.1} %")
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exits = self.exits();
        write!(f, "Exits to minivm, out of KVM: {exits}")?;
        match self.seen > exits {
            true => writeln!(f, " that the filter lets pass, of {}", self.seen)?,
            false => writeln!(f)?,
        }
        if exits > 0 {
            writeln!(f, "{}", self.table().trim_fmt())?;
        }
        let unknown = self.unknown();
        if unknown > 0 {
            writeln!(
                f,
                "Without an explanation: {unknown} ({})",
                share(unknown, exits)
            )?;
        }
        if self.lost > 0 {
            writeln!(
                f,
                "Lost, and in no other number: {} events that came faster than they were written",
                self.lost
            )?;
        }
        // What was lost was seen, too.
        let seen = (self.lost == 0).then_some(self.seen);
        self.counts.show(f, seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meaning::tests::access;
    use crate::meaning::{Architecture, Decoder};

    #[test]
    fn exits_are_counted_by_kind_and_meaning() {
        let mut totals = Totals::default();
        let mut decoder = Decoder::of(Architecture::X86_64);
        let mut see = |kind, address, value: u8| {
            let mut exit = access(kind, address, &[value]);
            exit.took = 1500;
            let meaning = decoder.decode(&exit);
            totals.see();
            totals.add(&exit, &meaning);
        };
        for byte in b"hello" {
            see(Kind::In, 0x3fd, 0x60);
            see(Kind::Out, 0x3f8, *byte);
        }
        see(Kind::Out, 0x3f9, 1);
        see(Kind::Out, 0x1234, 1);
        assert_eq!(totals.by_kind(), [(Kind::Out, 7), (Kind::In, 5)]);
        assert_eq!((totals.exits(), totals.unknown()), (12, 1));
        totals.add_lost(3);
        let text = totals.to_string();
        let expected = [
            "Exits to minivm, out of KVM: 12",
            " exits   share   kind  meaning                                     served in",
            "     7  58.3 %   out",
            "     5  41.7 %         COM1: transmit                                  1.5µs",
            "     1   8.3 %         COM1: switch interrupts on                      1.5µs",
            "     5  41.7 %   in    COM1: line status?                              1.5µs",
            "Without an explanation: 1 (8.3 %)",
            "Lost, and in no other number: 3 events",
        ];
        for line in expected {
            let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(squeezed(&text).contains(&squeezed(line)), "{line}\n{text}");
        }
    }

    #[test]
    fn a_guest_cannot_make_rows_without_end() {
        let mut totals = Totals::default();
        let mut decoder = Decoder::of(Architecture::X86_64);
        for page in 0..5000 {
            let mut exit = access(Kind::MmioRead, 0xd000_0000 + (page << 12), &[0xff]);
            exit.took = u64::MAX;
            let meaning = decoder.decode(&exit);
            totals.see();
            totals.add(&exit, &meaning);
        }
        assert_eq!(totals.exits(), 5000);
        assert!(totals.to_string().lines().count() < 1100);
    }

    #[test]
    fn the_filter_is_named_beside_the_count() {
        let mut totals = Totals::default();
        totals.see();
        let text = totals.to_string();
        assert!(
            text.starts_with("Exits to minivm, out of KVM: 0 that the filter lets pass, of 1\n"),
            "{text}"
        );
    }
}
