//! A jail around a program of the host: its own namespaces for mounts, processes, network, users, host name and IPC, made by
//! bubblewrap, which Flatpak uses for the same purpose.
//!
//! The jail is a second wall behind the sandbox's own, and it leaves nothing behind: the program's processes end with the first
//! of them, which ends with minivm, and its files lie in a tmpfs, which is unmounted with them. This holds even where minivm is
//! killed by SIGKILL.
//!
//! Bubblewrap alone doesn't ensure that from the start: it binds the jail's first process to its own life (PR_SET_PDEATHSIG)
//! only some milliseconds after it has forked it. So bubblewrap is itself the first process of a PID namespace, which `unshare`
//! makes, and all processes below it end with it, however far it has got. It gets a `/proc` of that namespace, where it looks up
//! its own child. (Where minivm is root in a container that hides parts of `/proc`, the jail's `/proc` shows them, as far as modes
//! and users let it.)
//!
//! Three more limits apply to code that breaks out of the sandbox into the jail. It is not root on the host, even where minivm
//! is (`descent`). It may make few system calls (`seccomp`), and programs that need no user namespaces can make none, since a
//! kernel has most to attack there. And what it can write is bounded: `/tmp` has a size, and the jail's other file systems are
//! read-only.

mod cgroup;
mod descent;
mod entry;
pub(crate) mod free_user;
mod quota;
mod seccomp;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use minivm_image::io_error::{HostError, cannot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

pub use cgroup::Cgroup;
pub use descent::{Descent, take_back};
pub use entry::Entry;
pub(crate) use entry::lower_limit;
pub use quota::{CpuGroup, CpuQuota, NotAQuota};
pub use seccomp::Calls;

use crate::streams::in_memory;

const BUBBLEWRAP: &str = "bwrap";
/// A program of util-linux.
const UNSHARE: &str = "unshare";

/// Bubblewrap's last options, after all mounts. A program of root's would be root inside too, with power over the jail's mounts:
/// it could make the host's files, which are bound read-only, writable again. So the program runs as another user without
/// capabilities; Chromium's own sandbox wants that too. The jail's root and `/dev` become read-only; `/tmp` is a tmpfs and stays
/// writable.
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

/// The remedy where a namespace can't be made.
pub(crate) const NAMESPACES_HINT: &str = "user namespaces may be switched off, or too few: see the sysctls user.max_user_namespaces, \
     kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns";

/// The default size of `/tmp` in bytes.
const TMP_SIZE: u64 = 64 << 20;
/// The longest time that [`check`] waits for its jail.
const CHECK_LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// The first version of bubblewrap with `--add-seccomp-fd`, which takes several filters.
const TAKES_FILTERS: Version = (0, 6);
/// The first version with `--size`, for a tmpfs.
const TAKES_SIZES: Version = (0, 7);
/// The first version with `--disable-userns`.
const KEEPS_NAMESPACES: Version = (0, 8);

type Version = (u32, u32);

/// Reasons why a jail can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not installed, or this host doesn't allow jails.
    #[error("{why}; {hint}")]
    Unavailable {
        /// The cause.
        why: String,
        /// The remedy.
        hint: String,
    },
    /// A program of the jail failed.
    #[error("{0}")]
    Failed(String),
    /// A system call of minivm's own failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A builder of jails. A new jail has an empty `/tmp`, `/proc` and a `/dev` of the harmless devices.
pub struct Jail {
    command: Command,
    /// Descriptors that bubblewrap and the program inherit.
    inherited: Vec<OwnedFd>,
    runtime_stderr: Option<RuntimeStderr>,
    /// The user to become; `None` where minivm isn't root.
    descent: Option<Descent>,
    version: Version,
    calls: Calls,
    tmp_size: u64,
    shm_size: Option<u64>,
}

/// A stderr for bubblewrap and the program themselves, where the program is a sandbox whose messages must not be mixed up with
/// those of the code in it.
pub struct RuntimeStderr {
    /// A memory file that becomes their stderr.
    pub log: OwnedFd,
    /// The descriptor under whose number the program finds the task's stderr. `/dev/null` is open under it until then.
    pub(super) stderr: OwnedFd,
}

/// A jail's program, ready to be started.
pub struct Jailed {
    /// The command that starts bubblewrap and the program.
    pub command: Command,
    /// The steps of the new process before exec, and the descriptors that it inherits.
    pub entry: Entry,
    /// The pipe to which bubblewrap writes the program's exit code, if the program started.
    pub status: PipeReader,
}

impl Jail {
    /// Makes an empty jail, whose program may make the system calls of ordinary programs.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] where bubblewrap or `unshare` isn't installed, or root can't become another user.
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
        // A process group of its own, see `kill`. Ctrl-C reaches minivm alone, which acts on it.
        command.process_group(0);
        command.args(["--pid", "--mount-proc", "--fork", "--kill-child"]);
        if !rustix::process::geteuid().is_root() {
            // An ordinary user may make other namespaces only in a user namespace.
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

    /// Sets the system calls that the program may make.
    pub fn calls(mut self, calls: Calls) -> Self {
        self.calls = calls;
        self
    }

    /// Sets the size of `/tmp` in bytes.
    pub fn tmp_size(mut self, bytes: u64) -> Self {
        self.tmp_size = bytes;
        self
    }

    /// Adds a `/dev/shm` of this size in bytes.
    pub fn shm_size(mut self, bytes: u64) -> Self {
        self.shm_size = Some(bytes);
        self
    }

    /// Binds a file or folder of the host inside, read-only.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where minivm is root and can't mount it for the jail's user.
    pub fn bind_read_only(self, host: &Path, inside: impl AsRef<OsStr>) -> Result<Self, Error> {
        self.bind("--ro-bind", host, inside)
    }

    /// Binds a folder of the host inside, writable.
    ///
    /// # Errors
    ///
    /// [`Error::Host`], as [`bind_read_only`](Self::bind_read_only).
    pub fn bind_writable(self, host: &Path, inside: impl AsRef<OsStr>) -> Result<Self, Error> {
        self.bind("--bind", host, inside)
    }

    /// Binds a user's own file or folder inside. What the program makes in it belongs to this user, and no owner changes.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where minivm is root and can't mount it for the jail's user: a writable one is another user's, or its file system
    /// can't map owners.
    pub fn share(
        mut self,
        host: &Path,
        writable: bool,
        inside: impl AsRef<OsStr>,
    ) -> Result<Self, Error> {
        let shown = match &mut self.descent {
            Some(descent) => descent.share(host, writable),
            None => Ok(host.to_owned()),
        };
        let shown = shown.map_err(cannot(format!("share {}", host.display())))?;
        let how = if writable { "--bind" } else { "--ro-bind" };
        self.command.arg(how).arg(shown).arg(inside);
        Ok(self)
    }

    fn bind(mut self, how: &str, host: &Path, inside: impl AsRef<OsStr>) -> Result<Self, Error> {
        let shown = match &mut self.descent {
            Some(descent) => descent.bind(host, how == "--bind"),
            None => Ok(host.to_owned()),
        };
        let shown = shown.map_err(cannot(format!("bind {} in a jail", host.display())))?;
        self.command.arg(how).arg(shown).arg(inside);
        Ok(self)
    }

    /// Binds a path that all users may read, at the same path inside.
    fn bind_public(&mut self, path: &Path) {
        self.command.arg("--ro-bind").arg(path).arg(path);
    }

    /// Binds the host's programs and libraries, and the files of `/etc` that they need.
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

    /// Adds an empty folder, with those above it, none of which is a mount.
    pub fn add_folder(mut self, inside: &str) -> Self {
        self.command.args(["--dir", inside]);
        self
    }

    /// Adds an empty file, with the folders above it, none of which is a mount.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where `/dev/null` can't be opened.
    pub fn add_empty_file(mut self, inside: &str) -> Result<Self, Error> {
        let empty = File::open("/dev/null").map_err(cannot("open /dev/null"))?;
        let number = empty.as_raw_fd().to_string();
        self.command.args(["--file", &number, inside]);
        self.inherited.push(empty.into());
        Ok(self)
    }

    /// Adds a file of these bytes, read-only.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where there is no memory to keep them.
    pub fn add_file(self, bytes: &[u8], inside: &str) -> Result<Self, Error> {
        let file = in_memory(bytes).map_err(cannot("keep a file in memory"))?;
        Ok(self.copy_file(file, inside))
    }

    /// Adds a copy of an open file, read-only.
    pub fn copy_file(mut self, file: OwnedFd, inside: &str) -> Self {
        let number = file.as_raw_fd().to_string();
        self.command.args(["--ro-bind-data", &number, inside]);
        self.inherited.push(file);
        self
    }

    /// Lets the program inherit a descriptor, which keeps its number.
    pub fn inherit(mut self, file: OwnedFd) -> Self {
        self.inherited.push(file);
        self
    }

    /// Redirects the stderr of bubblewrap and the program to a memory file. Returns that file, and the number under which the
    /// program finds the task's stderr.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where a file can't be opened.
    pub fn capture_runtime_stderr(mut self) -> Result<(Self, File, RawFd), Error> {
        let log = in_memory(b"").map_err(cannot("keep a file in memory"))?;
        let copy = log.try_clone().map_err(cannot("copy an open file"))?;
        let stderr = OwnedFd::from(File::open("/dev/null").map_err(cannot("open /dev/null"))?);
        let number = stderr.as_raw_fd();
        self.runtime_stderr = Some(RuntimeStderr { log, stderr });
        Ok((self, copy.into(), number))
    }

    /// Sets a variable of the environment, which is otherwise empty.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.arg("--setenv").arg(name).arg(value);
        self
    }

    /// Closes the jail around a program, given by its path inside.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where a pipe or a memory file can't be made, [`Error::Failed`] where the filters of system calls can't.
    pub fn program<S: AsRef<OsStr>>(
        mut self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Jailed, Error> {
        let (status, reporter) = io::pipe().map_err(cannot("create a pipe"))?;
        let reporter = OwnedFd::from(reporter);
        let number = reporter.as_raw_fd().to_string();
        self.mount_tmpfs();
        self.command.args(SEAL);
        self.filter_system_calls()?;
        self.command.args(["--json-status-fd", &number, "--"]);
        self.command.arg(program).args(args);
        self.inherited.push(reporter);
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

    /// Mounts the tmpfs on `/tmp`, and that on `/dev/shm`.
    fn mount_tmpfs(&mut self) {
        let shm = self.shm_size.map(|bytes| (bytes, "/dev/shm"));
        for (bytes, folder) in [(self.tmp_size, "/tmp")].into_iter().chain(shm) {
            if self.version >= TAKES_SIZES {
                self.command.args(["--size", &bytes.to_string()]);
            }
            self.command.args(["--tmpfs", folder]);
        }
    }

    /// Restricts the program to its system calls.
    fn filter_system_calls(&mut self) -> Result<(), Error> {
        if self.version >= KEEPS_NAMESPACES && !self.calls.make_user_namespaces() {
            self.command.arg("--disable-userns");
        }
        let filters = self.calls.filters().map_err(|error| {
            Error::Failed(format!(
                "the jail's system calls cannot be filtered: {error}"
            ))
        })?;
        let (option, count) = match self.version >= TAKES_FILTERS {
            true => ("--add-seccomp-fd", filters.len()),
            // The first alone allows what the others refuse; for these calls the kernel still requires capabilities, which the
            // program lacks.
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

/// Makes a jail and runs `true` in it, to find out whether this host allows jails.
///
/// # Errors
///
/// [`Error::Unavailable`] with the remedy, or [`Error::Host`] where a system call of minivm's own failed.
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
    let child = child.map_err(|error| unusable(&format!("unshare cannot be started: {error}")))?;
    drop(command);
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let pidfd = pidfd.map_err(|error| cannot("watch a process")(error.into()))?;
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    if !matches!(poll(&mut ended, Some(&CHECK_LIMIT)), Ok(1)) {
        kill(&child);
    }
    let output = child.wait_with_output();
    let output = output.map_err(cannot("wait for a process"))?;
    match exit_code(status) {
        Some(0) => Ok(()),
        _ => Err(unusable(&String::from_utf8_lossy(&output.stderr))),
    }
}

/// Kills a jail, of which `child` is the `unshare` that has not been waited for.
///
/// `unshare` binds the life of the process that it forks to its own only after the fork. Killed in between, it would leave that process
/// behind, with all that is below it; but both are in one process group from the start.
pub fn kill(child: &Child) {
    // An error means that it has ended meanwhile.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
}

/// Reads the program's exit code from bubblewrap's status pipe, which it reads to its end. `None` where the program never
/// started, or bubblewrap was killed.
pub fn exit_code(mut status: PipeReader) -> Option<u8> {
    let mut json = String::new();
    status.read_to_string(&mut json).ok()?;
    let (_, code) = json.rsplit_once("\"exit-code\":")?;
    let digits = code
        .trim_start()
        .split(|c: char| !c.is_ascii_digit())
        .next();
    digits?.parse().ok()
}

/// Makes the error of a bubblewrap that wrote this to stderr instead of starting its program.
pub fn unusable(stderr: &str) -> Error {
    let last = stderr.lines().rfind(|line| !line.is_empty());
    let why = last
        .unwrap_or("it was killed")
        .trim_start_matches("bwrap: ");
    no_namespaces(format!("bubblewrap cannot make a jail ({why})"))
}

/// Makes the error of a namespace that can't be made, with the sysctls that may forbid it.
pub fn no_namespaces(why: String) -> Error {
    Error::Unavailable {
        why,
        hint: NAMESPACES_HINT.into(),
    }
}

/// Returns the parts of a jail that this host doesn't provide, each with its remedy.
pub fn weaknesses(cache: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let version = find_program(BUBBLEWRAP).map(|path| version(&path));
    if let Some((major, minor)) = version.filter(|version| *version < KEEPS_NAMESPACES) {
        found.push((
            format!(
                "bubblewrap {major}.{minor} cannot limit the size of /tmp or forbid user namespaces"
            ),
            "install bubblewrap 0.8 or later".into(),
        ));
    }
    if !cgroup::can_be_made() {
        found.push((
            "no control group can be made: memory is sampled every 10 ms, and processes are limited by RLIMIT_NPROC".into(),
            "`systemd-run --user --scope -p Delegate=yes minivm …` runs minivm where it may make one".into(),
        ));
    }
    if rustix::process::geteuid().is_root() {
        match Descent::prepare() {
            Ok(Some(_)) if !descent::maps_owners(cache) => found.push((
                format!("the file system of {} cannot map owners: files that only root may read cannot be read in gVisor", cache.display()),
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

/// Returns the version of the installed bubblewrap; 0.0 where its output has none.
fn version(bubblewrap: &Path) -> Version {
    static VERSION: OnceLock<Version> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let mut command = Command::new(bubblewrap);
        command.arg("--version").env_clear().stdin(Stdio::null());
        let output = command.output().map(|output| output.stdout);
        parse_version(&String::from_utf8_lossy(&output.unwrap_or_default())).unwrap_or_default()
    })
}

fn parse_version(output: &str) -> Option<Version> {
    let numbers = output.trim().strip_prefix("bubblewrap ")?;
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Finds a program in the absolute folders of `PATH`.
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

    fn exit_code_in(text: &str) -> Option<u8> {
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
    fn a_program_that_never_started_has_no_exit_code() {
        assert_eq!(
            exit_code_in("{ \"child-pid\": 7 }\n{ \"exit-code\": 42 }\n"),
            Some(42)
        );
        assert_eq!(exit_code_in("{ \"child-pid\": 7 }\n"), None);
        assert_eq!(exit_code_in(""), None);
    }
}
