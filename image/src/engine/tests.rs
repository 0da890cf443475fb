//! Engines that are good, lacking, or gone: a server on a Unix socket, and a script in place of a command.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::Image;
use crate::fixtures::{Made, archive, image, layers_of, options};
use crate::helpers::Here;

/// A folder with an engine's socket or command, and a store.
struct Place {
    folder: TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Place {
    fn new() -> Place {
        Place {
            folder: tempfile::tempdir().unwrap(),
            requests: Arc::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, engines: &[Engine]) -> Result<Image, Error> {
        let options = Options {
            helpers: Arc::new(Here::with(engines.to_vec())),
            ..options()
        };
        let opened = open("o/n:1", &Store::new(self.path("store")), &options);
        opened.map(|described| described.image)
    }

    /// An engine on a socket that answers each request in turn, and then is gone.
    fn serve(&self, answers: Vec<(u16, Vec<u8>)>) -> Engine {
        let path = self.path("socket");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let requests = Arc::clone(&self.requests);
        thread::spawn(move || {
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                requests.lock().unwrap().push(lines.next().unwrap());
                let _ = lines.find(|line| line.is_empty());
                // As Docker does it: in chunks, for it doesn't know the size.
                let head = format!(
                    "HTTP/1.1 {status} Status\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).unwrap();
                for part in body.chunks(1000) {
                    write!(stream, "{:x}\r\n", part.len()).unwrap();
                    stream.write_all(part).unwrap();
                    stream.write_all(b"\r\n").unwrap();
                }
                // An empty body stands for an engine that dies.
                if !body.is_empty() {
                    stream.write_all(b"0\r\n\r\n").unwrap();
                }
            }
        });
        Engine::Socket(path)
    }

    /// A command that runs these lines of shell.
    fn script(&self, lines: &str) -> Engine {
        let (text, path) = (self.path("docker.sh"), self.path("docker"));
        let calls = self.path("calls");
        let lines = format!("#!/bin/sh\necho \"$*\" >> {}\n{lines}\n", calls.display());
        fs::write(&text, lines).unwrap();
        fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
        // Not written by this process: a child forked just then would hold it open, and it couldn't be executed.
        let copied = Command::new("cp").arg(&text).arg(&path).status().unwrap();
        assert!(copied.success());
        Engine::Command(path)
    }
}

fn id(made: &Made) -> Vec<u8> {
    format!(r#"{{"Id":"{}","RepoTags":["o/n:1"]}}"#, made.identity()).into_bytes()
}

fn check(image: &Image, made: &Made) {
    assert_eq!(image.identity, made.identity());
    assert_eq!(layers_of(image), made.layers);
}

#[test]
fn an_engines_image_is_transferred_once_as_long_as_it_is_the_same() {
    let place = Place::new();
    let (old, new) = (image(&["old"]), image(&["new"]));
    let saved = |made: &Made| archive(&made.saved(&[]));
    let engine = place.serve(vec![
        (200, id(&old)),
        (200, saved(&old)),
        (200, id(&old)),
        (200, id(&new)),
        (200, saved(&new)),
    ]);
    let engines = [engine];
    check(&place.open(&engines).unwrap(), &old);
    check(&place.open(&engines).unwrap(), &old);
    check(&place.open(&engines).unwrap(), &new);
    let requests = place.requests.lock().unwrap();
    assert_eq!(requests[0], "GET /images/o/n:1/json HTTP/1.1");
    assert_eq!(
        requests[1],
        format!("GET /images/{}/get HTTP/1.1", old.identity())
    );
    assert_eq!(requests.len(), 5);
}

#[test]
fn a_transfer_that_breaks_off_leaves_nothing_to_be_taken_for_an_image() {
    let place = Place::new();
    let made = image(&["one"]);
    let saved = archive(&made.saved(&[]));
    let half = saved[..saved.len() / 2].to_vec();
    for (broken, needle) in [(Vec::new(), "broke off"), (half, "truncated")] {
        let engine = place.serve(vec![(200, id(&made)), (200, broken)]);
        let error = place.open(&[engine]).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
        assert!(!place.path("store/engine").exists());
    }
    let engine = place.serve(vec![(200, id(&made)), (200, saved)]);
    check(&place.open(&[engine]).unwrap(), &made);
}

#[test]
fn an_image_that_the_engine_lacks_has_a_remedy() {
    let place = Place::new();
    let engine = place.serve(vec![(
        404,
        br#"{"message":"No such image: o/n:1"}"#.to_vec(),
    )]);
    let absent = Engine::Command(place.path("absent"));
    let error = place.open(&[absent, engine]).unwrap_err().to_string();
    assert_eq!(
        error,
        "the container engine has no image o/n:1; `docker pull o/n:1` first, or leave docker-daemon: away"
    );
}

#[test]
fn a_failing_engine_is_quoted() {
    let place = Place::new();
    let engine = place.serve(vec![(
        500,
        br#"{"message":"disk \u001b[1m full"}"#.to_vec(),
    )]);
    let error = place.open(&[engine]).unwrap_err();
    assert!(error.to_string().contains("HTTP status 500"), "{error}");
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), r"disk \u{1b}[1m full");
}

#[test]
fn a_missing_engine_has_a_remedy() {
    let place = Place::new();
    let engines = [
        Engine::Socket(place.path("absent")),
        Engine::Command(place.path("docker")),
    ];
    let error = place.open(&engines).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("neither Docker nor Podman answers"),
        "{error}"
    );
    let cause = std::error::Error::source(&error).unwrap();
    assert!(cause.to_string().contains("No such file"), "{cause}");
}

#[test]
fn a_command_is_asked_where_no_socket_answers() {
    let place = Place::new();
    let made = image(&["one"]);
    fs::write(place.path("saved.tar"), archive(&made.saved(&[]))).unwrap();
    // Podman's ids come without "sha256:".
    let hex = made.identity().replace("sha256:", "");
    let command = place.script(&format!(
        "case $1 in image) echo {hex};; save) cat {};; esac",
        place.path("saved.tar").display()
    ));
    let engines = [Engine::Socket(place.path("absent")), command];
    check(&place.open(&engines).unwrap(), &made);
    check(&place.open(&engines).unwrap(), &made);
    let inspect = "image inspect --format {{.Id}} o/n:1\n";
    let calls = fs::read_to_string(place.path("calls")).unwrap();
    assert_eq!(calls, format!("{inspect}save sha256:{hex}\n{inspect}"));
}

#[test]
fn an_engine_without_the_image_differs_from_no_engine() {
    let place = Place::new();
    let lacks = place.script("echo 'Error: No such image: o/n:1' >&2; exit 1");
    let error = place.open(&[lacks]).unwrap_err();
    assert!(matches!(error, Error::NoImage { .. }), "{error}");
    let gone = place.script("echo 'Cannot connect to the Docker daemon' >&2; exit 1");
    let error = place.open(&[gone]).unwrap_err();
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("Cannot connect")
    );
    let fails = place
        .script("case $1 in image) printf '%064d' 0;; *) echo 'no space left' >&2; exit 1;; esac");
    let error = place.open(&[fails]).unwrap_err();
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("no space left")
    );
}

#[test]
fn docker_host_means_that_engine_and_no_other() {
    let docker = Engine::Command("docker".into());
    let unix = engines(Some("unix:///x/y.sock".into()), None);
    assert_eq!(unix, [Engine::Socket("/x/y.sock".into()), docker.clone()]);
    assert_eq!(engines(Some("ssh://host".into()), None), [docker]);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("podman/podman.sock");
    fs::create_dir(socket.parent().unwrap()).unwrap();
    fs::write(&socket, "").unwrap();
    let all = engines(Some("".into()), Some(folder.path().into()));
    assert!(all.contains(&Engine::Socket(socket)));
    assert_eq!(all.last(), Some(&Engine::Command("podman".into())));
}
