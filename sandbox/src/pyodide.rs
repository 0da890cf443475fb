//! What the two sandboxes with Pyodide share: CPython as WebAssembly, and a task as JavaScript gets it.
//!
//! Pyodide's Python has a file system in memory and no processes. Its packages beyond the standard library are wheels of
//! Pyodide's own, which are not installed here. JavaScript is within reach of the code (`import js`), all of it that the
//! engine has: what that may do is for the engine to say, and is the sandbox.
//!
//! Both start Python from the same snapshot of its memory, which Deno has made; `sys._emscripten_info` names Deno in either.
//! An interpreter that dies (`os.abort`, a fatal error) ends as by SIGABRT.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use serde_json::Map;

use super::packed::packed;
use super::{Backend, Capability, Error, Limits, Program, Task, cannot};
use minivm_machine::guest_name;
use minivm_machine::jail::Jail;

/// Python's side: runs the code as `python -c` does.
pub(super) const BOOTSTRAP: &str = include_str!("../js/bootstrap.py");
/// JavaScript's side, as far as it is the same.
pub(super) const SHARED: &str = include_str!("../js/pyodide.mjs");

/// Where the jail has Python's memory as it is when Python has just started, if anything has.
pub(super) const SNAPSHOT: &str = "/snapshot";

/// What JavaScript is told of a task.
#[derive(Serialize)]
struct TaskJson {
    env: Map<String, serde_json::Value>,
    /// Whether the jail has an archive of files, to be unpacked into Python's file system.
    files: bool,
    snapshot: Option<&'static str>,
}

/// Puts the task into a jail: its code and what comes with that into `/task`, its files as an archive.
pub(super) fn add_task(
    mut jail: Jail,
    backend: Backend,
    task: &Task,
    limits: &Limits,
    snapshot: Option<&'static str>,
) -> Result<Jail, Error> {
    let code = match &task.program {
        Program::Code(code) => code,
        Program::Command(_) => return Err(not_supported(backend, Capability::Commands)),
        Program::Resume { .. } => return Err(not_supported(backend, Capability::Snapshot)),
    };
    let json = TaskJson {
        env: variables(backend, &task.texts(backend)?)?,
        files: !task.files.is_empty(),
        snapshot,
    };
    for files in &task.files {
        can_be_copied(&files.from)?;
        let to = guest_name(&files.to, &files.from)?;
        if to.to_str().is_none() {
            let why = io::Error::new(io::ErrorKind::InvalidInput, "it is not UTF-8");
            return Err(cannot(format!("copy to {}", files.to.display()))(why));
        }
    }
    if json.files {
        jail = jail.copy_file(packed(task, limits)?, "/task/files.cpio");
    }
    let json = serde_json::to_vec(&json).expect("it is made of texts");
    let jail = jail
        .add_file(code.as_bytes(), "/task/code.py")?
        .add_file(&json, "/task/task.json")?
        .add_file(BOOTSTRAP.as_bytes(), "/task/bootstrap.py")?
        .add_file(SHARED.as_bytes(), "/task/pyodide.mjs")?;
    Ok(jail)
}

fn not_supported(backend: Backend, what: Capability) -> Error {
    Error::NotSupported { backend, what }
}

/// The environment, if the system could have such a one. What comes last counts.
fn variables(
    backend: Backend,
    env: &[(String, String)],
) -> Result<Map<String, serde_json::Value>, Error> {
    let bad = env.iter().find(|(name, value)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    });
    if let Some((name, _)) = bad {
        return Err(Error::Failed {
            backend,
            detail: format!(
                "the environment variable {name:?} cannot be set: its name or value has what it must not have"
            ),
        });
    }
    let pairs = env.iter();
    Ok(pairs
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect())
}

/// Looks whether it is a file or folder: a pipe, for one, would be waited for.
fn can_be_copied(path: &Path) -> Result<(), Error> {
    let wrap = || cannot(format!("copy {} in", path.display()));
    let kind = fs::metadata(path).map_err(wrap())?;
    if kind.is_file() || kind.is_dir() {
        return Ok(());
    }
    let why = "it is neither a file nor a folder";
    Err(wrap()(io::Error::new(io::ErrorKind::InvalidInput, why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_environment_is_refused_by_name() {
        let of = |name: &str, value: &str| {
            variables(Backend::Deno, &[(name.to_owned(), value.to_owned())])
        };
        assert_eq!(of("A", "1=2").unwrap()["A"], "1=2");
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
            let error = of(name, value).unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }

    #[test]
    fn only_files_and_folders_are_copied() {
        can_be_copied(Path::new("/")).unwrap();
        can_be_copied(Path::new("/dev/null")).unwrap_err();
        can_be_copied(Path::new("/nowhere")).unwrap_err();
    }
}
