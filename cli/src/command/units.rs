//! Sizes and durations as people write them.

use std::time::Duration;

/// The most digits behind a point.
const FRACTION_MAX: usize = 18;

/// Bytes: a number, and K, M, G or T for powers of 1024, of which there may be a fraction. As Docker has it, `M`, `MB`, `Mi` and
/// `MiB` are one unit.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let expected = || {
        format!("{text:?} is not a size: expected a number and K, M, G or T, such as 256M or 1.5G")
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let factor = factor(unit).ok_or_else(expected)?;
    let (whole, fraction) = match number.split_once('.') {
        // There are no parts of bytes.
        Some(_) if factor == 1 => return Err(expected()),
        Some((whole, fraction)) => (whole, fraction),
        None => (number, "0"),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > FRACTION_MAX {
        return Err(expected());
    }
    let too_much = || format!("{text} is more than can be counted");
    let whole: u64 = whole.parse().map_err(|_| expected())?;
    let parts = 10_u64.pow(u32::try_from(fraction.len()).expect("it is a small number"));
    let fraction: u64 = fraction.parse().map_err(|_| expected())?;
    let fraction = u128::from(fraction) * u128::from(factor) / u128::from(parts);
    let fraction = u64::try_from(fraction).expect("it is less than the factor");
    whole
        .checked_mul(factor)
        .and_then(|whole| whole.checked_add(fraction))
        .ok_or_else(too_much)
}

fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let factor = match unit.chars().next() {
        None | Some('b') => 1,
        Some('k') => 1 << 10,
        Some('m') => 1 << 20,
        Some('g') => 1 << 30,
        Some('t') => 1 << 40,
        Some(_) => return None,
    };
    let rest = if factor == 1 { &unit } else { &unit[1..] };
    ["", "b", "i", "ib"].contains(&rest).then_some(factor)
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
        assert_eq!(bytes("12B"), Ok(12));
        for mebibytes in [
            "128M", "128m", "128MB", "128Mi", "128MiB", "128mib", "0.125G",
        ] {
            assert_eq!(bytes(mebibytes), Ok(128 << 20), "{mebibytes}");
        }
        assert_eq!(bytes("1.5G"), Ok(3 << 29));
        assert_eq!(bytes("0.1K"), Ok(102));
        assert_eq!(bytes("2.50kB"), Ok(2560));
        assert_eq!(bytes("16777215.999999999999999999T"), Ok(u64::MAX));
        for wrong in [
            "",
            "M",
            "-1M",
            "1.5",
            "1.5B",
            "1.G",
            ".5G",
            "1..5G",
            "1.5.5G",
            "0.0000000000000000001G",
            "1,5G",
            "1e3",
            "128iB",
            "128i",
            "128MM",
            "128MBi",
            "1P",
            "1é",
            "16777216T",
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

    /// What a size means, by its rules, in arithmetic that can't overflow: the units from the longest on.
    fn meant(text: &str) -> Option<u64> {
        let text = text.to_ascii_lowercase();
        let letters = ["k", "m", "g", "t"].into_iter().zip(1..);
        let units = letters.flat_map(|(letter, power)| {
            ["ib", "b", "i", ""].map(|rest| (format!("{letter}{rest}"), 1024_u128.pow(power)))
        });
        let mut units = units.chain([("b".into(), 1), (String::new(), 1)]);
        let (number, factor) =
            units.find_map(|(unit, factor)| Some((text.strip_suffix(&unit)?, factor)))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let is_number = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
        if !is_number(whole)
            || !is_number(fraction)
            || fraction.len() > 18
            || (factor == 1 && number.contains('.'))
        {
            return None;
        }
        let tenths = 10_u128.pow(u32::try_from(fraction.len()).unwrap());
        let fraction = fraction.parse::<u128>().unwrap() * factor / tenths;
        // Far more digits than any size has.
        let whole = whole.parse::<u128>().ok()?.checked_mul(factor)?;
        u64::try_from(whole.checked_add(fraction)?).ok()
    }

    #[test]
    fn each_short_text_is_the_size_that_it_means_or_none() {
        let letters = ["0", "1", "9", ".", "k", "M", "i", "B", "T", " ", "-", "e"];
        let mut texts = vec![String::new()];
        for _ in 0..4 {
            let longer = texts
                .iter()
                .flat_map(|text| letters.map(|letter| format!("{text}{letter}")));
            texts = longer.chain(texts.clone()).collect();
        }
        texts.sort_unstable();
        texts.dedup();
        for text in texts {
            assert_eq!(bytes(&text).ok(), meant(&text), "{text:?}");
        }
    }

    #[test]
    fn sizes_end_where_64_bits_end() {
        for (unit, power) in [("", 0), ("K", 1), ("M", 2), ("G", 3), ("T", 4)] {
            let end = (u128::from(u64::MAX) + 1) / 1024_u128.pow(power);
            for whole in [end - 2, end - 1, end, end + 1, 1 << 64, 1 << 65] {
                for fraction in ["", ".0", ".5", ".999999999999999999"] {
                    let text = format!("{whole}{fraction}{unit}");
                    assert_eq!(bytes(&text).ok(), meant(&text), "{text}");
                }
            }
        }
    }
}
