//! The translation of Python names that Monty lacks into names that it has.
//!
//! Monty has no `sys.exit`, no `EOFError`, and makes no `SystemExit` of a number. `translated` replaces such names before the code
//! is parsed, by text of equal length, so that lines and columns in tracebacks stay correct. It looks at the code's tokens, and
//! leaves strings and comments alone.

use std::borrow::Cow;
use std::ops::Range;

use ruff_python_ast::token::TokenKind;
use ruff_python_parser::{Mode, ParseOptions, parse_unchecked};

/// Sequences of tokens, and the name that replaces each.
const WORDS: [(&[&str], &str); 3] = [
    (&["sys", ".", "exit"], "exit"),
    (&["raise", "SystemExit", "("], "exit"),
    (&["EOFError"], "OSError"),
];

/// Returns the code with the names that Monty lacks replaced.
pub(super) fn translated(code: &str) -> Cow<'_, str> {
    let last = |words: &[&str]| {
        words
            .iter()
            .any(|word| word.len() > 3 && code.contains(word))
    };
    if !WORDS.iter().any(|(words, _)| last(words)) {
        return Cow::Borrowed(code);
    }
    let parsed = parse_unchecked(code, ParseOptions::from(Mode::Module));
    let tokens: Vec<Range<usize>> = parsed
        .tokens()
        .iter()
        .map(|token| token.as_tuple())
        .filter(|(kind, _)| *kind != TokenKind::NonLogicalNewline)
        .map(|(kind, range)| match kind {
            TokenKind::Name | TokenKind::Dot | TokenKind::Raise | TokenKind::Lpar => {
                range.start().to_usize()..range.end().to_usize()
            }
            // A part of an f-string may look like a name.
            _ => 0..0,
        })
        .collect();
    let mut translated = code.to_owned();
    for start in 0..tokens.len() {
        // In `a.sys.exit`, `sys` is an attribute of `a` and not the module.
        let member = start > 0 && code[tokens[start - 1].clone()] == *".";
        if let Some((range, word)) = found(code, &tokens[start..]).filter(|_| !member) {
            let len = range.len();
            translated.replace_range(range, &format!("{word:len$}"));
        }
    }
    Cow::Owned(translated)
}

/// Returns the bytes to replace and their replacement, if the tokens start with one of the sequences.
fn found(code: &str, tokens: &[Range<usize>]) -> Option<(Range<usize>, &'static str)> {
    WORDS.iter().find_map(|(words, word)| {
        let candidate = tokens.get(..words.len())?;
        let same = |(range, word): (&Range<usize>, &&str)| code[range.clone()] == **word;
        if !candidate.iter().zip(*words).all(same) {
            return None;
        }
        // A parenthesis is a part of the match, but is not replaced.
        let kept = usize::from(words.last() == Some(&"("));
        let range = candidate[0].start..candidate[words.len() - 1 - kept].end;
        let one_line = !code[range.clone()].contains('\n');
        one_line.then_some((range, *word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_in_place() {
        let code = "import sys\nif x:\n    sys.exit(3)\nelse: raise SystemExit(4)\n";
        let expected = "import sys\nif x:\n    exit    (3)\nelse: exit            (4)\n";
        assert_eq!(translated(code), expected);
        let code = "try: f()\nexcept (EOFError, KeyError): pass";
        assert_eq!(
            translated(code),
            "try: f()\nexcept (OSError , KeyError): pass"
        );
    }

    #[test]
    fn strings_comments_and_attributes_stay() {
        for code in [
            "print('sys.exit(1) EOFError')",
            "# sys.exit(1)",
            "a.sys.exit(1)",
            "raise SystemExit",
            "except SystemExit: pass",
            "f'EOFError'",
            "print(1)",
            "é = 'EOFError",
        ] {
            assert_eq!(translated(code), code);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_keeps_its_length(code in "(sys|\\.|exit|raise|SystemExit|EOFError|[ -~\n]|é|\\()*") {
            proptest::prop_assert_eq!(translated(&code).len(), code.len());
        }
    }
}
