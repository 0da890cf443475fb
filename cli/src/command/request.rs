//! Flags that container users know: what a command is to be run with.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use minivm_guest::channel::{Rlimit, Tmpfs};
use minivm_machine::{CopyIn, Files};
use minivm_sandbox::{Capability, Entrypoint, Task};
use rustix::process::Resource;

use super::guest_path::is_below_root;
use super::tmpfs::tmpfs;
use super::volume::VolumeArgs;
use super::{units, variables};

/// Flags of `run` that container users know.
#[derive(Args)]
pub(super) struct RequestArgs {
    /// Set an environment variable; without a value, pass the host's
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Environment")]
    env: Vec<OsString>,
    /// Read environment variables from a file, one a line
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Environment",
        hide_short_help = true
    )]
    env_file: Vec<PathBuf>,
    /// Working folder
    #[arg(
        short,
        long,
        value_name = "FOLDER",
        help_heading = "Container",
        hide_short_help = true
    )]
    workdir: Option<OsString>,
    /// User and group, by name or number
    #[arg(
        short,
        long,
        value_name = "USER[:GROUP]",
        help_heading = "Container",
        hide_short_help = true
    )]
    user: Option<String>,
    /// Program to run instead of the image's entrypoint; an empty value means no entrypoint
    #[arg(
        long,
        value_name = "PROGRAM",
        help_heading = "Container",
        hide_short_help = true
    )]
    entrypoint: Option<OsString>,
    /// Machine's name, and the guest's host name unless --hostname is given
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Container",
        hide_short_help = true
    )]
    name: Option<String>,
    /// Guest's host name
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Container",
        hide_short_help = true
    )]
    hostname: Option<String>,
    /// Mount the root file system read-only
    #[arg(long, help_heading = "Container", hide_short_help = true)]
    read_only: bool,
    /// Let the command gain privileges by set-user-ID programs and file capabilities
    #[arg(long, help_heading = "Container", hide_short_help = true)]
    privileged: bool,
    /// Set a resource limit, such as nofile=1024 or nproc=100:200
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit, help_heading = "Container", hide_short_help = true)]
    ulimit: Vec<Rlimit>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", value_parser = shm_size, help_heading = "Container", hide_short_help = true)]
    shm_size: Option<u64>,
    /// Mount a file system in memory, with options of mount's and of tmpfs's
    ///
    /// Without size=SIZE it takes half of the guest's memory at most. With size=0 it has no limit, as in Docker: all memory may go to it.
    #[arg(long, value_name = "PATH[:OPTIONS]", value_parser = tmpfs, help_heading = "Container", hide_short_help = true)]
    tmpfs: Vec<Tmpfs>,
    #[command(flatten)]
    pub(super) volumes: VolumeArgs,
    /// Copy a file or folder into the guest before CMD runs; a DST that ends with / is a folder
    #[arg(long, value_name = "SRC:DST", value_parser = OsStringValueParser::new().try_map(files_in), help_heading = "Files")]
    copy_in: Vec<Files>,
    /// Copy a file or folder out of the guest when CMD has ended
    #[arg(long, value_name = "SRC:DST", value_parser = OsStringValueParser::new().try_map(files), help_heading = "Files")]
    copy_out: Vec<Files>,
    /// Copy out at the time limit, too, as the files are when CMD has been killed
    #[arg(
        long,
        requires = "copy_out",
        help_heading = "Files",
        hide_short_help = true
    )]
    copy_out_on_timeout: bool,
    /// How long copying out may take after the time limit
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = units::duration, requires = "copy_out_on_timeout", help_heading = "Files", hide_short_help = true)]
    copy_out_grace: Duration,
}

impl RequestArgs {
    /// The variables that flags set, `NAME=value` each.
    fn entries(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(variables::of_file(file)?);
        }
        for entry in &self.env {
            env.extend(variables::given(entry.clone().into_vec())?);
        }
        Ok(env)
    }

    /// The names and values of these.
    fn variables(&self) -> anyhow::Result<Vec<(OsString, OsString)>> {
        let apart = |entry: Vec<u8>| {
            let mut parts = entry.splitn(2, |&byte| byte == b'=');
            let mut next = || OsString::from_vec(parts.next().unwrap_or_default().to_vec());
            (next(), next())
        };
        Ok(self.entries()?.into_iter().map(apart).collect())
    }

    /// The flags that were given, each with what a backend must be able to do to honour it.
    pub(super) fn given(&self) -> impl Iterator<Item = (&'static str, Capability)> {
        use Capability::{Container, CopyOut, Environment, Files};
        let flags = [
            (!self.env.is_empty(), "--env", Environment),
            (!self.env_file.is_empty(), "--env-file", Environment),
            (!self.copy_in.is_empty(), "--copy-in", Files),
            (self.workdir.is_some(), "--workdir", Container),
            (self.user.is_some(), "--user", Container),
            (self.entrypoint.is_some(), "--entrypoint", Container),
            (self.name.is_some(), "--name", Container),
            (self.hostname.is_some(), "--hostname", Container),
            (self.read_only, "--read-only", Container),
            (self.privileged, "--privileged", Container),
            (!self.ulimit.is_empty(), "--ulimit", Container),
            (self.shm_size.is_some(), "--shm-size", Container),
            (!self.tmpfs.is_empty(), "--tmpfs", Container),
            (!self.copy_out.is_empty(), "--copy-out", CopyOut),
        ];
        flags
            .into_iter()
            .chain(self.volumes.given())
            .filter_map(|(given, flag, needs)| given.then_some((flag, needs)))
    }

    /// Sets what the flags say of the task's surroundings. Where the backend runs whole container images, `is_container`, the image's own
    /// entrypoint runs the command unless a flag names another one.
    pub(super) fn set(&self, task: &mut Task, is_container: bool) -> anyhow::Result<()> {
        task.env = self.variables()?;
        task.files = CopyIn::of(self.copy_in.clone())?;
        task.volumes = self.volumes.volumes()?;
        let options = &mut task.vm;
        options.entrypoint = match &self.entrypoint {
            None if is_container => Entrypoint::Image,
            None => Entrypoint::Nothing,
            Some(none) if none.is_empty() => Entrypoint::Nothing,
            Some(program) => Entrypoint::Program(program.clone()),
        };
        options.user.clone_from(&self.user);
        options.cwd.clone_from(&self.workdir);
        options.hostname = self.hostname.clone().or_else(|| self.name.clone());
        options.read_only = self.read_only;
        options.privileged = self.privileged;
        options.rlimits.clone_from(&self.ulimit);
        options.shm_size = self.shm_size;
        options.tmpfs.clone_from(&self.tmpfs);
        options.copy_out.clone_from(&self.copy_out);
        options.copy_out_grace = self.copy_out_on_timeout.then_some(self.copy_out_grace);
        Ok(())
    }
}

/// Parses a copy. Its paths may have any bytes.
fn files(text: OsString) -> Result<Files, String> {
    let bytes = text.as_bytes();
    let colon = bytes.iter().rposition(|&byte| byte == b':');
    match colon.map(|colon| (&bytes[..colon], &bytes[colon + 1..])) {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok(Files {
            from: OsStr::from_bytes(from).into(),
            to: OsStr::from_bytes(to).into(),
        }),
        _ => Err("expected SRC:DST, a path here and a path in the guest".into()),
    }
}

/// Parses a copy into the guest, whose DST is an absolute path.
fn files_in(text: OsString) -> Result<Files, String> {
    let files = files(text)?;
    let is_named = files.to == Path::new("/") && files.from.file_name().is_some();
    match is_below_root(&files.to) || is_named {
        true => Ok(files),
        false => Err("DST has to be an absolute path, without `..`, and with a name".into()),
    }
}

/// Parses the size of /dev/shm. Tmpfs takes 0 for no limit, and Docker for its default: neither is what the number says.
fn shm_size(text: &str) -> Result<u64, String> {
    match units::bytes(text)? {
        0 => Err("it has to be more than nothing".into()),
        size => Ok(size),
    }
}

fn ulimit(text: &str) -> Result<Rlimit, String> {
    let expected =
        || format!("{text:?} is not a valid limit: expected NAME=SOFT[:HARD], such as nofile=1024");
    let (name, values) = text.split_once('=').ok_or_else(expected)?;
    let resource = match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "memlock" => Resource::Memlock,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "stack" => Resource::Stack,
        _ => return Err(format!("there is no limit called {name}")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let value = |text: &str| match text {
        "unlimited" => Ok(u64::MAX),
        number => number.parse().map_err(|_| expected()),
    };
    let (soft, hard) = (value(soft)?, value(hard)?);
    if soft > hard {
        return Err(format!(
            "{text:?}: the soft limit is more than the hard one"
        ));
    }
    Ok(Rlimit {
        resource: resource as u32,
        soft,
        hard,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RequestArgs,
        command: Vec<OsString>,
    }

    fn task(line: &[&str]) -> Task {
        let line = Line::try_parse_from(["test"].iter().chain(line)).unwrap();
        let mut task = Task::code("pass");
        line.args.set(&mut task, true).unwrap();
        task
    }

    #[test]
    fn an_empty_entrypoint_is_none_and_no_flag_is_the_images() {
        let entrypoint = |line: &[&str]| task(line).vm.entrypoint;
        assert_eq!(entrypoint(&[]), Entrypoint::Image);
        assert_eq!(entrypoint(&["--entrypoint", ""]), Entrypoint::Nothing);
        let shell = Entrypoint::Program("/bin/sh".into());
        assert_eq!(entrypoint(&["--entrypoint", "/bin/sh"]), shell);
    }

    #[test]
    fn the_machines_name_is_its_host_name_where_no_other_is_given() {
        let hostname = |line: &[&str]| task(line).vm.hostname;
        assert_eq!(hostname(&[]), None);
        assert_eq!(hostname(&["--name", "box"]).as_deref(), Some("box"));
        let both = hostname(&["--name", "box", "--hostname", "host"]);
        assert_eq!(both.as_deref(), Some("host"));
    }

    #[test]
    fn a_flag_names_what_it_needs() {
        let line = ["-w", "/tmp", "-e", "A=1", "--copy-out", "a:b"];
        let line = Line::try_parse_from(["test"].iter().chain(&line)).unwrap();
        let given: Vec<_> = line.args.given().collect();
        assert_eq!(
            given,
            [
                ("--env", Capability::Environment),
                ("--workdir", Capability::Container),
                ("--copy-out", Capability::CopyOut)
            ]
        );
    }

    #[test]
    fn variables_are_taken_apart_at_the_first_equals_sign() {
        let line = ["-e", "A=1=2", "-e", "B=", "-e", "MINIVM_TEST_NOT_SET"];
        let line = Line::try_parse_from(["test"].iter().chain(&line)).unwrap();
        let variables = line.args.variables().unwrap();
        assert_eq!(
            variables,
            [("A".into(), "1=2".into()), ("B".into(), "".into())]
        );
    }

    #[test]
    fn limits_have_a_name_and_one_or_two_values() {
        let nofile = |soft, hard| Rlimit {
            resource: Resource::Nofile as u32,
            soft,
            hard,
        };
        assert_eq!(ulimit("nofile=10"), Ok(nofile(10, 10)));
        assert_eq!(ulimit("nofile=10:unlimited"), Ok(nofile(10, u64::MAX)));
        for wrong in ["nofile", "nofile=", "nofile=x", "files=1", "nofile=2:1"] {
            assert!(ulimit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn copies_are_split_at_the_last_colon() {
        let split = files("a:b:/c".into()).unwrap();
        assert_eq!((split.from, split.to), ("a:b".into(), "/c".into()));
        for wrong in ["a", ":b", "a:"] {
            assert!(files(wrong.into()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_copy_into_the_guest_goes_to_an_absolute_path() {
        for right in ["a:/b", "a:/b/", "a:/", ".:/b", "a:/./b"] {
            assert!(files_in(right.into()).is_ok(), "{right}");
        }
        for wrong in ["a:b", "a:./b", "a:/../b", "a:/b/..", ".:/", "..:/"] {
            assert!(files_in(wrong.into()).is_err(), "{wrong}");
        }
        let odd = OsString::from_vec(b"\xff:/\xff".to_vec());
        assert_eq!(files_in(odd).unwrap().from.as_os_str().as_bytes(), b"\xff");
        let missing = ["--copy-in", "/nowhere/at/all:/x"];
        let line = Line::try_parse_from(["test"].iter().chain(&missing)).unwrap();
        let error = line.args.set(&mut Task::code("pass"), true).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.starts_with("cannot copy /nowhere/at/all into"),
            "{error}"
        );
    }
}
