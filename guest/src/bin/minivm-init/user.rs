//! The user that a command runs as: `USER[:GROUP]`, as container images and `docker run --user` have it.
//!
//! The image's files are read as bytes: a comment or a name in them may be of any encoding. A file that can't be read, or that
//! has no number where one is needed, is an error: only a missing file has no users in it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use crate::{Error, cannot};

/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// A user, with its groups and its home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups. `gid` is one of them, as in containers: a program that gives up `gid` would otherwise get around what the
    /// group must not do.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Vec<u8>,
}

/// Finds the user in the image's `/etc/passwd` and `/etc/group`. A number needs no entry there.
pub(crate) fn find(wanted: &str) -> Result<User, Error> {
    resolve(wanted, &read("/etc/passwd")?, &read("/etc/group")?)
}

/// Reads the bytes of a file; a missing one has none.
fn read(path: &str) -> Result<Vec<u8>, Error> {
    // Opening a pipe would wait for a writer.
    let open = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match open {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        open => open.map_err(cannot(format!("read {path}")))?,
    };
    if !file.metadata()?.is_file() {
        return Err(format!("cannot read {path}: it is not a file").into());
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot(format!("read {path}")))?;
    match bytes.len() as u64 > FILE_MAX {
        true => Err(format!("cannot read {path}: it has more than {FILE_MAX} bytes").into()),
        false => Ok(bytes),
    }
}

fn resolve(wanted: &str, passwd: &[u8], group: &[u8]) -> Result<User, Error> {
    let (name, group_name) = match wanted.split_once(':') {
        Some((name, group)) => (name, group),
        None => (wanted, ""),
    };
    let name = if name.is_empty() { "0" } else { name };
    let given = number(name.as_bytes());
    // passwd(5): name, password, UID, GID, comment, home, shell.
    let entry = entries(passwd)
        .find(|fields| fields.first() == Some(&name.as_bytes()))
        .or_else(|| entries(passwd).find(|fields| given.is_some() && field(fields, 2) == given));
    let (uid, home) = match (&entry, given) {
        (Some(fields), _) => (
            field(fields, 2).ok_or_else(|| no_number("passwd", name.as_bytes()))?,
            fields.get(5).copied().filter(|home| !home.is_empty()),
        ),
        (None, Some(uid)) => (uid, None),
        (None, None) => return Err(format!("the image has no user {name}").into()),
    };
    let home = home.unwrap_or(b"/").to_vec();
    if home.contains(&0) {
        return Err(format!("/etc/passwd has a NUL byte in the home of {name}").into());
    }
    let (gid, mut groups) = match (&entry, group_name) {
        (_, wanted) if !wanted.is_empty() => (find_group(group, wanted)?, Vec::new()),
        (Some(fields), _) => (
            field(fields, 3).ok_or_else(|| {
                Error::from(format!("/etc/passwd has no number for the group of {name}"))
            })?,
            memberships(group, fields.first().copied().unwrap_or_default())?,
        ),
        (None, _) => (0, Vec::new()),
    };
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    Ok(User {
        uid,
        gid,
        groups,
        home,
    })
}

/// Returns the groups that list the user. group(5): name, password, GID, members.
fn memberships(group: &[u8], login: &[u8]) -> Result<Vec<u32>, Error> {
    let lists = |fields: &Vec<&[u8]>| {
        let members = fields.get(3);
        // A group without members has an empty list, and no member whose name is empty.
        let listed = |all: &&[u8]| all.split(|&byte| byte == b',').any(|one| one == login);
        !login.is_empty() && members.is_some_and(listed)
    };
    let listing = entries(group).filter(lists);
    listing.map(|fields| number_of_group(&fields)).collect()
}

fn find_group(group: &[u8], wanted: &str) -> Result<u32, Error> {
    let entry = entries(group).find(|fields| fields.first() == Some(&wanted.as_bytes()));
    match entry {
        Some(fields) => number_of_group(&fields),
        None => number(wanted.as_bytes())
            .ok_or_else(|| format!("the image has no group {wanted}").into()),
    }
}

fn number_of_group(fields: &[&[u8]]) -> Result<u32, Error> {
    field(fields, 2).ok_or_else(|| no_number("group", fields.first().copied().unwrap_or_default()))
}

fn no_number(file: &str, name: &[u8]) -> Error {
    let name = name.escape_ascii();
    format!("/etc/{file} has no number for {name}").into()
}

/// Returns the fields of each line that isn't empty.
fn entries(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    lines
        .filter(|line| !line.is_empty())
        .map(|line| line.split(|&byte| byte == b':').collect())
}

fn field(fields: &[&[u8]], index: usize) -> Option<u32> {
    number(fields.get(index)?)
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:An app:/home/app:/bin/sh\nbroken\n7:x:9:9::/seven:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nvideo:x:44:app,root\nlog:x:4:app\n";

    fn user(wanted: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve(wanted, PASSWD.as_bytes(), GROUP.as_bytes()).unwrap();
        let home = String::from_utf8(user.home).unwrap();
        (user.uid, user.gid, user.groups, home)
    }

    #[test]
    fn names_and_numbers_are_found_with_their_groups() {
        assert_eq!(user(""), (0, 0, vec![0, 44], "/root".into()));
        assert_eq!(
            user("app"),
            (1000, 1001, vec![1001, 44, 4], "/home/app".into())
        );
        assert_eq!(user("1000"), user("app"));
        assert_eq!(user("app:log"), (1000, 4, vec![4], "/home/app".into()));
        assert_eq!(user("1000:77"), (1000, 77, vec![77], "/home/app".into()));
    }

    #[test]
    fn a_number_needs_no_entry_and_a_name_that_is_a_number_wins() {
        assert_eq!(user("4711"), (4711, 0, vec![0], "/".into()));
        assert_eq!(user("7"), (9, 9, vec![9], "/seven".into()));
    }

    #[test]
    fn a_missing_user_or_group_is_named() {
        for (wanted, named) in [("nobody", "user nobody"), ("app:wheel", "group wheel")] {
            let error = refused(wanted, PASSWD.as_bytes(), GROUP.as_bytes());
            assert!(error.ends_with(named), "{error}");
        }
    }

    fn refused(wanted: &str, passwd: &[u8], group: &[u8]) -> String {
        resolve(wanted, passwd, group).unwrap_err().to_string()
    }

    #[test]
    fn text_of_another_encoding_hides_no_user() {
        let passwd =
            b"root:x:0:0:r\xf6\xf6t:/root:/bin/sh\r\nb\xf6b:x:5:5::/b:\nbob:x:1000:1001:Jos\xe9:/home/jos\xe9:/bin/sh\n";
        let group = b"\xe9quipe:x:7:ren\xe9\nextra:x:2000:ren\xe9,bob\nown\xff:x:1001:\n";
        for wanted in ["bob", "1000"] {
            let user = resolve(wanted, passwd, group).unwrap();
            assert_eq!((user.uid, user.gid), (1000, 1001));
            assert_eq!(user.groups, [1001, 2000]);
            assert_eq!(user.home, b"/home/jos\xe9");
        }
        let user = resolve("bob:extra", passwd, group).unwrap();
        assert_eq!((user.gid, user.groups), (2000, vec![2000]));
        let user = resolve("", passwd, group).unwrap();
        assert_eq!((user.uid, user.home), (0, b"/root".to_vec()));
    }

    #[test]
    fn a_name_that_is_empty_is_in_no_group() {
        let passwd = b":x:1000:1000::/h:/bin/sh\n";
        let group = b"root:x:0:\nshadow:x:42:,\nshort:x:7\n";
        let user = resolve("1000", passwd, group).unwrap();
        assert_eq!((user.uid, user.groups), (1000, vec![1000]));
    }

    #[test]
    fn a_number_that_is_needed_and_not_there_is_an_error() {
        let passwd = b"bob:x:1000:x:\nann:x:y:5::\neve:x:7:7::/e\0vil:\nshort:x:9\n";
        let group = b"extra:x:z:bob,eve\nother:x::\n";
        for (wanted, expected) in [
            ("ann", "/etc/passwd has no number for ann"),
            ("bob", "/etc/passwd has no number for the group of bob"),
            ("short", "/etc/passwd has no number for the group of short"),
            ("bob:extra", "/etc/group has no number for extra"),
            ("9:other", "/etc/group has no number for other"),
            ("eve", "/etc/passwd has a NUL byte in the home of eve"),
        ] {
            assert_eq!(refused(wanted, passwd, group), expected);
        }
        let listed = refused("eve", b"eve:x:7:7:::\n", group);
        assert_eq!(listed, "/etc/group has no number for extra");
        // A number that isn't needed may be missing.
        let user = resolve("bob:44", passwd, group).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1000, 44, vec![44]));
    }

    #[test]
    fn only_a_missing_file_counts_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(read(&path("none")).unwrap(), b"");
        std::fs::write(path("some"), b"a\xff").unwrap();
        assert_eq!(read(&path("some")).unwrap(), b"a\xff");
        let pipe = std::process::Command::new("mkfifo")
            .arg(path("pipe"))
            .status();
        assert!(pipe.unwrap().success());
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();
        let long = std::fs::File::create(path("long")).unwrap();
        long.set_len(FILE_MAX + 1).unwrap();
        for path in [
            path(""),
            path("pipe"),
            path("loop"),
            path("some/below"),
            path("long"),
        ] {
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("cannot read {path}: ")),
                "{error}"
            );
        }
    }
}
