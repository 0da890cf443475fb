//! Two clocks, compared at moments that both sides know.
//!
//! One side has read its clock before and after a call, the other has seen the call at a time of its own. So the difference of the
//! clocks lies between two numbers, and half of their distance is the error. A second moment narrows that down; or, where the two
//! contradict each other, the clocks run at different rates, and the error is as large as both allow.

use minivm_guest::channel::Moment;

/// The difference between two clocks, in nanoseconds: that of the timeline minus that of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset {
    between: (i128, i128),
}

impl Offset {
    /// Returns the difference, from moments that the guest gives and the times at which the other side saw them; `None` where there is
    /// none, or the guest's times run backwards.
    pub(super) fn of(seen: &[(u64, Moment)]) -> Option<Offset> {
        let between = |(time, moment): &(u64, Moment)| {
            let (time, before, after) = (*time, moment.before, moment.after);
            let minus = |other| i128::from(time) - i128::from(other);
            (before <= after).then(|| (minus(after), minus(before)))
        };
        let all: Option<Vec<(i128, i128)>> = seen.iter().map(between).collect();
        let all = all?;
        let (lows, highs) = (|| all.iter().map(|b| b.0), || all.iter().map(|b| b.1));
        let (low, high) = (lows().max()?, highs().min()?);
        let between = match low <= high {
            true => (low, high),
            false => (lows().min()?, highs().max()?),
        };
        Some(Offset { between })
    }

    /// Returns the difference between the guest's clock and that of its log, from a line of the log: its time there in microseconds,
    /// rounded down, and the guest's.
    pub(super) fn of_log(micros: u64, moment: Moment) -> Option<Offset> {
        let from = i128::from(micros) * 1000;
        let (before, after) = (i128::from(moment.before), i128::from(moment.after));
        let between = (before - (from + 999), after - from);
        (before <= after).then_some(Offset { between })
    }

    /// Returns the difference from a clock to a third one, of the differences to and from one between them.
    pub(super) fn and(self, other: Offset) -> Offset {
        let ((a, b), (c, d)) = (self.between, other.between);
        Offset {
            between: (a + c, b + d),
        }
    }

    /// Returns the time on the timeline, or its beginning where it lies before that.
    pub(super) fn apply(self, time: u64) -> u64 {
        let (low, high) = self.between;
        let there = i128::from(time) + (low + high) / 2;
        u64::try_from(there.max(0)).unwrap_or(u64::MAX)
    }

    /// Returns the most by which such a time is off, if both clocks run at the same rate.
    pub(super) fn error(self) -> u64 {
        let (low, high) = self.between;
        u64::try_from((high - low + 1) / 2).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(before: u64, after: u64) -> Moment {
        Moment { before, after }
    }

    #[test]
    fn one_moment_gives_a_difference_and_its_error() {
        let offset = Offset::of(&[(1000, moment(100, 120))]).unwrap();
        assert_eq!((offset.apply(100), offset.error()), (990, 10));
        assert_eq!(offset.apply(0), 890);
    }

    #[test]
    fn a_second_moment_narrows_the_difference_down() {
        let both = [(1000, moment(100, 120)), (2000, moment(1112, 1200))];
        let offset = Offset::of(&both).unwrap();
        // Between 880 and 900 by the first, 800 and 888 by the second.
        assert_eq!((offset.apply(0), offset.error()), (884, 4));
    }

    #[test]
    fn moments_that_contradict_each_other_widen_the_error() {
        let both = [(1000, moment(100, 120)), (2000, moment(1200, 1210))];
        let offset = Offset::of(&both).unwrap();
        // From 880 to 900, and from 790 to 800.
        assert_eq!(offset.error(), 55);
    }

    #[test]
    fn a_time_before_the_beginning_is_the_beginning() {
        let offset = Offset::of(&[(10, moment(1000, 1000))]).unwrap();
        assert_eq!((offset.apply(5), offset.apply(1000)), (0, 10));
    }

    #[test]
    fn differences_add_up_and_so_do_their_errors() {
        let guest = Offset::of(&[(1000, moment(100, 120))]).unwrap();
        // The log's 50 to 51 microseconds are the guest's 110 to 1110 nanoseconds.
        let log = Offset::of_log(50, moment(110, 111)).unwrap();
        let sum = log.and(guest);
        assert_eq!((sum.apply(51_000), sum.error()), (1501, 510));
        assert_eq!(Offset::of_log(1, moment(2, 1)), None);
    }

    #[test]
    fn absurd_times_are_refused_or_harmless() {
        assert_eq!(Offset::of(&[(1, moment(2, 1))]), None);
        assert_eq!(Offset::of(&[]), None);
        let offset = Offset::of(&[(0, moment(0, u64::MAX)), (u64::MAX, moment(0, 0))]).unwrap();
        let guest = offset.and(Offset::of_log(u64::MAX, moment(0, u64::MAX)).unwrap());
        for time in [0, 1, u64::MAX] {
            let _ = (guest.apply(time), guest.error());
        }
    }
}
