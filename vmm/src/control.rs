//! Control over a machine from any thread: pause, resume, save, stop. `gate` gets the vCPUs' threads out of the guest.

use std::sync::{Arc, Weak};

use crate::arch::vcpu_state::Inventory;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::memory::GuestRam;
use crate::outcome::Outcome;
use crate::snapshot::SaveFiles;
use crate::snapshot::capture::Frozen;
use crate::vcpu::Platform;

/// A handle to a machine for other threads than the one that runs it. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub(crate) gate: Arc<Gate>,
    /// Weak, like `ram`: no handle keeps a machine that has ended.
    pub(crate) platform: Weak<Platform>,
    pub(crate) ram: Weak<GuestRam>,
}

impl Control {
    /// Stops every vCPU between two instructions and waits until all have stopped, which takes as long as a vCPU waits
    /// for its output to be taken. Does nothing if the machine is paused already or has ended. The machine's own output
    /// writer must not call it.
    pub fn pause(&self) {
        self.gate.pause();
    }

    /// Lets a paused machine run. Does nothing if it runs already or has ended.
    pub fn resume(&self) {
        self.gate.resume();
    }

    /// Saves the machine, which must be paused, into `files`, which are new and empty, and have reached the disk when this returns.
    /// It opens nothing. Whatever has made the files publishes or deletes them: minivm's `SnapshotFolder` does.
    ///
    /// The machine stays paused meanwhile: a call of [`resume`](Self::resume) waits. Memory that is shared with the guest
    /// ([`Memory`](crate::Memory)) must not be written to while `snapshot_into` runs. The machine's own output writer must not call it.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaused`] where the machine runs, has ended, or ends meanwhile; [`Error::Save`], with the memory file's name for a
    /// path, where the snapshot can't be written; [`Error::Kvm`] where KVM refuses to give the state.
    pub fn snapshot_into(&self, files: &SaveFiles) -> Result<()> {
        // Behind the RAM, so that KVM's descriptors are closed first if the machine ends meanwhile.
        let ram = self.ram.upgrade().ok_or(Error::NotPaused)?;
        let platform = self.platform.upgrade().ok_or(Error::NotPaused)?;
        let held = self.gate.hold()?;
        let frozen = Frozen::new(&platform);
        let vcpus = held.save(Inventory::of_this_host(&platform.kvm, &platform.vm)?)?;
        frozen.save(vcpus, &ram, files)
    }

    /// Ends the machine with [`Outcome::Stopped`], if it hasn't ended already; returns at once.
    /// [`Machine::run`](crate::Machine::run) then returns.
    pub fn stop(&self) {
        self.gate.end(Ok(Outcome::Stopped));
    }

    /// Returns whether the machine has ended.
    pub fn has_ended(&self) -> bool {
        self.gate.has_ended()
    }
}
