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
//!
//! Three more things hold what breaks out of the sandbox in the jail. It is no root of the host's, whoever runs minivm
//! (`descent`). The system calls that it may make are few (`seccomp`), and where they need no user namespace none can be
//! made, which is where a kernel has most to attack. And what it can write to is bounded: `/tmp` has a size, and nothing else of
//! the jail's file systems can be written to.

mod cgroup;
mod descent;
mod entry;
mod seccomp;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub use cgroup::Cgroup;
pub use descent::{Descent, take_back};
pub use entry::Entry;
pub use seccomp::Calls;

use crate::streams::in_memory;

const BUBBLEWRAP: &str = "bwrap";
/// Of util-linux.
const UNSHARE: &str = "unshare";

/// What closes the jail when all is in it. Whoever is root outside would be so inside too, over the jail's mounts: with that
/// power the host's files, which are shown for reading, can be made writable again. So it is another user there, without any
/// powers; Chromium's own sandbox wants one too. Then the jail's root and `/dev` can be written to no more; its `/tmp` can, a
/// file system of its own in memory.
const SEAL: [&str; 10] = [
    "--uid",
    "1000",
    "--gid",
    "1000",
    "--cap-drop",
    "ALL",
    "--remount-ro",
    "/dev",
    "--remount-ro",
    "/",
];

/// How many bytes `/tmp` takes where nothing else is said.
const TMP_SIZE: u64 = 64 << 20;
/// What a look whether jails can be made may take.
const CHECK_LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// From this version on bubblewrap takes several filters of system calls.
const TAKES_FILTERS: Version = (0, 6);
/// From this one on it makes file systems of a size, and keeps user namespaces from being made.
const TAKES_SIZES: Version = (0, 7);
const KEEPS_NAMESPACES: Version = (0, 8);

type Version = (u32, u32);

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is not installed, or this host doesn't allow it.
    #[error("{why}; {hint}")]
    Unavailable {
        /// What is missing.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// It broke.
    #[error("{0}")]
    Failed(String),
    /// Something of the host's could not be had.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A jail with nothing in it but an empty `/tmp`, `/proc` and a `/dev` of the harmless devices.
pub struct Jail {
    command: Command,
    /// Open files that go in.
    inherited: Vec<OwnedFd>,
    runtime_stderr: Option<RuntimeStderr>,
    /// Where minivm is root.
    descent: Option<Descent>,
    version: Version,
    calls: Calls,
    tmp_size: u64,
    shm_size: Option<u64>,
}

/// A stderr for bubblewrap and the program themselves, where the program is a sandbox whose own words must not be mixed up with
/// those of the code in it.
pub struct RuntimeStderr {
    /// A file in memory that becomes their stderr.
    pub log: OwnedFd,
    /// The number under which the program finds the real one. Until then something else is open under it.
    pub stderr: OwnedFd,
}

/// A jail's program, ready to be started.
pub struct Jailed {
    /// What starts it.
    pub command: Command,
    /// What its process does first, and takes with it.
    pub entry: Entry,
    /// Where bubblewrap tells how the program ended, if it ever began.
    pub status: PipeReader,
}

impl Jail {
    /// One whose program may make the system calls that ordinary programs make.
    pub fn new() -> Result<Jail, Error> {
        let installed = |program: &str, package: &str| {
            find_program(program).ok_or_else(|| Error::Unavailable {
                why: format!("{program} is in no folder of PATH: {package} is not installed, or PATH lacks its folder"),
                hint: format!("`sudo apt-get install {package}` installs it"),
            })
        };
        let descent = Descent::prepare();
        let descent = descent
            .map_err(|error| no_namespaces(format!("root cannot become another user ({error})")))?;
        let mut command = Command::new(installed(UNSHARE, "util-linux")?);
        command.env_clear();
        command.args(["--pid", "--mount-proc", "--fork", "--kill-child"]);
        if !rustix::process::geteuid().is_root() {
            // Only there an ordinary user has the power to make other namespaces.
            command.args(["--user", "--map-current-user"]);
        }
        let bubblewrap = installed(BUBBLEWRAP, "bubblewrap")?;
        let version = version(&bubblewrap);
        command.arg("--").arg(bubblewrap);
        command.args([
            "--unshare-all",
            "--unshare-user",
            "--die-with-parent",
            "--new-session",
            "--clearenv",
        ]);
        command.args(["--hostname", "minivm", "--proc", "/proc", "--dev", "/dev"]);
        Ok(Jail {
            command,
            inherited: Vec::new(),
            runtime_stderr: None,
            descent,
            version,
            calls: Calls::Ordinary,
            tmp_size: TMP_SIZE,
            shm_size: None,
        })
    }

    /// Says which system calls the program may make.
    pub fn calls(mut self, calls: Calls) -> Self {
        self.calls = calls;
        self
    }

    /// Says how many bytes `/tmp` takes.
    pub fn tmp_size(mut self, bytes: u64) -> Self {
        self.tmp_size = bytes;
        self
    }

    /// Gives it a `/dev/shm` of this size.
    pub fn shm_size(mut self, bytes: u64) -> Self {
        self.shm_size = Some(bytes);
        self
    }

    /// Shows a file or folder of the host's inside, for reading.
    pub fn bind_read_only(self, host: &Path, inside: impl AsRef<OsStr>) -> Result<Self, Error> {
        self.bind("--ro-bind", host, inside)
    }

    /// Lends a folder of the host's, to be written to.
    pub fn bind_writable(self, host: &Path, inside: impl AsRef<OsStr>) -> Result<Self, Error> {
        self.bind("--bind", host, inside)
    }

    fn bind(mut self, how: &str, host: &Path, inside: impl AsRef<OsStr>) -> Result<Self, Error> {
        let shown = match &mut self.descent {
            Some(descent) => descent.bind(host, how == "--bind"),
            None => Ok(host.to_owned()),
        };
        let shown = shown.map_err(cannot(format!("show {} in a jail", host.display())))?;
        self.command.arg(how).arg(shown).arg(inside);
        Ok(self)
    }

    /// Shows what of the host's all users may read, by its own path.
    fn bind_public(&mut self, path: &Path) {
        self.command.arg("--ro-bind").arg(path).arg(path);
    }

    /// Shows the host's programs and libraries, and what of `/etc` these can't do without.
    pub fn bind_system(mut self) -> Self {
        self.bind_public(Path::new("/usr"));
        for folder in ["/bin", "/sbin", "/lib", "/lib32", "/lib64"] {
            let path = Path::new(folder);
            match path.read_link() {
                Ok(target) => {
                    self.command.arg("--symlink").arg(target).arg(folder);
                }
                Err(_) if path.is_dir() => self.bind_public(path),
                Err(_) => {}
            }
        }
        for file in ["/etc/ld.so.cache", "/etc/alternatives"] {
            if Path::new(file).exists() {
                self.bind_public(Path::new(file));
            }
        }
        self
    }

    /// Puts a file of these bytes inside, for reading.
    pub fn add_file(self, bytes: &[u8], inside: &str) -> Result<Self, Error> {
        let file = in_memory(bytes).map_err(cannot("keep a file in memory"))?;
        Ok(self.copy_file(file, inside))
    }

    /// Puts a copy of an open file inside, for reading.
    pub fn copy_file(mut self, file: OwnedFd, inside: &str) -> Self {
        let number = file.as_raw_fd().to_string();
        self.command.args(["--ro-bind-data", &number, inside]);
        self.inherited.push(file);
        self
    }

    /// Hands an open file in, which keeps its number.
    pub fn inherit(mut self, file: OwnedFd) -> Self {
        self.inherited.push(file);
        self
    }

    /// Sets the program's own words aside. Returns a copy of the file in which they will be, and the number of the open file that
    /// is stderr instead.
    pub fn capture_runtime_stderr(mut self) -> Result<(Self, File, RawFd), Error> {
        let log = in_memory(b"").map_err(cannot("keep a file in memory"))?;
        let copy = log.try_clone().map_err(cannot("copy an open file"))?;
        let stderr = OwnedFd::from(File::open("/dev/null").map_err(cannot("open /dev/null"))?);
        let number = stderr.as_raw_fd();
        self.runtime_stderr = Some(RuntimeStderr { log, stderr });
        Ok((self, copy.into(), number))
    }

    /// Sets a variable, of which there are none else.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.arg("--setenv").arg(name).arg(value);
        self
    }

    /// The program, by its path inside.
    pub fn program<S: AsRef<OsStr>>(
        mut self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Jailed, Error> {
        let (status, told) = io::pipe().map_err(cannot("create a pipe"))?;
        let told = OwnedFd::from(told);
        let number = told.as_raw_fd().to_string();
        self.mount_tmpfs();
        self.command.args(SEAL);
        self.filter_system_calls()?;
        self.command.args(["--json-status-fd", &number, "--"]);
        self.command.arg(program).args(args);
        self.inherited.push(told);
        Ok(Jailed {
            command: self.command,
            entry: Entry {
                descent: self.descent,
                inherited: self.inherited,
                runtime_stderr: self.runtime_stderr,
                ..Entry::default()
            },
            status,
        })
    }

    /// Its file systems in memory.
    fn mount_tmpfs(&mut self) {
        let shm = self.shm_size.map(|bytes| (bytes, "/dev/shm"));
        for (bytes, folder) in [(self.tmp_size, "/tmp")].into_iter().chain(shm) {
            if self.version >= TAKES_SIZES {
                self.command.args(["--size", &bytes.to_string()]);
            }
            self.command.args(["--tmpfs", folder]);
        }
    }

    /// Keeps the program to its system calls.
    fn filter_system_calls(&mut self) -> Result<(), Error> {
        if self.version >= KEEPS_NAMESPACES && !self.calls.make_user_namespaces() {
            self.command.arg("--disable-userns");
        }
        let filters = self.calls.filters().map_err(|error| {
            Error::Failed(format!("its system calls cannot be filtered: {error}"))
        })?;
        let (option, count) = match self.version >= TAKES_FILTERS {
            true => ("--add-seccomp-fd", filters.len()),
            // The first alone allows what the others refuse, and the kernel still asks for powers that the program has not.
            false => ("--seccomp", 1),
        };
        for filter in &filters[..count] {
            let file = in_memory(filter).map_err(cannot("keep a file in memory"))?;
            self.command.args([option, &file.as_raw_fd().to_string()]);
            self.inherited.push(file);
        }
        Ok(())
    }
}

/// Looks whether jails can be made here, by making one.
///
/// # Errors
///
/// [`Error::Unavailable`], with what to do about it.
pub fn check() -> Result<(), Error> {
    let none: [&str; 0] = [];
    let Jailed {
        mut command,
        entry,
        status,
    } = Jail::new()?.bind_system().program("true", none)?;
    entry.install(&mut command);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.stderr(Stdio::piped()).spawn();
    let mut child =
        child.map_err(|error| unusable(&format!("unshare cannot be started: {error}")))?;
    drop(command);
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let pidfd = pidfd.map_err(|error| cannot("watch a process")(error.into()))?;
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    if !matches!(poll(&mut ended, Some(&CHECK_LIMIT)), Ok(1)) {
        // It may have ended meanwhile, which is just as well.
        let _ = child.kill();
    }
    let output = child.wait_with_output();
    let output = output.map_err(cannot("wait for a process"))?;
    match exit_code(status) {
        Some(0) => Ok(()),
        _ => Err(unusable(&String::from_utf8_lossy(&output.stderr))),
    }
}

/// The program's exit code, from what bubblewrap has told. None where it never began, or was killed.
pub fn exit_code(mut status: PipeReader) -> Option<u8> {
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
pub fn unusable(said: &str) -> Error {
    let said = said.lines().rfind(|line| !line.is_empty());
    let said = said
        .unwrap_or("it was killed")
        .trim_start_matches("bwrap: ");
    no_namespaces(format!("bubblewrap cannot make a jail ({said})"))
}

/// The error where a namespace could not be made.
pub fn no_namespaces(why: String) -> Error {
    Error::Unavailable {
        why,
        hint: "user namespaces may be switched off, or too few: see the sysctls user.max_user_namespaces, \
               kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
            .into(),
    }
}

/// What of a jail's walls can't be had on this host, each in a few words with what mends it.
pub fn weaknesses(cache: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let version = find_program(BUBBLEWRAP).map(|path| version(&path));
    if let Some((major, minor)) = version.filter(|version| *version < KEEPS_NAMESPACES) {
        found.push((
            format!("bubblewrap {major}.{minor} bounds no /tmp, or keeps no user namespaces from being made"),
            "install bubblewrap 0.8 or later".into(),
        ));
    }
    if !cgroup::can_be_made() {
        found.push((
            "no control group can be made: memory is looked at every 10 ms, and processes are bounded by RLIMIT_NPROC".into(),
            "`systemd-run --user --scope -p Delegate=yes minivm …` runs it where it may make one".into(),
        ));
    }
    if rustix::process::geteuid().is_root() {
        match Descent::prepare() {
            Ok(Some(_)) if !descent::maps_owners(cache) => found.push((
                format!("the file system of {} cannot map owners: what an image keeps for root cannot be read in gVisor", cache.display()),
                "set XDG_CACHE_HOME to a folder on ext4, XFS or Btrfs".into(),
            )),
            Ok(Some(_)) => {}
            _ => found.push((
                "root has no other user here to run jails as".into(),
                "run minivm as an ordinary user, or give the container more users".into(),
            )),
        }
    }
    found
}

/// The version of the bubblewrap that is installed; of none that says it, the oldest.
fn version(bubblewrap: &Path) -> Version {
    static VERSION: OnceLock<Version> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let mut command = Command::new(bubblewrap);
        command.arg("--version").env_clear().stdin(Stdio::null());
        let output = command.output().map(|output| output.stdout);
        parse_version(&String::from_utf8_lossy(&output.unwrap_or_default())).unwrap_or_default()
    })
}

fn parse_version(said: &str) -> Option<Version> {
    let numbers = said.trim().strip_prefix("bubblewrap ")?;
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// A program in `PATH`, but for what of that depends on the working folder.
pub fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Names the action in the error of a system call.
fn cannot(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::Host { action, source }
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
    fn a_jail_can_be_made_here() {
        check().unwrap();
    }

    #[test]
    fn a_version_is_two_numbers() {
        assert_eq!(parse_version("bubblewrap 0.8.0\n"), Some((0, 8)));
        assert_eq!(parse_version("bubblewrap 1.12\n"), Some((1, 12)));
        assert_eq!(parse_version("bwrap 1.12\n"), None);
        assert!((0, 11) > KEEPS_NAMESPACES && (0, 6) < TAKES_SIZES);
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
