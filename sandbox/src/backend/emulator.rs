//! The jail around the lab's QEMU.
//!
//! QEMU is made for virtualization; its emulation is no wall against hostile code, by its own authors' word. So the emulator
//! gets what every program gets here that runs foreign code: a jail. It shows QEMU's program, its firmware and libraries, and
//! nothing else of the host; all that the lab is made of comes in as open files.

use std::ffi::OsString;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::descent::Descent;
use super::jail::{self, Jail, Jailed};
use super::{Backend, Error};

/// A jail that an emulator can be put into.
pub(crate) struct EmulatorJail(Jail, PathBuf);

/// An emulator in its jail, ready to be started.
pub(crate) struct JailedEmulator {
    pub(crate) command: Command,
    /// Open files that go in, and have to be inheritable.
    pub(crate) inherited: Vec<OwnedFd>,
    /// What the new process does before all else.
    pub(crate) descent: EmulatorDescent,
    /// How it ended is read from here.
    pub(crate) end: EmulatorEnd,
}

/// The way down from root, where minivm is root.
pub(crate) struct EmulatorDescent(Option<Descent>);

/// What is known of an emulator's end.
pub(crate) struct EmulatorEnd(PipeReader);

impl EmulatorJail {
    /// One for this program.
    ///
    /// # Errors
    ///
    /// Where what makes jails is missing.
    pub(crate) fn of(program: PathBuf) -> Result<EmulatorJail, Error> {
        let mut jail = Jail::new(Backend::Microvm)?.show_system();
        for path in own_files(&program) {
            jail = jail.show(&path, &path)?;
        }
        Ok(EmulatorJail(jail, program))
    }

    /// With these arguments and open files, which keep their numbers.
    ///
    /// # Errors
    ///
    /// Where a pipe can't be made.
    pub(crate) fn with(
        self,
        arguments: &[OsString],
        files: Vec<OwnedFd>,
    ) -> Result<JailedEmulator, Error> {
        let EmulatorJail(jail, program) = self;
        let jail = files.into_iter().fold(jail, Jail::hand);
        let Jailed {
            command,
            inherited,
            descent,
            status,
            ..
        } = jail.program(program, arguments)?;
        Ok(JailedEmulator {
            command,
            inherited,
            descent: EmulatorDescent(descent),
            end: EmulatorEnd(status),
        })
    }
}

impl EmulatorDescent {
    /// Becomes a user that owns nothing. This is for a process between fork and exec: all of it is system calls.
    ///
    /// # Errors
    ///
    /// Where the system doesn't let it.
    pub(crate) fn descend(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), Descent::descend)
    }
}

impl EmulatorEnd {
    /// Whether the emulator itself ever began. It waits until all of the jail has ended.
    pub(crate) fn has_begun(self) -> bool {
        jail::exit_code(self.0).is_some()
    }
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
