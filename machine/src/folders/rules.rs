//! What a guest may not see of a folder, and what it may see but not change.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::host::{Key, Kind};
use super::nodes::Stop;

/// What programs of the host run or obey later: git's hooks and settings, and those of shells, editors and agents.
///
/// `commondir` makes git take both from another place, for a submodule and a linked work tree as well. Packages in `node_modules` carry editors' settings along, and editors open other folders.
pub const PROTECTED: &[&str] = &[
    "**/.git/hooks",
    "**/.git/config",
    "**/.git/config.worktree",
    "**/.git/commondir",
    "**/.git/modules/**/hooks",
    "**/.git/modules/**/config",
    "**/.git/modules/**/config.worktree",
    "**/.git/modules/**/commondir",
    "**/.git/worktrees/**/hooks",
    "**/.git/worktrees/**/config",
    "**/.git/worktrees/**/config.worktree",
    "**/.git/worktrees/**/commondir",
    ".envrc",
    ".vscode",
    ".idea",
    ".husky",
    ".mcp.json",
    ".claude",
    ".codex",
    ".cursor",
    ".gemini",
    "!**/node_modules/**/.vscode",
    "!**/node_modules/**/.idea",
    "!**/node_modules/**/.husky",
];

/// What the rules say about a place; the last is the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Free,
    /// It can be read.
    Protected,
    /// It isn't there.
    Hidden,
}

/// Patterns as `gitignore` has them, whatever the case of their letters: some file systems ignore it.
pub(super) struct Rules {
    hide: Gitignore,
    protect: Gitignore,
    /// Whether a file `.git`, which says where a repository is, is protected where there was one.
    git_files: bool,
}

impl Rules {
    /// Compiles patterns.
    ///
    /// # Errors
    ///
    /// If one isn't valid, or says nothing.
    pub(super) fn new(hide: &[String], protect: &[String]) -> io::Result<Self> {
        Ok(Rules {
            hide: compile(hide)?,
            protect: compile(protect)?,
            git_files: is_about_git(protect),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hide.is_empty() && self.protect.is_empty()
    }

    /// Whether repositories are protected, so that new ones are worth a report.
    pub(super) fn mind_repositories(&self) -> bool {
        self.git_files
    }

    /// Judges a place by the way to it. What is below a place shares its fate. Below a folder that the guest `made`, it may also make what
    /// is protected elsewhere: none of it was there at the start.
    ///
    /// A link counts as a folder too, since it can stand for one. `exists` tells what is there from what is about to be made.
    pub(super) fn judge(
        &self,
        route: &[Stop],
        kind: Kind,
        exists: bool,
        made: &dyn Fn(&Key) -> bool,
    ) -> Verdict {
        let mut verdict = Verdict::Free;
        if self.is_empty() {
            return verdict;
        }
        let mut path = PathBuf::new();
        let mut is_free = false;
        for (at, stop) in route.iter().enumerate() {
            path.push(&stop.name);
            let is_last = at + 1 == route.len();
            let is_folder = !is_last || kind != Kind::File;
            if self.hide.matched(&path, is_folder).is_ignore() {
                return Verdict::Hidden;
            }
            if is_free || verdict == Verdict::Protected {
                continue;
            }
            let is_git_file = || {
                self.git_files && is_last && exists && kind != Kind::Folder && stop.name.is(".git")
            };
            let above = || route[..at].iter().any(|stop| made(&stop.key));
            if self.protect.matched(&path, is_folder).is_ignore() {
                is_free = above();
            } else if is_git_file() {
                is_free = above() || made(&stop.key);
            } else {
                continue;
            }
            if !is_free {
                verdict = Verdict::Protected;
            }
        }
        verdict
    }
}

/// Whether what is at a path of the host's, or what is above that, is run or obeyed by the host: patterns below such a place don't match, which
/// are about the way to it.
pub(super) fn is_run(place: &Path) -> bool {
    // Each pattern names such a part: without one, none has to be compiled.
    let mut parts = place.components();
    if !parts.any(|part| part.as_os_str().as_bytes().starts_with(b".")) {
        return false;
    }
    let protected: Vec<_> = PROTECTED
        .iter()
        .map(|&pattern| pattern.to_owned())
        .collect();
    let Ok(protected) = compile(&protected) else {
        return true;
    };
    let mut above = PathBuf::new();
    place.components().skip(1).any(|part| {
        let part = part.as_os_str();
        above.push(part);
        part.eq_ignore_ascii_case(".git") || protected.matched(&above, true).is_ignore()
    })
}

/// Whether patterns protect repositories.
pub(super) fn is_about_git(protect: &[String]) -> bool {
    protect.iter().any(|pattern| pattern.contains(".git/"))
}

fn compile(patterns: &[String]) -> io::Result<Gitignore> {
    let mut builder = GitignoreBuilder::new("");
    builder.case_insensitive(true).map_err(io::Error::other)?;
    for pattern in patterns {
        let says_nothing = pattern.trim().is_empty() || pattern.starts_with('#');
        if says_nothing || pattern.contains(['\n', '\0']) {
            let text = format!(
                "{pattern:?} is not a pattern: write one as in .gitignore, such as \"*.key\""
            );
            return Err(io::Error::other(text));
        }
        builder.add_line(None, pattern).map_err(io::Error::other)?;
    }
    builder.build().map_err(io::Error::other)
}

/// Returns a pattern for one path below the folder.
pub(super) fn pattern_of(path: &Path) -> Option<String> {
    let text = path
        .to_str()
        .filter(|text| !text.is_empty() && !text.contains('\n'))?;
    let mut pattern = String::from("/");
    for letter in text.chars() {
        if matches!(
            letter,
            '*' | '?' | '[' | ']' | '{' | '}' | '\\' | '!' | '#' | ' '
        ) {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    Some(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_protected_has_a_name_with_a_dot_in_its_way() {
        for pattern in PROTECTED {
            assert!(
                pattern.split('/').any(|part| part.starts_with('.')),
                "{pattern}"
            );
        }
        for place in ["/a/.git", "/a/.GIT/x", "/.vscode/b", "/a/b/.envrc"] {
            assert!(is_run(Path::new(place)), "{place}");
        }
        for place in [
            "/",
            "/a/git/hooks",
            "/a/.config/b",
            "/a/node_modules/b/.vscode",
        ] {
            assert!(!is_run(Path::new(place)), "{place}");
        }
    }
}
