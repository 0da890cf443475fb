//! Tasks that ran in a sandbox, with all that they printed.

use std::path::PathBuf;
use std::sync::Arc;

use minivm_image::Image;
use minivm_machine::Accel;
use minivm_sandbox::{Finished, Host, Sandbox, Task};
use minivm_tests::output::Shared;
use minivm_tests::patience::PATIENCE;

/// A finished task and its outputs.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) finished: Finished,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Returns the parts of a host whose sandboxes use this cache and image.
pub(crate) fn host(cache: PathBuf, image: Option<Image>) -> Host {
    Host {
        worker: env!("CARGO_BIN_EXE_minivm-worker").into(),
        cache,
        image: image.map(|image| Arc::new(image) as _),
        kernel: None,
        accel: Accel::Kvm,
    }
}

/// Runs a task to its end, at the latest when a test has no more patience.
pub(crate) fn run(sandbox: &dyn Sandbox, mut task: Task) -> Ran {
    let (stdout, stderr) = (Shared::default(), Shared::default());
    task.stdout = Box::new(stdout.clone());
    task.stderr = Box::new(stderr.clone());
    task.limits.time = task.limits.time.or(Some(PATIENCE));
    let finished = sandbox.run(task).unwrap();
    Ran {
        finished,
        stdout: stdout.text(),
        stderr: stderr.text(),
    }
}
