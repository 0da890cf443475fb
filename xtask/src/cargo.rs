//! Calling Cargo, the one that called us.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::building::Building;
use crate::place::Place;
use crate::process::{cannot_start, capture, short};
use crate::report::Report;

/// Has Cargo print messages for programs on stdout, and its diagnostics on stderr.
pub(crate) const MESSAGES: [&str; 1] = ["--message-format=json-render-diagnostics"];

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// `cargo` in the workspace, without the variables by which `cargo run` describes xtask to itself. Build scripts that look at them (ring's)
/// would run anew, and their crates be built anew, each time that xtask and a shell build in turn.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        let shown = name.to_string_lossy();
        if shown.starts_with("CARGO_PKG_") || shown.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// An executable that Cargo built.
#[derive(Debug)]
pub(crate) struct Executable {
    /// The name of its target: `boot` for `tests/boot.rs`, a crate's name for its unit tests.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The folder of its package, where Cargo runs tests.
    pub(crate) package: PathBuf,
    /// The first of its source files.
    pub(crate) source: PathBuf,
    /// Whether it is a test, and not a program that a test calls.
    pub(crate) is_test: bool,
}

/// Runs Cargo with these arguments, which must build; returns the executables. Cargo's progress goes to stderr.
pub(crate) fn build(arguments: &[&str]) -> Result<Vec<Executable>> {
    let mut command = cargo();
    command.args(arguments).args(MESSAGES);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command
        .output()
        .map_err(|error| cannot_start(&command, &error))?;
    if !output.status.success() {
        bail!("cargo {} failed: it says why above", arguments.join(" "));
    }
    executables(&String::from_utf8_lossy(&output.stdout))
}

/// The executables in Cargo's messages.
pub(crate) fn executables(messages: &str) -> Result<Vec<Executable>> {
    let executables = messages.lines().map(|line| executable(line).transpose());
    executables.flatten().collect()
}

/// The executable in one of Cargo's messages, if it is about one.
fn executable(line: &str) -> Result<Option<Executable>> {
    let message: Value = serde_json::from_str(line)
        .with_context(|| format!("cargo said what is not JSON: {line}"))?;
    let Some(path) = message["executable"].as_str() else {
        return Ok(None);
    };
    let name = message["target"]["name"]
        .as_str()
        .context("cargo named no target")?
        .to_owned();
    let manifest = Path::new(
        message["manifest_path"]
            .as_str()
            .context("cargo named no manifest")?,
    );
    let package = manifest
        .parent()
        .context("a manifest is in a folder")?
        .to_owned();
    let source = message["target"]["src_path"]
        .as_str()
        .context("cargo named no source")?
        .into();
    let is_test = message["profile"]["test"].as_bool().unwrap_or(false);
    Ok(Some(Executable {
        name,
        path: path.into(),
        package,
        source,
        is_test,
    }))
}

/// A test program that Cargo can build.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// As [`Executable::name`].
    pub(crate) name: String,
    pub(crate) kind: TargetKind,
    /// The first of its source files.
    pub(crate) source: PathBuf,
}

/// What a test program's tests are those of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetKind {
    /// A library's unit tests.
    Library,
    /// A program's unit tests.
    Program,
    /// A file or a folder in `tests/`.
    Tests,
}

impl Target {
    /// Whether this is its name. Cargo writes the name of a library's package with `-`.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name.replace('-', "_") == name.replace('-', "_")
    }

    /// Where it runs.
    pub(crate) fn place(&self) -> Result<Place> {
        Place::of(&self.source, self.kind == TargetKind::Tests)
    }

    /// The arguments by which Cargo builds this one and, of libraries, the others.
    pub(crate) fn arguments(&self) -> Vec<&str> {
        match self.kind {
            TargetKind::Library => vec!["--lib"],
            TargetKind::Program => vec!["--bin", &self.name],
            TargetKind::Tests => vec!["--test", &self.name],
        }
    }
}

/// All test programs of the workspace.
pub(crate) fn test_targets() -> Result<Vec<Target>> {
    let printed = capture(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value =
        serde_json::from_str(&printed).context("cargo metadata printed what is not JSON")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    Ok(targets.filter_map(test_target).collect())
}

/// The test program of a target in Cargo's metadata, if it has one.
fn test_target(target: &Value) -> Option<Target> {
    let kind = match target["kind"][0].as_str()? {
        "lib" => TargetKind::Library,
        "bin" => TargetKind::Program,
        "test" => TargetKind::Tests,
        _ => return None,
    };
    let is_tested = target["test"].as_bool()?;
    is_tested.then_some(Target {
        name: target["name"].as_str()?.to_owned(),
        kind,
        source: target["src_path"].as_str()?.into(),
    })
}

/// Builds the release of the command `minivm`; returns its path.
pub(crate) fn build_minivm() -> Result<PathBuf> {
    minivm_among(&build(&[
        "build",
        "--release",
        "--package",
        "minivm",
        "--package",
        "minivm-sandbox",
        "--bins",
    ])?)
}

/// Builds the command `minivm` as tests are built; returns its path.
pub(crate) fn build_debug_minivm() -> Result<PathBuf> {
    minivm_among(&build(&[
        "build",
        "--package",
        "minivm",
        "--bin",
        "minivm",
    ])?)
}

/// Begins to build the command `minivm`, and nothing else, in the profile that compiles quickly.
pub(crate) fn begin_quick_minivm() -> Result<Building> {
    Building::begin(&[
        "build",
        "--profile",
        "quick",
        "--package",
        "minivm",
        "--bin",
        "minivm",
    ])
}

/// The path of the command `minivm` among what was built.
pub(crate) fn minivm_among(built: &[Executable]) -> Result<PathBuf> {
    let minivm = built
        .iter()
        .find(|executable| executable.name == "minivm" && !executable.is_test);
    let minivm = minivm.context("the package minivm has no binary minivm")?;
    Ok(minivm.path.clone())
}

/// Builds the release of one of the package's examples, as a stage of a report; returns its path.
pub(crate) fn build_example(report: &mut Report, name: &str) -> Result<PathBuf> {
    report.stage(name, || {
        let built = build(&[
            "build",
            "--release",
            "--package",
            "minivm-sandbox",
            "--example",
            name,
        ])?;
        let example = built.into_iter().find(|executable| executable.name == name);
        let path = example
            .with_context(|| format!("the package minivm-sandbox has no example {name}"))?
            .path;
        Ok((path.clone(), short(&path.to_string_lossy())))
    })
}

/// Builds one of the packages' benchmarks, as a stage of a report; returns its path.
pub(crate) fn build_bench(report: &mut Report, package: &str, name: &str) -> Result<PathBuf> {
    report.stage(name, || {
        let built = build(&["bench", "--package", package, "--bench", name, "--no-run"])?;
        let bench = built.into_iter().find(|executable| executable.name == name);
        let path = bench
            .with_context(|| format!("the package {package} has no benchmark {name}"))?
            .path;
        Ok((path.clone(), short(&path.to_string_lossy())))
    })
}

/// Builds the release of minivm as a stage of a report; returns its path.
pub(crate) fn stage_minivm(report: &mut Report) -> Result<PathBuf> {
    report.stage("build minivm", || {
        build_minivm().map(|path| (path.clone(), short(&path.to_string_lossy())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/w/vmm/Cargo.toml","target":{"name":"boot","src_path":"/w/vmm/tests/boot.rs"},
            "profile":{"test":true},"executable":"/w/target/boot-1"}"#;
        let found = executable(line).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.is_test), ("boot", true));
        assert_eq!(
            (found.path, found.package, found.source),
            (
                "/w/target/boot-1".into(),
                "/w/vmm".into(),
                "/w/vmm/tests/boot.rs".into()
            )
        );
        assert!(
            executable(r#"{"reason":"build-finished","success":true}"#)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn test_programs_are_found_in_cargos_metadata() {
        let targets = test_targets().unwrap();
        let kind = |name: &str| {
            let target = targets.iter().find(|target| target.is_called(name))?;
            assert!(target.source.exists(), "{target:?}");
            Some(target.kind)
        };
        assert_eq!(kind("minivm-vmm"), Some(TargetKind::Library));
        assert_eq!(kind("xtask"), Some(TargetKind::Program));
        assert_eq!(kind("boot"), Some(TargetKind::Tests));
        assert_eq!(kind("fork"), None, "it is a benchmark");
    }
}
