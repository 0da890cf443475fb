//! The sandboxes under test, and running code in them.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use minivm_image::{self, Options, Source, Unwatched};
use minivm_machine::Accel;
use minivm_machine::cache;
use minivm_machine::images::ImageCache;
use minivm_sandbox::{
    Backend, Capability, End, Error, Finished, Host, Program, Sandbox, Task, Usage,
};
use minivm_tests::given;
use minivm_tests::output::Shared;
pub(crate) use minivm_tests::patience::PATIENCE;

/// The command.
pub(crate) fn minivm() -> PathBuf {
    given::minivm(env!("CARGO_BIN_EXE_minivm"))
}

pub(crate) fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let cache = cache::folder().expect("HOME is set");
        let options = Options::default();
        let images = ImageCache::new(&cache);
        let image = minivm_image::open(
            &Source::Folder(given::python_root()),
            &images.store(),
            &options,
            &Unwatched,
        );
        Host {
            worker: Host::worker_beside(&minivm()),
            cache,
            image: Some(Arc::new(image.unwrap())),
            kernel: std::env::var_os("MINIVM_TEST_KERNEL").map(PathBuf::from),
            accel: match minivm_machine::probe() {
                Ok(()) => Accel::Kvm,
                Err(_) => Accel::lab(minivm()),
            },
        }
    })
}

pub(crate) fn open(backend: Backend) -> Box<dyn Sandbox> {
    let sandbox = host().open(backend).unwrap();
    sandbox.check().unwrap();
    sandbox
}

/// What code came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) finished: Finished,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Code with a limit on its time, for a start.
pub(crate) fn code(code: &str) -> Task {
    let mut task = Task::code(code);
    task.limits.time = Some(PATIENCE);
    task
}

pub(crate) fn run(sandbox: &dyn Sandbox, mut task: Task) -> Ran {
    let (stdout, stderr) = (Shared::default(), Shared::default());
    task.stdout = Box::new(stdout.clone());
    task.stderr = Box::new(stderr.clone());
    let finished = sandbox.run(task).unwrap();
    Ran {
        finished,
        stdout: stdout.text(),
        stderr: stderr.text(),
    }
}

/// The host's own Python, with nothing between it and the host.
pub(crate) struct NoSandbox;

impl Sandbox for NoSandbox {
    fn backend(&self) -> Backend {
        Backend::Microvm
    }

    fn capabilities(&self) -> &'static [Capability] {
        &[]
    }

    fn boundary(&self) -> &'static str {
        "nothing"
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn start(&self, mut task: Task) -> Result<Finished, Error> {
        let Program::Code(code) = &task.program else {
            panic!("only code is run")
        };
        let output = Command::new("python3")
            .args(["-c", code])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut python = output.expect("python3 is installed");
        let mut stdout = python.stdout.take().unwrap();
        // Until it ends, or is to be stopped.
        std::thread::scope(|scope| {
            let out = &mut task.stdout;
            scope.spawn(move || std::io::copy(&mut stdout, out));
            while python.try_wait().unwrap().is_none() {
                if task.events.try_recv().is_ok() {
                    python.kill().unwrap();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let code = python.wait().unwrap().code().unwrap_or(137);
        Ok(Finished {
            end: End::Exited(u8::try_from(code).unwrap()),
            exception: None,
            truncated: false,
            warnings: Vec::new(),
            usage: Usage::default(),
            machine: None,
        })
    }
}
