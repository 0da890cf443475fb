//! A machine's state without its memory: plain data, as it stands in the state file.

use serde::{Deserialize, Serialize};

use super::memory_file::MemoryRecord;
use super::save::SaveFiles;
use crate::arch::board;
use crate::arch::vcpu_state::VcpuState;
use crate::config::{CPUS_MAX, MEMORY_MAX, MEMORY_MIN};
use crate::devices::uart;
use crate::pmem::{FILE_MAX, Record};

/// Everything about a paused machine that isn't in its memory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Which memory file belongs to it.
    pub(crate) memory: MemoryRecord,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) devices: Devices,
    /// The file that it has as persistent memory.
    pub(crate) pmem: Option<Record>,
}

/// The state of the devices that the vCPUs share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Devices {
    pub(crate) board: board::State,
    /// COM1's, COM2's, and COM3's where the machine has it.
    pub(crate) uarts: Vec<uart::State>,
}

impl State {
    /// Checks that the state makes sense, which no checksum can. KVM checks the registers itself.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let bytes = self.memory.bytes;
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&bytes) || !bytes.is_multiple_of(4096) {
            return Err("no machine has so much memory");
        }
        if !SaveFiles::is_memory_name(&self.memory.name) {
            return Err("invalid memory file name");
        }
        if self.vcpus.is_empty() || self.vcpus.len() > usize::from(CPUS_MAX) {
            return Err("no machine has so many vCPUs");
        }
        if let Some(pmem) = &self.pmem
            && (pmem.path.len() > 16 << 10 || !(1..=FILE_MAX).contains(&pmem.bytes))
        {
            return Err("no machine has such persistent memory");
        }
        if !matches!(self.devices.uarts.len(), 2 | 3) {
            return Err("no machine has so many UARTs");
        }
        self.vcpus.iter().try_for_each(VcpuState::check)?;
        self.devices.board.check(self.vcpus.len())?;
        self.devices.uarts.iter().try_for_each(uart::State::check)
    }
}
