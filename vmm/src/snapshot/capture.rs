//! The capture of a machine's state while it is at rest.

use std::sync::MutexGuard;

use super::save::{self, SaveFiles};
use super::state::Devices;
use crate::arch::board;
use crate::arch::vcpu_state::VcpuState;
use crate::devices::bus::lock;
use crate::devices::uart::Uart;
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::vcpu::Platform;

/// The devices of a machine whose vCPUs are at rest, kept from changing: input could still come, and with it an interrupt to
/// a local APIC whose state has been taken already.
pub(crate) struct Frozen<'a> {
    platform: &'a Platform,
    // While it is locked, no input is on its way to a UART, where the snapshot would miss it.
    _intake: MutexGuard<'a, ()>,
    // In the order in which all code locks them: a UART that raises an interrupt locks the board's interrupt controller.
    uarts: Vec<MutexGuard<'a, Uart>>,
    board: board::Frozen<'a>,
}

impl<'a> Frozen<'a> {
    pub(crate) fn new(platform: &'a Platform) -> Self {
        Frozen {
            platform,
            _intake: lock(&platform.intake),
            uarts: platform.uarts.iter().map(|uart| lock(uart)).collect(),
            board: platform.board.freeze(),
        }
    }

    /// Writes the machine into `files`, with its vCPUs' states and its RAM.
    pub(crate) fn save(
        &self,
        vcpus: Vec<VcpuState>,
        ram: &GuestRam,
        files: &SaveFiles,
    ) -> Result<()> {
        let devices = Devices {
            board: self.board.state(&self.platform.vm)?,
            uarts: self.uarts.iter().map(|uart| uart.state()).collect(),
        };
        save::write(files, vcpus, devices, ram).map_err(|source| Error::Save {
            path: files.name.clone().into(),
            source,
        })
    }
}
