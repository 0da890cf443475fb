//! The recipe: from a [`Config`] to a [`Machine`] that is paused before its first instruction.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_ioctls::VmFd;

use crate::arch::board::{self, Board};
use crate::arch::boot_data::{self, Start};
use crate::arch::create;
use crate::config::Config;
use crate::devices::uart::{self, Output, Uart};
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::input::{InputSource, Pump};
use crate::kvm::Created;
use crate::layout::UARTS;
use crate::machine::{Entry, Machine};
use crate::memory::GuestRam;
use crate::observer::{Observer, Step, Steps};
use crate::opened::{HostFiles, Opened};
use crate::pmem::Pmem;
use crate::recorder::Recorder;
use crate::snapshot::state::Devices;
use crate::snapshot::{Prepared, Snapshot, WorkingSet, restore};
use crate::vcpu::Platform;
use crate::{initramfs, kernel, kvm, random};

/// The recipe for one machine: its configuration or snapshot, and the ends of its serial ports.
///
/// ```no_run
/// use minivm_vmm::{Builder, Config, Kernel};
///
/// let config = Config {
///     initramfs: Some("initramfs.cpio".into()),
///     cmdline: "console=ttyS0 reboot=t panic=-1 quiet".into(),
///     ..Config::new(Kernel::File("vmlinux".into()))
/// };
/// let outcome = Builder::new(config).console_output(std::io::stdout()).build()?.run()?;
/// assert!(outcome.is_orderly());
/// # minivm_vmm::Result::Ok(())
/// ```
pub struct Builder {
    source: Source,
    working_set: Option<WorkingSet>,
    observer: Option<Arc<dyn Observer>>,
    vcpu_thread: Option<Entry>,
    /// The ends of COM1, COM2 and COM3.
    ports: [Port; UARTS.len()],
}

/// The state that a machine begins with.
enum Source {
    /// The files are open, or opened when the machine is built.
    Boot(Config, Option<Opened>),
    Snapshot(Snapshot),
    Prepared(Prepared),
}

/// The host's ends of a serial port.
struct Port {
    output: Box<dyn Write + Send>,
    input: Option<Box<dyn InputSource>>,
}

impl Builder {
    /// Returns the recipe for a machine as `config` describes it, with serial ports that are connected to nothing.
    pub fn new(config: Config) -> Self {
        Builder::from_source(Source::Boot(config, None))
    }

    /// Returns the recipe for a machine that continues where the snapshot's was saved, with serial ports that are connected to
    /// nothing.
    pub fn restore(snapshot: &Snapshot) -> Self {
        Builder::from_source(Source::Snapshot(snapshot.clone()))
    }

    /// Like [`restore`](Self::restore), with a machine that was made ahead of time.
    pub fn restore_prepared(prepared: Prepared) -> Self {
        Builder::from_source(Source::Prepared(prepared))
    }

    /// Makes these pages of a restored machine's memory present before the machine runs.
    pub fn working_set(mut self, pages: &WorkingSet) -> Self {
        self.working_set = Some(pages.clone());
        self
    }

    /// Calls `enter` on each vCPU's thread before any vCPU runs the guest's first instruction: a thread can confine itself there. An
    /// error of its ends the machine.
    pub fn vcpu_thread(
        mut self,
        enter: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.vcpu_thread = Some(Arc::new(enter));
        self
    }

    fn from_source(source: Source) -> Self {
        Builder {
            source,
            working_set: None,
            observer: None,
            vcpu_thread: None,
            ports: UARTS.map(|_| Port {
                output: Box::new(io::sink()),
                input: None,
            }),
        }
    }

    /// Sends the guest's output on COM1, the console, to `output`: a byte a call, from a vCPU's thread.
    pub fn console_output(mut self, output: impl Write + Send + 'static) -> Self {
        self.ports[0].output = Box::new(output);
        self
    }

    /// Gives `input` to the guest on COM1, the console.
    pub fn console_input(mut self, input: impl InputSource + 'static) -> Self {
        self.ports[0].input = Some(Box::new(input));
        self
    }

    /// Sends the guest's output on COM2 to `output`: a byte a call, from a vCPU's thread.
    pub fn com2_output(mut self, output: impl Write + Send + 'static) -> Self {
        self.ports[1].output = Box::new(output);
        self
    }

    /// Gives `input` to the guest on COM2.
    pub fn com2_input(mut self, input: impl InputSource + 'static) -> Self {
        self.ports[1].input = Some(Box::new(input));
        self
    }

    /// Sends the guest's output on COM3, where the machine has one, to `output`: a byte a call, from a vCPU's thread.
    pub fn com3_output(mut self, output: impl Write + Send + 'static) -> Self {
        self.ports[2].output = Box::new(output);
        self
    }

    /// Gives `input` to the guest on COM3, where the machine has one.
    pub fn com3_input(mut self, input: impl InputSource + 'static) -> Self {
        self.ports[2].input = Some(Box::new(input));
        self
    }

    /// Lets `observer` see the machine's steps, its exits, and KVM's counts. Costs each exit time: the observer's own, and some 100 ns.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Opens now what [`build`](Self::build) opens else: the kernel, the initramfs, persistent memory, `/dev/kvm`,
    /// `/proc/self/pagemap`. From then on neither `build` nor the machine opens a file by its name, except to save into a folder by
    /// name. No file is read yet, so a process can confine itself between this call and the next, before it looks at files that
    /// may be hostile.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] or [`Error::File`] name the value or file that is wrong; [`Error::KvmMissing`],
    /// [`Error::KvmPermission`], [`Error::KvmLacks`] or [`Error::Kvm`] where there is no usable KVM.
    pub fn open(mut self) -> Result<Self> {
        match &mut self.source {
            Source::Boot(config, opened) => {
                let files = opened.insert(Opened::files(config)?);
                files.host = Some(HostFiles::open()?);
            }
            Source::Snapshot(snapshot) => {
                snapshot.host_files()?;
            }
            Source::Prepared(_) => {}
        }
        Ok(self)
    }

    /// Opens now what [`check`](Self::check) opens else, as [`open`](Self::open) does for [`build`](Self::build).
    ///
    /// # Errors
    ///
    /// [`Error::Config`] or [`Error::File`] name the value or file that is wrong.
    pub fn open_files(mut self) -> Result<Self> {
        if let Source::Boot(config, opened @ None) = &mut self.source {
            *opened = Some(Opened::files(config)?);
        }
        Ok(self)
    }

    /// Returns the descriptors that [`open`](Self::open) has opened, and those of the serial ports' inputs: a process that closes
    /// all but the descriptors it needs keeps these. Those in the outputs, and in a machine that was made ahead of time, are
    /// not among them.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = match &self.source {
            Source::Boot(_, opened) => opened.iter().flat_map(Opened::descriptors).collect(),
            Source::Snapshot(snapshot) => snapshot.descriptors(),
            Source::Prepared(_) => Vec::new(),
        };
        let inputs = self.ports.iter().flat_map(|port| &port.input);
        all.extend(inputs.flat_map(|input| input.descriptors()));
        all
    }

    /// Checks the configuration and its files as [`build`](Self::build) does before it needs KVM, and keeps nothing. A
    /// snapshot's files were checked when it was opened.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], [`Error::File`], [`Error::Kernel`] or [`Error::InitramfsTooLarge`] name the value or file that is
    /// wrong; [`Error::Host`] where the host has no memory for the guest, or no random bytes.
    pub fn check(self) -> Result<()> {
        let Source::Boot(config, Some(opened)) = &self.open_files()?.source else {
            return Ok(());
        };
        let ram = GuestRam::new(config.memory)?.with_pmem(opened.pmem.clone())?;
        load(config, opened, &ram, Steps::default()).map(drop)
    }

    /// Builds the machine, paused before its first instruction, or before the next one after the snapshot.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check); [`Error::KvmMissing`], [`Error::KvmPermission`], [`Error::KvmLacks`] or [`Error::Kvm`]
    /// where there is no usable KVM; [`Error::Snapshot`] or [`Error::HostLacks`] where a snapshot can't be restored.
    pub fn build(self) -> Result<Machine> {
        let steps = Steps::to(self.observer.as_ref());
        steps.reached(Step::Begun);
        let (mut created, devices) = match self.source {
            Source::Boot(config, opened) => {
                let devices = Devices {
                    uarts: vec![uart::State::default(); config.uarts()],
                    ..Devices::default()
                };
                (boot(&config, opened, steps)?, devices)
            }
            Source::Snapshot(snapshot) => restore::prepare(&snapshot, steps)?.wake()?,
            Source::Prepared(prepared) => prepared.wake()?,
        };
        steps.reached(Step::StateSet);
        // Not earlier: KVM makes its tables anew when the processor's mode is set.
        if let (Some(pages), Some(vcpu)) = (&self.working_set, created.vcpus.first()) {
            pages.prefault(&created.ram, vcpu);
            steps.reached(Step::Prefaulted);
        }
        if let Some(observer) = &self.observer {
            observe(&mut created, observer);
        }
        let mut machine = connect(created, devices, self.ports)?;
        steps.reached(Step::Built);
        machine.observer = self.observer;
        machine.vcpu_thread = self.vcpu_thread;
        Ok(machine)
    }
}

/// Connects the vCPUs with an observer.
fn observe(created: &mut Created, observer: &Arc<dyn Observer>) {
    for vcpu in &mut created.vcpus {
        let recorder = Recorder::new(observer.clone(), vcpu.id, &created.vm, &mut vcpu.fd);
        vcpu.recorder = Some(Box::new(recorder));
    }
}

/// Makes a machine that is about to run its kernel's first instruction.
fn boot(config: &Config, opened: Option<Opened>, steps: Steps<'_>) -> Result<Created> {
    let opened = opened.map_or_else(|| Opened::files(config), Ok)?;
    let ram = GuestRam::new(config.memory)?.with_pmem(opened.pmem.clone())?;
    steps.reached(Step::MemoryReserved);
    // A kernel that can't be loaded is reported first.
    let host = opened.host.clone().map_or_else(HostFiles::open, Ok);
    let host = host.inspect(|_| steps.reached(Step::Opened));
    let pagemap = host.as_ref().ok().and_then(|host| host.pagemap.clone());
    let ram = Arc::new(ram.with_pagemap(pagemap));
    // Both take milliseconds, and neither needs the other.
    let (loaded, created) = thread::scope(|scope| {
        let loading =
            thread::Builder::new().spawn_scoped(scope, || load(config, &opened, &ram, steps));
        let created = host.and_then(|host| {
            let vcpus = |vm: &VmFd| create::create_vcpus(&host.kvm, vm, config.cpus);
            kvm::create(host.kvm.clone(), ram.clone(), vcpus, steps)
        });
        let loaded = match loading {
            Ok(loading) => loading.join().expect("loading doesn't panic"),
            Err(_) => load(config, &opened, &ram, steps),
        };
        (loaded, created)
    });
    let (start, created) = (loaded?, created?);
    start.set(&ram, &created.vcpus)?;
    Ok(created)
}

/// Connects a machine with its devices.
fn connect(created: Created, devices: Devices, ports: [Port; UARTS.len()]) -> Result<Machine> {
    let Created {
        vcpus,
        irqchip,
        vm,
        kvm,
        ram,
    } = created;
    let gate = Gate::new(u8::try_from(vcpus.len()).expect("checked against CPUS_MAX"))?;
    let (lines, controller) = board::lines(&vm, irqchip, devices.board);
    let intake = Arc::new(Mutex::new(()));
    let (mut uarts, mut pumps) = (Vec::new(), Vec::new());
    for ((port, line), state) in ports.into_iter().zip(lines).zip(devices.uarts) {
        let output = Output {
            writer: port.output,
            gate: gate.clone(),
        };
        let uart = Uart::new(line, output, state).map_err(Error::host("an event descriptor"))?;
        let uart = Arc::new(Mutex::new(uart));
        let pump = |input| Pump::new(input, uart.clone(), intake.clone());
        pumps.extend(port.input.map(pump));
        uarts.push(uart);
    }
    Ok(Machine {
        vcpus,
        platform: Arc::new(Platform {
            gate,
            board: Board::new(controller, &uarts),
            uarts,
            intake,
            pmem: ram.pmem().map_or(0..0, Pmem::range),
            vm,
            kvm,
        }),
        pumps,
        observer: None,
        vcpu_thread: None,
        ram,
    })
}

/// Fills guest RAM as a boot loader would; returns the point at which the kernel starts.
fn load(config: &Config, opened: &Opened, ram: &GuestRam, steps: Steps<'_>) -> Result<Start> {
    let file = opened.kernel.as_ref();
    let kernel = kernel::load(&config.kernel, file, config.cmdline.len(), ram)?;
    steps.reached(Step::KernelLoaded);
    let initramfs = match &opened.initramfs {
        Some(file) => initramfs::load(file, opened.processors, &kernel, ram)?,
        None => initramfs::Placed::default(),
    };
    steps.reached(Step::InitramfsLoaded);
    let start = boot_data::write(config, ram, &kernel, initramfs, random_seed()?)?;
    steps.reached(Step::BootDataWritten);
    Ok(start)
}

/// Draws random bytes on the host, as a seed for the guest's random number generator.
fn random_seed() -> Result<[u8; boot_data::SEED_LEN]> {
    let mut seed = [0; boot_data::SEED_LEN];
    random::fill(&mut seed).map_err(Error::host("random bytes"))?;
    Ok(seed)
}
