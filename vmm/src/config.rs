//! A machine's configuration: plain data, checked before anything is built.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout;

/// The least guest memory in bytes: 32 MiB. A small Linux kernel and Python's interpreter need about as much.
pub const MEMORY_MIN: u64 = 32 << 20;
/// The most guest memory in bytes: 1 TiB.
pub const MEMORY_MAX: u64 = 1 << 40;
/// The most vCPUs that a machine can have.
pub const CPUS_MAX: u8 = 8;

/// The code that the machine's first vCPU starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kernel {
    /// A Linux kernel's file: on x86-64, an ELF `vmlinux` or a bzImage; on arm64, an `Image`, plain or compressed by gzip, or a
    /// `vmlinuz.efi` that is compressed by gzip.
    File(PathBuf),
    /// Bare machine code, loaded at 1 MiB and entered in 64-bit mode as a kernel would be: the first GiB is mapped to
    /// itself, interrupts are off, RSI points to the zero page. On arm64, loaded 2 MiB behind the beginning of RAM and entered at
    /// EL1: the MMU is off, interrupts are masked, X0 points to the device tree.
    Code(Vec<u8>),
}

/// The configuration of a machine.
///
/// ```
/// use minivm_vmm::{Config, Kernel};
///
/// let config = Config { cpus: 2, ..Config::new(Kernel::File("vmlinux".into())) };
/// assert_eq!(config.memory, 256 << 20);
/// assert!(config.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The code that the machine starts with.
    pub kernel: Kernel,
    /// A cpio archive that Linux unpacks as its first root file system, plain or compressed.
    pub initramfs: Option<PathBuf>,
    /// A file that the guest reads in place, as persistent memory (`/dev/pmem0`): a regular file or a block device. On x86-64 only.
    pub pmem: Option<PathBuf>,
    /// The kernel's command line: printable ASCII, at most 2047 bytes.
    pub cmdline: String,
    /// Guest memory in bytes, from [`MEMORY_MIN`] to [`MEMORY_MAX`], a multiple of 4096.
    pub memory: u64,
    /// Number of vCPUs, from 1 to [`CPUS_MAX`].
    pub cpus: u8,
    /// Whether the machine has a third UART, COM3.
    #[serde(default)]
    pub com3: bool,
}

impl Config {
    /// Returns the configuration of a machine with one vCPU, 256 MiB and two UARTs that runs `kernel` with no initramfs and an
    /// empty command line.
    pub fn new(kernel: Kernel) -> Self {
        Config {
            kernel,
            initramfs: None,
            pmem: None,
            cmdline: String::new(),
            memory: 256 << 20,
            cpus: 1,
            com3: false,
        }
    }

    /// Returns the number of UARTs.
    pub(crate) fn uarts(&self) -> usize {
        layout::UARTS.len() - usize::from(!self.com3)
    }

    /// Checks everything that can be checked without the host's help.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names the first value that is out of bounds, and the bounds.
    pub fn check(&self) -> Result<()> {
        let &Config { memory, cpus, .. } = self;
        let (len, max) = (self.cmdline.len(), layout::CMDLINE_MAX);
        let mut bytes = self.cmdline.bytes().enumerate();
        let strange = bytes.find(|(_, byte)| !(b' '..=b'~').contains(byte));
        let (at, byte) = strange.unwrap_or_default();
        let of_memory = |why| format!("{memory} bytes of guest memory are {why}");
        let of_cmdline = |what| format!("the kernel command line has {what}");
        let defects = [
            (memory < MEMORY_MIN).then(|| of_memory("too few: the least is 32M")),
            (memory > MEMORY_MAX).then(|| of_memory("too many: the most is 1T")),
            (!memory.is_multiple_of(4096)).then(|| of_memory("not a multiple of 4096")),
            (!(1..=CPUS_MAX).contains(&cpus))
                .then(|| format!("{cpus} vCPUs: a machine has from 1 to {CPUS_MAX}")),
            (len > max).then(|| of_cmdline(format!("{len} bytes: the most is {max}"))),
            strange.map(|_| {
                of_cmdline(format!(
                    "the byte {byte:#04x} at {at}: only printable ASCII is allowed"
                ))
            }),
        ];
        match (defects.into_iter().flatten().next(), &self.pmem) {
            (Some(defect), _) => Err(Error::Config(defect)),
            (None, Some(_)) => layout::pmem(memory).map(drop),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::new(Kernel::Code(vec![0xf4]));
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn values_out_of_bounds_are_named() {
        assert!(refusal(|c| c.memory = 31 << 20).contains("the least is 32M"));
        assert!(refusal(|c| c.memory = u64::MAX).contains("the most is 1T"));
        assert!(refusal(|c| c.memory += 1).contains("multiple of 4096"));
        assert!(refusal(|c| c.cpus = 0).contains("0 vCPUs"));
        assert!(refusal(|c| c.cpus = 9).contains("from 1 to 8"));
        assert!(refusal(|c| c.cmdline = "x".repeat(2048)).contains("2048 bytes"));
        assert!(refusal(|c| c.cmdline = "a\0b".into()).contains("0x00 at 1"));
        assert!(refusal(|c| c.cmdline = "ü".into()).contains("0xc3 at 0"));
    }

    proptest! {
        /// A command line that is taken is handed to the kernel as it stands: it has no byte that ends it or starts a line.
        #[test]
        fn a_command_line_is_printable_and_fits_or_is_refused(
            text in prop_oneof![".{0,40}", "[ -~]{0,60}", "[ -~]{2040,2060}", "[ -~]{0,9}[\\x00-\\x1f\\x7f-\u{e9}][ -~]{0,9}"]
        ) {
            let fits = text.len() <= 2047 && text.chars().all(|c| (' '..='~').contains(&c));
            let config = Config { cmdline: text, ..Config::new(Kernel::Code(vec![0xf4])) };
            let checked = config.check().map_err(|error| error.to_string());
            prop_assert_eq!(checked.is_ok(), fits);
            prop_assert!(checked.err().is_none_or(|line| !line.contains(char::is_control)));
        }
    }
}
