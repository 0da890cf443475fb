//! The processors that labs emulate, and what follows from each: its emulator, the machine around it, its kernel.

use std::fmt;
use std::str::FromStr;

/// A processor that QEMU emulates with its virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// An x86-64 processor of AMD's, with SVM.
    Epyc,
    /// An arm64 processor without VHE: its kernel runs at EL1, and only KVM's part for entries and exits at EL2.
    CortexA72,
    /// An arm64 processor with all that QEMU emulates, VHE included: the whole kernel runs at EL2.
    ArmMax,
}

/// What is needed to emulate the processors of one architecture.
pub(super) struct Emulator {
    /// The architecture, as Rust calls it.
    pub(super) architecture: &'static str,
    /// QEMU's program for the architecture.
    pub(super) program: &'static str,
    /// Debian's package that has it.
    pub(super) package: &'static str,
    /// QEMU's arguments for the machine around the processor. It has virtio devices on MMIO.
    pub(super) machine: &'static str,
    /// The property that makes the channel's device the first that the kernel finds, whose ports are `/dev/vport0p…`.
    pub(super) first_device: &'static str,
    /// Whether it loses interrupts at times, see [`channel`](super::channel).
    pub(super) loses_interrupts: bool,
    /// Whether its labs can have a disk: the driver is in the kernel.
    pub(super) has_disk: bool,
    /// The names of a kernel in its folder. The first that is there is taken.
    pub(super) kernels: &'static [&'static str],
    /// The folder of the lab's kernel, in the cache.
    pub(super) kernel_folder: &'static str,
    /// The words of the kernel's command line beside its console and init.
    pub(super) cmdline: &'static str,
    /// The device of the machine's first serial port.
    pub(super) console: &'static str,
    /// The command that makes what a lab needs.
    pub(super) setup: &'static str,
}

static X86_64: Emulator = Emulator {
    architecture: "x86_64",
    program: "qemu-system-x86_64",
    package: "qemu-system-x86",
    machine: "microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial=on,pcie=off",
    // Devices are found in their order on the command line.
    first_device: "",
    loses_interrupts: true,
    has_disk: true,
    // An uncompressed one first: under emulation, unpacking takes longer than the rest of the boot. The last is what a distribution calls
    // its own.
    kernels: &["vmlinux", "bzImage", "vmlinuz"],
    kernel_folder: "kernel/lab/current",
    // Not `noapictimer`, which would save the 100 ms of measuring the APIC's timer: machines on this KVM then hang.
    // A kernel that panics resets the machine at once (-1) by a triple fault (t), and QEMU ends instead of resetting.
    cmdline: "quiet panic=-1 reboot=t pci=off tsc=reliable no_timer_check",
    console: "ttyS0",
    setup: "cargo xtask setup",
};

static ARM64: Emulator = Emulator {
    architecture: "aarch64",
    program: "qemu-system-aarch64",
    package: "qemu-system-arm",
    machine: "virt,virtualization=on,gic-version=3",
    // Devices get addresses from the last one down, and are found from the first one up.
    first_device: ",bus=virtio-mmio-bus.0",
    loses_interrupts: false,
    has_disk: false,
    // Never an ELF file, which QEMU would start without a device tree. A distribution's `vmlinuz` is an `Image` under another name.
    kernels: &["Image", "vmlinuz"],
    kernel_folder: "arm64/debian",
    cmdline: "quiet panic=-1",
    console: "ttyAMA0",
    setup: "cargo xtask setup --arm64",
};

impl Processor {
    /// All of them.
    pub const ALL: [Processor; 3] = [Self::Epyc, Self::CortexA72, Self::ArmMax];

    /// Returns the processor's name, as [`from_str`](Self::from_str) takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epyc => "epyc",
            Self::CortexA72 => "cortex-a72",
            Self::ArmMax => "arm-max",
        }
    }

    /// Returns whether this program runs on it: whether both are of one architecture.
    pub fn runs_this_program(self) -> bool {
        std::ptr::eq(self.emulator(), Self::default().emulator())
    }

    /// Returns the name of the program that emulates it.
    pub fn emulated_by(self) -> &'static str {
        self.emulator().program
    }

    /// Returns its architecture, as Rust calls it.
    pub fn architecture(self) -> &'static str {
        self.emulator().architecture
    }

    /// Returns the command that makes what its labs and their guests need.
    pub fn setup(self) -> &'static str {
        self.emulator().setup
    }

    /// Returns the quickest of an architecture's, as images' platforms call that; `None` where no lab emulates it.
    pub fn of_platform(architecture: &str) -> Option<Self> {
        match architecture {
            "amd64" => Some(Self::Epyc),
            "arm64" => Some(Self::CortexA72),
            _ => None,
        }
    }

    pub(super) fn emulator(self) -> &'static Emulator {
        match self {
            Self::Epyc => &X86_64,
            Self::CortexA72 | Self::ArmMax => &ARM64,
        }
    }

    /// Returns QEMU's name for it, with the features that differ from QEMU's own choice.
    pub(super) fn model(self) -> &'static str {
        match self {
            // TCG has no XSAVES, and says so on each start unless it's taken away.
            // Without XSAVE, and so without AVX: TCG doesn't intercept a guest's XSETBV, so KVM would put the reset value of
            // XCR0 back at every entry, and the guest's kernel would not save its programs' SSE registers.
            Self::Epyc => "EPYC,+svm,+npt,-xsave,-avx,-avx2,-f16c,-fma",
            Self::CortexA72 => "cortex-a72",
            // With the architecture's own algorithm, signing pointers makes the lab five times as slow.
            Self::ArmMax => "max,pauth-impdef=on",
        }
    }
}

impl Default for Processor {
    /// The quickest of the architecture that this program is compiled for.
    fn default() -> Self {
        match std::env::consts::ARCH {
            "aarch64" => Self::CortexA72,
            _ => Self::Epyc,
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The error of a name that is no processor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lab emulates epyc (x86-64), cortex-a72 and arm-max (arm64)")]
pub struct UnknownProcessor;

impl FromStr for Processor {
    type Err = UnknownProcessor;

    fn from_str(name: &str) -> Result<Self, UnknownProcessor> {
        let mut all = Self::ALL.into_iter();
        all.find(|processor| processor.name() == name)
            .ok_or(UnknownProcessor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_the_error_lists_them() {
        let list = "vax".parse::<Processor>().unwrap_err().to_string();
        for processor in Processor::ALL {
            assert_eq!(processor.to_string().parse(), Ok(processor));
            assert!(list.contains(processor.name()), "{list}");
        }
    }

    #[test]
    fn this_program_runs_on_the_processor_of_its_own_lab() {
        assert!(Processor::default().runs_this_program());
        let (x86, arm) = (Processor::Epyc, Processor::ArmMax);
        assert_ne!(x86.runs_this_program(), arm.runs_this_program());
    }
}
