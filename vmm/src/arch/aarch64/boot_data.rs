//! The data that a boot loader leaves in an arm64 machine's memory, and the registers with which its kernel starts.

use vm_memory::{Bytes, GuestAddress};

use super::tree::{self, Tree};
use super::{layout, registers};
use crate::config::Config;
use crate::error::Result;
use crate::initramfs::Placed;
use crate::kernel::Loaded;
use crate::memory::GuestRam;
use crate::vcpu::Vcpu;

pub(crate) use super::tree::SEED_LEN;

/// The point at which a kernel starts, and its device tree, in which the processors' addresses are missing: KVM knows them.
pub(crate) struct Start {
    entry: GuestAddress,
    tree: Tree,
}

/// Gathers the data for a kernel that has been loaded. They are written when the vCPUs are there.
pub(crate) fn write(
    config: &Config,
    _ram: &GuestRam,
    kernel: &Loaded,
    initramfs: Placed,
    seed: [u8; SEED_LEN],
) -> Result<Start> {
    let &Loaded {
        entry, header: (), ..
    } = kernel;
    let tree = Tree {
        cpus: Vec::new(),
        memory: config.memory,
        uarts: &layout::UARTS[..config.uarts()],
        cmdline: config.cmdline.clone(),
        initramfs,
        seed,
    };
    Ok(Start { entry, tree })
}

impl Start {
    /// Writes the device tree, and sets the first vCPU's registers.
    pub(crate) fn set(mut self, ram: &GuestRam, vcpus: &[Vcpu]) -> Result<()> {
        for vcpu in vcpus {
            self.tree.cpus.push(registers::affinity(&vcpu.fd)?);
        }
        ram.map()
            .write_slice(&tree::bytes(&self.tree), layout::TREE)
            .expect("the first 2 MiB of RAM are always there");
        registers::set_entry(&vcpus[0].fd, self.entry, layout::TREE)
    }
}
