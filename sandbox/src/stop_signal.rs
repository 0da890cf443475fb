//! The stop signal of an image: the signal that its command gets in place of SIGTERM.

use minivm_machine::signal::TERM;

/// The first real-time signal of programs. C libraries reserve those before it.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// Signals 1 to 31 by their names without SIG, in their order (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Returns a signal's number from its name, with or without SIG, or from its number as text. An empty name is SIGTERM; `None` for an
/// unknown one.
pub(super) fn number(name: &str) -> Option<u8> {
    if name.is_empty() {
        return Some(TERM);
    }
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = (1..).zip(NAMES).find(|(_, known)| *known == short);
    match (known, name.parse()) {
        (Some((number, _)), _) => Some(number),
        (None, Ok(number @ 1..=RTMAX)) => Some(number),
        _ => real_time(short),
    }
}

/// Returns the number of `RTMIN+n` or `RTMAX-n`, which images with systemd name.
fn real_time(name: &str) -> Option<u8> {
    let offset = |text: &str, sign: char| match text {
        "" => Some(0),
        text => text.strip_prefix(sign)?.parse::<u8>().ok(),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => RTMIN.checked_add(offset(rest, '+')?)?,
        (_, Some(rest)) => RTMAX.checked_sub(offset(rest, '-')?)?,
        _ => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, expected) in [
            ("", 15),
            ("SIGINT", 2),
            ("quit", 3),
            ("SIGSYS", 31),
            ("9", 9),
            ("SIGUSR2", 12),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("SIGRTMAX-2", 62),
            ("sigrtmax", 64),
            ("37", 37),
        ] {
            assert_eq!(number(name), Some(expected), "{name}");
        }
        for wrong in [
            "SIGNOTHING",
            "0",
            "65",
            "-1",
            "SIGRTMIN+31",
            "RTMAX-31",
            "RTMIN-1",
            "RTMIN+",
            "RTMAX+1",
        ] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
