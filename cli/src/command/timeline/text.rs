//! Timelines for a terminal: a line for each phase, with a bar that shows when it was.

use std::fmt::Write;
use std::io::stdout;

use minivm_machine::timeline::Exits;

use super::Measured;
use super::chart::{self, Row, longest, millis};

/// The width where stdout is no terminal, and the least and the most one.
const WIDTH: usize = 100;
const WIDTHS: std::ops::RangeInclusive<usize> = 60..=160;
/// The least width of the bars.
const BARS_MIN: usize = 10;
/// The column of clocks.
const CLOCK: usize = 7;

/// Returns the terminal's width.
pub(super) fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(stdout());
    let width = size.map_or(WIDTH, |size| size.ws_col.into());
    width.clamp(*WIDTHS.start(), *WIDTHS.end())
}

/// Renders one timeline, or two side by side.
pub(super) fn render(measured: &[Measured], width: usize) -> String {
    let rows = chart::rows(measured);
    let layout = Layout::new(measured, &rows, width);
    let mut text = layout.head();
    for row in &rows {
        for (number, phase) in row.phases.iter().enumerate() {
            let Some(phase) = phase else { continue };
            let is_first = row.phases[..number].iter().all(Option::is_none);
            let name = match (is_first, row.is_part) {
                (false, _) => String::new(),
                (true, false) => row.name.to_owned(),
                (true, true) => format!("  {}", row.name),
            };
            let bar = layout.bar(phase.start.0, phase.end().0, row.is_part);
            text += &layout.line(
                &name,
                &measured[number].name,
                &millis(phase.duration.0),
                phase.clock.name(),
                &bar,
            );
        }
    }
    for one in measured {
        let total = millis(one.timeline.total.0);
        text += &layout.line("all", &one.name, &total, "", "");
    }
    text.push('\n');
    for one in measured {
        text += &notes(one, measured.len() > 1);
    }
    if measured.iter().any(|one| one.accel == "lab") {
        text += "In the lab, times are those of an emulated processor: compare them with each other, not with hardware's.\n";
    }
    text
}

/// The widths of columns.
struct Layout {
    name: usize,
    /// None where there is one timeline.
    label: usize,
    millis: usize,
    bars: usize,
    /// The time at the right end of the bars, in nanoseconds.
    longest: u64,
}

impl Layout {
    fn new(measured: &[Measured], rows: &[Row<'_>], width: usize) -> Self {
        let of_name = |row: &Row| row.name.chars().count() + 2 * usize::from(row.is_part);
        let longest = longest(measured);
        let labels = measured.iter().map(|one| one.name.chars().count());
        let label = match measured {
            [_] => 0,
            _ => labels.max().unwrap_or(0) + 2,
        };
        let name = rows.iter().map(of_name).max().unwrap_or(0) + 2;
        let millis = millis(longest).len().max("ms".len());
        let taken = name + label + millis + 2 + CLOCK + 2;
        Layout {
            name,
            label,
            millis,
            bars: width.saturating_sub(taken).max(BARS_MIN),
            longest,
        }
    }

    fn head(&self) -> String {
        let end = format!("{} ms", millis(self.longest));
        let scale = format!("0{end:>width$}", width = self.bars.saturating_sub(1));
        self.line("", "", "ms", "clock", &scale)
    }

    fn line(&self, name: &str, label: &str, millis: &str, clock: &str, bar: &str) -> String {
        let Layout {
            name: name_width,
            label: label_width,
            millis: millis_width,
            ..
        } = self;
        let label = if *label_width == 0 { "" } else { label };
        let line = format!(
            "{name:name_width$}{label:label_width$}{millis:>millis_width$}  {clock:CLOCK$}  {bar}"
        );
        format!("{}\n", line.trim_end())
    }

    /// Returns a bar from one time to another. Where it is narrower than a character, it is one character's edge.
    fn bar(&self, from: u64, to: u64, is_part: bool) -> String {
        let column = |time: u64| {
            let columns = self.bars as u128 * u128::from(time) / u128::from(self.longest);
            usize::try_from(columns).unwrap_or(0).min(self.bars)
        };
        let (from, to) = (column(from), column(to));
        let full = if is_part { "▒" } else { "█" };
        let bar = match to.saturating_sub(from) {
            0 => "▏".to_owned(),
            len => full.repeat(len),
        };
        format!("{}{bar}", " ".repeat(from.min(self.bars - 1)))
    }
}

/// Returns what is to be known of a timeline beside its times.
fn notes(one: &Measured, has_name: bool) -> String {
    let timeline = &one.timeline;
    let mut text = String::new();
    let name = if has_name {
        format!("{}: ", one.name)
    } else {
        String::new()
    };
    let kernel = timeline.kernel.as_ref();
    let kernel = kernel.map_or(String::new(), |kernel| format!("{kernel}; "));
    let _ = writeln!(text, "{name}{kernel}{}.", timeline.end);
    let _ = writeln!(text, "{name}{}", clocks(one));
    let _ = writeln!(
        text,
        "{name}{}",
        exits(&timeline.exits, timeline.lost_exits)
    );
    text
}

/// Returns how far the times can be relied on.
pub(super) fn clocks(one: &Measured) -> String {
    let timeline = &one.timeline;
    let error = |error: Option<minivm_machine::timeline::Nanos>| error.map(|error| millis(error.0));
    match (error(timeline.guest_error), error(timeline.log_error)) {
        (Some(guest), Some(log)) => format!(
            "times of the guest's clock are right to ±{guest} ms, those of its kernel's log to ±{log} ms"
        ),
        (Some(guest), None) => format!("times of the guest's clock are right to ±{guest} ms"),
        (None, _) => "all times are the monitor's own".to_owned(),
    }
}

/// Returns how many exits there were, by kind.
pub(super) fn exits(exits: &[Exits], lost: u64) -> String {
    let sum: usize = exits.iter().map(|of| of.count).sum();
    let kinds: Vec<_> = exits
        .iter()
        .map(|of| format!("{} {}", of.kind, of.count))
        .collect();
    let more = match lost {
        0 => String::new(),
        lost => format!(", and {lost} later ones that were not kept"),
    };
    format!("{sum} exits to the monitor: {}{more}", kinds.join(", "))
}

#[cfg(test)]
mod tests {
    use minivm_machine::timeline::Start;

    use super::super::chart::tests::measured;
    use super::*;

    const COLD: [(&str, u64); 4] = [("start", 5), ("machine", 10), ("kernel", 80), ("end", 5)];

    #[test]
    fn bars_show_when_a_phase_was() {
        let one = [measured("cold", Start::Cold, &COLD)];
        let text = render(&one, 60);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..8],
            [
                "                    ms  clock    0                 100.00 ms",
                "start             5.00  monitor  █",
                "machine          10.00  monitor   ███",
                "  one half        5.00  guest     ▒",
                "  <other> half    5.00  log        ▒▒",
                "kernel           80.00  monitor      █████████████████████",
                "end               5.00  monitor                           ██",
                "all             100.00",
            ],
            "{text}"
        );
        assert!(
            text.contains("4 exits to the monitor: console (COM1) 3, channel (COM2) 1\n"),
            "{text}"
        );
        assert!(text.contains("right to ±0.12 ms\n"), "{text}");
    }

    #[test]
    fn two_timelines_stand_beside_each_other_on_one_scale() {
        let both = [
            measured("cold", Start::Cold, &COLD),
            measured(
                "warm",
                Start::Warm,
                &[("start", 5), ("machine", 10), ("end", 5)],
            ),
        ];
        let text = render(&both, 70);
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        assert!(
            lines[1].starts_with("start           cold    5.00"),
            "{text}"
        );
        assert!(
            lines[2].starts_with("                warm    5.00"),
            "{text}"
        );
        let kernels = lines.iter().filter(|line| line.starts_with("kernel"));
        assert_eq!(kernels.count(), 1, "{text}");
        let longest = lines.iter().map(|line| line.chars().count());
        assert!(longest.take(15).max() <= Some(70), "{text}");
    }

    #[test]
    fn the_shortest_phase_has_a_bar_within_the_width() {
        let one = [measured("cold", Start::Cold, &[("a", 1000), ("b", 0)])];
        let text = render(&one, 60);
        let last = text.lines().find(|line| line.starts_with('b')).unwrap();
        assert!(last.ends_with('▏') && last.chars().count() <= 60, "{text}");
    }
}
