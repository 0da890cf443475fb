//! The microVM: a virtual machine on KVM, from a container image. It boots for each task, or goes on from a template.

use std::path::{Path, PathBuf};
use std::time::Instant;

use minivm_guest::channel::{Exit, Status};
use minivm_image::Config;

use super::exception::Tail;
use super::{Backend, Capability, End, Error, Finished, OF_IMAGES, Sandbox, Task, Usage};
use minivm_machine::images::Archive;
use minivm_machine::session;
use minivm_machine::templates::{Recipe, Template, Templates};
use minivm_machine::{Link, Machine, Place, Report, Session, check_copies, check_room};
use minivm_machine::{kernel, lab};

/// Machines made from one image.
pub struct Microvm {
    archive: Archive,
    config: Config,
    kernel: PathBuf,
    place: Place,
    cpus: u8,
    warm: Option<Warm>,
}

/// What machines go on from instead of booting.
struct Warm {
    templates: Templates,
    template: Template,
}

impl Microvm {
    /// Machines from the image with this archive and configuration.
    pub fn new(archive: Archive, config: Config, kernel: PathBuf, place: Place) -> Self {
        Microvm {
            archive,
            config,
            kernel,
            place,
            cpus: 1,
            warm: None,
        }
    }

    /// The same, going on from a template with a Python that has started: the one of this image in this cache, which is made
    /// first if it isn't there. A task that asks for another size of memory boots as before.
    ///
    /// In the lab, the template is kept by a process of this program, which therefore has to be `minivm`.
    ///
    /// # Errors
    ///
    /// Where the template can't be made.
    pub fn warm(mut self, image: String, cache: &Path) -> Result<Self, Error> {
        let templates = Templates::new(cache);
        let recipe = Recipe {
            image,
            machine: self.machine(None)?,
            config: self.config.clone(),
            warm: Some(String::new()),
        };
        let template = templates.open_or_create(&recipe, &self.place)?;
        self.warm = Some(Warm {
            templates,
            template,
        });
        Ok(self)
    }

    fn machine(&self, memory: Option<u64>) -> Result<Machine, Error> {
        Ok(Machine {
            kernel: self.kernel.clone(),
            initramfs: self.archive.path.clone(),
            memory: self.archive.memory(memory)?,
            cpus: self.cpus,
            rings: true,
            console: false,
        })
    }

    /// One that waits for its request, or will when it has booted.
    fn link(&self, machine: &Machine) -> Result<Link, Error> {
        match &self.warm {
            Some(Warm {
                templates,
                template,
            }) if template.recipe.machine.memory == machine.memory => {
                Ok(templates.resume(template, false)?)
            }
            _ => Ok(machine.start(&self.place)?),
        }
    }
}

impl Sandbox for Microvm {
    fn backend(&self) -> Backend {
        Backend::Microvm
    }

    fn capabilities(&self) -> &'static [Capability] {
        OF_IMAGES
    }

    fn boundary(&self) -> &'static str {
        self.place.boundary()
    }

    fn check(&self) -> Result<(), Error> {
        if !self.kernel.is_file() {
            let folder = self.kernel.parent().map(PathBuf::from).unwrap_or_default();
            return Err(kernel::Missing { folder }.into());
        }
        match self.place {
            Place::Here => Ok(()),
            Place::Lab { .. } => lab::find_kernel()
                .map(drop)
                .map_err(|error| Error::Unavailable {
                    backend: Backend::Microvm,
                    why: error.to_string(),
                    hint: "`minivm doctor` tells what mends it".into(),
                }),
        }
    }

    fn start(&self, task: Task) -> Result<Finished, Error> {
        let began = Instant::now();
        let machine = self.machine(task.limits.memory)?;
        check_room(check_copies(&task.files)?, machine.memory)?;
        let request = task.request(&self.config)?;
        let tail = Tail::default();
        let session = Session {
            stdin: task.stdin,
            stdout: task.stdout,
            stderr: tail.of(task.stderr),
            timeout: task.limits.time,
            max_output: task.limits.output,
            copy_in: task.files,
            events: task.events,
            ..Session::new(request)
        };
        let report = session.run(self.link(&machine)?)?;
        let mut finished = finished(report, &tail);
        finished.warnings.extend(self.place.warning());
        finished.usage.total = began.elapsed();
        finished.usage.peak_memory = self.place.host_memory();
        Ok(finished)
    }
}

fn finished(report: Report, tail: &Tail) -> Finished {
    let mut usage = Usage::default();
    let end = match report.end {
        session::End::Exited(exit) => {
            usage.user_time = Some(std::time::Duration::from_micros(exit.user_time));
            usage.system_time = Some(std::time::Duration::from_micros(exit.system_time));
            exited(&exit)
        }
        session::End::NotFound(what) => End::NotFound(what),
        session::End::NotExecutable(what) => End::NotExecutable(what),
        session::End::TimedOut => End::TimedOut,
        session::End::Stopped(signal) => End::Stopped(signal),
        session::End::OutputClosed => End::OutputClosed,
    };
    Finished {
        exception: tail.exception_at(&end),
        end,
        truncated: report.truncated,
        warnings: report.warnings,
        usage,
    }
}

fn exited(exit: &Exit) -> End {
    match exit.status {
        Status::Signal(9) if exit.out_of_memory => End::OutOfMemory,
        Status::Signal(signal) => End::Signal(signal),
        Status::Code(code) => End::Exited(code),
    }
}
