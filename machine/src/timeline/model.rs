//! A timeline as others get it: phases, exits, the kernel's log. Times are seconds in JSON, since the measured process was started.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A time or a duration in nanoseconds; in JSON, a number of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Returns the duration, or `u64::MAX` nanoseconds, 584 years, where it is longer.
    pub(super) fn of(duration: Duration) -> Self {
        Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns the seconds. Of one division they have no more digits than the nanoseconds.
    #[allow(
        clippy::cast_precision_loss,
        reason = "exact up to 2^53 nanoseconds, 104 days"
    )]
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl Serialize for Nanos {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.seconds())
    }
}

impl<'de> Deserialize<'de> for Nanos {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let duration = Duration::try_from_secs_f64(f64::deserialize(deserializer)?);
        duration.map(Nanos::of).map_err(de::Error::custom)
    }
}

/// A machine's life, from the start of the process that runs it until it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The kind of start.
    pub start: Start,
    /// The kernel's name, such as `Linux version 6.12.48-minivm`, where its log has it.
    pub kernel: Option<String>,
    /// The end, in words.
    pub end: String,
    /// Whether the time limit ended the machine.
    pub timed_out: bool,
    /// All of the time, in phases that follow each other without a gap.
    pub phases: Vec<Phase>,
    /// The sum of the phases.
    pub total: Nanos,
    /// The most by which the times of the guest's clock may be off; `None` where none could be read.
    pub guest_error: Option<Nanos>,
    /// The most by which the times of the kernel's log may be off; `None` where none could be read.
    pub log_error: Option<Nanos>,
    /// The exits to the monitor, by kind.
    pub exits: Vec<Exits>,
    /// How many more exits there were than are kept.
    pub lost_exits: u64,
    /// The kernel's log up to its first process; of a raw machine, all lines of its console. The guest wrote it.
    pub log: Vec<Line>,
}

/// The start of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// A kernel and an initramfs without minivm's init.
    Raw,
    /// A boot.
    Cold,
    /// A template.
    Warm,
}

impl Start {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Start::Raw => "raw",
            Start::Cold => "cold",
            Start::Warm => "warm",
        }
    }
}

/// A span of time, and what took it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// A name in words.
    pub name: String,
    /// Time from the process's start.
    pub start: Nanos,
    /// Time from there.
    pub duration: Nanos,
    /// The clock that gave its end.
    pub clock: Clock,
    /// Spans within this one. They may overlap, where two threads work, and leave gaps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Phase>,
}

impl Phase {
    /// Makes a span that ends at `end`, or is empty where that is before its start.
    pub fn new(name: &str, start: u64, end: u64, clock: Clock) -> Self {
        Phase {
            name: name.to_owned(),
            start: Nanos(start),
            duration: Nanos(end.saturating_sub(start)),
            clock,
            parts: Vec::new(),
        }
    }

    /// Returns its end.
    pub fn end(&self) -> Nanos {
        Nanos(self.start.0.saturating_add(self.duration.0))
    }
}

/// A clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// `CLOCK_MONOTONIC` of the host, or of the lab, where the monitor runs.
    Monitor,
    /// `CLOCK_MONOTONIC` of the guest, as init reads it.
    Guest,
    /// The clock of the guest kernel's log.
    Log,
    /// The monitor's, when a line of the kernel's came to the console.
    Console,
}

impl Clock {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Clock::Monitor => "monitor",
            Clock::Guest => "guest",
            Clock::Log => "log",
            Clock::Console => "console",
        }
    }
}

/// The exits of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// What the guest accessed, in words.
    pub kind: String,
    /// How many there were.
    pub count: usize,
    /// When they came, on the monitor's clock.
    pub times: Vec<Nanos>,
}

/// A line of the kernel's log, without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The time, on the timeline.
    pub time: Nanos,
    /// The text.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_in_json_and_come_back_to_the_nanosecond() {
        for nanos in [0, 1, 123_456_789, 1_000_000_000, 86_400_000_000_001] {
            let text = serde_json::to_string(&Nanos(nanos)).unwrap();
            assert_eq!(serde_json::from_str::<Nanos>(&text).unwrap(), Nanos(nanos));
        }
        assert_eq!(
            serde_json::to_string(&Nanos(2_594_005_377)).unwrap(),
            "2.594005377"
        );
        for wrong in ["-1", "1e300", "null", "\"1\""] {
            assert!(serde_json::from_str::<Nanos>(wrong).is_err(), "{wrong}");
        }
    }
}
