//! The time of day for the interpreter. A sandbox's clock shows UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use monty_types::{MontyDate, MontyDateTime, MontyTimeZone};

/// Returns today's date.
pub(super) fn today() -> MontyDate {
    date(since_1970().as_secs() / 86_400)
}

/// Returns the current time, in a time zone or without one.
pub(super) fn now(zone: Option<MontyTimeZone>) -> MontyDateTime {
    let offset = zone.as_ref().map_or(0, |zone| zone.offset_seconds);
    let now = since_1970();
    let shifted = now.as_secs().saturating_add_signed(i64::from(offset));
    at(Duration::new(shifted, now.subsec_nanos()), zone)
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn at(time: Duration, zone: Option<MontyTimeZone>) -> MontyDateTime {
    let date = date(time.as_secs() / 86_400);
    let second = time.as_secs() % 86_400;
    let small = |value: u64| u8::try_from(value).expect("it is a part of a day");
    MontyDateTime {
        year: date.year,
        month: date.month,
        day: date.day,
        hour: small(second / 3600),
        minute: small(second / 60 % 60),
        second: small(second % 60),
        microsecond: time.subsec_micros(),
        offset_seconds: zone.as_ref().map(|zone| zone.offset_seconds),
        timezone_name: zone.and_then(|zone| zone.name),
    }
}

/// Returns the date of a day since 1970 in the Gregorian calendar, whose pattern repeats every 400 years: 146,097 days. The
/// calculation has years begin in March, so that the leap day is their last.
fn date(day: u64) -> MontyDate {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let first = (153 * month + 2) / 5;
    let in_next_year = month >= 10;
    let month = if in_next_year { month - 9 } else { month + 3 };
    let year = 400 * era + year + u64::from(in_next_year);
    MontyDate {
        // Python's largest year.
        year: i32::try_from(year.min(9999)).expect("it is small"),
        month: u8::try_from(month).expect("it is at most 12"),
        day: u8::try_from(day - first + 1).expect("it is at most 31"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(day: u64) -> (i32, u8, u8) {
        let date = date(day);
        (date.year, date.month, date.day)
    }

    #[test]
    fn days_have_their_dates() {
        assert_eq!(of(0), (1970, 1, 1));
        assert_eq!(of(11_016), (2000, 2, 29));
        assert_eq!(of(11_017), (2000, 3, 1));
        assert_eq!(of(20_453), (2025, 12, 31));
        assert_eq!(of(47_540), (2100, 2, 28));
        assert_eq!(of(47_541), (2100, 3, 1));
    }

    #[test]
    fn a_zone_is_kept() {
        let zone = MontyTimeZone {
            offset_seconds: 3600,
            name: Some("CET".into()),
        };
        let time = at(Duration::new(86_399, 5_000), Some(zone));
        assert_eq!((time.hour, time.minute, time.second), (23, 59, 59));
        assert_eq!((time.microsecond, time.offset_seconds), (5, Some(3600)));
        assert_eq!(time.timezone_name.as_deref(), Some("CET"));
        assert!(now(None).year >= 2025);
    }
}
