//! JSON as image builders write it.
//!
//! Text in documents of images isn't always Unicode: a label or a variable may have bytes of another encoding, or half of a
//! surrogate pair. Docker reads them with U+FFFD in their place, and so does this; digests are those of the bytes.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

/// Reads a document.
///
/// # Errors
///
/// Where it is not valid JSON, or not of this type.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    match serde_json::from_slice(bytes) {
        Ok(document) => Ok(document),
        // Most are Unicode, and are read as they are.
        Err(error) => match repaired(bytes) {
            Cow::Borrowed(_) => Err(error),
            Cow::Owned(text) => serde_json::from_str(&text),
        },
    }
}

/// Returns the document with U+FFFD for whatever isn't Unicode.
fn repaired(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    match without_halves(&text) {
        Some(whole) => Cow::Owned(whole),
        None => text,
    }
}

/// Returns the text with escapes of U+FFFD for those of halves of surrogate pairs; `None` where it has no such halves.
fn without_halves(text: &str) -> Option<String> {
    let mut whole = String::with_capacity(text.len());
    let mut rest = text;
    let mut found = false;
    while let Some(at) = rest.find('\\') {
        whole.push_str(&rest[..at]);
        rest = &rest[at..];
        let (first, second) = (escape(rest), rest.get(6..).and_then(escape));
        let len = match (first, second) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                found = true;
                whole.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            (Some(_), _) => 6,
            // A backslash and the character after it, whatever that is.
            (None, _) => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        whole.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    whole.push_str(rest);
    found.then_some(whole)
}

/// Returns the number in an escape such as `\u00e9` at the start of the text.
fn escape(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let all = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    all.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn text_that_is_not_unicode_is_replaced() {
        for (given, expected) in [
            (&b"\"caf\xe9\""[..], "caf\u{fffd}"),
            (br#""A=\udce9!""#, "A=\u{fffd}!"),
            (br#""\ud83d""#, "\u{fffd}"),
            (br#""\ud83d\u0041""#, "\u{fffd}A"),
            (br#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
            (br#""\ud83d\ude00""#, "\u{1f600}"),
            (br#""\\udce9""#, "\\udce9"),
            (b"\"\xe9\\udce9\\n\"", "\u{fffd}\u{fffd}\n"),
        ] {
            let text: String = read(given).unwrap();
            assert_eq!(text, expected, "{}", given.escape_ascii());
        }
    }

    #[test]
    fn invalid_json_is_an_error() {
        for bytes in [
            &b""[..],
            b"{",
            b"\xff",
            br#""\u12""#,
            br#""\"#,
            b"\"\xe9",
            br#""\ud8"#,
        ] {
            read::<Value>(bytes).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, text in "[\\\\udDcC8eE0-9\"a]{0,40}") {
            let _ = read::<Value>(&bytes);
            let _ = read::<Value>(text.as_bytes());
        }

        #[test]
        fn any_text_is_read_as_it_is(text: String) {
            let document = serde_json::to_vec(&text).unwrap();
            prop_assert_eq!(read::<String>(&document).unwrap(), text);
        }
    }
}
