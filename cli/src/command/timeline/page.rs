//! Timelines as a page: one file, which needs nothing else.

use anyhow::Context;
use askama::Template;
use minivm_machine::timeline::{Phase, Timeline};

use super::Measured;
use super::chart::{self, Row, longest, millis};
use super::text::clocks;
use crate::command::page::{percent, processor};

/// How many bars the chart of exits has.
const BINS: u64 = 120;
/// Its size, in the units of its drawing.
const WIDTH: u64 = 1200;
const HEIGHT: u64 = 120;
/// How many colours the kinds of exits have.
const COLOURS: usize = 7;

// Askama escapes what it fills in: what a guest wrote can be anything.
#[derive(Template)]
#[template(path = "timeline.html")]
struct Page<'a> {
    version: &'a str,
    machine: String,
    title: String,
    lab: bool,
    end: String,
    machines: Vec<Machine<'a>>,
    rows: Vec<PageRow<'a>>,
    width: u64,
    height: u64,
}

struct Machine<'a> {
    name: &'a str,
    timeline: &'a Timeline,
    clocks: String,
    total: String,
    kinds: Vec<Kind<'a>>,
    bars: Vec<Bar>,
    count: usize,
    lines: Vec<(String, &'a str)>,
}

/// A kind of exits, and its colour.
struct Kind<'a> {
    name: &'a str,
    count: usize,
    colour: usize,
}

/// A rectangle of the chart of exits.
struct Bar {
    x: u64,
    y: u64,
    height: u64,
    colour: usize,
    title: String,
}

struct PageRow<'a> {
    name: &'a str,
    is_part: bool,
    cells: Vec<Option<Cell>>,
}

struct Cell {
    left: String,
    width: String,
    millis: String,
    clock: &'static str,
}

/// Makes the page of one timeline, or of two side by side.
pub(super) fn render(measured: &[Measured]) -> anyhow::Result<String> {
    let longest = longest(measured);
    let names: Vec<_> = measured.iter().map(|one| &*one.name).collect();
    let colours = colours(measured);
    let most = most(measured, longest);
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        machine: processor(),
        title: format!("A machine's timeline: {}", names.join(" and ")),
        lab: measured.iter().any(|one| one.accel == "lab"),
        end: millis(longest),
        machines: measured
            .iter()
            .map(|one| machine(one, &colours, longest, most))
            .collect(),
        rows: chart::rows(measured)
            .into_iter()
            .map(|row| page_row(row, longest))
            .collect(),
        width: WIDTH,
        height: HEIGHT,
    };
    page.render().context("cannot make the page")
}

fn page_row(row: Row<'_>, longest: u64) -> PageRow<'_> {
    let cell = |phase: &Phase| Cell {
        left: percent(phase.start.0, longest),
        width: percent(phase.duration.0, longest),
        millis: millis(phase.duration.0),
        clock: phase.clock.name(),
    };
    PageRow {
        name: row.name,
        is_part: row.is_part,
        cells: row.phases.iter().map(|phase| phase.map(cell)).collect(),
    }
}

fn machine<'a>(one: &'a Measured, colours: &[&str], longest: u64, most: u64) -> Machine<'a> {
    let timeline = &one.timeline;
    let colour = |kind: &str| {
        let place = colours.iter().position(|known| *known == kind);
        place.unwrap_or(0) % COLOURS
    };
    let kinds = timeline.exits.iter().map(|exits| Kind {
        name: &exits.kind,
        count: exits.count,
        colour: colour(&exits.kind),
    });
    let lines = timeline.log.iter();
    Machine {
        name: &one.name,
        timeline,
        clocks: clocks(one),
        total: millis(timeline.total.0),
        kinds: kinds.collect(),
        bars: bars(timeline, colour, longest, most),
        count: timeline.exits.iter().map(|exits| exits.count).sum(),
        lines: lines
            .map(|line| (millis(line.time.0), &*line.text))
            .collect(),
    }
}

/// Returns the kinds of exits of all timelines, each once: a kind has one colour on the page.
fn colours(measured: &[Measured]) -> Vec<&str> {
    let mut kinds = Vec::new();
    for exits in measured.iter().flat_map(|one| &one.timeline.exits) {
        if !kinds.contains(&&*exits.kind) {
            kinds.push(&*exits.kind);
        }
    }
    kinds
}

/// Returns in which bar a time falls.
fn bin(time: u64, longest: u64) -> usize {
    let bin = u128::from(time) * u128::from(BINS) / u128::from(longest);
    usize::try_from(bin.min(u128::from(BINS) - 1)).unwrap_or(0)
}

/// Counts the exits of each kind and bar.
fn counts(timeline: &Timeline, longest: u64) -> Vec<(&str, Vec<u64>)> {
    let count = |times: &[minivm_machine::timeline::Nanos]| {
        let mut counts = vec![0; bin(u64::MAX, longest) + 1];
        for time in times {
            counts[bin(time.0, longest)] += 1;
        }
        counts
    };
    let exits = timeline.exits.iter();
    exits
        .map(|exits| (&*exits.kind, count(&exits.times)))
        .collect()
}

/// Returns the number of exits of the highest bar of all timelines.
fn most(measured: &[Measured], longest: u64) -> u64 {
    let highest = |one: &Measured| {
        let counts = counts(&one.timeline, longest);
        let of_bin = |bin: usize| counts.iter().map(|(_, counts)| counts[bin]).sum();
        (0..=bin(u64::MAX, longest)).map(of_bin).max()
    };
    measured.iter().filter_map(highest).max().unwrap_or(0)
}

/// Draws the exits over time, the kinds on top of each other.
fn bars(timeline: &Timeline, colour: impl Fn(&str) -> usize, longest: u64, most: u64) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut below = vec![0; bin(u64::MAX, longest) + 1];
    let height = |count: u64| count * HEIGHT / most.max(1);
    for (kind, counts) in counts(timeline, longest) {
        for ((number, count), below) in (0..).zip(counts).zip(&mut below) {
            if count == 0 {
                continue;
            }
            let (bottom, top) = (height(*below), height(*below + count));
            *below += count;
            let edge = |number: u64| {
                let nanos = u128::from(longest) * u128::from(number) / u128::from(BINS);
                millis(u64::try_from(nanos).unwrap_or(u64::MAX))
            };
            let title = format!(
                "{count} {kind}, {} to {} ms",
                edge(number),
                edge(number + 1)
            );
            bars.push(Bar {
                x: number * WIDTH / BINS,
                // What is there is seen, however little it is.
                y: HEIGHT - top.max(1),
                height: (top - bottom).max(1),
                colour: colour(kind),
                title,
            });
        }
    }
    bars
}

#[cfg(test)]
mod tests {
    use minivm_machine::timeline::Start;

    use super::super::chart::tests::measured;
    use super::*;

    const PHASES: [(&str, u64); 3] = [("start", 10), ("machine", 80), ("end", 10)];

    #[test]
    fn what_a_guest_wrote_is_only_text_on_the_page() {
        let page = render(&[measured("cold", Start::Cold, &PHASES)]).unwrap();
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&#60;script&#62;") || page.contains("&lt;script&gt;"));
        assert!(!page.contains("http"), "it loads nothing: {page}");
    }

    #[test]
    fn every_exit_is_in_a_bar_within_the_chart() {
        let both = [
            measured("cold", Start::Cold, &PHASES),
            measured("warm", Start::Warm, &PHASES[..1]),
        ];
        let longest = longest(&both);
        assert_eq!(most(&both, longest), 2, "two at 50 ms");
        for one in &both {
            let counts = counts(&one.timeline, longest);
            let all: u64 = counts.iter().flat_map(|(_, counts)| counts).sum();
            assert_eq!(all, 4);
            let bars = bars(&one.timeline, |_| 0, longest, 2);
            assert_eq!(bars.len(), 4);
            for bar in &bars {
                assert!(
                    bar.x < WIDTH && bar.y + bar.height <= HEIGHT,
                    "{}",
                    bar.title
                );
            }
            // One on top of the other.
            assert_eq!((bars[2].y, bars[3].y), (HEIGHT / 2, 0));
            assert_eq!(bars[2].x, bars[3].x);
        }
        assert_eq!(bin(u64::MAX, 1), 119);
    }
}
