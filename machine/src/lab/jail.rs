//! QEMU's jail, and labs without one on hosts where it can't be made.
//!
//! Emulation is no wall against hostile code. A guest that takes over QEMU has what QEMU has: in the jail that is QEMU's own program and
//! libraries, no network, none of the user's files but the lab's disk, which is read-only, and no other process; and by its filter, few
//! system calls.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use minivm_image::io_error::{HostError, cannot};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals};

use super::processor::Emulator;
use super::{Error, Root};
use crate::jail::{self, Entry, Jail, Jailed, find_program};

/// The most processes and threads of a jailed QEMU that has a user of its own.
const PROCESSES: u64 = 256;

/// The disk's path in the jail.
const DISK: &str = "/disk";

/// Why the labs of this process run outside a jail, once one could not be made. The reason holds for all labs on this host.
static UNJAILED: OnceLock<String> = OnceLock::new();

/// Returns why private labs of this process run outside a jail; `None` where they run in one, or none has run.
pub(crate) fn unjailed() -> Option<&'static str> {
    UNJAILED.get().map(String::as_str)
}

/// Lets all further labs of this process run outside a jail, for this reason. The first reason is kept.
pub(crate) fn set_unjailed(why: String) {
    let _ = UNJAILED.set(why);
}

/// Returns a warning for the user of a private lab that runs outside a jail. It is known once the lab's command has started.
pub fn unjailed_warning() -> Option<String> {
    unjailed().map(|why| format!("the lab's QEMU runs outside a jail: {why}"))
}

/// A QEMU that is ready to be started.
pub(super) struct Prepared {
    pub(super) command: Command,
    /// What its process does before it executes the program, and the files that it inherits.
    pub(super) entry: Entry,
    /// The end of its jail, if it has one.
    pub(super) end: Option<JailEnd>,
}

/// A jail's end, as bubblewrap reports it.
pub(super) struct JailEnd(PipeReader);

impl JailEnd {
    /// Waits until all of the jail has ended, and returns whether QEMU itself was executed.
    pub(super) fn has_begun(self) -> bool {
        jail::exit_code(self.0).is_some()
    }
}

/// Makes QEMU's command with the files that it inherits, in a jail where the lab is private and a jail can be made. `arguments` are
/// QEMU's, with the path under which it finds `disk`.
///
/// # Errors
///
/// [`Error::QemuMissing`], or [`Error::Host`] where the jail can't be prepared or the disk can't be opened.
pub(super) fn prepare(
    emulator: &Emulator,
    root: Root,
    mut files: Vec<OwnedFd>,
    disk: Option<&Path>,
    arguments: impl Fn(Option<&str>) -> Vec<OsString>,
) -> Result<Prepared, Error> {
    if root == Root::Private && unjailed().is_none() {
        let program =
            find_program(emulator.program).ok_or_else(|| Error::qemu_missing(emulator))?;
        // The jail shows the program under its real path, not under that of a link.
        let program = program.canonicalize().unwrap_or(program);
        match jail_for(&program) {
            Ok(mut jail) => {
                if let Some(disk) = disk {
                    // Not an open file, which it could open again for writing: this mount is read-only.
                    jail = jail
                        .bind_read_only(disk, DISK)
                        .map_err(|error| cannot("give the lab a disk")(io::Error::other(error)))?;
                }
                let jail = files.into_iter().fold(jail, Jail::inherit);
                let jailed = jail.program(program, arguments(disk.map(|_| DISK)));
                let Jailed {
                    command,
                    mut entry,
                    status,
                } = jailed.map_err(|error| cannot("prepare a jail")(io::Error::other(error)))?;
                // The other processes of an ordinary user would count as well.
                entry.processes = entry.descent.is_some().then_some(PROCESSES);
                return Ok(Prepared {
                    command,
                    entry,
                    end: Some(JailEnd(status)),
                });
            }
            Err(why) => set_unjailed(why.to_string()),
        }
    }
    let disk = disk.map(open).transpose()?;
    // Its own path might have a comma, which ends a name among QEMU's options.
    let path = disk
        .as_ref()
        .map(|disk| format!("/proc/self/fd/{}", disk.as_raw_fd()));
    let mut command = Command::new(emulator.program);
    command.args(arguments(path.as_deref()));
    files.extend(disk);
    Ok(Prepared {
        command,
        entry: Entry {
            inherited: files,
            ..Entry::default()
        },
        end: None,
    })
}

fn open(disk: &Path) -> Result<OwnedFd, HostError> {
    let opened = File::open(disk).map_err(cannot(format!("read {}", disk.display())))?;
    Ok(opened.into())
}

/// Makes a jail that shows this program, its firmware and libraries, and nothing else of the host.
fn jail_for(program: &Path) -> Result<Jail, jail::Error> {
    own_files(program)
        .iter()
        .try_fold(Jail::new()?.bind_system(), |jail, path| {
            jail.bind_read_only(path, path)
        })
}

/// Copies a file into sealed memory. A process in a jail that inherits an open file of the user's could open it again for writing.
pub(super) fn copy(file: &Path) -> Result<OwnedFd, HostError> {
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

/// Returns the files that the jail has to show for a program: none where it is the system's, which is shown anyway; else the program and
/// the folders where an installed or a built QEMU has its data. Never a whole folder above it, which may be the user's home.
fn own_files(program: &Path) -> Vec<PathBuf> {
    const SYSTEM: [&str; 3] = ["/usr", "/bin", "/sbin"];
    const DATA: [&str; 4] = [
        "../share/qemu",
        "../share/seabios",
        "pc-bios",
        "qemu-bundle",
    ];
    let Some(folder) = program.parent() else {
        return Vec::new();
    };
    if SYSTEM.iter().any(|system| program.starts_with(system)) {
        return Vec::new();
    }
    let data = DATA
        .iter()
        .filter_map(|name| folder.join(name).canonicalize().ok());
    std::iter::once(program.to_owned()).chain(data).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_program_of_the_system_needs_no_further_files() {
        for program in ["/usr/bin/qemu-system-x86_64", "/bin/qemu-system-x86_64"] {
            assert_eq!(own_files(Path::new(program)), [""; 0].map(PathBuf::from));
        }
    }

    #[test]
    fn another_program_is_shown_with_its_data_alone() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        for folder in ["bin", "share/qemu", ".ssh"] {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        let program = home.join("bin/qemu");
        assert_eq!(
            own_files(&program),
            [program.clone(), home.join("share/qemu")]
        );
    }
}
