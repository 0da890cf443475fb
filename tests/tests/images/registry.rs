//! Registries that fail: what is said, and what a second try finds.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use minivm_tests::program::run;

use crate::bad::assert_refused;
use crate::made::noise;
use crate::tape::{Tape, mode};
use crate::tools::{Minivm, PATIENCE, files, folder, hex};

/// What a path is answered with: a status, headers, a body.
type Answer = (u16, String, Vec<u8>);
/// The header of an answer that breaks off in the middle of its body, with the connection open.
const STALLED: &str = "X-Stalled: yes\r\n";

/// A registry whose answers a test chooses: each path has answers for its requests, the last one for all that follow.
pub(crate) struct Scripted {
    address: String,
    answers: Arc<Mutex<BTreeMap<String, Vec<Answer>>>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// The connections of stalled answers.
    stalled: Arc<Mutex<Vec<TcpStream>>>,
}

impl Scripted {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers = Arc::<Mutex<BTreeMap<String, Vec<Answer>>>>::default();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let stalled = Arc::<Mutex<Vec<TcpStream>>>::default();
        let (theirs, asks, stalls) = (answers.clone(), asked.clone(), stalled.clone());
        // It ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A client may hang up before it has read all.
                if answer(&stream, &theirs, &asks).is_ok_and(|stalls| stalls) {
                    stalls.lock().unwrap().push(stream);
                }
            }
        });
        Scripted {
            address,
            answers,
            asked,
            stalled,
        }
    }

    /// Lets the layer's answers stall from now on.
    pub(crate) fn stalls_at(&self, layer: &str) {
        let path = format!("/v2/x/blobs/{layer}");
        let body = self.answers.lock().unwrap()[&path][0].2.clone();
        self.says(&path, &[(200, STALLED.to_owned(), body)]);
    }

    /// Whether an answer stalls.
    pub(crate) fn is_stalled(&self) -> bool {
        !self.stalled.lock().unwrap().is_empty()
    }

    /// Answers nothing from now on, and lets what stalls be.
    pub(crate) fn forgets_all(&self) {
        self.answers.lock().unwrap().clear();
        self.stalled.lock().unwrap().clear();
    }

    fn says(&self, path: &str, answers: &[Answer]) {
        let mut all = self.answers.lock().unwrap();
        all.insert(path.to_owned(), answers.to_vec());
    }

    /// An image with one layer, under the name `x:1`; returns the layer's digest.
    pub(crate) fn has_image(&self, layer: &[u8], size: usize) -> String {
        let blob = |bytes: &[u8]| (200, String::new(), bytes.to_vec());
        let digest = format!("sha256:{}", hex(layer));
        let config = serde_json::json!({"os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/file"]},
            "rootfs": {"type": "layers", "diff_ids": [digest]}})
        .to_string();
        let config_digest = format!("sha256:{}", hex(config.as_bytes()));
        let manifest = serde_json::json!({"schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}]})
        .to_string();
        self.says("/v2/x/manifests/1", &[blob(manifest.as_bytes())]);
        self.says(
            &format!("/v2/x/blobs/{config_digest}"),
            &[blob(config.as_bytes())],
        );
        self.says(&format!("/v2/x/blobs/{digest}"), &[blob(layer)]);
        digest
    }

    pub(crate) fn image(&self) -> String {
        format!("{}/x:1", self.address)
    }
}

fn answer(
    stream: &TcpStream,
    answers: &Mutex<BTreeMap<String, Vec<Answer>>>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<bool> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().unwrap().push(path.clone());
    let (status, headers, body) = match answers.lock().unwrap().get_mut(&path) {
        Some(answers) if answers.len() > 1 => answers.remove(0),
        Some(answers) => answers[0].clone(),
        None => (404, String::new(), Vec::new()),
    };
    let mut stream = stream;
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    let stalls = headers == STALLED;
    let sent = if stalls { length / 2 } else { length };
    stream.write_all(&body[..sent])?;
    Ok(stalls)
}

pub(crate) fn layer() -> Vec<u8> {
    let mut layer = Tape::new();
    layer.file("file", mode(0o755), &noise(3_000_000, 5));
    layer.bytes()
}

/// `minivm build` fails so, leaves nothing, and works when the registry does.
#[track_caller]
fn assert_fails_then_works(what: &str, registry: &Scripted, parts: &[&str]) {
    let (minivm, output) = (Minivm::new(), folder());
    let image = registry.image();
    let mut command = minivm.building(&image, &[], &output.path().join("built"));
    let all = [&[&*image, &registry.address], parts].concat();
    assert_refused(what, &run(&mut command, PATIENCE), &all);
    assert_eq!(files(output.path()), [], "{what}");
    minivm.assert_sound(what);
    let layer = layer();
    registry.has_image(&layer, layer.len());
    assert!(minivm.build(&image).len() > 3_000_000);
    minivm.assert_sound(what);
}

#[test]
fn a_registry_that_denies_or_lacks_an_image_is_named() {
    let errors = r#"{"errors":[{"code":"X","message":"no such luck"}]}"#
        .as_bytes()
        .to_vec();
    for (status, parts) in [
        (401, &["HTTP status 401", "docker login"][..]),
        (403, &["HTTP status 403", "no such luck", "docker login"]),
        (404, &["HTTP status 404", "no such luck", "check the name"]),
        (302, &["HTTP status 302"]),
    ] {
        let registry = Scripted::start();
        let body = if status == 401 {
            Vec::new()
        } else {
            errors.clone()
        };
        registry.says("/v2/x/manifests/1", &[(status, String::new(), body)]);
        assert_fails_then_works(&status.to_string(), &registry, parts);
    }
}

#[test]
fn quiet_leaves_warnings_out_from_the_beginning() {
    let (minivm, output) = (Minivm::new(), folder());
    // What `docker login` has stored can't be read.
    fs::write(output.path().join("config.json"), "{").unwrap();
    let registry = Scripted::start();
    let challenge = "WWW-Authenticate: Basic realm=\"x\"\r\n".to_owned();
    registry.says("/v2/x/manifests/1", &[(401, challenge, Vec::new())]);
    let build = |flags: &[&str]| {
        let mut command = minivm.building(&registry.image(), flags, &output.path().join("built"));
        run(command.env("DOCKER_CONFIG", output.path()), PATIENCE)
    };
    let told = build(&[]);
    let warning = format!("minivm: no credentials for {}: ", registry.address);
    assert!(told.stderr.starts_with(&warning), "{told:?}");
    assert_eq!(told.stderr.lines().count(), 2, "{told:?}");
    assert_refused("quiet", &build(&["-q"]), &["HTTP status 401"]);
}

#[test]
fn a_registry_that_fails_for_good_is_given_up() {
    let registry = Scripted::start();
    registry.says("/v2/x/manifests/1", &[(500, String::new(), Vec::new())]);
    assert_fails_then_works("500", &registry, &["HTTP status 500", "try later"]);
    let tries = registry.asked.lock().unwrap();
    let tries = tries
        .iter()
        .take_while(|path| path.ends_with("manifests/1"));
    assert!(tries.count() >= 5);
}

#[test]
fn a_registry_that_is_busy_is_asked_again() {
    let registry = Scripted::start();
    let layer = layer();
    registry.has_image(&layer, layer.len());
    let (minivm, image) = (Minivm::new(), registry.image());
    let plain = minivm.build(&image);
    let again = Minivm::new();
    for path in registry.asked.lock().unwrap().clone() {
        let good = registry.answers.lock().unwrap()[&path][0].clone();
        let busy = (429, "Retry-After: 1\r\n".to_owned(), Vec::new());
        registry.says(&path, &[busy, good]);
    }
    assert!(again.build(&image) == plain);
    again.assert_sound("429");
}

#[test]
fn a_registry_that_lies_about_a_layer_is_found_out() {
    for (what, size, part) in [
        ("another layer", 0, "instead of"),
        ("a longer layer", -1, "longer than"),
    ] {
        let registry = Scripted::start();
        let layer = layer();
        let size = layer.len().checked_add_signed(size).unwrap();
        let digest = registry.has_image(&layer, size);
        let mut other = layer.clone();
        other[1_000_000] ^= 1;
        let path = format!("/v2/x/blobs/{digest}");
        registry.says(&path, &[(200, String::new(), other)]);
        let (minivm, output) = (Minivm::new(), folder());
        let image = registry.image();
        let mut command = minivm.building(&image, &[], &output.path().join("built"));
        assert_refused(what, &run(&mut command, PATIENCE), &[&digest, &image, part]);
        minivm.assert_sound(what);
        registry.has_image(&layer, layer.len());
        assert!(minivm.build(&image).len() > 3_000_000);
    }
}
