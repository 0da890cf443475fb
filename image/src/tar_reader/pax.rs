//! Extended headers of POSIX ("pax"): records `LENGTH KEY=VALUE\n`, where the length counts the whole record, so that a value
//! may hold any byte (`pax(1)`, "pax Extended Header").
//!
//! Extended attributes are in records of `SCHILY.xattr.`, as all image builders write them. Records of `LIBARCHIVE.xattr.`
//! repeat them, and are left out.

use std::collections::BTreeMap;

use super::{Time, number};

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
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(Time::parse(value)?),
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
