//! The common part of the two backends with Pyodide: CPython as WebAssembly, and a task's files for JavaScript.
//!
//! Pyodide's Python has a file system in memory and no processes. Packages beyond the standard library would be Pyodide's own
//! wheels, which are not installed. The code can use all of the engine's JavaScript (`import js`): the sandbox is what the engine
//! permits it.
//!
//! Both backends start Python from the same snapshot of its memory, which Deno makes; `sys._emscripten_info` names Deno in both.
//! The fatal error of an interpreter (`os.abort`, for one) becomes an end by SIGABRT.

use std::io;

use minivm_image::io_error::cannot;
use serde::Serialize;
use serde_json::Map;

use super::packed::packed;
use super::{Backend, Capability, Error, Limits, Program, Task, Warning, limits_suffice};
use minivm_machine::jail::Jail;

/// The Python script that runs the code as `python -c` does.
pub(super) const BOOTSTRAP: &str = include_str!("../js/bootstrap.py");
/// The JavaScript module that both backends share.
pub(super) const SHARED: &str = include_str!("../js/pyodide.mjs");

/// The path in the jail of the snapshot: the memory of a Python that has just started.
pub(super) const SNAPSHOT: &str = "/snapshot";

/// The description of a task for JavaScript.
#[derive(Serialize)]
struct TaskJson {
    env: Map<String, serde_json::Value>,
    /// Whether the jail has an archive of files to unpack into Python's file system.
    files: bool,
    snapshot: Option<&'static str>,
}

/// Adds a task to a jail, in `/task`: its code, its description, the scripts that run it, and an archive of its files. Returns
/// warnings about what is left out of the files, too.
pub(super) fn add_task(
    mut jail: Jail,
    backend: Backend,
    task: &Task,
    limits: &Limits,
    snapshot: Option<&'static str>,
) -> Result<(Jail, Vec<Warning>), Error> {
    limits_suffice(backend)?;
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
    for files in task.files.files() {
        if files.to.to_str().is_none() {
            let why = io::Error::new(io::ErrorKind::InvalidInput, "it is not UTF-8");
            return Err(cannot(format!("copy to {}", files.to.display()))(why).into());
        }
    }
    let mut left_out = Vec::new();
    if json.files {
        let (archive, missing) = packed(task, limits)?;
        jail = jail.copy_file(archive, "/task/files.cpio");
        left_out = missing;
    }
    let json = serde_json::to_vec(&json).expect("it is made of texts");
    let jail = jail
        .add_file(code.as_bytes(), "/task/code.py")?
        .add_file(&json, "/task/task.json")?
        .add_file(BOOTSTRAP.as_bytes(), "/task/bootstrap.py")?
        .add_file(SHARED.as_bytes(), "/task/pyodide.mjs")?;
    Ok((jail, left_out))
}

fn not_supported(backend: Backend, what: Capability) -> Error {
    Error::NotSupported { backend, what }
}

/// Returns the environment as JSON; of a repeated name, the last value. Names and values have to be valid for execve(2).
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
                "the environment variable {name:?} cannot be set: a name may not be empty or contain `=`, and neither name nor value may contain a zero byte"
            ),
        });
    }
    let pairs = env.iter();
    Ok(pairs
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_variables_are_refused_by_name() {
        let of = |name: &str, value: &str| {
            variables(Backend::Deno, &[(name.to_owned(), value.to_owned())])
        };
        assert_eq!(of("A", "1=2").unwrap()["A"], "1=2");
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
            let error = of(name, value).unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }
}
