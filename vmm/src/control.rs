//! Pausing, resuming, saving and stopping a machine, from any thread. How a thread is got out of the guest stands in `gate`.

use std::path::Path;
use std::sync::{Arc, Weak};

use crate::arch::vcpu_state::Inventory;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::memory::GuestRam;
use crate::outcome::Outcome;
use crate::snapshot::capture::Frozen;
use crate::vcpu::Platform;

/// A handle to a machine for other threads than the one that runs it. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub(crate) gate: Arc<Gate>,
    /// Not kept alive by this handle: the machine is gone when it has ended, whoever still has one.
    pub(crate) platform: Weak<Platform>,
    pub(crate) ram: Weak<GuestRam>,
}

impl Control {
    /// Stops every vCPU between two instructions and waits until all have stopped, which takes as long as a vCPU waits
    /// for its output to be taken. Does nothing if the machine is paused already or has ended. It must not be called
    /// from within the machine's own output writer.
    pub fn pause(&self) {
        self.gate.pause();
    }

    /// Lets a paused machine go on. Does nothing if it runs or has ended.
    pub fn resume(&self) {
        self.gate.resume();
    }

    /// Saves the machine, which must be paused, in `folder`, in place of a snapshot that may be there; the machine stays
    /// paused meanwhile, also if somebody resumes it. Then it can be resumed or stopped. Memory that is shared with the guest
    /// ([`Memory`](crate::Memory)) must not be written to while this goes on.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaused`] where it runs, has ended, or ends meanwhile; [`Error::Save`] where the snapshot can't be written,
    /// in which case what was in the folder is still there; [`Error::Kvm`] where KVM doesn't tell the state.
    pub fn snapshot(&self, folder: impl AsRef<Path>) -> Result<()> {
        // Behind the RAM, so that KVM's descriptors are closed first if the machine ends meanwhile.
        let ram = self.ram.upgrade().ok_or(Error::NotPaused)?;
        let platform = self.platform.upgrade().ok_or(Error::NotPaused)?;
        let held = self.gate.hold()?;
        let frozen = Frozen::new(&platform);
        let vcpus = held.save(Inventory::of_this_host(&platform.vm)?)?;
        frozen.save(folder.as_ref(), vcpus, &ram)
    }

    /// Ends the machine with [`Outcome::Stopped`], if it hasn't ended already; returns at once.
    /// [`Machine::run`](crate::Machine::run) then returns.
    pub fn stop(&self) {
        self.gate.end(Ok(Outcome::Stopped));
    }

    /// Whether the machine has ended.
    pub fn has_ended(&self) -> bool {
        self.gate.has_ended()
    }
}
