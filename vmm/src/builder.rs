//! The recipe: from a [`Config`] to a [`Machine`] that is paused before its first instruction.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::arch::cpuid::Topology;
use crate::arch::{acpi, boot_params, cpuid, paging, registers};
use crate::config::Config;
use crate::devices::bus::Bus;
use crate::devices::ioapic::{self, IoApic};
use crate::devices::power::{RESET_CODE, ResetLine, SleepControl};
use crate::devices::uart::{self, IrqLine, Output, Uart};
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::input::Input;
use crate::machine::Machine;
use crate::memory::GuestRam;
use crate::snapshot::state::Devices;
use crate::snapshot::{Prepared, Snapshot, WorkingSet};
use crate::vcpu::{Surroundings, Vcpu};
use crate::{initramfs, kernel, layout, restraint};

/// A machine to be: its configuration, and what its serial ports are connected to.
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
    com1: Port,
    com2: Port,
}

/// What a machine begins with.
enum Source {
    Boot(Config),
    Snapshot(Snapshot),
    Prepared(Prepared),
}

/// A machine in KVM, with everything but its devices.
pub(crate) struct Created {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) vm: Arc<VmFd>,
    // Behind KVM's descriptors, so that it is unmapped when they are closed.
    pub(crate) ram: Arc<GuestRam>,
}

/// What a serial port is connected to.
struct Port {
    output: Box<dyn Write + Send>,
    input: Option<Input>,
}

impl Port {
    /// Connected to nothing: output is lost, input never comes.
    fn open_ended() -> Self {
        Port {
            output: Box::new(io::sink()),
            input: None,
        }
    }
}

impl Builder {
    /// A machine as `config` says, with serial ports that are connected to nothing.
    pub fn new(config: Config) -> Self {
        Builder::from_source(Source::Boot(config))
    }

    /// A machine that goes on where the snapshot's was, with serial ports that are connected to nothing.
    pub fn restore(snapshot: &Snapshot) -> Self {
        Builder::from_source(Source::Snapshot(snapshot.clone()))
    }

    /// The same, from a machine made ahead of time.
    pub fn restore_prepared(prepared: Prepared) -> Self {
        Builder::from_source(Source::Prepared(prepared))
    }

    /// Has these pages of a restored machine's memory there before it runs.
    pub fn working_set(mut self, pages: &WorkingSet) -> Self {
        self.working_set = Some(pages.clone());
        self
    }

    fn from_source(source: Source) -> Self {
        Builder {
            source,
            working_set: None,
            com1: Port::open_ended(),
            com2: Port::open_ended(),
        }
    }

    /// Sends what the guest writes to COM1, the console, to `output`: a byte a call, from a vCPU's thread.
    pub fn console_output(mut self, output: impl Write + Send + 'static) -> Self {
        self.com1.output = Box::new(output);
        self
    }

    /// Gives `input` to the guest on COM1, the console.
    pub fn console_input(mut self, input: Input) -> Self {
        self.com1.input = Some(input);
        self
    }

    /// Sends what the guest writes to COM2 to `output`: a byte a call, from a vCPU's thread.
    pub fn com2_output(mut self, output: impl Write + Send + 'static) -> Self {
        self.com2.output = Box::new(output);
        self
    }

    /// Gives `input` to the guest on COM2.
    pub fn com2_input(mut self, input: Input) -> Self {
        self.com2.input = Some(input);
        self
    }

    /// Does what [`build`](Self::build) does before it needs KVM, and forgets it: finds out what is wrong with the
    /// configuration and the files. A snapshot's have been checked when it was opened.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build)'s, without those that are about KVM.
    pub fn check(&self) -> Result<()> {
        let Source::Boot(config) = &self.source else {
            return Ok(());
        };
        config.check()?;
        load(config, &GuestRam::new(config.memory)?).map(drop)
    }

    /// Builds the machine, paused before its first instruction, or before the next one after the snapshot.
    ///
    /// # Errors
    ///
    /// Whatever [`Error`] names: a bad configuration, kernel, initramfs or snapshot, no usable KVM, no memory.
    pub fn build(self) -> Result<Machine> {
        let (created, devices) = match self.source {
            Source::Boot(config) => (boot(&config)?, Devices::default()),
            Source::Snapshot(snapshot) => snapshot.prepare()?.wake()?,
            Source::Prepared(prepared) => prepared.wake()?,
        };
        // Not earlier: KVM makes its tables anew when the processor's mode is set.
        if let (Some(pages), Some(vcpu)) = (&self.working_set, created.vcpus.first()) {
            pages.prefault(&created.ram, vcpu);
        }
        connect(created, devices, self.com1, self.com2)
    }
}

/// Makes a machine that is about to run its kernel's first instruction.
fn boot(config: &Config) -> Result<Created> {
    config.check()?;
    let ram = GuestRam::new(config.memory)?;
    // Both take milliseconds, and neither needs the other.
    let (loaded, created) = thread::scope(|scope| {
        let loading = thread::Builder::new().spawn_scoped(scope, || load(config, &ram));
        let created = create(config, &ram);
        let loaded = match loading {
            Ok(loading) => loading.join().expect("loading doesn't panic"),
            Err(_) => load(config, &ram),
        };
        (loaded, created)
    });
    let entry = loaded?;
    let (vm, vcpus) = created?;
    registers::set_entry(&vcpus[0].fd, entry)?;
    let ram = Arc::new(ram);
    Ok(Created { vcpus, vm, ram })
}

/// Connects a machine with its devices.
fn connect(created: Created, devices: Devices, com1: Port, com2: Port) -> Result<Machine> {
    let Created { vcpus, vm, ram } = created;
    let gate = Gate::new(u8::try_from(vcpus.len()).expect("checked against CPUS_MAX"))?;
    let ioapic = IoApic::new(message_sink(vm.clone()), devices.ioapic);
    let ioapic = Arc::new(Mutex::new(ioapic));
    let (com1, input1) = uart(layout::COM1_IRQ, &ioapic, com1, &gate, devices.com1)?;
    let (com2, input2) = uart(layout::COM2_IRQ, &ioapic, com2, &gate, devices.com2)?;
    let intake = Arc::new(Mutex::new(()));
    let pumps = [(input1, &com1), (input2, &com2)]
        .into_iter()
        .filter_map(|(input, uart)| Some(input?.pump(uart.clone(), intake.clone())))
        .collect();
    Ok(Machine {
        vcpus,
        around: Arc::new(Surroundings {
            gate,
            ports: port_bus(&com1, &com2),
            mmio: mmio_bus(&ioapic),
            ioapic,
            com1,
            com2,
            intake,
            vm,
        }),
        pumps,
        ram,
    })
}

/// Fills guest RAM as a boot loader would; tells where the kernel is to be entered.
fn load(config: &Config, ram: &GuestRam) -> Result<GuestAddress> {
    let kernel = kernel::load(&config.kernel, config.cmdline.len(), ram)?;
    let initramfs = match &config.initramfs {
        Some(path) => initramfs::load(path, &kernel, ram)?,
        None => initramfs::Placed::default(),
    };
    write_boot_data(config, ram, kernel.header, initramfs, random_seed()?)
        .expect("low memory is always there");
    Ok(kernel.entry)
}

/// Creates the machine in KVM, with its RAM and its processors.
fn create(config: &Config, ram: &GuestRam) -> Result<(Arc<VmFd>, Vec<Vcpu>)> {
    let kvm = open_kvm()?;
    let vm = Arc::new(create_vm(&kvm)?);
    lend_memory(&vm, ram)?;
    split_irqchip(&vm)?;
    let vcpus = create_vcpus(&kvm, &vm, config.cpus)?;
    Ok((vm, vcpus))
}

/// Writes what a boot loader and firmware leave in memory.
fn write_boot_data(
    config: &Config,
    ram: &GuestRam,
    header: Option<linux_loader::loader::bootparam::setup_header>,
    initramfs: initramfs::Placed,
    seed: [u8; boot_params::SEED_LEN],
) -> std::result::Result<(), GuestMemoryError> {
    paging::write(ram.map())?;
    ram.map()
        .write_slice(&acpi::tables(config.cpus), layout::ACPI)?;
    ram.map().write_slice(&RESET_CODE, layout::RESET_VECTOR)?;
    boot_params::write(
        ram.map(),
        config.memory,
        header,
        &config.cmdline,
        initramfs,
        seed,
    )
}

/// Random bytes of the host's, for the guest's random number generator to start from.
fn random_seed() -> Result<[u8; boot_params::SEED_LEN]> {
    let mut seed = [0; boot_params::SEED_LEN];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut seed))
        .map_err(Error::host("/dev/urandom"))?;
    Ok(seed)
}

/// Opens `/dev/kvm`, the door to everything else, and checks that it is the KVM that this program was written for.
pub(crate) fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|errno| match errno.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => Error::KvmMissing,
        libc::EACCES | libc::EPERM => Error::KvmPermission,
        _ => Error::kvm("opening /dev/kvm")(errno),
    })?;
    // The API's version has been 12 since Linux 2.6.22; the manual says to refuse any other. What a given KVM can do
    // is told by its capabilities instead. (KVM API 4.1, KVM_GET_API_VERSION.)
    if kvm.get_api_version() != 12 {
        return Err(Error::KvmLacks("API version 12"));
    }
    for (cap, name) in [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
        (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(Error::KvmLacks(name));
        }
    }
    Ok(kvm)
}

/// Creates the machine: an address space without memory, and no processor.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd> {
    // The descriptor is the machine: when the last reference to it is gone, so is the machine, which is why nothing can
    // be left behind. (KVM API 4.2, KVM_CREATE_VM.)
    // A signal to this thread interrupts it where it makes threads of the kernel's: it is tried again, as after any EINTR.
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            created => break created.map_err(Error::kvm("KVM_CREATE_VM"))?,
        }
    };
    // Intel processors that can't run real mode need three pages that no RAM may overlap; AMD's ignore it. It has to
    // come before any vCPU. (KVM API 4.36, KVM_SET_TSS_ADDR.)
    let address = usize::try_from(layout::KVM_TSS.0).expect("below 4 GiB");
    vm.set_tss_address(address)
        .map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    restraint::apply(&vm)?;
    Ok(vm)
}

/// Lets the guest use our memory as its RAM.
pub(crate) fn lend_memory(vm: &VmFd, ram: &GuestRam) -> Result<()> {
    for (slot, (base, size, host)) in (0u32..).zip(ram.regions()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: base.0,
            memory_size: size,
            userspace_addr: host,
        };
        // KVM translates guest-physical addresses in the slot to addresses of this process, and takes a page when the
        // guest first touches it; nothing is copied or pinned. It comes before the interrupt controllers: with them
        // there, each slot costs a grace period of KVM's locks, measured 6 to 10 ms against 0.2.
        // (KVM API 4.35, KVM_SET_USER_MEMORY_REGION.)
        #[allow(
            unsafe_code,
            reason = "KVM lets the guest write to any memory that it is told of"
        )]
        // SAFETY: the region is mapped, is `GuestRam`'s own, and `Machine` keeps it until the VM's descriptors are
        // closed. Rust code reaches it only through vm-memory's volatile accesses.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// Asks for local APICs, and their timers, in KVM, and for nothing else of a PC's interrupt controllers.
pub(crate) fn split_irqchip(vm: &VmFd) -> Result<()> {
    // With the local APICs in KVM a guest's timer and inter-processor interrupts cost no exit to this process. The
    // number is that of the IOAPIC pins that will be emulated here, see devices/ioapic.rs. It decides what every vCPU is
    // made with, so it comes before the first of them. (KVM API 7.5, KVM_CAP_SPLIT_IRQCHIP.)
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = ioapic::PINS.into();
    vm.enable_cap(&cap)
        .map_err(Error::kvm("KVM_ENABLE_CAP (KVM_CAP_SPLIT_IRQCHIP)"))
}

/// Creates the processors. Number 0 is the one that starts; the others wait for its signal.
pub(crate) fn create_vcpus(kvm: &Kvm, vm: &VmFd, cpus: u8) -> Result<Vec<Vcpu>> {
    // What this processor and this KVM can give to a guest. (KVM API 4.46, KVM_GET_SUPPORTED_CPUID.)
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut vcpus = Vec::new();
    for id in 0..cpus {
        // A vCPU is a descriptor of its own; the thread that calls KVM_RUN on it is the processor. Its number becomes
        // its APIC ID. (KVM API 4.7, KVM_CREATE_VCPU.)
        let fd = vm
            .create_vcpu(id.into())
            .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let table = cpuid::table(
            &supported,
            Topology {
                vcpu: id,
                vcpus: cpus,
                tsc_deadline,
            },
        );
        // What CPUID tells is also what KVM lets the guest use, so it comes before registers and MSRs, which are checked
        // against it. (KVM API 4.20, KVM_SET_CPUID, of which KVM_SET_CPUID2 is the newer form.)
        fd.set_cpuid2(&table)
            .map_err(Error::kvm("KVM_SET_CPUID2"))?;
        registers::set_firmware_msrs(&fd)?;
        registers::set_local_apic(&fd)?;
        vcpus.push(Vcpu {
            id,
            fd,
            cpuid: table,
        });
    }
    Ok(vcpus)
}

/// How the IOAPIC's messages reach the local APICs.
fn message_sink(vm: Arc<VmFd>) -> ioapic::Sink {
    Box::new(move |msi| {
        let msi = kvm_msi {
            address_lo: msi.address,
            data: msi.data,
            ..Default::default()
        };
        // Delivers the message as if a device had written `data` to `address`. Whether any local APIC took it is told
        // too, by the result or, where none was meant, by EPERM; an edge doesn't care. (KVM API 4.71, KVM_SIGNAL_MSI.)
        match vm.signal_msi(msi) {
            Err(errno) if errno.errno() != libc::EPERM => Err(errno.into()),
            _ => Ok(()),
        }
    })
}

type ConnectedUart = (Arc<Mutex<Uart>>, Option<Input>);

fn uart(
    pin: u8,
    ioapic: &Arc<Mutex<IoApic>>,
    port: Port,
    gate: &Arc<Gate>,
    state: uart::State,
) -> Result<ConnectedUart> {
    let irq = IrqLine {
        ioapic: ioapic.clone(),
        pin,
    };
    let output = Output {
        writer: port.output,
        gate: gate.clone(),
    };
    let uart = Uart::new(irq, output, state).map_err(Error::host("an event descriptor"))?;
    Ok((Arc::new(Mutex::new(uart)), port.input))
}

fn port_bus(com1: &Arc<Mutex<Uart>>, com2: &Arc<Mutex<Uart>>) -> Bus {
    let ports = |first: u16, count: u16| u64::from(first)..u64::from(first) + u64::from(count);
    let mut bus = Bus::default();
    bus.attach(ports(layout::COM1_PORT, layout::COM_PORTS), com1.clone());
    bus.attach(ports(layout::COM2_PORT, layout::COM_PORTS), com2.clone());
    bus.attach(
        ports(layout::I8042_COMMAND_PORT, 1),
        Arc::new(Mutex::new(ResetLine)),
    );
    bus.attach(
        ports(layout::ACPI_SLEEP_PORT, 2),
        Arc::new(Mutex::new(SleepControl)),
    );
    bus
}

fn mmio_bus(ioapic: &Arc<Mutex<IoApic>>) -> Bus {
    let mut bus = Bus::default();
    bus.attach(
        layout::IOAPIC.0..layout::IOAPIC.0 + ioapic::SIZE,
        ioapic.clone(),
    );
    bus
}
