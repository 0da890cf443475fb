//! Numbers in tar headers: octal digits, or, where these don't suffice, a big-endian number with the highest bit set.

/// Parses the number in a field. An empty field is zero.
pub(crate) fn field(bytes: &[u8]) -> Option<i128> {
    match bytes.first() {
        Some(&first) if first & 0x80 != 0 => binary(bytes),
        _ => octal(bytes),
    }
}

/// Parses a binary number. The first byte is 0x80 for a positive number and 0xff for a negative one, where the rest is its two's
/// complement. At most twelve bytes, so that it fits.
fn binary(bytes: &[u8]) -> Option<i128> {
    let (&first, rest) = bytes.split_first()?;
    let start = if first & 0x40 == 0 {
        i128::from(first & 0x7f)
    } else {
        i128::from(first) - 0x100
    };
    let number = rest
        .iter()
        .fold(start, |number, &byte| (number << 8) | i128::from(byte));
    (bytes.len() <= 12).then_some(number)
}

/// Parses an octal number. Its digits may have spaces before them and have spaces or NULs after them.
fn octal(bytes: &[u8]) -> Option<i128> {
    let end = bytes.iter().position(|&byte| byte == 0);
    let digits = bytes[..end.unwrap_or(bytes.len())].trim_ascii();
    digits.iter().try_fold(0i128, |number, &byte| {
        matches!(byte, b'0'..=b'7').then(|| number * 8 + i128::from(byte - b'0'))
    })
}

/// Parses a decimal number, as pax headers have it.
pub(super) fn decimal(bytes: &[u8]) -> Option<i128> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_octal_or_binary() {
        assert_eq!(field(b"0000644\0"), Some(0o644));
        assert_eq!(field(b"  755 \0 "), Some(0o755));
        assert_eq!(field(b"\0\0\0"), Some(0));
        assert_eq!(field(b"0000648\0"), None);
        assert_eq!(field(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(field(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(field(&[0xff; 12]), Some(-1));
        assert_eq!(decimal(b"-12"), Some(-12));
        assert_eq!(decimal(b"0x12"), None);
    }
}
