//! Text of unknown origin, fit for a terminal.

/// Returns the text with control characters escaped, and not too long.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn shown_text_has_no_control_characters_and_a_limit() {
        assert_eq!(shown("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert!(shown(&"x".repeat(10_000)).chars().count() < 300);
    }
}
