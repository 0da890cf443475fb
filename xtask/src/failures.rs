//! The messages of failed tests, repeated at the end of a long output, where a reader finds them.

use std::fmt::Write;

/// Of one test program: more is rarely read, and stands above.
const LINES_MAX: usize = 80;
/// Of one that didn't come to its end.
const LAST_LINES: usize = 20;

/// The part of a test program's output that reports its failures; its last lines, where it ended before that.
pub(crate) fn told(output: &str) -> String {
    const HEADING: &str = "\nfailures:\n";
    let text = match output.split_once(HEADING) {
        // The second heading's list has only the names.
        Some((_, rest)) => rest.split(HEADING).next().unwrap_or(rest).trim(),
        None => {
            let output = output.trim_end();
            let ends = output.rmatch_indices('\n');
            let start = ends.map(|(at, _)| at + 1).nth(LAST_LINES - 1);
            &output[start.unwrap_or(0)..]
        }
    };
    let mut lines = text.lines();
    let mut told = String::new();
    for line in lines.by_ref().take(LINES_MAX) {
        told += line;
        told.push('\n');
    }
    let left = lines.count();
    if left > 0 {
        let _ = writeln!(told, "({left} more lines stand above)");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_without_the_list_of_their_names() {
        let output = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nleft: 1\n\n\
                      failures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed\n";
        assert_eq!(told(output), "---- b stdout ----\nleft: 1\n");
    }

    #[test]
    fn a_program_that_was_ended_shows_its_last_lines() {
        let lines: Vec<String> = (0..100).map(|n| format!("line {n}")).collect();
        let told = told(&lines.join("\n"));
        assert!(told.starts_with("line 80\n"), "{told}");
        assert!(told.ends_with("line 99\n"), "{told}");
        assert_eq!(super::told(""), "");
        assert_eq!(super::told("ö\n"), "ö\n");
    }

    #[test]
    fn much_is_cut() {
        let output = format!("\nfailures:\n\n{}", "x\n".repeat(100));
        assert!(told(&output).ends_with("x\n(20 more lines stand above)\n"));
    }
}
