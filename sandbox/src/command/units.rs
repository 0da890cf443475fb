//! Sizes and durations as people write them.

use std::time::Duration;

/// Bytes: a number, and K, M, G or T for powers of 1024.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let expected =
        || format!("{text:?} is not a size: expected a number and K, M, G or T, such as 256M");
    let (number, unit) = split(text).ok_or_else(expected)?;
    let factor = match unit {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        "T" | "t" => 1 << 40,
        _ => return Err(expected()),
    };
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("{text} is more than can be counted"))
}

/// A duration that is not nothing: a number, and ms, s, m or h.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || {
        format!(
            "{text:?} is not a duration: expected a number from 1 on and ms, s, m or h, such as 5s"
        )
    };
    let (number, unit) = split(text).ok_or_else(expected)?;
    let seconds = match unit {
        "ms" if number > 0 => return Ok(Duration::from_millis(number)),
        "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(60 * 60),
        _ => None,
    };
    let seconds = seconds.filter(|&seconds| seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(expected)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_a_unit_or_none() {
        assert_eq!(bytes("256M"), Ok(256 << 20));
        assert_eq!(bytes("4g"), Ok(4 << 30));
        assert_eq!(bytes("12"), Ok(12));
        for wrong in [
            "",
            "M",
            "-1M",
            "1.5G",
            "1 M",
            "18446744073709551616",
            "18446744073709551615K",
        ] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in [
            "",
            "5",
            "s",
            "1d",
            "-1s",
            "0s",
            "0ms",
            "18446744073709551615h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
