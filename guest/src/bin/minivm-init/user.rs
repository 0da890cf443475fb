//! Who a command runs as: `USER[:GROUP]`, as container images and `docker run --user` have it.

use std::fs;

use crate::Error;

/// A user with everything that a process has of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups. `gid` is one of them, as in containers: a program that gives up `gid` would otherwise be free of what the
    /// group must not do.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Finds the user in the image's `/etc/passwd` and `/etc/group`. A number needs no entry there.
pub(crate) fn find(wanted: &str) -> Result<User, Error> {
    // What isn't there, or isn't text, has no users in it.
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    resolve(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<User, Error> {
    let (name, group_name) = match wanted.split_once(':') {
        Some((name, group)) => (name, group),
        None => (wanted, ""),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse().ok();
    // passwd(5): name, password, UID, GID, comment, home, shell.
    let entry = entries(passwd)
        .find(|fields| fields.first() == Some(&name))
        .or_else(|| entries(passwd).find(|fields| number.is_some() && uid_of(fields) == number));
    let (uid, mut gid, home) = match (&entry, number) {
        (Some(fields), _) => (
            uid_of(fields).ok_or_else(|| format!("/etc/passwd has no number for {name}"))?,
            fields.get(3).and_then(|gid| gid.parse().ok()).unwrap_or(0),
            fields
                .get(5)
                .copied()
                .filter(|home| !home.is_empty())
                .unwrap_or("/"),
        ),
        (None, Some(uid)) => (uid, 0, "/"),
        (None, None) => return Err(format!("the image has no user {name}").into()),
    };
    let mut groups = Vec::new();
    if group_name.is_empty() {
        let login = entry.as_ref().and_then(|fields| fields.first().copied());
        groups = memberships(group, login);
    } else {
        gid = find_group(group, group_name)?;
    }
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    Ok(User {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

/// The groups that list the user. group(5): name, password, GID, members.
fn memberships(group: &str, login: Option<&str>) -> Vec<u32> {
    let Some(login) = login else {
        return Vec::new();
    };
    entries(group)
        .filter(|fields| {
            fields
                .get(3)
                .is_some_and(|all| all.split(',').any(|one| one == login))
        })
        .filter_map(|fields| fields.get(2)?.parse().ok())
        .collect()
}

fn find_group(group: &str, wanted: &str) -> Result<u32, Error> {
    let entry = entries(group).find(|fields| fields.first() == Some(&wanted));
    entry
        .and_then(|fields| fields.get(2)?.parse().ok())
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| format!("the image has no group {wanted}").into())
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

fn uid_of(fields: &[&str]) -> Option<u32> {
    fields.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:An app:/home/app:/bin/sh\nbroken\n7:x:9:9::/seven:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nvideo:x:44:app,root\nlog:x:4:app\n";

    fn user(wanted: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve(wanted, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups, user.home)
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
    fn who_is_not_there_is_named() {
        for (wanted, named) in [("nobody", "user nobody"), ("app:wheel", "group wheel")] {
            let error = resolve(wanted, PASSWD, GROUP).unwrap_err().to_string();
            assert!(error.ends_with(named), "{error}");
        }
    }
}
