//! The memory of processes, measured where no control group can be made: without privileges, few hosts allow one.

use std::collections::BTreeMap;
use std::fs;

/// Returns the bytes that a process and all its descendants hold. A shared page counts in parts for each of its users.
pub(super) fn memory_of(process: u32) -> u64 {
    let parents = parents();
    let mut family = vec![process];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        let children = parents.iter().filter(|(_, of)| **of == parent);
        family.extend(children.map(|(&child, _)| child));
        next += 1;
    }
    family.into_iter().map(proportional).sum()
}

/// Returns the parent of every process. A process can't be its own ancestor, so a walk down from one of them ends.
fn parents() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parent = |entry: fs::DirEntry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read(entry.path().join("stat")).ok()?;
        // The name is in parentheses and may contain any bytes; the process chooses it. Only numbers follow the last `)`.
        let end = stat.iter().rposition(|&byte| byte == b')')?;
        let fields = std::str::from_utf8(stat.get(end + 2..)?).ok()?;
        Some((process, fields.split(' ').nth(1)?.parse().ok()?))
    };
    entries.filter_map(parent).collect()
}

/// Returns a process's proportional set size (PSS) in bytes; 0 where it can't be read or the process has ended.
fn proportional(process: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Command, Stdio};

    #[test]
    fn memory_of_children_is_counted() {
        let own = memory_of(std::process::id());
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let alone = memory_of(child.id());
        assert!(own > 0 && alone > 0);
        assert!(memory_of(std::process::id()) > alone);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(memory_of(child.id()), 0);
    }

    #[test]
    fn no_process_name_hides_a_child() {
        let folder = tempfile::tempdir().unwrap();
        for name in [&b"\xff"[..], b"a) S 1 1 (\xe9", b") \n)"] {
            let program = folder.path().join(OsStr::from_bytes(name));
            std::os::unix::fs::symlink("/bin/cat", &program).unwrap();
            let mut child = Command::new(&program)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            assert_eq!(parents().get(&child.id()), Some(&std::process::id()));
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }
}
