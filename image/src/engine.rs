//! Images of a container engine on this machine: Docker or Podman.
//!
//! Both serve Docker's HTTP API on a Unix socket (`GET /images/NAME/json` returns an image's id, `GET /images/NAME/get` what
//! `docker save` would write). Where no socket answers, their commands are run, which know further ways to an engine
//! (contexts, SSH, a rootless Podman without a service). The store keeps the archive by the id: as long as the name stands for
//! the same image, nothing is transferred again.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use reqwest::blocking::{Client, Response};
use serde::Deserialize;

use super::archive::Archive;
use super::digest::Digest;
use super::error::{Cause, Error, innermost};
use super::image::Described;
use super::manifest::LARGEST_CONFIG;
use super::options::{Options, Pull};
use super::shown::shown;
use super::store::Store;
use super::{files, saved};

/// How long an engine may be silent: it writes all layers to its disk before it sends a large image's first byte.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long an engine may take to look an image up.
const QUICK: Duration = Duration::from_secs(30);

/// Returns the ways to an engine that the environment names.
pub(super) fn named() -> Vec<Engine> {
    let variable = |name: &str| std::env::var_os(name);
    engines(variable("DOCKER_HOST"), variable("XDG_RUNTIME_DIR"))
}

/// A way to an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Socket(PathBuf),
    Command(PathBuf),
}

/// Returns the ways to try, in order. A user that sets `DOCKER_HOST` means that engine and no other.
fn engines(docker_host: Option<OsString>, runtime_dir: Option<OsString>) -> Vec<Engine> {
    let docker = Engine::Command("docker".into());
    if let Some(host) = docker_host.filter(|host| !host.is_empty()) {
        return match host.to_str().and_then(|host| host.strip_prefix("unix://")) {
            Some(path) => vec![Engine::Socket(path.into()), docker],
            None => vec![docker],
        };
    }
    let podman = runtime_dir.map(|dir| Path::new(&dir).join("podman/podman.sock"));
    let sockets = [
        Some(PathBuf::from("/var/run/docker.sock")),
        podman,
        Some(PathBuf::from("/run/podman/podman.sock")),
    ];
    let sockets = sockets.into_iter().flatten().filter(|path| path.exists());
    let mut engines: Vec<Engine> = sockets.map(Engine::Socket).collect();
    engines.extend([docker, Engine::Command("podman".into())]);
    engines
}

/// The result of asking an engine.
enum Answer<T> {
    Found(T),
    /// The engine answers, and has no such image.
    NoImage,
    /// No engine answers.
    NoEngine(Cause),
}

/// Returns the first engine that has the image, and the image's id.
pub(super) fn find<'e>(engines: &'e [Engine], name: &str) -> Result<(&'e Engine, Digest), Error> {
    let mut answered = false;
    let mut cause = None;
    for engine in engines {
        match engine.id(name)? {
            Answer::Found(id) => return Ok((engine, id)),
            Answer::NoImage => answered = true,
            // The first is the likeliest to be the one that the user meant.
            Answer::NoEngine(why) => cause = cause.or(Some(why)),
        }
    }
    if answered {
        return Err(Error::NoImage {
            name: "the container engine".into(),
            wanted: name.into(),
            remedy: format!("`docker pull {name}` first, or leave docker-daemon: away"),
        });
    }
    let problem = "neither Docker nor Podman answers; start one, add yourself to the group docker if its socket is closed to you, or leave docker-daemon: away";
    Err(failed(name, problem, cause))
}

/// Opens an engine's image.
pub(super) fn open(name: &str, store: &Store, options: &Options) -> Result<Described, Error> {
    let id = &options.helpers.image_id(name)?;
    let path = store.engine_path(id);
    let open = |file: File| {
        let archive = Archive::open(
            format!("docker-daemon:{name}"),
            file,
            store,
            options.largest,
        )?;
        saved::open(&archive, None, &options.platform)
    };
    // A damaged archive is fetched anew.
    if let Some(Ok(image)) = store.open(&path)?.map(open) {
        return Ok(image);
    }
    if options.pull == Pull::Never {
        return Err(Error::NotStored { image: name.into() });
    }
    // Until the archive is open, or it might be removed as soon as it is there.
    let _held = store.hold()?;
    let partial = store.partial(&format!("engine-{}", id.hex()))?;
    // Another process may have fetched it during the wait for the lock.
    if let Some(Ok(image)) = store.open(&path)?.map(open) {
        partial.discard()?;
        return Ok(image);
    }
    let made = partial.make(&path, |file| {
        options.helpers.save(name, id, file, options.largest)?;
        // Only an archive that can be read is kept.
        open(copy_of(file, name)?).map(drop)
    });
    drop(made?);
    let kept = store.open(&path)?;
    let kept = kept.ok_or_else(|| {
        failed(
            name,
            "its archive was removed again; run it once more",
            None,
        )
    })?;
    open(kept)
}

fn failed(name: &str, problem: &str, source: Option<Cause>) -> Error {
    Error::Engine {
        image: name.into(),
        problem: problem.into(),
        source,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
}

impl Engine {
    /// Returns the id of the image.
    fn id(&self, name: &str) -> Result<Answer<Digest>, Error> {
        let text = match self {
            Engine::Socket(path) => match get(path, &format!("images/{name}/json"), QUICK) {
                Err(error) => return Ok(Answer::NoEngine(innermost(&error))),
                Ok(response) if response.status() == 404 => return Ok(Answer::NoImage),
                Ok(response) => {
                    let mut body = Vec::new();
                    let read = read_limited(checked(name, response)?, &mut body, LARGEST_CONFIG);
                    read.map_err(|error| {
                        failed(
                            name,
                            "its answer broke off; try again",
                            Some(innermost(&error)),
                        )
                    })?;
                    let inspected: Inspected =
                        serde_json::from_slice(&body).map_err(|source| Error::Json {
                            image: name.into(),
                            what: "description by the container engine",
                            source,
                        })?;
                    inspected.id
                }
            },
            Engine::Command(program) => {
                let mut command = command(program);
                command.args(["image", "inspect", "--format", "{{.Id}}", name]);
                match command.output() {
                    Err(error) => return Ok(Answer::NoEngine(error.into())),
                    Ok(output) if output.status.success() => {
                        String::from_utf8_lossy(&output.stdout).into_owned()
                    }
                    Ok(output) => return Ok(no_id(&output.stderr)),
                }
            }
        };
        let text = text.trim();
        let id = text.parse().ok().or_else(|| Digest::from_hex(text));
        id.map(Answer::Found).ok_or_else(|| {
            failed(
                name,
                &format!("its id \"{}\" is not a valid digest", shown(text)),
                None,
            )
        })
    }

    /// Writes the image's archive.
    pub(super) fn save(
        &self,
        name: &str,
        id: &Digest,
        to: &mut File,
        limit: u64,
    ) -> Result<(), Error> {
        match self {
            Engine::Socket(path) => save_from_socket(path, name, id, to, limit),
            Engine::Command(program) => save_by_command(program, name, id, copy_of(to, name)?),
        }
    }
}

/// The same open file once more.
fn copy_of(file: &File, name: &str) -> Result<File, Error> {
    let copy = file.try_clone();
    copy.map_err(|error| failed(name, "its archive can't be kept", Some(error.into())))
}

fn save_from_socket(
    socket: &Path,
    name: &str,
    id: &Digest,
    to: &mut File,
    limit: u64,
) -> Result<(), Error> {
    let broken = |problem, cause| failed(name, problem, Some(cause));
    let answer = get(socket, &format!("images/{id}/get"), PATIENCE)
        .map_err(|error| broken("it does not send the image; try again", innermost(&error)))?;
    let saved = files::copy_limited(checked(name, answer)?, to, limit)
        .map_err(|error| broken("the transfer broke off; try again", innermost(&error)))?;
    saved.map(drop).ok_or_else(|| Error::TooLarge {
        what: format!("docker-daemon:{name}"),
        limit,
    })
}

fn save_by_command(program: &Path, name: &str, id: &Digest, to: File) -> Result<(), Error> {
    let mut command = command(program);
    command.args(["save", &id.to_string()]).stdout(to);
    let output = command.output();
    let output =
        output.map_err(|source| failed(name, "its command can't be run", Some(source.into())))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = last_line(&output.stderr);
            let problem = format!("`{} save` fails", program.display());
            Err(failed(name, &problem, Some(said.into())))
        }
    }
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Returns why a command knows no id: the engine has no such image, or there is no engine.
fn no_id(stderr: &[u8]) -> Answer<Digest> {
    let said = last_line(stderr);
    let lower = said.to_lowercase();
    match lower.contains("no such image") || lower.contains("image not known") {
        true => Answer::NoImage,
        false => Answer::NoEngine(said.into()),
    }
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    shown(text.trim().lines().last().unwrap_or("it says nothing"))
}

/// Sends a request over the socket. The host in the address goes into a header and means nothing.
fn get(socket: &Path, path: &str, patience: Duration) -> reqwest::Result<Response> {
    // There is no TLS on the socket: the client is spared the system's root certificates, which take it a while to read.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has ciphers for the default versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .unix_socket(socket)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(patience)
        .build()?;
    client.get(format!("http://localhost/{path}")).send()
}

fn checked(name: &str, response: Response) -> Result<Response, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let mut body = Vec::new();
    let said = match read_limited(response, &mut body, 64 << 10) {
        Ok(()) => serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default(),
        Err(_) => serde_json::Value::Null,
    };
    let said = said["message"]
        .as_str()
        .map(|message| shown(message).into());
    Err(failed(
        name,
        &format!("it answers with HTTP status {}", status.as_u16()),
        said,
    ))
}

fn read_limited(from: impl io::Read, to: &mut impl Write, limit: u64) -> io::Result<()> {
    match io::copy(&mut from.take(limit + 1), to)? > limit {
        true => Err(io::Error::other("the answer is too long")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
