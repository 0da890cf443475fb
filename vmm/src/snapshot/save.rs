//! The two files of a snapshot that is being saved. A process that may open nothing can save its machine into files that another
//! process has made, under these names:
//!
//! ```text
//! state                     names its memory file, and so decides which snapshot is in the folder
//! memory-0123456789abcdef   never written to once a state file names it
//! ```

use std::fs::File;
use std::io::{self, Write};

use super::file;
use super::memory_file::{self, Identity, MemoryRecord};
use super::state::{Devices, State};
use crate::arch::vcpu_state::VcpuState;
use crate::memory::GuestRam;
use crate::pmem::Record;

/// Two open files for a snapshot, new and empty, and the name that the memory file has. They can be sent to another process, whose
/// machine is saved into them by [`Control::snapshot_into`](crate::Control::snapshot_into).
#[derive(Debug)]
pub struct SaveFiles {
    /// The file for the machine's state.
    pub state: File,
    /// The file for its memory. It must not be written to again: its identity would change.
    pub memory: File,
    /// The memory file's name in the folder, which the state file will have in it.
    pub name: String,
}

impl SaveFiles {
    /// The name of a state file that belongs to a whole snapshot.
    pub const STATE: &str = "state";

    /// Returns the name of a memory file with this number.
    pub fn memory_name(number: u64) -> String {
        format!("memory-{number:016x}")
    }

    /// Returns whether a name is that of a memory file.
    pub fn is_memory_name(name: &str) -> bool {
        let number = name.strip_prefix("memory-");
        number.is_some_and(|number| {
            number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    }
}

/// Writes a machine at rest into `files`; they have reached the disk when this returns.
pub(super) fn write(
    files: &SaveFiles,
    vcpus: Vec<VcpuState>,
    devices: Devices,
    ram: &GuestRam,
) -> io::Result<()> {
    let digest = memory_file::write(ram, &files.memory)?;
    files.memory.sync_all()?;
    let memory = MemoryRecord {
        name: files.name.clone(),
        bytes: ram.bytes(),
        identity: Identity::settled(&files.memory)?,
        digest,
    };
    let pmem = ram.pmem().map(|pmem| {
        let named = |error| format!("cannot read {}: {error}", pmem.file.path.display());
        Record::of(&pmem.file).map_err(|error| io::Error::other(named(error)))
    });
    (&files.state).write_all(&file::encode(&State {
        memory,
        vcpus,
        devices,
        pmem: pmem.transpose()?,
    }))?;
    files.state.sync_all()
}
