//! A command in a microVM, with all that it can do.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::Context;
use minivm_guest::channel::Request;
use minivm_image::Config;
use minivm_machine::images::Archive;
use minivm_machine::output::{NOT_TAKEN, Pending};
use minivm_machine::printable::printable;
use minivm_machine::session::{BOOT_LIMIT, Event, TERM};
use minivm_machine::streams;
use minivm_machine::templates::{Recipe, Template};
use minivm_machine::{Link, Machine, Place, Session, check_room};
use minivm_sandbox::exception::Tail;
use minivm_sandbox::python;

use super::super::report::{Captured, Phases, Printed, time_limit_reached};
use super::super::terminal::{self, RawMode};
use super::super::{EXIT_TIMEOUT, image, signals, template};
use super::{RunArgs, output, stdin};

/// Runs it; `copied` bytes of files are to be copied in.
pub(super) fn run(
    args: &RunArgs,
    copied: u64,
    verbose: u8,
    started: Instant,
    captured: Option<&Captured>,
) -> anyhow::Result<Printed> {
    let found = match &args.template {
        Some(name) => Found::template(name)?,
        None => args.find(verbose > 0)?,
    };
    let request = args.machine_request(&found.recipe.config)?;
    check_room(copied, found.recipe.machine.memory)?;
    let with_image = started.elapsed();
    log::debug!("the image's archive is there {with_image:.2?} after the start");
    let (events, happenings) = mpsc::channel();
    let stdin = stdin(args, &events)?;
    let raw = match args.tty {
        true => RawMode::enter_quietly().context("cannot set the terminal to raw mode")?,
        false => None,
    };
    let stop_signal = args.stop_signal(&found.recipe.config.stop_signal);
    let tail = args.code.is_some().then(Tail::default);
    let mut session = args.session(
        request,
        stdin,
        happenings,
        captured,
        found.recipe.machine.memory,
    )?;
    signals::listen(events, session.pending.clone()).context("cannot listen to signals")?;
    session.stop_signal = stop_signal;
    if let Some(tail) = &tail {
        session.stderr = tail.of(session.stderr);
    }
    let Started { link, place, warm } = args.machine(&found)?;
    if let Some(captured) = captured {
        captured.note(&place, Some(warm));
    }
    let with_machine = started.elapsed();
    log::debug!("the machine runs {with_machine:.2?} after the start");
    let report = session.run(link);
    drop(raw);
    signals::end_at_once();
    let phases = Phases {
        image: with_image,
        machine: with_machine,
        total: started.elapsed(),
    };
    let mut printed = Printed::new(&report?, &phases, captured).at(&place);
    printed.host_memory = place.host_memory();
    printed.warm = Some(warm);
    printed.exception = tail.and_then(|tail| tail.exception_after(printed.exit_code));
    Ok(printed)
}

/// What a machine is to be made from.
struct Found {
    recipe: Recipe,
    /// The image's archive stays as long as this is held: longer than until the machine has read it.
    _archive: Option<Archive>,
    /// The machine itself, saved.
    template: Option<Template>,
}

/// A machine that runs.
struct Started {
    link: Link,
    place: Place,
    /// Whether it goes on from a template.
    warm: bool,
}

impl Found {
    fn template(name: &str) -> anyhow::Result<Found> {
        let template = template::folder()?.open_named(name)?;
        Ok(Found {
            recipe: template.recipe.clone(),
            _archive: None,
            template: Some(template),
        })
    }
}

impl RunArgs {
    fn machine_request(&self, config: &Config) -> anyhow::Result<Request> {
        let Some(code) = &self.code else {
            return self.request.request(config, &self.command());
        };
        let without_entrypoint = Config {
            entrypoint: Vec::new(),
            ..config.clone()
        };
        self.request.request(&without_entrypoint, &python(code)?)
    }

    /// The image, with the flags' machine.
    fn find(&self, console: bool) -> anyhow::Result<Found> {
        let source = self.image()?;
        let shelf = image::shelf()?;
        let found = image::open_named_or_python(self.image.as_ref(), &source, &self.pull, &shelf)?;
        // Before the archive is made: a request that can't be is told at once.
        self.machine_request(&found.config)?;
        let archive = image::archive(&source, self.pull.quiet, &found, &shelf)?;
        let machine = Machine {
            kernel: match &self.kernel {
                Some(kernel) => kernel.clone(),
                None => minivm_machine::kernel::find()?,
            },
            initramfs: archive.path.clone(),
            memory: archive.memory(self.memory)?,
            cpus: self.cpus,
            rings: !self.no_rings,
            console,
        };
        Ok(Found {
            // What is ready for code has a Python that has started.
            recipe: Recipe {
                image: source.to_string(),
                machine,
                config: found.config,
                warm: self.code.is_some().then(String::new),
            },
            _archive: Some(archive),
            template: None,
        })
    }

    /// A machine that goes on from a template, if there is one, or one that boots.
    fn machine(&self, found: &Found) -> anyhow::Result<Started> {
        if let Some(template) = &found.template {
            self.accel.allow(&template.place())?;
            let link = template::folder()?.resume(template, found.recipe.machine.console)?;
            let place = template.place();
            return Ok(Started {
                link,
                place,
                warm: true,
            });
        }
        let place = self.place()?;
        let (link, warm) = match self.warm(&found.recipe, &place) {
            Some(link) => (link, true),
            None => (found.recipe.machine.start(&place)?, false),
        };
        Ok(Started { link, place, warm })
    }

    /// A machine that needs not be booted, if there is one.
    fn warm(&self, recipe: &Recipe, place: &Place) -> Option<Link> {
        if template::is_unwanted(self.cold) {
            return None;
        }
        let templates = template::folder().ok()?;
        templates.start(recipe, place).unwrap_or_else(|error| {
            // It is booted instead.
            log::debug!("no template: {error}");
            None
        })
    }

    /// What SIGTERM becomes for the image's command.
    fn stop_signal(&self, name: &str) -> u8 {
        signals::number(name).unwrap_or_else(|| {
            let name = printable(name, 40);
            self.warn(&format!(
                "the image's stop signal {name:?} is none: its command gets SIGTERM"
            ));
            TERM
        })
    }

    fn session(
        &self,
        mut request: Request,
        stdin: Option<OwnedFd>,
        events: Receiver<Event>,
        captured: Option<&Captured>,
        max_copy_out: u64,
    ) -> anyhow::Result<Session> {
        request.terminal = self.tty.then(terminal::window);
        let timeout = self.timeout;
        Ok(Session {
            request,
            stdin,
            stdout: output(captured.map(|captured| &captured.stdout), io::stdout())?,
            stderr: output(captured.map(|captured| &captured.stderr), io::stderr())?,
            pending: Pending::default(),
            boot_limit: BOOT_LIMIT,
            timeout,
            max_output: self.max_output(),
            copy_in: self.request.copy_in.clone(),
            copy_out: self.request.copy_out.clone(),
            max_copy_out,
            copy_out_grace: self.request.copy_out_grace(),
            stop_signal: TERM,
            events,
            // Never with --json, whose outputs are taken by memory.
            overdue: Some(Box::new(move || end_overdue(timeout.unwrap_or_default()))),
        })
    }
}

/// Ends this process at the time limit, though an output is still to be taken by somebody.
pub(crate) fn end_overdue(limit: Duration) {
    end_at_once(
        vec![time_limit_reached(limit), NOT_TAKEN.into()],
        EXIT_TIMEOUT,
    );
}

/// Ends this process with these lines, though an output is still to be taken by somebody.
pub(crate) fn end_at_once(lines: Vec<String>, code: u8) -> ! {
    terminal::restore();
    // It may be stderr that has no reader.
    streams::tell_soon(lines);
    std::process::exit(code.into())
}
