//! The microVM: a virtual machine on KVM, made from a container image. It boots for each task, or is resumed from a template.
//!
//! No other module describes a machine: its kernel, archive, memory and vCPUs ([`MachineSpec`]), and the recipe of its template
//! ([`Recipe`]).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use minivm_guest::channel::Request;
use minivm_image::Config;
use minivm_image::io_error::cannot;
use minivm_machine::images::MachineRoot;
use minivm_machine::jail::CpuGroup;
use minivm_machine::printable::printable;
use minivm_machine::session::BOOT_LIMIT;
use minivm_machine::signal::TERM;
use minivm_machine::template::ResumeOptions;
use minivm_machine::templates::{Recipe, Template, Templates};
use minivm_machine::{Accel, Link, MachineSpec, Report, Session, Warning, Watch};
use minivm_machine::{kernel, lab};

use super::exception::Tail;
use super::stop_signal;
use super::{Backend, Error, Finished, MachineRun, Program, Sandbox, Task, Usage};

/// The sandbox whose machines are made from one image, or from one template.
pub struct Microvm {
    /// The image's name, as the user wrote it.
    image: String,
    config: Config,
    /// The image's files, which stay in the cache while this is open; `None` for a template, which holds its own.
    root: Option<MachineRoot>,
    /// The machine. Where it is made from an image, a task may ask for another size of memory.
    machine: MachineSpec,
    /// Memory of the machine, in bytes, that its command doesn't have.
    reserved: u64,
    accel: Accel,
    start: Start,
}

/// The start of a machine.
enum Start {
    /// Booting its kernel.
    Boot,
    /// Resuming the template of its recipe. Where there is none, the machine boots and a template is made in the background.
    TemplateOrBoot(Templates),
    /// Resuming this template. For a task with another size of memory, the machine boots.
    Template(Templates, Box<Template>),
}

impl Microvm {
    /// Makes the sandbox of an image's files and configuration.
    pub fn new(root: MachineRoot, config: Config, kernel: PathBuf, accel: Accel) -> Self {
        let reserved = root.page_structures();
        let machine = MachineSpec {
            kernel,
            initramfs: root.initramfs().to_owned(),
            image: root.image().map(Path::to_owned),
            memory: root.default_memory() + reserved,
            cpus: 1,
            rings: true,
            console: false,
            cpu_quota: None,
        };
        Microvm {
            image: String::new(),
            config,
            root: Some(root),
            machine,
            reserved,
            accel,
            start: Start::Boot,
        }
    }

    /// Makes the sandbox of a named template, with that template's image, kernel, memory and vCPUs.
    ///
    /// # Errors
    ///
    /// [`Error::Template`] where there is no such template, or it can't be opened.
    pub fn of_template(templates: Templates, name: &str) -> Result<Self, Error> {
        let template = templates.open_named(name)?;
        let recipe = template.recipe.clone();
        Ok(Microvm {
            image: recipe.image,
            config: recipe.config,
            root: None,
            machine: recipe.machine,
            reserved: template.page_structures(),
            accel: template.accel(),
            start: Start::Template(templates, Box::new(template)),
        })
    }

    /// Returns the image's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns whether the machines run on this host's KVM or in the lab.
    pub fn accel(&self) -> &Accel {
        &self.accel
    }

    /// Sets the image's name, which is recorded in templates.
    #[must_use]
    pub fn called(mut self, image: String) -> Self {
        self.image = image;
        self
    }

    /// Sets the number of vCPUs. The default is 1.
    #[must_use]
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.machine.cpus = cpus;
        self
    }

    /// Sets whether bulk data goes through rings in guest memory, or every byte through the UART. The default is `true`.
    #[must_use]
    pub fn rings(mut self, rings: bool) -> Self {
        self.machine.rings = rings;
        self
    }

    /// Sets whether the kernel's console is copied to stderr. The default is `false`.
    #[must_use]
    pub fn console(mut self, console: bool) -> Self {
        self.machine.console = console;
        self
    }

    /// Has machines resumed from the template of their recipe. Where there is none, a machine boots, and a process of this program,
    /// which has to be `minivm`, makes a template in the background.
    #[must_use]
    pub fn templates(mut self, templates: Templates) -> Self {
        self.start = Start::TemplateOrBoot(templates);
        self
    }

    /// Has machines resumed from a template in which Python has started: this image's template in this cache, which is made first
    /// if it is missing. For a task with another size of memory, the machine still boots.
    ///
    /// In the lab, a process of this program keeps the template, so this program has to be `minivm`.
    ///
    /// # Errors
    ///
    /// [`Error::Template`] where the template can't be made.
    pub fn warm(mut self, image: String, cache: &Path) -> Result<Self, Error> {
        self.image = image;
        let templates = Templates::new(cache);
        let recipe = self.recipe(None, Some(String::new()))?;
        let template = templates.open_or_create(&recipe, &self.accel)?;
        self.start = Start::Template(templates, Box::new(template));
        Ok(self)
    }

    /// Returns the recipe of a template of this machine. `memory` is in bytes; `None` for the image's default or the named template's
    /// size. `warm` is the code that its Python has run; `None` for a template without Python.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where the image needs more memory, [`Error::Request`] where a named template has another size.
    pub fn recipe(&self, memory: Option<u64>, warm: Option<String>) -> Result<Recipe, Error> {
        let mut machine = self.machine.clone();
        let there = self.memory_of(&machine);
        match (&self.root, memory) {
            (_, None) => {}
            (Some(root), Some(memory)) => {
                root.check_memory(memory)?;
                machine.memory = memory.saturating_add(self.reserved);
            }
            (None, Some(memory)) if memory == there => {}
            (None, Some(memory)) => {
                return Err(Error::Request(format!(
                    "the template has {there} bytes of memory, and can't have {memory}"
                )));
            }
        }
        Ok(Recipe {
            image: self.image.clone(),
            machine,
            config: self.config.clone(),
            warm,
        })
    }

    /// Returns the bytes of a machine's memory that its command has.
    fn memory_of(&self, machine: &MachineSpec) -> u64 {
        machine.memory.saturating_sub(self.reserved)
    }

    /// Returns the recipe of this machine and the request to its init that `task` becomes: all that another process needs to run the task.
    ///
    /// # Errors
    ///
    /// As [`recipe`](Self::recipe)'s, and [`Error::Request`] where the task isn't valid.
    pub fn plan(&self, task: &Task) -> Result<(Recipe, Request), Error> {
        let code = matches!(task.program, Program::Code(_));
        let recipe = self.recipe(task.limits.memory, code.then(String::new))?;
        Ok((recipe, task.request(&self.config)?))
    }

    /// Starts a machine, and returns the link to it and whether it was resumed from a template.
    fn link(&self, recipe: &Recipe, watch: Option<Watch>) -> Result<(Link, bool), Error> {
        let machine = &recipe.machine;
        if machine.cpu_quota.is_some() && self.accel != Accel::Kvm {
            return Err(minivm_machine::Error::from(CpuGroup::none_in_lab()).into());
        }
        if watch.is_some() && self.accel != Accel::Kvm {
            return self.link_watched_in_lab(machine, watch);
        }
        let again = watch.as_ref().map(Watch::try_clone).transpose();
        let again = again.map_err(cannot("duplicate a socket"))?;
        let warm = match &self.start {
            Start::Boot => None,
            Start::TemplateOrBoot(templates) => templates
                .start(recipe, &self.accel, again)
                .unwrap_or_else(|error| {
                    log::debug!("the machine boots, because its template cannot be used: {error}");
                    None
                }),
            Start::Template(_, template) if template.recipe.machine.memory != machine.memory => {
                None
            }
            Start::Template(templates, template) => {
                let options = ResumeOptions {
                    console: machine.console,
                    cpu_quota: machine.cpu_quota,
                    watch: again,
                };
                Some(templates.resume(template, options)?)
            }
        };
        match warm {
            Some(link) => Ok((link, true)),
            None => Ok((machine.start_watched(&self.accel, watch)?, false)),
        }
    }

    /// Boots a machine in a lab of its own, whose events come out of it. A kept lab has no way out for those of one of its machines.
    fn link_watched_in_lab(
        &self,
        machine: &MachineSpec,
        watch: Option<Watch>,
    ) -> Result<(Link, bool), Error> {
        if matches!(self.start, Start::Template(..)) {
            let text = "the exits of a template's machine can't be traced in the lab: run the image instead";
            return Err(Error::Request(text.into()));
        }
        Ok((machine.start_watched(&self.accel, watch)?, false))
    }

    /// Returns the signal that the image's command gets in place of SIGTERM, and a warning where the image names an unknown one.
    fn stop_signal(&self) -> (u8, Option<Warning>) {
        let name = &self.config.stop_signal;
        match stop_signal::number(name) {
            Some(number) => (number, None),
            None => (
                TERM,
                Some(Warning::Other(format!(
                    "unknown stop signal {:?} in the image: its command gets SIGTERM",
                    printable(name, 40)
                ))),
            ),
        }
    }
}

impl Sandbox for Microvm {
    fn backend(&self) -> Backend {
        Backend::Microvm
    }

    fn boundary(&self) -> &'static str {
        self.accel.boundary()
    }

    fn check(&self) -> Result<(), Error> {
        let kernel = &self.machine.kernel;
        if !kernel.is_file() {
            let folder = kernel.parent().map(PathBuf::from).unwrap_or_default();
            let setup = lab::Processor::default().setup();
            return Err(kernel::Missing { folder, setup }.into());
        }
        match self.accel {
            Accel::Kvm => Ok(()),
            Accel::Lab { processor, .. } => {
                lab::find_kernel(processor)
                    .map(drop)
                    .map_err(|error| Error::Unavailable {
                        backend: Backend::Microvm,
                        why: error.to_string(),
                        hint: "`minivm doctor` shows the remedy".into(),
                    })
            }
        }
    }

    fn start(&self, mut task: Task) -> Result<Finished, Error> {
        let began = Instant::now();
        // A template for code has a Python that has started.
        let code = matches!(task.program, Program::Code(_));
        let mut recipe = self.recipe(task.limits.memory, code.then(String::new))?;
        recipe.machine.cpu_quota = task.limits.cpu;
        let memory = self.memory_of(&recipe.machine);
        task.files.check_room(memory)?;
        let request = task.request(&self.config)?;
        let (stop_signal, unknown) = self.stop_signal();
        let tail = code.then(Tail::default);
        if let Some(tail) = &tail {
            task.stderr = tail.of(task.stderr);
        }
        let watch = task.vm.watch.take().map(|watch| watch(&self.accel));
        let watch = watch.transpose().map_err(cannot("watch the machine"))?;
        let (link, warm) = self.link(&recipe, watch)?;
        if let Some(started) = task.vm.started.take() {
            started(&self.accel, warm);
        }
        let build = began.elapsed();
        log::debug!("the machine runs {build:.2?} after the task's start");
        let session = Session {
            request,
            stdin: task.stdin,
            stdout: task.stdout,
            stderr: task.stderr,
            pending: task.vm.pending,
            boot_limit: BOOT_LIMIT,
            timeout: task.limits.time,
            max_output: task.limits.output,
            copy_in: task.files,
            copy_out: task.vm.copy_out,
            max_copy_out: memory,
            copy_out_grace: task.vm.copy_out_grace,
            volumes: task.volumes,
            stop_signal,
            events: task.events,
            overdue: task.vm.overdue,
        };
        let report = session.run(link)?;
        let mut finished = finished(report, &self.accel, warm, build);
        finished.exception = tail.and_then(|tail| tail.exception_at(&finished.end));
        finished.warnings.splice(0..0, unknown);
        finished.usage.total = began.elapsed();
        Ok(finished)
    }
}

fn finished(report: Report, accel: &Accel, warm: bool, build: Duration) -> Finished {
    let mut warnings = report.warnings;
    warnings.extend(accel.warning().map(Warning::Other));
    let exit = report.exit.as_ref();
    let init = exit.map(|exit| {
        let nanos = exit.times.hello.saturating_sub(exit.times.init);
        // The guest reports it, and is not trusted: it can't be longer than the whole boot.
        Duration::from_nanos(nanos).min(report.boot)
    });
    Finished {
        exception: None,
        truncated: report.truncated,
        usage: Usage {
            total: Duration::ZERO,
            user_time: exit.map(|exit| Duration::from_micros(exit.user_time)),
            system_time: exit.map(|exit| Duration::from_micros(exit.system_time)),
            peak_memory: report.host_memory,
        },
        machine: Some(MachineRun {
            accel: accel.clone(),
            warm,
            walls: report.walls,
            copy_failed: report.copy_failed,
            out_of_memory: exit.is_some_and(|exit| exit.out_of_memory),
            peak_memory: exit.map(|exit| exit.peak_memory),
            build,
            boot: report.boot - init.unwrap_or_default(),
            init,
            setup: report.setup,
            run: report.run,
        }),
        warnings,
        end: report.end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_guest::channel::{Exit, Status, Times};
    use minivm_machine::End;

    #[test]
    fn the_guest_cannot_report_an_init_longer_than_the_boot() {
        let exit = Exit {
            status: Status::Code(1),
            out_of_memory: true,
            user_time: 1,
            system_time: 2,
            peak_memory: 3,
            times: Times {
                hello: 10_000_000,
                ..Times::default()
            },
        };
        let millis = Duration::from_millis;
        let report = Report {
            end: End::from(&exit),
            exit: Some(exit),
            truncated: false,
            warnings: Vec::new(),
            copy_failed: false,
            log: None,
            walls: None,
            host_memory: None,
            begun: Instant::now(),
            boot: millis(4),
            setup: millis(8),
            run: millis(16),
        };
        let finished = finished(report, &Accel::Kvm, false, millis(2));
        let machine = finished.machine.unwrap();
        assert_eq!((machine.boot, machine.init), (millis(0), Some(millis(4))));
        assert_eq!((machine.setup, machine.run), (millis(8), millis(16)));
        assert_eq!(finished.end, End::Exited(1));
        assert!(machine.out_of_memory, "of another process than the command");
        assert_eq!(machine.peak_memory, Some(3));
    }
}
