//! QEMU's jail, and what becomes of a lab where none can be made.
//!
//! Emulation is no wall against hostile code. What a guest has that took QEMU over is what QEMU has: in the jail that is its
//! own program and libraries, no network, none of the user's files, and no other process; and by its filter, few system calls.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals};

use super::Root;
use super::error::{Error, cannot};
use super::qemu::PROGRAM;
use crate::backend::{
    self, Backend, EmulatorDescent, EmulatorEnd, EmulatorJail, JailedEmulator, find_program,
};

/// Why the labs of this process run outside a jail, once that has been seen. It is so for all of this host's.
static UNJAILED: OnceLock<String> = OnceLock::new();

/// Why private labs of this process run outside a jail; `None` where they run in one, or none has run.
pub(crate) fn unjailed() -> Option<&'static str> {
    UNJAILED.get().map(String::as_str)
}

/// They do, and for this reason: the first one counts.
pub(crate) fn set_unjailed(why: String) {
    let _ = UNJAILED.set(why);
}

/// What the user of a private lab should know of it, if anything, once its command has started.
pub fn unjailed_warning() -> Option<String> {
    unjailed().map(|why| format!("the lab's QEMU runs outside a jail: {why}"))
}

/// Looks whether QEMU can be put into a jail here.
///
/// # Errors
///
/// [`backend::Error::Unavailable`], with what to do about it.
pub fn check_jail() -> Result<(), backend::Error> {
    backend::check_jail(Backend::Microvm)
}

/// QEMU, ready to be started.
pub(super) struct Prepared {
    pub(super) command: Command,
    /// Files that it inherits.
    pub(super) files: Vec<OwnedFd>,
    /// Of one in a jail.
    pub(super) jailed: Option<(EmulatorDescent, EmulatorEnd)>,
}

/// QEMU's command with the files that it inherits, in a jail where it is to be in one.
pub(super) fn prepare(
    root: Root,
    arguments: &[OsString],
    files: Vec<OwnedFd>,
) -> Result<Prepared, Error> {
    if root == Root::Private && unjailed().is_none() {
        let program = find_program(PROGRAM).ok_or(Error::QemuMissing { program: PROGRAM })?;
        // A link's target is there under its own name.
        match EmulatorJail::of(program.canonicalize().unwrap_or(program)) {
            Ok(jail) => {
                let JailedEmulator {
                    command,
                    inherited,
                    descent,
                    end,
                } = jail
                    .with(arguments, files)
                    .map_err(|error| cannot("prepare a jail")(io::Error::other(error)))?;
                return Ok(Prepared {
                    command,
                    files: inherited,
                    jailed: Some((descent, end)),
                });
            }
            Err(backend::Error::Unavailable { why, hint, .. }) => {
                set_unjailed(format!("{why}; {hint}"));
            }
            Err(error) => set_unjailed(error.to_string()),
        }
    }
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    Ok(Prepared {
        command,
        files,
        jailed: None,
    })
}

/// A file's content in memory, to be read and no more: whoever has an open file of the user's own in a jail could open it again
/// for writing.
pub(super) fn copy(file: &Path) -> Result<OwnedFd, Error> {
    let copied = (|| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut memory = File::from(rustix::fs::memfd_create("lab-kernel", flags)?);
        io::copy(&mut File::open(file)?, &mut memory)?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&memory, seals)?;
        Ok(memory.into())
    })();
    copied.map_err(cannot(format!("read {}", file.display())))
}
