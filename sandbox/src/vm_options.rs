//! The task's options for a virtual machine alone, and the request to its init that a task becomes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use minivm_guest::channel::{Request, Rlimit, Tmpfs, Window};
use minivm_image::Config;
use minivm_machine::output::Pending;
use minivm_machine::{Accel, Files, Watching};

use crate::{Capability, Error, Program, Task, python};

/// The host name of sandboxes.
pub(super) const HOSTNAME: &str = "minivm";
/// The longest host name in bytes: Linux's `__NEW_UTS_LEN`.
const HOSTNAME_MAX: usize = 64;

/// The program that runs a [`Program::Command`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Entrypoint {
    /// No entrypoint: the command is a program and its arguments.
    #[default]
    Nothing,
    /// The image's entrypoint, with the command as its arguments; with an empty command, the image's own arguments.
    Image,
    /// This program, with the command as its arguments.
    Program(OsString),
}

/// A function that is called when a machine runs, with its place, and whether it was resumed from a template.
pub type Started = Box<dyn FnOnce(&Accel, bool) + Send>;

/// Options of a task that only a virtual machine supports. The default sets none of them.
#[derive(Default)]
pub struct VmOptions {
    /// The program that runs the command.
    pub entrypoint: Entrypoint,
    /// The user and group, as `USER[:GROUP]`; `None` for the image's own.
    pub user: Option<String>,
    /// The working folder, an absolute path; `None` for the image's own.
    pub cwd: Option<OsString>,
    /// The guest's host name, of 1 to 64 bytes.
    pub hostname: Option<String>,
    /// Whether the root file system refuses writes.
    pub read_only: bool,
    /// Whether the command may gain privileges by set-user-ID programs and file capabilities.
    pub privileged: bool,
    /// Resource limits of the command.
    pub rlimits: Vec<Rlimit>,
    /// The size of /dev/shm in bytes.
    pub shm_size: Option<u64>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// The size of the command's terminal, if it gets one.
    pub terminal: Option<Window>,
    /// Files and folders to copy out of the guest when the command has ended.
    pub copy_out: Vec<Files>,
    /// How long copying out may take once the time limit has been reached; `None` to copy nothing after the limit.
    pub copy_out_grace: Option<Duration>,
    /// A flag that is set while an output is being written, and stays set while its reader takes nothing.
    pub pending: Pending,
    /// Called where the session hasn't ended a second after the time limit, because the reader of an output takes nothing.
    pub overdue: Option<Box<dyn FnOnce() + Send>>,
    /// Called when the machine runs.
    pub started: Option<Started>,
    /// Called before the machine is started, for the watch over its exits. A machine in the lab then boots, also where there is a template
    /// for it.
    pub watch: Option<Watching>,
}

impl VmOptions {
    /// Returns the capabilities that a sandbox needs for these options.
    pub(super) fn needs(&self) -> impl Iterator<Item = Capability> {
        let needs = [
            (self.changes_the_container(), Capability::Container),
            (self.terminal.is_some(), Capability::Terminal),
            (!self.copy_out.is_empty(), Capability::CopyOut),
            (self.watch.is_some(), Capability::Machine),
        ];
        needs
            .into_iter()
            .filter_map(|(needed, what)| needed.then_some(what))
    }

    fn changes_the_container(&self) -> bool {
        self.entrypoint != Entrypoint::Nothing
            || self.user.is_some()
            || self.cwd.is_some()
            || self.hostname.is_some()
            || self.read_only
            || self.privileged
            || !self.rlimits.is_empty()
            || self.shm_size.is_some()
            || !self.tmpfs.is_empty()
    }
}

impl Task {
    /// Checks that the task can run in an image with this configuration. `Sandbox::run` checks it too, but only after the image
    /// has been unpacked.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] where there is no command, or the working folder or host name is not valid, and [`Error::Code`].
    pub fn check(&self, config: &Config) -> Result<(), Error> {
        self.request(config).map(drop)
    }

    /// Makes the request to `minivm-init` in an image with this configuration. The task's variables follow the image's.
    pub(super) fn request(&self, config: &Config) -> Result<Request, Error> {
        let options = &self.vm;
        let argv = self.argv(config)?;
        if argv.is_empty() {
            let text = "the image names no command of its own: give one after `--`";
            return Err(Error::Request(text.into()));
        }
        let mut env = texts(&config.env);
        let own = self.env.iter();
        env.extend(own.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()));
        let cwd = match &options.cwd {
            Some(folder) => folder.as_bytes().to_vec(),
            None => config.working_dir.clone().into_bytes(),
        };
        if !cwd.is_empty() && !cwd.starts_with(b"/") {
            let text = "the working folder must be an absolute path";
            return Err(Error::Request(text.into()));
        }
        Ok(Request {
            argv,
            env,
            cwd,
            user: options.user.clone().unwrap_or_else(|| config.user.clone()),
            hostname: self.hostname()?,
            terminal: options.terminal,
            read_only: options.read_only,
            privileged: options.privileged,
            rlimits: options.rlimits.clone(),
            shm_size: options.shm_size,
            tmpfs: options.tmpfs.clone(),
            ..Request::default()
        })
    }

    /// Returns the command. The image's Python runs code, without the image's entrypoint.
    fn argv(&self, config: &Config) -> Result<Vec<Vec<u8>>, Error> {
        let words = match &self.program {
            Program::Command(words) => words,
            Program::Code(code) => {
                return Ok(python(code)?.into_iter().map(OsString::into_vec).collect());
            }
            // Unreachable: no backend with images declares snapshots.
            Program::Resume { .. } => return Ok(Vec::new()),
        };
        let mut argv = match &self.vm.entrypoint {
            Entrypoint::Image => texts(&config.entrypoint),
            Entrypoint::Program(program) => vec![program.as_bytes().to_vec()],
            Entrypoint::Nothing => Vec::new(),
        };
        match (&**words, &self.vm.entrypoint) {
            ([], Entrypoint::Image) => argv.extend(texts(&config.cmd)),
            (words, _) => argv.extend(words.iter().map(|word| word.as_bytes().to_vec())),
        }
        Ok(argv)
    }

    fn hostname(&self) -> Result<String, Error> {
        let name = self.vm.hostname.as_deref().unwrap_or(HOSTNAME);
        match name.is_empty() || name.len() > HOSTNAME_MAX || name.contains(['\0', '\n', '/']) {
            true => Err(Error::Request(format!(
                "{name:?} is not a valid host name: it has 1 to 64 characters"
            ))),
            false => Ok(name.to_owned()),
        }
    }
}

fn texts(all: &[String]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.clone().into_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            entrypoint: vec!["/entry".into(), "-x".into()],
            cmd: vec!["cmd".into()],
            env: vec!["A=1".into(), "B=2".into()],
            working_dir: "/srv".into(),
            user: "app".into(),
            ..Config::default()
        }
    }

    fn task(entrypoint: Entrypoint, words: &[&str]) -> Task {
        let words = words.iter().map(Into::into).collect();
        let mut task = Task::new(Program::Command(words));
        task.vm.entrypoint = entrypoint;
        task
    }

    #[test]
    fn entrypoint_and_command_combine_as_in_containers() {
        let argv = |entrypoint, words: &[&str]| {
            let argv = task(entrypoint, words).request(&config()).unwrap().argv;
            let text = |word| String::from_utf8(word).unwrap();
            argv.into_iter().map(text).collect::<Vec<_>>()
        };
        let shell = || Entrypoint::Program("/bin/sh".into());
        assert_eq!(argv(Entrypoint::Image, &[]), ["/entry", "-x", "cmd"]);
        assert_eq!(
            argv(Entrypoint::Image, &["a", "b"]),
            ["/entry", "-x", "a", "b"]
        );
        assert_eq!(argv(shell(), &[]), ["/bin/sh"]);
        assert_eq!(argv(shell(), &["-c", "x"]), ["/bin/sh", "-c", "x"]);
        assert_eq!(argv(Entrypoint::Nothing, &["ls"]), ["ls"]);
        let nothing = task(Entrypoint::Nothing, &[]).request(&config());
        assert!(matches!(nothing, Err(Error::Request(_))));
    }

    #[test]
    fn code_runs_in_the_images_python_without_its_entrypoint() {
        let mut task = Task::code("pass");
        task.vm.entrypoint = Entrypoint::Image;
        let request = task.request(&config()).unwrap();
        assert_eq!(request.argv, [&b"python3"[..], b"-u", b"-c", b"pass"]);
    }

    #[test]
    fn the_tasks_options_override_the_images() {
        let plain = task(Entrypoint::Image, &[]).request(&config()).unwrap();
        assert_eq!((&*plain.cwd, &*plain.user), (&b"/srv"[..], "app"));
        assert_eq!(plain.hostname, "minivm");
        let mut own = task(Entrypoint::Image, &[]);
        own.env = vec![("A".into(), "3".into())];
        own.vm.cwd = Some("/tmp".into());
        own.vm.user = Some("0".into());
        own.vm.hostname = Some("box".into());
        let request = own.request(&config()).unwrap();
        assert_eq!((&*request.cwd, &*request.user), (&b"/tmp"[..], "0"));
        assert_eq!(request.hostname, "box");
        assert_eq!(request.env, [&b"A=1"[..], b"B=2", b"A=3"]);
    }

    #[test]
    fn invalid_options_are_refused_by_name() {
        let refused = |change: fn(&mut VmOptions)| {
            let mut task = task(Entrypoint::Image, &[]);
            change(&mut task.vm);
            task.check(&config()).unwrap_err().to_string()
        };
        let error = refused(|options| options.cwd = Some("tmp".into()));
        assert!(error.contains("absolute path"), "{error}");
        let error = refused(|options| options.hostname = Some("a/b".into()));
        assert!(
            error.starts_with("\"a/b\" is not a valid host name"),
            "{error}"
        );
        assert!(!refused(|options| options.hostname = Some(String::new())).is_empty());
    }

    #[test]
    fn variables_need_not_be_text() {
        let mut task = Task::code("pass");
        let odd = OsString::from_vec(b"\xff=".to_vec());
        task.env = vec![("A".into(), odd.clone()), (odd, "1".into())];
        let request = task.request(&Config::default()).unwrap();
        assert_eq!(request.env, [&b"A=\xff="[..], b"\xff==1"]);
    }
}
