//! A coding agent's sandbox: a microVM with git, Python and pytest.
//!
//! The agent gets a copy of a repository, edits it, runs the tests, and returns a diff. It needs a whole Linux for that, and nothing
//! of the host: the repository is copied in, the diff is copied out, and the machine is removed.
//!
//! ```console
//! $ cargo run --release -p minivm-sandbox --example coding_agent -- dir:ROOT    # or an image that has git, python3 and pytest
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use minivm_image::{self, Options, Unwatched};
use minivm_machine::images::ImageCache;
use minivm_machine::{Accel, CopyIn, Files, cache};
use minivm_sandbox::{End, Finished, Host, Program, Sandbox, Task};

/// The agent's script in the machine. The repository is in `/in/repo`.
const SESSION: &str = r#"
set -e
export HOME=/root GIT_TEMPLATE_DIR= GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
git clone --quiet --no-hardlinks /in/repo /work
cd /work
echo '--- the tests, before'
python3 -m pytest -q -p no:cacheprovider || true
sed -i 's/return a - b/return a + b/' calculator.py
echo '--- the tests, after'
python3 -m pytest -q -p no:cacheprovider
mkdir /out
git diff > /out/change.diff
"#;

/// A repository with a fault in it.
const CALCULATOR: &str = "def add(a, b):\n    return a - b\n";
const TEST: &str = "from calculator import add\n\n\ndef test_add():\n    assert add(2, 2) == 4\n";

#[allow(dead_code, reason = "the tests take this file as a module")]
fn main() -> Result<()> {
    let image = std::env::args().nth(1);
    let image = image.context("usage: coding_agent IMAGE, one with git, python3 and pytest")?;
    let program = std::env::current_exe()?.with_file_name("../minivm");
    let folder = tempfile::tempdir()?;
    let diff = run(&image, &program, folder.path(), Box::new(io::stdout()))?;
    println!("--- the diff, copied out\n{}", fs::read_to_string(diff)?);
    Ok(())
}

/// Runs the agent on a new repository in `folder`; returns the path of the diff there.
pub(crate) fn run(
    image: &str,
    minivm: &Path,
    folder: &Path,
    output: Box<dyn Write + Send>,
) -> Result<PathBuf> {
    let repository = folder.join("repo");
    make_repository(&repository)?;
    let cache = cache::folder().context("HOME is not set")?;
    let images = ImageCache::new(&cache);
    let image = minivm_image::open(
        &image.parse()?,
        &images.store(),
        &Options::default(),
        &Unwatched,
    )?;
    let host = Host {
        worker: Host::worker_beside(minivm),
        cache,
        image: Some(Arc::new(image)),
        kernel: None,
        // Where this host's KVM can't run a kernel, an emulated one can.
        accel: match minivm_machine::probe() {
            Ok(()) => Accel::Kvm,
            Err(_) => Accel::lab(minivm),
        },
    };
    let diff = folder.join("change.diff");
    let finished = host.microvm()?.run(session(repository, &diff, output)?)?;
    match finished {
        Finished {
            end: End::Exited(0),
            machine: Some(machine),
            ..
        } if !machine.copy_failed => Ok(diff),
        finished => {
            let warnings: Vec<_> = finished.warnings.iter().map(ToString::to_string).collect();
            bail!(
                "the agent's session ended with {:?}: {}",
                finished.end,
                warnings.join("; ")
            )
        }
    }
}

/// Makes the task of the agent's session.
fn session(repository: PathBuf, diff: &Path, output: Box<dyn Write + Send>) -> Result<Task> {
    let mut task = Task::new(Program::Command(vec![
        "sh".into(),
        "-c".into(),
        SESSION.into(),
    ]));
    task.stdout = output;
    task.stderr = Box::new(io::stderr());
    task.limits.time = Some(Duration::from_secs(120));
    task.limits.output = Some(1 << 20);
    task.files = CopyIn::of(vec![Files {
        from: repository,
        to: "/in/repo".into(),
    }])?;
    task.vm.copy_out.push(Files {
        from: "/out/change.diff".into(),
        to: diff.to_owned(),
    });
    task.vm.hostname = Some("agent".into());
    Ok(task)
}

fn make_repository(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("calculator.py"), CALCULATOR)?;
    fs::write(folder.join("test_calculator.py"), TEST)?;
    let author = [
        "-c",
        "user.name=An Author",
        "-c",
        "user.email=author@example.com",
    ];
    for words in [
        &["init", "--quiet"][..],
        &["add", "."],
        &["commit", "--quiet", "-m", "A calculator"],
    ] {
        let mut git = Command::new("git");
        git.arg("-C").arg(folder).args(author).args(words);
        if !git.status().context("cannot run git")?.success() {
            bail!("git {} failed", words.join(" "));
        }
    }
    Ok(())
}
