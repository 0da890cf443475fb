//! Whether a command has printed what a page shows: the same lines, where `…` stands for any text within a line, and for any
//! number of lines where it is alone in one.

/// What varies from run to run.
const ANYTHING: &str = "…";

/// Whether these lines show this output. Empty lines at the end don't count.
pub(crate) fn is_as_shown(shown: &[String], printed: &str) -> bool {
    let printed: Vec<&str> = printed.trim_end().lines().collect();
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    let last = shown.iter().rposition(|line| !line.trim().is_empty());
    lines_match(&shown[..last.map_or(0, |last| last + 1)], &printed)
}

fn lines_match(shown: &[&str], printed: &[&str]) -> bool {
    match shown {
        [] => printed.is_empty(),
        [line, rest @ ..] if *line == ANYTHING => {
            (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..]))
        }
        [line, rest @ ..] => match printed {
            [first, others @ ..] => {
                line_matches(line, first.trim_end()) && lines_match(rest, others)
            }
            [] => false,
        },
    }
}

fn line_matches(shown: &str, printed: &str) -> bool {
    let Some((begin, rest)) = shown.split_once(ANYTHING) else {
        return shown == printed;
    };
    let Some(mut printed) = printed.strip_prefix(begin) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split(ANYTHING).collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match printed.split_once(part) {
            Some((_, after)) => printed = after,
            None => return false,
        }
    }
    printed.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(shown: &str, printed: &str) -> bool {
        let shown: Vec<String> = shown.lines().map(str::to_owned).collect();
        is_as_shown(&shown, printed)
    }

    #[test]
    fn equal_lines_match() {
        assert!(matches("", ""));
        assert!(matches("4", "4\n"));
        assert!(
            matches("a\n\nb\n\n", "a\n\nb\n"),
            "an empty line at the end is the page's"
        );
    }

    #[test]
    fn other_lines_do_not() {
        for (shown, printed) in [
            ("4", "5"),
            ("4", ""),
            ("", "4"),
            ("4", "4\n4\n"),
            ("4\n4", "4\n"),
            ("a\nb", "b\na\n"),
            ("4", "44"),
            ("a\n\nb", "a\nb\n"),
        ] {
            assert!(!matches(shown, printed), "{shown:?} {printed:?}");
        }
    }

    #[test]
    fn what_varies_is_any_text_of_a_line_or_any_lines() {
        for (shown, printed) in [
            ("took … ms", "took 5 ms"),
            ("… ms", " ms"),
            ("a … c … e", "a b c d e"),
            ("{\"code\":0,…}", "{\"code\":0,\"x\":1}"),
            ("…\nend", "1\n2\nend"),
            ("begin\n…", "begin\n"),
            ("a\n…\nb", "a\n1\n2\nb"),
        ] {
            assert!(matches(shown, printed), "{shown:?} {printed:?}");
        }
        for (shown, printed) in [
            ("took … ms", "took 5 s"),
            ("took … ms", "it took 5 ms"),
            ("ab…bc", "abc"),
            ("a … c … e", "a b c d"),
            ("…\nend", "1\n2"),
            ("a\n…\nb", "a\n1"),
            ("… ms\n… ms", "1 ms"),
        ] {
            assert!(!matches(shown, printed), "{shown:?} {printed:?}");
        }
    }
}
