//! A jail around a program of the host's: namespaces of its own for files, processes, network, users, names and IPC, made by
//! bubblewrap, which Flatpak uses for the same.
//!
//! It is a second wall behind the sandbox's own, and what sees to it that nothing stays: the program's processes end with the
//! first of them, which ends with us; its files lie on a file system in memory, which goes with them. So even who kills us by
//! SIGKILL finds neither afterwards.
//!
//! Bubblewrap alone doesn't see to that from its first moment: it binds the jail's first process to its own life only some
//! milliseconds after it has made it. So it is itself the first process of a namespace, which `unshare` makes, and all that is
//! below it ends with it, whatever it has come to. It gets a `/proc` of that namespace, for it looks up its own child there. (Where
//! minivm is root in a container that hides parts of `/proc`, the jail's shows them, as far as modes and users let it.)

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Backend, Error, cannot};

const BUBBLEWRAP: &str = "bwrap";
/// Of util-linux.
const UNSHARE: &str = "unshare";

/// What closes the jail when all is in it. Whoever is root outside would be so inside too, over the jail's mounts: with that
/// power the host's files, which are shown for reading, can be made writable again. So it is another user there, without any
/// powers; Chromium's own sandbox wants one too. Then the jail's root can be written to no more; its `/tmp` can, a file
/// system of its own in memory.
const SEAL: [&str; 8] = [
    "--uid",
    "1000",
    "--gid",
    "1000",
    "--cap-drop",
    "ALL",
    "--remount-ro",
    "/",
];

/// A jail with nothing in it but an empty `/tmp`, `/proc` and a `/dev` of the harmless devices.
pub(super) struct Jail {
    backend: Backend,
    command: Command,
    /// Open files that go in.
    inherited: Vec<OwnedFd>,
    aside: Option<Aside>,
}

/// A stderr for bubblewrap and the program themselves, where the program is a sandbox whose own words must not be mixed up with
/// those of the code in it.
pub(super) struct Aside {
    /// A file in memory that becomes their stderr.
    pub(super) words: OwnedFd,
    /// The number under which the program finds the real one. Until then something else is open under it.
    pub(super) stderr: OwnedFd,
}

/// A jail's program, ready to be started.
pub(super) struct Jailed {
    pub(super) backend: Backend,
    pub(super) command: Command,
    pub(super) inherited: Vec<OwnedFd>,
    pub(super) aside: Option<Aside>,
    /// Where bubblewrap tells how the program ended, if it ever began.
    pub(super) status: PipeReader,
}

impl Jail {
    pub(super) fn new(backend: Backend) -> Result<Jail, Error> {
        let installed = |program: &str, package: &str| {
            find_program(program).ok_or_else(|| Error::Unavailable {
                backend,
                why: format!("{program} is in no folder of PATH: {package} is not installed, or PATH lacks its folder"),
                hint: format!("`sudo apt-get install {package}` installs it"),
            })
        };
        let mut command = Command::new(installed(UNSHARE, "util-linux")?);
        command.env_clear();
        command.args(["--pid", "--mount-proc", "--fork", "--kill-child"]);
        if !rustix::process::geteuid().is_root() {
            // Only there an ordinary user has the power to make other namespaces.
            command.args(["--user", "--map-current-user"]);
        }
        command.arg("--").arg(installed(BUBBLEWRAP, "bubblewrap")?);
        command.args([
            "--unshare-all",
            "--die-with-parent",
            "--new-session",
            "--clearenv",
        ]);
        command.args([
            "--hostname",
            "minivm",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
        ]);
        Ok(Jail {
            backend,
            command,
            inherited: Vec::new(),
            aside: None,
        })
    }

    /// Looks whether jails can be made here.
    pub(super) fn check(backend: Backend) -> Result<(), Error> {
        let mut command = Jail::new(backend)?.show_system().command;
        let output = command
            .args(SEAL)
            .args(["--", "true"])
            .stdin(Stdio::null())
            .output();
        let output = output.map_err(cannot("run bubblewrap"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(unusable(backend, &String::from_utf8_lossy(&output.stderr)))
    }

    /// Shows a file or folder of the host's inside, for reading.
    pub(super) fn show(mut self, host: &Path, inside: impl AsRef<OsStr>) -> Self {
        self.command.arg("--ro-bind").arg(host).arg(inside);
        self
    }

    /// Lends a folder of the host's, to be written to.
    pub(super) fn lend(mut self, host: &Path, inside: impl AsRef<OsStr>) -> Self {
        self.command.arg("--bind").arg(host).arg(inside);
        self
    }

    /// Shows the host's programs and libraries, and what of `/etc` these can't do without.
    pub(super) fn show_system(mut self) -> Self {
        self = self.show(Path::new("/usr"), "/usr");
        for folder in ["/bin", "/sbin", "/lib", "/lib32", "/lib64"] {
            let path = Path::new(folder);
            match path.read_link() {
                Ok(target) => {
                    self.command.arg("--symlink").arg(target).arg(folder);
                }
                Err(_) if path.is_dir() => self = self.show(path, folder),
                Err(_) => {}
            }
        }
        for file in ["/etc/ld.so.cache", "/etc/alternatives"] {
            if Path::new(file).exists() {
                self = self.show(Path::new(file), file);
            }
        }
        self
    }

    /// Puts a file of these bytes inside, for reading.
    pub(super) fn put(mut self, bytes: &[u8], inside: &str) -> Result<Self, Error> {
        let file = super::task::in_memory(bytes).map_err(cannot("keep a file in memory"))?;
        let number = file.as_raw_fd().to_string();
        self.command.args(["--ro-bind-data", &number, inside]);
        self.inherited.push(file);
        Ok(self)
    }

    /// Hands an open file in, which keeps its number.
    pub(super) fn hand(mut self, file: OwnedFd) -> Self {
        self.inherited.push(file);
        self
    }

    /// Sets the program's own words aside. Returns a copy of the file in which they will be, and the number of the open file that
    /// is stderr instead.
    pub(super) fn set_words_aside(mut self) -> Result<(Self, File, RawFd), Error> {
        let words = super::task::in_memory(b"").map_err(cannot("keep a file in memory"))?;
        let copy = words.try_clone().map_err(cannot("copy an open file"))?;
        let stderr = OwnedFd::from(File::open("/dev/null").map_err(cannot("open /dev/null"))?);
        let number = stderr.as_raw_fd();
        self.aside = Some(Aside { words, stderr });
        Ok((self, copy.into(), number))
    }

    /// Sets a variable, of which there are none else.
    pub(super) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.arg("--setenv").arg(name).arg(value);
        self
    }

    /// The program, by its path inside.
    pub(super) fn program<S: AsRef<OsStr>>(
        mut self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Jailed, Error> {
        let (status, told) = io::pipe().map_err(cannot("create a pipe"))?;
        let told = OwnedFd::from(told);
        let number = told.as_raw_fd().to_string();
        self.command.args(SEAL);
        self.command.args(["--json-status-fd", &number, "--"]);
        self.command.arg(program).args(args);
        self.inherited.push(told);
        Ok(Jailed {
            backend: self.backend,
            command: self.command,
            inherited: self.inherited,
            aside: self.aside,
            status,
        })
    }
}

/// The program's exit code, from what bubblewrap has told. None where it never began, or was killed.
pub(super) fn exit_code(mut status: PipeReader) -> Option<u8> {
    let mut told = String::new();
    status.read_to_string(&mut told).ok()?;
    let (_, code) = told.rsplit_once("\"exit-code\":")?;
    let digits = code
        .trim_start()
        .split(|c: char| !c.is_ascii_digit())
        .next();
    digits?.parse().ok()
}

/// The error where bubblewrap said this instead of starting a program.
pub(super) fn unusable(backend: Backend, said: &str) -> Error {
    let said = said.lines().rfind(|line| !line.is_empty());
    let said = said
        .unwrap_or("it was killed")
        .trim_start_matches("bwrap: ");
    no_namespaces(backend, format!("bubblewrap cannot make a jail ({said})"))
}

/// The error where a namespace could not be made.
pub(super) fn no_namespaces(backend: Backend, why: String) -> Error {
    Error::Unavailable {
        backend,
        why,
        hint: "user namespaces may be switched off, or too few: see the sysctls user.max_user_namespaces, \
               kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
            .into(),
    }
}

/// A program in `PATH`, but for what of that depends on the working folder.
pub fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn told(text: &str) -> Option<u8> {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        drop(writer);
        exit_code(reader)
    }

    #[test]
    fn a_program_that_never_began_has_no_exit_code() {
        assert_eq!(
            told("{ \"child-pid\": 7 }\n{ \"exit-code\": 42 }\n"),
            Some(42)
        );
        assert_eq!(told("{ \"child-pid\": 7 }\n"), None);
        assert_eq!(told(""), None);
    }
}
