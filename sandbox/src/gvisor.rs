//! gVisor: a container image on a kernel in user space.
//!
//! `runsc` starts it, in a jail, as root of a user namespace of its own ([`rootless`]), with the arguments and the configuration of
//! [`bundle`](super::bundle). A process on the host (the sentry, in Go) handles the code's system calls, and may itself make few.
//! The image's root is bound read-only, under an overlay in memory.
//!
//! Folders that are shared are mounts of `runsc`'s, whose process for files (the gofer) sees the jail's folder and nothing above it. What
//! the code makes belongs to the user of the jail, who is this process's user on the disk, and the jail's filter of system calls refuses
//! set-ID bits.
//!
//! The first process inside is `minivm-init`, which `runsc` executes from an inherited descriptor. As in a machine, it copies files
//! in and runs the command, so that both sandboxes behave alike. The sentry makes inherited files non-blocking, and a write to one
//! returns short where a pipe inside the sandbox would have blocked: so the command has pipes inside the sandbox, and init forwards
//! their bytes ([`contained`]). Init's answer and runsc's own messages arrive in memory files that the command can't reach, so it
//! can forge neither by an exit code nor by its output.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{Refusal, Request, ToGuest, ToHost};
use minivm_guest::contained;
use minivm_image::Config;
use minivm_image::io_error::cannot;

use super::packed::packed;
use super::process::{self, Streams};
use super::{
    Backend, End, Error, Finished, Limits, Sandbox, Task, Warning, bundle, check_jail,
    limits_suffice, rootless, worker_is_there,
};
use crate::tools;
use bundle::Share;
use minivm_machine::folders::{Access, Volume};
use minivm_machine::images::{Init, Root};
use minivm_machine::jail::{Calls, Jail, Jailed, find_program, no_namespaces};
use minivm_machine::streams::in_memory;

/// The default memory limit in bytes: that of a small machine, with room for files, which are in memory too, and for gVisor's
/// kernel, which takes some MiB for each process.
const MEMORY: u64 = 1 << 30;
/// The path of `minivm-worker` in the jail.
const WORKER: &str = "/worker";
/// The exit codes of runsc where it fails, and where it crashes, as Go programs do. A command can exit with them too.
const FAILED: [u8; 2] = [128, 2];

/// The gVisor sandbox of one image.
pub(super) struct Gvisor {
    root: Root,
    config: Config,
    worker: PathBuf,
    cache: PathBuf,
    runsc: OnceLock<PathBuf>,
}

/// A jail that is ready to start, and the files that are read when it has ended.
struct Prepared {
    jailed: Jailed,
    answer: File,
    runtime_log: File,
    /// Warnings about what is left out of the task's files.
    left_out: Vec<Warning>,
}

impl Gvisor {
    /// Makes the sandbox of an image's root folder and configuration. `worker` is the program `minivm-worker`; `cache` may hold a
    /// `runsc`.
    pub(super) fn new(root: Root, config: Config, worker: PathBuf, cache: PathBuf) -> Self {
        Gvisor {
            root,
            config,
            worker,
            cache,
            runsc: OnceLock::new(),
        }
    }

    fn runsc(&self) -> Result<&Path, Error> {
        if let Some(runsc) = self.runsc.get() {
            return Ok(runsc);
        }
        let runsc = find_runsc(&self.cache)?;
        Ok(self.runsc.get_or_init(|| runsc))
    }

    fn prepare(&self, task: &Task, limits: &Limits) -> Result<Prepared, Error> {
        worker_is_there(Backend::Gvisor, &self.worker)?;
        limits_suffice(Backend::Gvisor)?;
        let request = Request {
            copy_in: !task.files.is_empty(),
            ..task.request(&self.config)?
        };
        let (answer, answered) = answer()?;
        let jail = Jail::new()?.calls(Calls::Container);
        let (jail, runtime_log, stderr) = jail.capture_runtime_stderr()?;
        let init = for_reading(Init::here().program)?;
        let mut args = vec![rootless::WORKER_COMMAND];
        if !task.volumes.is_empty() {
            args.extend([rootless::MERGE, bundle::ROOT, bundle::PLACES]);
        }
        args.extend([bundle::RUNSC, "--rootless", "--platform=systrap"]);
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        args.extend(bundle::runsc_args());
        args.push(format!("--exec-fd={}", init.as_raw_fd()));
        let mut pass = |number: RawFd, inside: RawFd| {
            args.push(format!("--pass-fd={number}:{inside}"));
        };
        pass(stderr, 2);
        let mut inherited = vec![init];
        let mut inherit = |file: OwnedFd, inside| {
            pass(file.as_raw_fd(), inside);
            inherited.push(file);
        };
        inherit(encoded(request)?, contained::REQUEST);
        inherit(answered, contained::ANSWER);
        let mut left_out = Vec::new();
        if !task.files.is_empty() {
            let (archive, missing) = packed(task, limits)?;
            inherit(archive, contained::FILES);
            left_out = missing;
        }
        args.push(bundle::NAME.into());
        let (jail, shares) = share(jail, &task.volumes, &self.root.path)?;
        let jail = jail
            .bind_read_only(&self.worker, WORKER)?
            .bind_read_only(self.runsc()?, bundle::RUNSC)?
            .bind_read_only(&self.root.path, bundle::ROOT)?
            .add_file(&bundle::config(&shares), bundle::CONFIG)?;
        let jail = inherited.into_iter().fold(jail, Jail::inherit);
        Ok(Prepared {
            jailed: jail.program(WORKER, args)?,
            answer,
            runtime_log,
            left_out,
        })
    }
}

/// Shows folders in the jail, with their places in an image's root, and returns how the container gets them.
fn share(mut jail: Jail, volumes: &[Volume], root: &Path) -> Result<(Jail, Vec<Share>), Error> {
    let mut shares = Vec::new();
    for (Volume { folder, at }, number) in volumes.iter().zip(0..) {
        folder.check()?;
        let is_folder = folder.source.is_dir();
        let text = check_place(root, at, is_folder).map_err(|why| {
            Error::Request(format!("gVisor can't share at {}: {why}", at.display()))
        })?;
        let place = format!("{}{text}", bundle::PLACES);
        jail = match is_folder {
            true => jail.add_folder(&place),
            false => jail.add_empty_file(&place)?,
        };
        let source = format!("{}/{number}", bundle::SHARED);
        let writable = folder.access == Access::ReadWrite;
        jail = jail.share(&folder.source, writable, &source)?;
        shares.push(Share {
            source,
            at: text.to_owned(),
            writable,
        });
    }
    Ok((jail, shares))
}

/// Checks that an image's root has a folder or file at a path, or nothing, and returns the path as text.
fn check_place<'a>(root: &Path, at: &'a Path, is_folder: bool) -> Result<&'a str, String> {
    let text = at.to_str().ok_or("it is not UTF-8")?;
    let parts: Vec<_> = at.components().skip(1).collect();
    let mut inside = PathBuf::from("/");
    for (part, left) in parts.iter().zip((0..parts.len()).rev()) {
        inside.push(part);
        let place = root.join(inside.strip_prefix("/").unwrap_or(&inside));
        let Ok(found) = place.symlink_metadata() else {
            break;
        };
        let what = match (found.is_symlink(), found.is_dir()) {
            (true, _) => "a link: name the place that it leads to",
            (false, true) if left == 0 && !is_folder => "a folder",
            (false, false) if left > 0 || is_folder => "a file",
            _ => continue,
        };
        return Err(format!("in the image, {} is {what}", inside.display()));
    }
    Ok(text)
}

/// Finds a `runsc`: the one that was fetched, which is known to work, or else one in `PATH` with the platform systrap.
pub(super) fn find_runsc(cache: &Path) -> Result<PathBuf, Error> {
    if let Some(fetched) = tools::debian::runsc(cache) {
        return Ok(fetched);
    }
    let installed = find_program("runsc");
    let why = match &installed {
        Some(path) => format!("{} is too old", path.display()),
        None => "runsc is not installed".into(),
    };
    // Running it takes some 30 ms.
    installed
        .filter(|path| has_systrap(path))
        .ok_or_else(|| Error::Unavailable {
            backend: Backend::Gvisor,
            why,
            hint: "`minivm doctor --fix` fetches one".into(),
        })
}

/// Returns whether a `runsc` has the platform systrap, which needs neither privileges nor KVM. Releases before 2023 lack it.
fn has_systrap(runsc: &Path) -> bool {
    let output = Command::new(runsc)
        .arg("flags")
        .env_clear()
        .stdin(Stdio::null())
        .output();
    let has = |text: &[u8]| String::from_utf8_lossy(text).contains("systrap");
    output.is_ok_and(|output| has(&output.stdout) || has(&output.stderr))
}

/// Makes a memory file for init's answer, and returns it with a duplicate.
fn answer() -> Result<(File, OwnedFd), Error> {
    let answer = in_memory(b"").map_err(cannot("keep a file in memory"))?;
    let copy = answer.try_clone().map_err(cannot("copy an open file"))?;
    Ok((answer.into(), copy))
}

fn encoded(request: Request) -> Result<OwnedFd, Error> {
    let too_long =
        |error: minivm_guest::channel::frame::BodyTooLong| minivm_machine::Error::TooLong(error.0);
    request.check().map_err(too_long)?;
    let mut bytes = Vec::new();
    ToGuest::Request(request).encode(&mut bytes);
    for_reading(&bytes)
}

/// Makes a memory file that is open for reading only. `runsc` executes no other.
fn for_reading(bytes: &[u8]) -> Result<OwnedFd, Error> {
    let file = in_memory(bytes).map_err(cannot("keep a file in memory"))?;
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok(again.map_err(cannot("open a file in memory"))?.into())
}

impl Sandbox for Gvisor {
    fn backend(&self) -> Backend {
        Backend::Gvisor
    }

    fn boundary(&self) -> &'static str {
        "a kernel in user space (gVisor), in a jail of namespaces"
    }

    fn check(&self) -> Result<(), Error> {
        self.runsc()?;
        worker_is_there(Backend::Gvisor, &self.worker)?;
        check_jail(Backend::Gvisor)
    }

    fn start(&self, task: Task) -> Result<Finished, Error> {
        let began = Instant::now();
        let limits = task.limits.with_memory(MEMORY);
        let Prepared {
            jailed,
            answer,
            runtime_log,
            left_out,
        } = self.prepare(&task, &limits)?;
        let streams = Streams::from(task);
        let mut finished = process::run(jailed, streams, &limits)?;
        finished.end = end(finished.end, &answer, &runtime_log)?;
        finished.warnings.splice(0..0, left_out);
        finished.usage.total = began.elapsed();
        Ok(finished)
    }
}

/// Returns the command's end, from that of runsc, init's answer and runsc's messages.
fn end(end: End, answer: &File, runtime_log: &File) -> Result<End, Error> {
    let failed = |detail: String| Error::Failed {
        backend: Backend::Gvisor,
        detail,
    };
    let own = matches!(end, End::Exited(_) | End::Signal(_));
    match answered(answer) {
        _ if !own => Ok(end),
        Some(Some(Refusal::NotFound(what))) => Ok(End::NotFound(what)),
        Some(Some(Refusal::NotExecutable(what))) => Ok(End::NotExecutable(what)),
        Some(Some(Refusal::Failed(why))) => Err(failed(why)),
        Some(None) => match (&end, runtime_error(runtime_log)) {
            (End::Exited(code), Some(error)) if FAILED.contains(code) => Err(failed(error)),
            _ => Ok(end),
        },
        None => Err(match runtime_error(runtime_log) {
            Some(error) if error.starts_with(rootless::FAILED) => no_namespaces(error).into(),
            Some(error) => failed(error),
            None => failed(format!("runsc ended by itself ({end:?})")),
        }),
    }
}

/// Reads init's last message: `Some(None)` where it started the command, `Some(Some(refusal))` where it couldn't, and `None` where
/// it sent neither.
fn answered(answer: &File) -> Option<Option<Refusal>> {
    let mut decoder = Decoder::default();
    decoder.extend(&process::content(answer));
    let mut last = None;
    while let Ok(Some((tag, body))) = decoder.next() {
        match ToHost::decode(tag, body) {
            Ok(ToHost::Started) => last = Some(None),
            Ok(ToHost::Refused(refusal)) => last = Some(Some(refusal)),
            _ => break,
        }
    }
    last
}

/// Reads runsc's error: the reason of a crash, or else the last line of its stderr.
fn runtime_error(log: &File) -> Option<String> {
    let text = String::from_utf8_lossy(&process::content(log)).into_owned();
    if let Some((_, why)) = text.split_once(rootless::FAILED) {
        return Some(format!("{}{}", rootless::FAILED, why.trim()));
    }
    let crash = |line: &&str| line.starts_with("panic: ") || line.starts_with("fatal error: ");
    let line = text.lines().find(crash);
    let line = line.or_else(|| text.lines().rfind(|line| !line.trim().is_empty()))?;
    let worker = line.strip_prefix("minivm-worker: ");
    Some(worker.map_or_else(|| format!("runsc: {}", line.trim()), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        in_memory(bytes).unwrap().into()
    }

    fn answer_of(messages: &[ToHost]) -> File {
        let mut bytes = Vec::new();
        for message in messages {
            message.encode(&mut bytes);
        }
        file(&bytes)
    }

    #[test]
    fn an_exit_code_is_the_commands_once_it_has_started() {
        let started = answer_of(&[ToHost::Started]);
        let silent = file(b"");
        for code in [0, 1, 126, 127, 128] {
            let end = end(End::Exited(code), &started, &silent).unwrap();
            assert_eq!(end, End::Exited(code));
        }
        let log = file(b"warning\nrunning container: it broke\n");
        let error = end(End::Exited(128), &started, &log).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("runsc: running container: it broke"),
            "{error}"
        );
        assert_eq!(end(End::Exited(1), &started, &log).unwrap(), End::Exited(1));
    }

    #[test]
    fn only_init_reports_a_missing_command() {
        let refused = |refusal| answer_of(&[ToHost::Started, ToHost::Refused(refusal)]);
        let silent = file(b"");
        let answer = refused(Refusal::NotFound("x".into()));
        let not_found = end(End::Exited(1), &answer, &silent).unwrap();
        assert_eq!(not_found, End::NotFound("x".into()));
        let answer = refused(Refusal::NotExecutable("x".into()));
        let not_executable = end(End::Exited(1), &answer, &silent).unwrap();
        assert_eq!(not_executable, End::NotExecutable("x".into()));
        let answer = answer_of(&[ToHost::Refused(Refusal::Failed("no user x".into()))]);
        let error = end(End::Exited(1), &answer, &silent).unwrap_err();
        assert!(error.to_string().ends_with("no user x"), "{error}");
    }

    #[test]
    fn limits_count_whether_or_not_the_command_started() {
        for reached in [
            End::TimedOut,
            End::OutOfMemory,
            End::Stopped(2),
            End::OutputClosed,
        ] {
            let end = end(reached.clone(), &file(b""), &file(b"x"));
            assert_eq!(end.unwrap(), reached);
        }
    }

    #[test]
    fn without_inits_answer_the_sandbox_failed() {
        for answer in [file(b""), file(b"garbage garbage garbage")] {
            let error = end(End::Exited(0), &answer, &file(b"")).unwrap_err();
            assert!(error.to_string().contains("ended by itself"), "{error}");
        }
    }
}
