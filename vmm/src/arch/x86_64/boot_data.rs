//! The data that firmware and a boot loader leave in a PC's memory, and the registers with which its kernel starts.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::power::RESET_CODE;
use super::{acpi, boot_params, layout, paging, registers};
use crate::config::Config;
use crate::error::Result;
use crate::initramfs::Placed;
use crate::kernel::Loaded;
use crate::memory::GuestRam;
use crate::pmem::Pmem;
use crate::vcpu::Vcpu;

pub(crate) use super::boot_params::SEED_LEN;

/// The point at which a kernel starts.
pub(crate) struct Start {
    entry: GuestAddress,
}

/// Writes the data for a kernel that has been loaded.
pub(crate) fn write(
    config: &Config,
    ram: &GuestRam,
    kernel: &Loaded,
    initramfs: Placed,
    seed: [u8; SEED_LEN],
) -> Result<Start> {
    write_tables(config, ram, kernel, initramfs, seed).expect("low memory is always there");
    Ok(Start {
        entry: kernel.entry,
    })
}

fn write_tables(
    config: &Config,
    ram: &GuestRam,
    kernel: &Loaded,
    initramfs: Placed,
    seed: [u8; SEED_LEN],
) -> std::result::Result<(), GuestMemoryError> {
    paging::write(ram.map())?;
    let tables = acpi::tables(config.cpus, config.uarts(), ram.pmem().map(Pmem::range));
    ram.map().write_slice(&tables, layout::ACPI)?;
    ram.map().write_slice(&RESET_CODE, layout::RESET_VECTOR)?;
    boot_params::write(
        ram.map(),
        config.memory,
        kernel.header,
        &config.cmdline,
        initramfs,
        seed,
    )
}

impl Start {
    /// Sets the first vCPU's registers.
    pub(crate) fn set(self, _ram: &GuestRam, vcpus: &[Vcpu]) -> Result<()> {
        registers::set_entry(&vcpus[0].fd, self.entry)
    }
}
