//! The jail around the lab's QEMU.
//!
//! QEMU is made for virtualization; its emulation is no wall against hostile code, by its own authors' word. So the emulator
//! gets what every program gets here that runs foreign code: a jail. It shows QEMU's program, its firmware and libraries, and
//! nothing else of the host; all that the lab is made of comes in as open files.

use std::ffi::OsString;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::jail::{self, Jail, Jailed};
use super::{Backend, Error};

/// A jail that an emulator can be put into.
pub(crate) struct EmulatorJail(Jail, PathBuf);

/// An emulator in its jail, ready to be started.
pub(crate) struct JailedEmulator {
    pub(crate) command: Command,
    /// Open files that go in, and have to be inheritable.
    pub(crate) inherited: Vec<OwnedFd>,
    /// How it ended is read from here.
    pub(crate) end: EmulatorEnd,
}

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
        if let Some(folder) = home_of(&program) {
            jail = jail.show(&folder, &folder);
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
            status,
            ..
        } = jail.program(program, arguments)?;
        Ok(JailedEmulator {
            command,
            inherited,
            end: EmulatorEnd(status),
        })
    }
}

impl EmulatorEnd {
    /// Whether the emulator itself ever began. It waits until all of the jail has ended.
    pub(crate) fn has_begun(self) -> bool {
        jail::exit_code(self.0).is_some()
    }
}

/// The folder that a program was installed in with all that belongs to it; `None` where it is the system's, which is shown.
fn home_of(program: &Path) -> Option<PathBuf> {
    let system = ["/usr", "/bin", "/sbin"];
    if system.iter().any(|folder| program.starts_with(folder)) {
        return None;
    }
    let folder = program.parent()?;
    let home = match folder.file_name() {
        Some(name) if name == "bin" => folder.parent()?,
        _ => folder,
    };
    (home != Path::new("/")).then(|| home.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_the_systems_needs_nothing_else_shown() {
        let home = |program: &str| home_of(Path::new(program));
        assert_eq!(home("/usr/bin/qemu-system-x86_64"), None);
        assert_eq!(home("/bin/qemu-system-x86_64"), None);
        assert_eq!(home("/opt/qemu/bin/qemu"), Some("/opt/qemu".into()));
        assert_eq!(home("/home/me/build/qemu"), Some("/home/me/build".into()));
        assert_eq!(home("/qemu"), None);
    }
}
