//! A host user that owns nothing, for processes of root's that must not be root.

use std::{fs, io};

/// User IDs that no distribution and no container manager assigns, each range a first ID and a count: the upper part of systemd's
/// "reserved" range. A container most often has only 65536 user IDs, of which those of the second range are unassigned.
const FREE: [(u32, u32); 2] = [(0x7000_0000, 0x1000_0000), (65000, 534)];

/// Picks the IDs of a user and a group that are free on the host, others for each `seed`. `None` where this process's user
/// namespace has none.
///
/// # Errors
///
/// The error of reading this process's user map.
pub(crate) fn pick(seed: u32) -> io::Result<Option<(u32, u32)>> {
    let free = |map: &str| Ok::<_, io::Error>(free(&fs::read_to_string(map)?, seed));
    let user = free("/proc/self/uid_map")?;
    Ok(user.zip(free("/proc/self/gid_map")?))
}

/// Returns whether root of this process's user namespace is another user outside of it.
pub(crate) fn is_root_mapped_away() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| maps_root_away(&map))
}

fn maps_root_away(map: &str) -> bool {
    let mut lines = map.lines().map(|line| line.split_whitespace());
    let outside = lines.find_map(|mut words| (words.next() == Some("0")).then(|| words.next()));
    outside.flatten().is_some_and(|outside| outside != "0")
}

/// Picks a free user ID from the lines of a `uid_map` or `gid_map`, each `FIRST_INSIDE FIRST_OUTSIDE COUNT`.
fn free(map: &str, seed: u32) -> Option<u32> {
    let numbers = |line: &str| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        let (inside, _, count) = (
            words.next()?.ok()?,
            words.next()?.ok()?,
            words.next()?.ok()?,
        );
        Some((inside, count))
    };
    let mapped: Vec<(u32, u32)> = map.lines().filter_map(numbers).collect();
    let found = FREE.into_iter().find(|(first, count)| {
        let holds = |&(from, size): &(u32, u32)| {
            from <= *first && u64::from(first + count) <= u64::from(from) + u64::from(size)
        };
        mapped.iter().any(holds)
    });
    let (first, count) = found?;
    Some(first + seed % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_user_is_one_that_is_mapped() {
        let whole = free("         0          0 4294967295\n", 5).unwrap();
        assert_eq!(whole, 0x7000_0005);
        assert!(free("0 0 4294967295", u32::MAX).unwrap() < 0x8000_0000);
        let container = free("0 100000 65536\n", 1000).unwrap();
        assert!((65000..65534).contains(&container), "{container}");
        assert_eq!(free("0 1000 1\n", 7), None);
        assert_eq!(free("nonsense\n\n1 2\n", 7), None);
    }

    #[test]
    fn root_is_mapped_away_where_it_is_another_user_outside() {
        assert!(!maps_root_away("         0          0 4294967295\n"));
        assert!(maps_root_away("0 1000 1\n"));
        assert!(!maps_root_away("1000 0 1\n"));
        assert!(!maps_root_away(""));
    }
}
