//! Tracebacks in CPython's form, shortened to a readable length.

use monty_types::MontyException;

use super::host::END_OF_INPUT;

/// The number of lines that are kept at a traceback's start.
const FIRST: usize = 60;
/// The number of lines that are kept at its end.
const LAST: usize = 120;
/// The largest number of characters of a line.
const LINE: usize = 300;

/// Returns an exception's traceback, without the last line end.
pub(super) fn traceback(exception: &MontyException) -> String {
    let text = exception.to_string();
    // The interpreter has no EOFError; `dialect` has the code catch OSError.
    let text = match text.strip_suffix(&format!("OSError: {END_OF_INPUT}")) {
        Some(frames) => format!("{frames}EOFError: {END_OF_INPUT}"),
        None => text,
    };
    let summary = exception.summary();
    match text.strip_suffix(&summary) {
        Some(frames) => shortened(frames) + &summary,
        None => shortened(&text),
    }
}

/// Shortens frames: a recursion of two functions has a thousand, and a line may be as long as the code.
fn shortened(frames: &str) -> String {
    let lines: Vec<&str> = frames.lines().collect();
    let left_out = lines.len().saturating_sub(FIRST + LAST);
    let mut shortened = String::new();
    for (number, line) in lines.iter().enumerate() {
        if left_out > 0 && number == FIRST {
            shortened.push_str(&format!("  [{left_out} lines left out]\n"));
        }
        if number >= FIRST && number < FIRST + left_out {
            continue;
        }
        shortened.extend(line.chars().take(LINE));
        shortened.push('\n');
    }
    if !frames.ends_with('\n') {
        shortened.truncate(shortened.trim_end_matches('\n').len());
    }
    shortened
}

#[cfg(test)]
mod tests {
    use super::*;
    use monty_types::ExcType;

    #[test]
    fn the_end_of_the_input_is_an_eof_error() {
        let raised = |kind| MontyException::new(kind, Some(END_OF_INPUT.into()));
        let expected = "EOFError: EOF when reading a line";
        assert_eq!(traceback(&raised(ExcType::OSError)), expected);
        let other = traceback(&raised(ExcType::ValueError));
        assert_eq!(other, "ValueError: EOF when reading a line");
    }

    #[test]
    fn long_tracebacks_are_cut_in_the_middle() {
        let short = "Traceback (most recent call last):\n  File \"<string>\", line 1, in f\n";
        assert_eq!(shortened(short), short);
        let long: String = (0..1000).map(|number| format!("  {number}\n")).collect();
        let kept = shortened(&long);
        assert_eq!(kept.lines().count(), FIRST + LAST + 1);
        assert!(kept.contains("  59\n  [820 lines left out]\n  880\n"));
        assert!(kept.ends_with("  999\n"));
        assert_eq!(shortened(&"x".repeat(1000)), "x".repeat(LINE));
    }
}
