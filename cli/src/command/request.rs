//! What a command is to be run with, from the flags and the image.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use minivm_guest::channel::{Request, Rlimit, Tmpfs};
use minivm_image::Config;
use minivm_machine::{Files, check_copies};

use super::tmpfs::tmpfs;
use super::{units, variables};

/// As container users know them.
#[derive(Args)]
pub(super) struct RequestArgs {
    /// Set an environment variable; without a value, pass the host's on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Read environment variables from a file, a line each
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working folder
    #[arg(short, long, value_name = "FOLDER")]
    workdir: Option<OsString>,
    /// User, and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Run this program instead of the image's entrypoint; an empty one means none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<OsString>,
    /// The machine's name; the guest's host name too, where --hostname doesn't say otherwise
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The guest's host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Let nothing be written to the root file system
    #[arg(long)]
    read_only: bool,
    /// Let the command gain privileges by set-user-ID programs and file capabilities
    #[arg(long)]
    privileged: bool,
    /// Set a resource limit, such as nofile=1024 or nproc=100:200
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit)]
    ulimit: Vec<Rlimit>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", value_parser = shm_size)]
    shm_size: Option<u64>,
    /// Mount a file system in memory, with mount's options and tmpfs's own
    #[arg(long, value_name = "PATH[:OPTIONS]", value_parser = tmpfs)]
    tmpfs: Vec<Tmpfs>,
    /// Copy a file or folder into the guest before the command runs; a DST that ends with / is a folder
    #[arg(long, value_name = "SRC:DST", value_parser = files_in)]
    pub(super) copy_in: Vec<Files>,
    /// Copy a file or folder out of the guest when the command has ended
    #[arg(long, value_name = "SRC:DST", value_parser = files)]
    pub(super) copy_out: Vec<Files>,
    /// Copy them at the time limit, too: CMD is killed, and they are copied as they are then
    #[arg(long, requires = "copy_out")]
    copy_out_on_timeout: bool,
    /// How long that may take
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = units::duration, requires = "copy_out_on_timeout")]
    copy_out_grace: Duration,
}

impl RequestArgs {
    /// What is missing here is better found before a machine runs. Says how many bytes are to be copied in.
    pub(super) fn check(&self) -> anyhow::Result<u64> {
        Ok(check_copies(&self.copy_in)?)
    }

    /// How long files may be copied out once the time limit has been reached.
    pub(super) fn copy_out_grace(&self) -> Option<Duration> {
        self.copy_out_on_timeout.then_some(self.copy_out_grace)
    }

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

    /// The same as names and values.
    pub(super) fn variables(&self) -> anyhow::Result<Vec<(OsString, OsString)>> {
        let apart = |entry: Vec<u8>| {
            let mut parts = entry.splitn(2, |&byte| byte == b'=');
            let mut next = || OsString::from_vec(parts.next().unwrap_or_default().to_vec());
            (next(), next())
        };
        Ok(self.entries()?.into_iter().map(apart).collect())
    }

    /// The first flag that only a microVM knows, if one is given.
    pub(super) fn beyond_backends(&self) -> Option<&'static str> {
        let flags = [
            (self.workdir.is_some(), "--workdir"),
            (self.user.is_some(), "--user"),
            (self.entrypoint.is_some(), "--entrypoint"),
            (self.name.is_some(), "--name"),
            (self.hostname.is_some(), "--hostname"),
            (self.read_only, "--read-only"),
            (self.privileged, "--privileged"),
            (!self.ulimit.is_empty(), "--ulimit"),
            (self.shm_size.is_some(), "--shm-size"),
            (!self.tmpfs.is_empty(), "--tmpfs"),
            (!self.copy_out.is_empty(), "--copy-out"),
        ];
        flags
            .into_iter()
            .find(|(given, _)| *given)
            .map(|(_, flag)| flag)
    }

    /// What is asked for, where the flags have the last word.
    pub(super) fn request(&self, config: &Config, command: &[OsString]) -> anyhow::Result<Request> {
        let bytes = |text: &OsString| text.clone().into_vec();
        let texts = |all: &[String]| -> Vec<Vec<u8>> {
            all.iter().map(|text| text.clone().into_bytes()).collect()
        };
        let mut argv = match &self.entrypoint {
            None => texts(&config.entrypoint),
            Some(none) if none.is_empty() => Vec::new(),
            Some(program) => vec![bytes(program)],
        };
        match (command, &self.entrypoint) {
            ([], None) => argv.extend(texts(&config.cmd)),
            (command, _) => argv.extend(command.iter().map(bytes)),
        }
        if argv.is_empty() {
            bail!("the image names no command of its own: say which to run, behind `--`");
        }
        let mut env = texts(&config.env);
        env.extend(self.entries()?);
        let cwd = match &self.workdir {
            Some(folder) => bytes(folder),
            None => config.working_dir.clone().into_bytes(),
        };
        if !cwd.is_empty() && !cwd.starts_with(b"/") {
            bail!("the working folder must be an absolute path");
        }
        let name = self.hostname.as_ref().or(self.name.as_ref());
        let hostname = name.cloned().unwrap_or_else(|| "minivm".into());
        if hostname.is_empty() || hostname.len() > 64 || hostname.contains(['\0', '\n', '/']) {
            bail!("{hostname:?} is no host name: it has 1 to 64 characters");
        }
        Ok(Request {
            argv,
            env,
            cwd,
            user: self.user.clone().unwrap_or_else(|| config.user.clone()),
            hostname,
            read_only: self.read_only,
            privileged: self.privileged,
            rlimits: self.ulimit.clone(),
            shm_size: self.shm_size,
            tmpfs: self.tmpfs.clone(),
            ..Request::default()
        })
    }
}

fn files(text: &str) -> Result<Files, String> {
    match text.rsplit_once(':') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok(Files {
            from: from.into(),
            to: to.into(),
        }),
        _ => Err("expected SRC:DST, a path here and a path in the guest".into()),
    }
}

/// The same into the guest, where no folder is the current one.
fn files_in(text: &str) -> Result<Files, String> {
    let files = files(text)?;
    let mut parts = files.to.components();
    let plain = parts.next() == Some(Component::RootDir)
        && parts.all(|part| matches!(part, Component::Normal(_)));
    let has_name = files.to != Path::new("/") || files.from.file_name().is_some();
    match plain && has_name {
        true => Ok(files),
        false => Err("DST has to be an absolute path, without `..`, and with a name".into()),
    }
}

/// A size of something: for tmpfs, nothing means no limit.
fn shm_size(text: &str) -> Result<u64, String> {
    match units::bytes(text)? {
        0 => Err("it has to be more than nothing".into()),
        size => Ok(size),
    }
}

fn ulimit(text: &str) -> Result<Rlimit, String> {
    let expected =
        || format!("{text:?} is no limit: expected NAME=SOFT[:HARD], such as nofile=1024");
    let (name, values) = text.split_once('=').ok_or_else(expected)?;
    let resource = match name {
        "as" => libc::RLIMIT_AS,
        "core" => libc::RLIMIT_CORE,
        "cpu" => libc::RLIMIT_CPU,
        "data" => libc::RLIMIT_DATA,
        "fsize" => libc::RLIMIT_FSIZE,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "nofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "stack" => libc::RLIMIT_STACK,
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
        resource,
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

    fn request(line: &[&str]) -> anyhow::Result<Request> {
        let line = Line::try_parse_from(["test"].iter().chain(line)).unwrap();
        line.args.request(&config(), &line.command)
    }

    fn argv(line: &[&str]) -> Vec<String> {
        let argv = request(line).unwrap().argv;
        argv.into_iter()
            .map(|one| String::from_utf8(one).unwrap())
            .collect()
    }

    #[test]
    fn entrypoint_and_command_are_put_together_as_containers_have_it() {
        assert_eq!(argv(&[]), ["/entry", "-x", "cmd"]);
        assert_eq!(argv(&["--", "a", "b"]), ["/entry", "-x", "a", "b"]);
        assert_eq!(argv(&["--entrypoint", "/bin/sh"]), ["/bin/sh"]);
        assert_eq!(
            argv(&["--entrypoint", "/bin/sh", "--", "-c", "x"]),
            ["/bin/sh", "-c", "x"]
        );
        assert_eq!(argv(&["--entrypoint", "", "--", "ls"]), ["ls"]);
        assert!(request(&["--entrypoint", ""]).is_err());
    }

    #[test]
    fn the_flags_have_the_last_word() {
        let plain = request(&[]).unwrap();
        assert_eq!(
            (plain.cwd.as_slice(), plain.user.as_str()),
            (&b"/srv"[..], "app")
        );
        assert_eq!(plain.hostname, "minivm");
        let own = request(&["-w", "/tmp", "-u", "0", "--name", "box", "-e", "A=3"]).unwrap();
        assert_eq!((own.cwd.as_slice(), own.user.as_str()), (&b"/tmp"[..], "0"));
        assert_eq!(own.hostname, "box");
        assert_eq!(own.env, [&b"A=1"[..], b"B=2", b"A=3"]);
        assert!(request(&["-w", "tmp"]).is_err());
        assert!(request(&["--hostname", ""]).is_err());
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
            resource: libc::RLIMIT_NOFILE,
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
        let split = files("a:b:/c").unwrap();
        assert_eq!((split.from, split.to), ("a:b".into(), "/c".into()));
        assert!(files("a").is_err() && files(":b").is_err() && files("a:").is_err());
    }

    #[test]
    fn a_copy_into_the_guest_goes_to_an_absolute_path() {
        for right in ["a:/b", "a:/b/", "a:/", ".:/b", "a:/./b"] {
            assert!(files_in(right).is_ok(), "{right}");
        }
        for wrong in ["a:b", "a:./b", "a:/../b", "a:/b/..", ".:/", "..:/"] {
            assert!(files_in(wrong).is_err(), "{wrong}");
        }
        let missing = ["--copy-in", "/nowhere/at/all:/x"];
        let line = Line::try_parse_from(["test"].iter().chain(&missing)).unwrap();
        let error = format!("{:#}", line.args.check().unwrap_err());
        assert!(
            error.starts_with("cannot copy /nowhere/at/all into"),
            "{error}"
        );
    }
}
