//! Inputs made of good ones: bits, bytes, lengths and counts that are others, pieces that are cut off, left out, there twice, or another
//! good input's.
//!
//! That finds less than a fuzzer does, which looks for inputs that reach new code, but it needs no other compiler.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::stress::{self, Random};

/// Changes of one input, at most.
const CHANGES_MAX: usize = 8;

/// What formats have in the place of lengths and counts.
const WORDS: [&[u8]; 12] = [
    &[0; 8],
    &[0xff; 8],
    &[0, 0, 0, 0x80],
    &[0x80, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0x7f],
    &[1, 0, 0, 0, 0, 0, 0, 0],
    &[0, 0, 0, 0, 0, 0, 0, 1],
    &[0x80, 0x80, 0x80, 0x80, 0x7f],
    b"00000000",
    b"FFFFFFFF",
    b"80000000",
    b"77777777777",
];

/// Runs a target with good inputs, and then with `count` made of them and of a dictionary's words: lines such as `"\x7fELF"`, as fuzzers
/// have them.
///
/// # Panics
///
/// If the target panics, with the input's number, the seed, and the input.
pub fn try_out(target: impl Fn(&[u8]), good: &[Vec<u8>], dictionary: &str, count: usize) {
    let mut words: Vec<Vec<u8>> = WORDS.iter().map(|word| word.to_vec()).collect();
    words.extend(dictionary.lines().filter_map(word));
    let mut random = Random::default();
    good.iter().for_each(|good| target(good));
    for number in 0..count {
        let input = match random.below(16) {
            0 => {
                let len = random.below(300);
                random.bytes(len)
            }
            _ => changed(&good[random.below(good.len())], good, &words, &mut random),
        };
        let ended = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let seed = stress::seed();
        assert!(
            ended.is_ok(),
            "input {number} of seed {seed}: \"{}\"",
            input.escape_ascii()
        );
    }
}

/// Returns an input with a few changes, in which pieces of the `others` and words are put.
fn changed(good: &[u8], others: &[Vec<u8>], words: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = good.to_vec();
    for _ in 0..=random.below(CHANGES_MAX) {
        let at = random.below(input.len().max(1));
        let len = random.below(64).min(input.len() - at);
        match random.below(12) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..at + len)),
            2 => {
                let piece = input[at..at + len].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            3 => {
                let other = &others[random.below(others.len())];
                let from = random.below(other.len() + 1);
                let to = (from + random.below(200)).min(other.len());
                input.splice(at..at + len, other[from..to].iter().copied());
            }
            4..8 => {
                // In the place of as many bytes, or of none, as a whole or in part.
                let word = &words[random.below(words.len())];
                let part = match random.below(4) {
                    0 => 1 + random.below(word.len()),
                    _ => word.len(),
                };
                let gone = part * random.below(2);
                let end = input.len().min(at + gone);
                input.splice(at..end, word[..part].iter().copied());
            }
            kind => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = match kind {
                        8 | 9 => *byte ^ 1 << random.below(8),
                        10 => byte.wrapping_add(1),
                        _ => random.number().to_le_bytes()[0],
                    };
                }
            }
        }
    }
    input
}

/// Returns the word in a dictionary's line, if it has one: comments and empty lines have none.
fn word(line: &str) -> Option<Vec<u8>> {
    let quoted = line.trim().strip_prefix('"')?.strip_suffix('"')?;
    let mut word = Vec::new();
    let mut rest = quoted.bytes();
    while let Some(byte) = rest.next() {
        word.push(match byte {
            b'\\' => match rest.next()? {
                b'x' => {
                    let digits = [rest.next()?, rest.next()?];
                    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                }
                other => other,
            },
            other => other,
        });
    }
    (!word.is_empty()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_makes_a_target_panic_is_reported() {
        let good = [b"size=4096".to_vec(), b"name=x".to_vec()];
        let target = |input: &[u8]| assert!(!input.ends_with(b"size"), "it has no value");
        let tried = catch_unwind(|| try_out(target, &good, "", 100_000));
        let report = tried.expect_err("one ends so");
        let report = report.downcast::<String>().expect("it is a text");
        assert!(report.contains("of seed 1: \""), "{report}");
    }

    #[test]
    fn a_dictionary_has_words_with_escapes() {
        assert_eq!(word(r#""\x7fELF""#).as_deref(), Some(&b"\x7fELF"[..]));
        assert_eq!(word(r#""\"a\\""#).as_deref(), Some(&br#""a\"#[..]));
        for none in ["", "# a comment", "\"", "\"\"", r#""\x7""#, r#""\"#] {
            assert_eq!(word(none), None, "{none}");
        }
    }

    #[test]
    fn changes_are_the_same_for_a_seed() {
        let good = [vec![7; 100]];
        let inputs = || {
            let mut random = Random::new(5);
            [(); 50].map(|()| changed(&good[0], &good, &good, &mut random))
        };
        assert_eq!(inputs(), inputs());
        assert!(inputs().iter().any(|input| *input != good[0]));
    }
}
