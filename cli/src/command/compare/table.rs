//! The comparison as a table for terminals.

use std::io::stdout;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use indicatif::BinaryBytes;
use minivm_sandbox::reach::{Probe, Reach};

use super::measure::Row;

/// A line below the head, and no other.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
/// Where stdout is no terminal.
const WIDTH: u16 = 120;

pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table
        .load_style(STYLE)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width())
        .set_header([
            "sandbox",
            "answer",
            "start-up",
            "total",
            "memory",
            "boundary",
            "code reaches",
        ]);
    let available = rows.iter().filter(|row| row.is_available());
    for row in available.flat_map(Row::both) {
        table.add_row([
            row.name().to_owned(),
            row.answer(),
            seconds(row.start_up),
            seconds(row.total) + if row.in_lab { " (lab)" } else { "" },
            memory(row.peak_memory),
            row.boundary.unwrap_or("–").to_owned(),
            reached(row),
        ]);
    }
    for numbers in [2, 3, 4] {
        if let Some(column) = table.column_mut(numbers) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn width() -> u16 {
    let size = rustix::termios::tcgetwinsize(stdout());
    size.ok().map_or(WIDTH, |size| size.ws_col).max(60)
}

pub(super) fn seconds(time: Option<f64>) -> String {
    match time {
        None => "–".into(),
        Some(time) if time < 0.01 => format!("{:.2} ms", time * 1e3),
        Some(time) if time < 1.0 => format!("{:.0} ms", time * 1e3),
        Some(time) => format!("{time:.2} s"),
    }
}

pub(super) fn memory(bytes: Option<u64>) -> String {
    bytes.map_or("–".into(), |bytes| BinaryBytes(bytes).to_string())
}

/// What is the host's first, and then what is its own.
pub(super) fn reached(row: &Row) -> String {
    if row.reach.is_empty() {
        return "–".into();
    }
    let names = |wanted: Reach| -> Vec<&str> {
        let reached = row.reach.iter().filter(|(_, reach)| **reach == wanted);
        reached.map(|(probe, _)| own_name(*probe)).collect()
    };
    let (host, own) = (names(Reach::Host), names(Reach::Own));
    let mut text = match &*host {
        [] => "nothing of the host".to_owned(),
        host => format!("OF THE HOST: {}", host.join(", ")),
    };
    if !own.is_empty() {
        text = format!("{text}; its own {}", own.join(", "));
    }
    text
}

/// What it is, whosever.
fn own_name(probe: Probe) -> &'static str {
    match probe {
        Probe::File => "files",
        Probe::Environment => "variables",
        Probe::Network => "ports",
        Probe::Process => "processes",
        Probe::Neighbour => "temporary files",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_fits() {
        assert_eq!(seconds(None), "–");
        assert_eq!(seconds(Some(0.00312)), "3.12 ms");
        assert_eq!(seconds(Some(0.1717)), "172 ms");
        assert_eq!(seconds(Some(2.345)), "2.35 s");
    }
}
