//! Times of members.

use std::iter;

use super::number;

/// A time: whole seconds since 1970, rounded down, and the nanoseconds after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, less than a second.
    pub nanoseconds: u32,
}

impl Time {
    /// Returns this second, or the nearest one that fits.
    pub(crate) fn at(seconds: i128) -> Time {
        let (least, most) = (i64::MIN.into(), i64::MAX.into());
        Time {
            seconds: i64::try_from(seconds.clamp(least, most)).expect("it was clamped"),
            nanoseconds: 0,
        }
    }

    /// Parses a time such as `1700000000.25`; digits beyond nanoseconds are dropped.
    pub(super) fn parse(text: &[u8]) -> Option<Time> {
        let end = text.iter().position(|&byte| byte == b'.');
        let seconds = number::decimal(&text[..end.unwrap_or(text.len())])?;
        let fraction = end.map_or(&text[..0], |end| &text[end + 1..]);
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit());
        let digits = digits.chain(iter::repeat(&b'0')).take(9);
        let nanoseconds = digits.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
        // The sign is the fraction's, too; `-0.5` has it in front of a zero.
        Some(match text.starts_with(b"-") && nanoseconds > 0 {
            true => Time {
                nanoseconds: 1_000_000_000 - nanoseconds,
                ..Time::at(seconds.saturating_sub(1))
            },
            false => Time {
                nanoseconds,
                ..Time::at(seconds)
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond() {
        for (text, seconds, nanoseconds) in [
            ("1700000000", 1_700_000_000, 0),
            ("1.5", 1, 500_000_000),
            ("1.", 1, 0),
            ("1.x5", 1, 0),
            ("1.0000000019", 1, 1),
            ("-0.000000001", -1, 999_999_999),
            ("-2.0", -2, 0),
            ("99999999999999999999.25", i64::MAX, 250_000_000),
            ("-99999999999999999999", i64::MIN, 0),
            (
                "-170141183460469231731687303715884105728.5",
                i64::MIN,
                500_000_000,
            ),
        ] {
            let time = Time {
                seconds,
                nanoseconds,
            };
            assert_eq!(Time::parse(text.as_bytes()), Some(time), "{text}");
        }
        for bad in ["", "x", ".5"] {
            assert_eq!(Time::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
