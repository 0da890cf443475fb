//! Where a repository at the top of a folder has its hooks and settings, if not where they usually are.
//!
//! `core.hooksPath` and `include.path` of its settings, and links among its hooks, may lead to files elsewhere in the folder, which then
//! run or count on the host as well.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{OFlags, readlinkat};

use super::abi::Result;
use super::host::{Descriptors, Kind, Stat, list, step};
use super::name::Name;
use super::rules::pattern_of;

/// Bytes of settings that are read: they are some hundred.
const SETTINGS_MAX: u64 = 1 << 20;

/// Returns patterns for what is to be protected besides [`PROTECTED`](super::PROTECTED). `place` is the folder's path on the host.
pub(super) fn redirected(descriptors: &Descriptors, root: &OwnedFd, place: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let Ok(git) = Name::new(b".git").and_then(|name| step(root, &name)) else {
        return Vec::new();
    };
    if let Ok(settings) = read(descriptors, &git) {
        for (key, value) in entries(&settings) {
            // Hooks are found from the top of the work tree, included files from the settings.
            match key.as_str() {
                "core.hookspath" => paths.push(PathBuf::from(value)),
                key if key.starts_with("include") && key.ends_with(".path") => {
                    paths.push(Path::new(".git").join(value))
                }
                _ => {}
            }
        }
    }
    paths.extend(links(descriptors, &git).unwrap_or_default());
    let inside = paths.iter().filter_map(|path| within(path, place));
    inside.filter_map(|path| pattern_of(&path)).collect()
}

fn read(descriptors: &Descriptors, git: &OwnedFd) -> io::Result<String> {
    let file = step(git, &Name::new(b"config")?)?;
    if Stat::of(&file)?.kind() != Kind::File {
        return Err(io::Error::other("it is not a file"));
    }
    let file = File::from(descriptors.reopen(&file, OFlags::RDONLY)?);
    let mut bytes = Vec::new();
    file.take(SETTINGS_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns keys, in lower case, and values of git's settings, as far as one line has them.
fn entries(settings: &str) -> Vec<(String, &str)> {
    let mut section = String::new();
    let mut entries = Vec::new();
    for line in settings.lines().map(str::trim) {
        let mut rest = line;
        if let Some(head) = line.strip_prefix('[') {
            let end = head.find([' ', '\t', '"', ']']).unwrap_or(head.len());
            section = head[..end].to_ascii_lowercase();
            // A setting may follow on the line.
            rest = head.rsplit_once(']').map_or("", |(_, rest)| rest);
        }
        if let Some((key, value)) = rest.split_once('=') {
            let key = format!("{section}.{}", key.trim().to_ascii_lowercase());
            entries.push((key, without_comment(value.trim())));
        }
    }
    entries
}

/// Returns a value without its quotes, and without a comment behind it.
fn without_comment(value: &str) -> &str {
    match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default(),
        None => value
            .split([';', '#'])
            .next()
            .unwrap_or_default()
            .trim_end(),
    }
}

/// Returns the targets of links among the hooks, as paths from the top of the folder.
fn links(descriptors: &Descriptors, git: &OwnedFd) -> Result<Vec<PathBuf>> {
    let hooks = Name::new(b"hooks")?;
    let fd = step(git, &hooks)?;
    let target = |fd: &OwnedFd| -> Option<PathBuf> {
        let target = readlinkat(fd, "", Vec::new()).ok()?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(
            target.to_bytes(),
        )))
    };
    if Stat::of(&fd)?.kind() == Kind::Link {
        return Ok(target(&fd)
            .map(|path| Path::new(".git").join(path))
            .into_iter()
            .collect());
    }
    let folder = descriptors.reopen(&fd, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let listed = list(folder.as_fd())?;
    let links = listed.iter().filter(|entry| entry.kind == Kind::Link);
    let targets = links.filter_map(|entry| target(&step(&folder, &entry.name).ok()?));
    Ok(targets
        .map(|path| Path::new(".git/hooks").join(path))
        .collect())
}

/// Returns a path from the top of the folder, without `..` in it, if it stays inside. `~` isn't inside.
fn within(path: &Path, place: &Path) -> Option<PathBuf> {
    let path = match path.is_absolute() {
        true => path.strip_prefix(place).ok()?,
        false => path,
    };
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::ParentDir if inside.pop() => {}
            _ => return None,
        }
    }
    Some(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_in_any_case_and_form() {
        let text = "[Core]\n\tbare = false\n\thooksPath = \"tools/hooks\"\n[includeIf \"gitdir:x\"]\n path=../more\n# a = b\n";
        let entries = entries(text);
        assert!(entries.contains(&("core.hookspath".into(), "tools/hooks")));
        assert!(entries.contains(&("includeif.path".into(), "../more")));
        for text in [
            "[core]\nhooksPath = hk ; ours",
            "[core]\nhooksPath = \"hk\" # ours",
            "[core] hooksPath = hk",
            "[core \"x]y\"] hooksPath=hk",
        ] {
            assert_eq!(super::entries(text), [("core.hookspath".into(), "hk")]);
        }
    }

    #[test]
    fn paths_count_that_stay_inside() {
        let within = |path: &str| within(Path::new(path), Path::new("/home/a"));
        assert_eq!(within(".git/../tools/./x"), Some("tools/x".into()));
        assert_eq!(within("/home/a/tools"), Some("tools".into()));
        assert_eq!(within("/home/b/tools"), None);
        assert_eq!(within("../x"), None);
    }
}
