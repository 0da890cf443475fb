//! QEMU's jail, and what becomes of a lab where none can be made.
//!
//! Emulation is no wall against hostile code. What a guest has that took QEMU over is what QEMU has: in the jail that is its
//! own program and libraries, no network, none of the user's files, and no other process; and by its filter, few system calls.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals};

use super::error::{Error, cannot};
use super::{QEMU, Root};
use crate::jail::{self, Entry, Jail, Jailed, find_program};

/// Processes and threads of a jailed QEMU, at the most, where it has a user of its own.
const PROCESSES: u64 = 256;

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

/// QEMU, ready to be started.
pub(super) struct Prepared {
    pub(super) command: Command,
    /// What its process does first, with the files that it inherits.
    pub(super) entry: Entry,
    /// Of one in a jail.
    pub(super) end: Option<JailEnd>,
}

/// What is known of a jail's end.
pub(super) struct JailEnd(PipeReader);

impl JailEnd {
    /// Whether QEMU itself ever began. It waits until all of the jail has ended.
    pub(super) fn has_begun(self) -> bool {
        jail::exit_code(self.0).is_some()
    }
}

/// QEMU's command with the files that it inherits, in a jail where it is to be in one.
pub(super) fn prepare(
    root: Root,
    arguments: &[OsString],
    files: Vec<OwnedFd>,
) -> Result<Prepared, Error> {
    if root == Root::Private && unjailed().is_none() {
        let program = find_program(QEMU).ok_or(Error::QemuMissing { program: QEMU })?;
        // A link's target is there under its own name.
        let program = program.canonicalize().unwrap_or(program);
        match jail_for(&program) {
            Ok(jail) => {
                let jail = files.into_iter().fold(jail, Jail::inherit);
                let jailed = jail.program(program, arguments);
                let Jailed {
                    command,
                    mut entry,
                    status,
                } = jailed.map_err(|error| cannot("prepare a jail")(io::Error::other(error)))?;
                // An ordinary user has other processes, which count too.
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
    let mut command = Command::new(QEMU);
    command.args(arguments);
    Ok(Prepared {
        command,
        entry: Entry {
            inherited: files,
            ..Entry::default()
        },
        end: None,
    })
}

/// A jail for this program. It shows the program, its firmware and libraries, and nothing else of the host.
fn jail_for(program: &Path) -> Result<Jail, jail::Error> {
    own_files(program)
        .iter()
        .try_fold(Jail::new()?.bind_system(), |jail, path| {
            jail.bind_read_only(path, path)
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

/// What of a program's own has to be shown: nothing where it is the system's, which is shown anyway. Else the program and what
/// QEMU calls its data, as it is installed or was built. Never a whole folder above it, which may be the user's home.
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
    fn a_program_of_the_systems_needs_nothing_else_shown() {
        for program in ["/usr/bin/qemu-system-x86_64", "/bin/qemu-system-x86_64"] {
            assert_eq!(own_files(Path::new(program)), [""; 0].map(PathBuf::from));
        }
    }

    #[test]
    fn of_another_one_its_data_is_shown_and_nothing_beside() {
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
