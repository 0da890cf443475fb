//! Extended headers of POSIX ("pax"): records `LENGTH KEY=VALUE\n`, where the length counts the whole record, so that a value
//! may hold any byte (`pax(1)`, "pax Extended Header").
//!
//! Extended attributes are in records of `SCHILY.xattr.`, as all image builders write them. Records of `LIBARCHIVE.xattr.`
//! repeat them, and are left out.

use std::collections::BTreeMap;
use std::iter;

use super::number;

/// The records of a member's extended header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(crate) uid: Option<i128>,
    pub(crate) gid: Option<i128>,
    pub(crate) mtime: Option<Time>,
    pub(super) sparse: Option<Sparse>,
    /// The name of a sparse file of GNU tar, whose header has another one, under which other programs unpack the pieces.
    pub(super) sparse_name: Option<Vec<u8>>,
    /// Extended attributes, by name.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A time: whole seconds since 1970, rounded down, and the nanoseconds after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i128,
    pub(crate) nanoseconds: u32,
}

/// GNU tar's records of a file with holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) size: Option<u64>,
}

/// Parses records; `None` where one is malformed.
pub(super) fn parse(mut data: &[u8]) -> Option<Records> {
    let mut records = Records::default();
    while !data.is_empty() {
        let space = data.iter().take(20).position(|&byte| byte == b' ')?;
        let length = usize::try_from(number::decimal(&data[..space])?).ok()?;
        let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
        data = &data[length..];
        let equals = record.iter().position(|&byte| byte == b'=')?;
        records.set(&record[..equals], &record[equals + 1..])?;
    }
    Some(records)
}

impl Records {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return Some(());
        }
        // An empty value deletes an earlier one.
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        let number = || match value {
            b"" => Some(None),
            value => number::decimal(value).map(Some),
        };
        let unsigned = || match number()? {
            None => Some(None),
            Some(number) => u64::try_from(number).ok().map(Some),
        };
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = unsigned()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = time(value)?,
            b"GNU.sparse.major" => self.sparse().major = unsigned()?,
            b"GNU.sparse.minor" => self.sparse().minor = unsigned()?,
            b"GNU.sparse.realsize" => self.sparse().size = unsigned()?,
            b"GNU.sparse.name" => self.sparse_name = bytes(),
            // Older kinds, which are refused later, since they lack a version.
            _ if key.starts_with(b"GNU.sparse.") => {
                self.sparse();
            }
            _ => {}
        }
        Some(())
    }

    fn sparse(&mut self) -> &mut Sparse {
        self.sparse.get_or_insert_default()
    }
}

/// Parses a time such as `1700000000.25`; digits beyond nanoseconds are dropped.
fn time(value: &[u8]) -> Option<Option<Time>> {
    if value.is_empty() {
        return Some(None);
    }
    let end = value.iter().position(|&byte| byte == b'.');
    let seconds = number::decimal(&value[..end.unwrap_or(value.len())])?;
    let fraction = end.map_or(&value[..0], |end| &value[end + 1..]);
    let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit());
    let digits = digits.chain(iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    // The sign is the fraction's, too; `-0.5` has it in front of a zero.
    let time = match value.starts_with(b"-") && nanoseconds > 0 {
        true => Time {
            seconds: seconds.saturating_sub(1),
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
        false => Time {
            seconds,
            nanoseconds,
        },
    };
    Some(Some(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_newlines_and_equal_signs() {
        let records =
            parse(b"26 SCHILY.xattr.user.a=\n=\n12 path=a\nb\n20 mtime=-17.250000\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a\nb"[..]));
        let mtime = Time {
            seconds: -18,
            nanoseconds: 750_000_000,
        };
        assert_eq!(records.mtime, Some(mtime));
        let expected = BTreeMap::from([(b"user.a".to_vec(), b"\n=".to_vec())]);
        assert_eq!(records.xattrs, expected);
    }

    #[test]
    fn times_are_read_to_the_nanosecond() {
        for (text, seconds, nanoseconds) in [
            ("1700000000", 1_700_000_000, 0),
            ("1.5", 1, 500_000_000),
            ("1.", 1, 0),
            ("1.x5", 1, 0),
            ("1.0000000019", 1, 1),
            ("-0.000000001", -1, 999_999_999),
            ("-2.0", -2, 0),
            (
                "-170141183460469231731687303715884105728.5",
                i128::MIN,
                500_000_000,
            ),
        ] {
            let time = Time {
                seconds,
                nanoseconds,
            };
            assert_eq!(super::time(text.as_bytes()), Some(Some(time)), "{text}");
        }
        for bad in ["x", ".5"] {
            assert_eq!(super::time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x path=a\n"[..],
            b"99 path=a\n",
            b"9 path=ab\n",
            b"3 path=a\n",
            b"0 path=a\n",
            b"11 size=-1\n",
            b"7 path\n",
            b"path",
        ] {
            assert_eq!(parse(bad), None, "{}", bad.escape_ascii());
        }
    }
}
