//! The same in another sandbox than a microVM.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context, bail};
use minivm_machine::Place;
use minivm_machine::cache;
use minivm_machine::output::Pending;
use minivm_sandbox::{Host, Limits, Program, Task};

use super::super::report::{Captured, Printed};
use super::super::{image, signals, worker};
use super::{RunArgs, output, stdin};

pub(super) fn run(
    args: &RunArgs,
    started: Instant,
    captured: Option<&Captured>,
) -> anyhow::Result<Printed> {
    args.check_for_backend()?;
    let sandbox = args.host()?.open(args.backend);
    let sandbox = sandbox.map_err(image::explain_full)?;
    let (events, happenings) = mpsc::channel();
    let task = Task {
        stdin: stdin(args, &events)?,
        stdout: output(captured.map(|captured| &captured.stdout), io::stdout())?,
        stderr: output(captured.map(|captured| &captured.stderr), io::stderr())?,
        env: args.request.variables()?,
        files: args.request.copy_in.clone(),
        limits: Limits {
            time: args.timeout,
            memory: args.memory,
            output: args.max_output(),
        },
        events: happenings,
        ..Task::new(args.program()?)
    };
    // These end by one signal, however late their outputs are taken.
    signals::listen(events, Pending::default()).context("cannot listen to signals")?;
    let opened = started.elapsed();
    let finished = sandbox.run(task)?;
    signals::end_at_once();
    Ok(Printed::of_backend(
        &finished,
        opened,
        started.elapsed(),
        captured,
    ))
}

impl RunArgs {
    fn program(&self) -> anyhow::Result<Program> {
        match (&self.code, &*self.command()) {
            (Some(code), _) => Ok(Program::Code(code.clone())),
            (None, []) => bail!("say what to run: --code, or a command behind `--`"),
            (None, words) => Ok(Program::Command(words.to_vec())),
        }
    }

    /// What only a microVM knows is refused by name.
    fn check_for_backend(&self) -> anyhow::Result<()> {
        if let (Some(image), false) = (&self.image, self.backend.needs_image()) {
            bail!(
                "--backend {} runs no images: leave {image} out",
                self.backend
            );
        }
        let flags = [
            (self.tty, "-t"),
            (self.cold, "--cold"),
            (self.cpus != 1, "--cpus"),
            (self.kernel.is_some(), "--kernel"),
            (self.no_rings, "--no-rings"),
            (self.accel.is_set(), "--accel"),
        ];
        let given = flags.into_iter().find(|(given, _)| *given);
        match given
            .map(|(_, flag)| flag)
            .or(self.request.beyond_backends())
        {
            Some(flag) => bail!(
                "{flag} is for the microVM, and --backend {} does not know it: leave it out",
                self.backend
            ),
            None => Ok(()),
        }
    }

    fn host(&self) -> anyhow::Result<Host> {
        let image = match self.backend.needs_image() {
            true => Some(Arc::new(image::open_named_or_python(
                self.image.as_ref(),
                &self.image()?,
                &self.pull,
                &image::shelf()?,
            )?)),
            false => None,
        };
        Ok(Host {
            worker: worker()?,
            cache: cache::folder()
                .context("cannot tell where the cache is: set HOME or XDG_CACHE_HOME")?,
            image,
            kernel: None,
            place: Place::Here,
        })
    }
}
