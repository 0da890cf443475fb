//! The comparison as a page: one file, which needs nothing else.

use anyhow::Context;
use askama::Template;
use minivm_sandbox::reach::{Probe, Reach};

use super::measure::Row;
use super::table::{memory, seconds};
use crate::command::page::{percent, processor};

/// Where the scale of times begins, in seconds, and how many powers of ten it has.
const FROM: f64 = 0.000_1;
const DECADES: f64 = 6.0;

// Askama escapes what it fills in: code and answers can be anything.
#[derive(Template)]
#[template(path = "compare.html")]
struct Page<'a> {
    version: &'a str,
    machine: String,
    code: &'a str,
    runs: u32,
    lab: bool,
    probes: Vec<&'static str>,
    sandboxes: usize,
    /// One for each of them, and one for the microVM that is warm.
    rows: Vec<PageRow>,
}

struct PageRow {
    name: &'static str,
    in_lab: bool,
    answer: String,
    boundary: &'static str,
    start_up: String,
    total: String,
    memory: String,
    start_up_bar: Option<String>,
    total_bar: Option<String>,
    memory_bar: Option<String>,
    reach: Vec<Cell>,
}

struct Cell {
    class: &'static str,
    word: &'static str,
    how: String,
}

/// Makes the page.
pub(super) fn render(code: &str, runs: u32, rows: &[Row]) -> anyhow::Result<String> {
    let most = rows.iter().filter_map(|row| row.peak_memory).max();
    let has_reach = rows.iter().any(|row| !row.reach.is_empty());
    let probes: &[Probe] = if has_reach { &Probe::ALL } else { &[] };
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        machine: processor(),
        code,
        runs,
        lab: rows.iter().any(|row| row.in_lab),
        probes: probes.iter().map(|probe| probe.name()).collect(),
        sandboxes: rows.len(),
        rows: rows
            .iter()
            .flat_map(Row::both)
            .map(|row| page_row(row, probes, most))
            .collect(),
    };
    page.render().context("cannot make the page")
}

fn page_row(row: &Row, probes: &[Probe], most: Option<u64>) -> PageRow {
    PageRow {
        name: row.name(),
        in_lab: row.in_lab,
        answer: row.answer(),
        boundary: row.boundary.unwrap_or("–"),
        start_up: seconds(row.start_up),
        total: seconds(row.total),
        memory: memory(row.peak_memory),
        start_up_bar: row.start_up.map(on_scale),
        total_bar: row.total.map(on_scale),
        memory_bar: row
            .peak_memory
            .zip(most)
            .map(|(bytes, most)| percent(bytes, most)),
        reach: probes
            .iter()
            .map(|probe| cell(row.reach.get(probe)))
            .collect(),
    }
}

fn cell(reach: Option<&Reach>) -> Cell {
    let (class, word, how) = match reach {
        None => ("", "–", ""),
        Some(Reach::Nothing(how)) => ("nothing", "no", how.as_str()),
        Some(Reach::Own) => ("own", "its own", ""),
        Some(Reach::Host) => ("host", "YES", ""),
    };
    Cell {
        class,
        word,
        how: how.to_owned(),
    }
}

/// A time's place on the scale, in percent.
fn on_scale(time: f64) -> String {
    let decades = (time.max(FROM) / FROM).log10();
    format!("{:.2}", (100.0 * decades / DECADES).clamp(0.0, 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_logarithmic_and_has_ends() {
        assert_eq!(on_scale(0.000_1), "0.00");
        assert_eq!(on_scale(0.1), "50.00");
        assert_eq!(
            (on_scale(0.0), on_scale(1e9)),
            ("0.00".into(), "100.00".into())
        );
    }

    #[test]
    fn code_and_answers_are_only_text_on_the_page() {
        let code = "print('</pre><script>alert(1)</script>')";
        let page = render(code, 1, &[]).unwrap();
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&#60;script&#62;") || page.contains("&lt;script&gt;"));
    }
}
