//! The rows of a chart: the phases of one timeline, or those of two side by side.

use minivm_machine::timeline::Phase;

use super::Measured;

/// A row: a phase or a part of one, in each of the timelines that have it.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    pub(super) is_part: bool,
    /// One for each timeline.
    pub(super) phases: Vec<Option<&'a Phase>>,
}

/// Returns the rows of all phases and their parts, in their order.
pub(super) fn rows(measured: &[Measured]) -> Vec<Row<'_>> {
    let lists = measured.iter().map(|one| &*one.timeline.phases);
    let mut rows = Vec::new();
    for phase in joined(lists.collect(), false) {
        let parts = phase.phases.iter();
        let parts = parts.map(|phase| phase.map_or(&[][..], |phase| &phase.parts));
        let parts = joined(parts.collect(), true);
        rows.push(phase);
        rows.extend(parts);
    }
    rows
}

/// Joins lists by name: what the first doesn't have stands behind what it follows in the other one.
fn joined(lists: Vec<&[Phase]>, is_part: bool) -> Vec<Row<'_>> {
    let mut rows: Vec<Row> = Vec::new();
    let count = lists.len();
    for (number, list) in lists.into_iter().enumerate() {
        let mut next = 0;
        for phase in list {
            let there = rows.iter().position(|row| row.name == phase.name);
            let place = there.unwrap_or_else(|| {
                let phases = vec![None; count];
                rows.insert(
                    next,
                    Row {
                        name: &phase.name,
                        is_part,
                        phases,
                    },
                );
                next
            });
            rows[place].phases[number] = Some(phase);
            next = place + 1;
        }
    }
    rows
}

/// Returns the longest of all times, in nanoseconds; at least one.
pub(super) fn longest(measured: &[Measured]) -> u64 {
    let totals = measured.iter().map(|one| one.timeline.total.0);
    totals.max().unwrap_or(1).max(1)
}

/// Returns milliseconds with two digits behind the point.
pub(super) fn millis(nanos: u64) -> String {
    let hundredths = (u128::from(nanos) + 5_000) / 10_000;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
pub(super) mod tests {
    use minivm_machine::timeline::{Clock, Exits, Line, Nanos, Start, Timeline};

    use super::*;

    /// A timeline whose phases follow each other; the second one has parts.
    pub(in super::super) fn measured(name: &str, start: Start, phases: &[(&str, u64)]) -> Measured {
        let mut at = 0;
        let phase = |(name, millis): &(&str, u64)| {
            let from = at;
            at += millis * 1_000_000;
            Phase::new(name, from, at, Clock::Monitor)
        };
        let mut phases: Vec<_> = phases.iter().map(phase).collect();
        if let [_, second, ..] = &mut *phases {
            let (from, to) = (second.start.0, second.end().0);
            let middle = from.midpoint(to);
            second.parts = vec![
                Phase::new("one half", from, middle, Clock::Guest),
                Phase::new("<other> half", middle, to, Clock::Log),
            ];
        }
        Measured {
            name: name.into(),
            accel: "lab",
            timeline: Timeline {
                start,
                kernel: Some("Linux version 6 <script>alert(1)</script>".into()),
                end: "the command ended with exit code 0".into(),
                timed_out: false,
                total: phases.last().map_or(Nanos(0), Phase::end),
                phases,
                guest_error: Some(Nanos(120_000)),
                log_error: None,
                exits: vec![
                    Exits {
                        kind: "console (COM1)".into(),
                        count: 3,
                        times: [1_000_000, 2_000_000, 50_000_000].map(Nanos).to_vec(),
                    },
                    Exits {
                        kind: "channel (COM2)".into(),
                        count: 1,
                        times: vec![Nanos(50_000_000)],
                    },
                ],
                lost_exits: 0,
                log: vec![Line {
                    time: Nanos(1_500_000),
                    text: "<script>alert(2)</script>".into(),
                }],
            },
        }
    }

    #[test]
    fn two_timelines_share_their_rows() {
        let cold = [("start", 1), ("machine", 2), ("kernel", 30), ("end", 4)];
        let warm = [("start", 1), ("machine", 2), ("resume", 3), ("end", 4)];
        let both = [
            measured("cold", Start::Cold, &cold),
            measured("warm", Start::Warm, &warm),
        ];
        let rows = rows(&both);
        let names: Vec<_> = rows.iter().map(|row| row.name).collect();
        assert_eq!(
            names,
            [
                "start",
                "machine",
                "one half",
                "<other> half",
                "resume",
                "kernel",
                "end"
            ]
        );
        let there = |row: &Row| {
            row.phases
                .iter()
                .map(|phase| u8::from(phase.is_some()))
                .collect::<Vec<_>>()
        };
        assert_eq!(there(&rows[4]), [0, 1]);
        assert_eq!(there(&rows[5]), [1, 0]);
        assert_eq!(there(&rows[6]), [1, 1]);
        assert_eq!(longest(&both), 37_000_000);
    }

    #[test]
    fn milliseconds_are_rounded() {
        assert_eq!(millis(1_234_999), "1.23");
        assert_eq!(millis(1_235_000), "1.24");
        assert_eq!(millis(0), "0.00");
        assert_eq!(millis(u64::MAX), "18446744073709.55");
    }
}
