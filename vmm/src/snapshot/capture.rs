//! The capture of a machine's state while it is at rest.

use std::path::Path;
use std::sync::MutexGuard;

use super::save::{self, SaveFiles, SnapshotFolder, cannot_save};
use super::state::Devices;
use crate::arch::board;
use crate::arch::vcpu_state::VcpuState;
use crate::devices::bus::lock;
use crate::devices::uart::Uart;
use crate::error::Result;
use crate::memory::GuestRam;
use crate::vcpu::Platform;

/// The devices of a machine whose vCPUs are at rest, kept from changing: input could still come, and with it an interrupt to
/// a local APIC whose state has been taken already.
pub(crate) struct Frozen<'a> {
    platform: &'a Platform,
    // While it is locked, no input is on its way to a UART, where the snapshot would miss it.
    _intake: MutexGuard<'a, ()>,
    // In the order in which all code locks them: a UART that raises an interrupt locks the board's interrupt controller.
    com1: MutexGuard<'a, Uart>,
    com2: MutexGuard<'a, Uart>,
    board: board::Frozen<'a>,
}

impl<'a> Frozen<'a> {
    pub(crate) fn new(platform: &'a Platform) -> Self {
        Frozen {
            platform,
            _intake: lock(&platform.intake),
            com1: lock(&platform.com1),
            com2: lock(&platform.com2),
            board: platform.board.freeze(),
        }
    }

    /// Returns the state of the machine, with its vCPUs' states and its RAM.
    pub(crate) fn capture<'m>(
        &self,
        vcpus: Vec<VcpuState>,
        ram: &'m GuestRam,
    ) -> Result<Captured<'m>> {
        let devices = Devices {
            board: self.board.state(&self.platform.vm)?,
            com1: self.com1.state(),
            com2: self.com2.state(),
        };
        Ok(Captured {
            vcpus,
            devices,
            ram,
        })
    }
}

/// The state of a machine, which has to stay at rest until it is saved.
pub(crate) struct Captured<'a> {
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) devices: Devices,
    pub(super) ram: &'a GuestRam,
}

impl Captured<'_> {
    /// Saves the machine in `folder`, which has the old snapshot or the new one at each moment.
    pub(crate) fn save(self, folder: &Path) -> Result<()> {
        let prepared = SnapshotFolder::prepare(folder)?;
        let written = save::write(prepared.files(), self.vcpus, self.devices, self.ram);
        written.map_err(cannot_save(folder))?;
        prepared.publish()
    }

    /// Writes the machine into `files`.
    pub(crate) fn write(self, files: &SaveFiles) -> Result<()> {
        let written = save::write(files, self.vcpus, self.devices, self.ram);
        written.map_err(cannot_save(files.name.as_ref()))
    }
}
