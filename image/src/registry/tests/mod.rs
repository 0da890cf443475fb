//! Pulls from registries that are good, slow, wrong, or gone.

mod proof;
mod server;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use minivm_tests::patience::PATIENCE;
use serde_json::json;
use tempfile::TempDir;

use self::server::{Answer, Registry, Request, Way, partial};
use crate::fixtures::{Made, entry, image, image_of, index, layers_of, options};
use crate::{Digest, Error, Image, Options, Platform, Progress, Pull, Store, Unwatched};

struct Place {
    folder: TempDir,
    options: Options,
}

impl Place {
    fn new() -> Place {
        Place {
            folder: tempfile::tempdir().unwrap(),
            options: options(),
        }
    }

    /// One that doesn't wait for long for a registry that sends nothing.
    fn impatient() -> Place {
        let mut place = Place::new();
        place.options.stall_timeout = Duration::from_millis(700);
        place
    }

    fn store(&self) -> Store {
        Store::new(self.folder.path())
    }

    fn pull(&self, registry: &Registry) -> Result<Image, Error> {
        self.open(&format!("{}/o/n:1", registry.address), &Unwatched)
    }

    fn open(&self, name: &str, progress: &dyn Progress) -> Result<Image, Error> {
        crate::open(
            &name.parse().unwrap(),
            &self.store(),
            &self.options,
            progress,
        )
    }

    fn partial(&self, digest: &Digest) -> PathBuf {
        self.folder.path().join("partial").join(digest.hex())
    }

    fn leave(&self, digest: &Digest, content: &[u8]) {
        fs::create_dir_all(self.folder.path().join("partial")).unwrap();
        fs::write(self.partial(digest), content).unwrap();
    }

    fn has(&self, digest: &Digest) -> bool {
        self.store().blob_path(digest).exists()
    }
}

fn check(image: &Image, made: &Made) {
    assert_eq!(image.identity, made.identity());
    assert_eq!(layers_of(image), made.layers);
}

/// The failure in one line.
fn line(pull: impl FnOnce() -> Result<Image, Error>) -> String {
    let error = pull().unwrap_err();
    let line = error.to_string();
    assert!(!line.contains('\n') && !line.ends_with('.'), "{line}");
    line
}

/// An image of one layer that is no matter of one packet.
fn large() -> (Made, Digest) {
    let noise: Vec<u8> = (0..200_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let made = image_of(&Platform::here().architecture, vec![noise]);
    let digest = Digest::of(&made.layers[0]);
    (made, digest)
}

#[test]
fn a_pulled_image_opens_again_without_a_registry() {
    let place = Place::new();
    let made = image(&["one", "two"]);
    let registry = Registry::good(&made);
    let name = format!("{}/o/n:1", registry.address);
    check(&place.pull(&registry).unwrap(), &made);
    assert_eq!(registry.requests().len(), 4);
    drop(registry);
    check(&place.open(&name, &Unwatched).unwrap(), &made);
    let by_digest = format!("{name}@{}", Digest::of(&made.manifest));
    check(&place.open(&by_digest, &Unwatched).unwrap(), &made);
    assert_eq!(
        fs::read_dir(place.folder.path().join("partial"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_tag_is_asked_for_again_only_when_that_is_wanted() {
    let mut place = Place::new();
    let (old, new) = (image(&["old"]), image(&["new"]));
    let (manifest, blobs) = (new.manifest.clone(), new.clone());
    let registry = Registry::start(&old, move |request| {
        let blob = blobs
            .blobs()
            .find(|(digest, _)| request.path.ends_with(&digest.to_string()));
        match blob {
            Some((_, blob)) => Some(Answer::new(200, blob.clone())),
            None if request.nth > 0 => Some(Answer::new(200, manifest.clone())),
            None => None,
        }
    });
    check(&place.pull(&registry).unwrap(), &old);
    check(&place.pull(&registry).unwrap(), &old);
    place.options.pull = Pull::Always;
    check(&place.pull(&registry).unwrap(), &new);
    place.options.pull = Pull::Never;
    check(&place.pull(&registry).unwrap(), &new);
    let before = registry.requests().len();
    let error = line(|| place.open(&format!("{}/o/n:2", registry.address), &Unwatched));
    assert!(error.contains("pulling is ruled out"), "{error}");
    assert_eq!(registry.requests().len(), before);
}

#[test]
fn of_an_index_only_this_machines_image_is_pulled() {
    let (ours, theirs) = (image(&["ours"]), image(&["theirs"]));
    let here = Platform::here().to_string();
    let top = index(&[
        entry(&theirs.manifest, Some("linux/s390x"), None),
        entry(&ours.manifest, Some(&here), None),
    ]);
    let registry = Registry::start(&ours, move |request| {
        request
            .path
            .ends_with("/1")
            .then(|| Answer::new(200, top.clone()))
    });
    let place = Place::new();
    check(&place.pull(&registry).unwrap(), &ours);
    assert_eq!(
        registry.requests_for(&Digest::of(&theirs.manifest)).len(),
        0
    );
    check(&place.pull(&registry).unwrap(), &ours);
    assert_eq!(registry.requests().len(), 4);
}

#[test]
fn a_token_is_fetched_once_and_again_when_it_expires() {
    let made = image(&["one"]);
    let registry = Registry::start(&made, |request| {
        let host = request.header("host").unwrap();
        if request.path.starts_with("/token") {
            assert!(
                request.path.contains("service=tests")
                    && request.path.contains("scope=repository%3Ao%2Fn%3Apull")
            );
            return Some(Answer::new(
                200,
                format!(r#"{{"token":"t{}"}}"#, request.nth),
            ));
        }
        let wanted = if request.is_blob() {
            "Bearer t1"
        } else {
            "Bearer t0"
        };
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="tests""#);
        let denied = Answer::new(401, "{}").header("WWW-Authenticate", challenge);
        (request.header("authorization") != Some(wanted)).then_some(denied)
    });
    check(&Place::new().pull(&registry).unwrap(), &made);
    let tokens = registry
        .requests()
        .iter()
        .filter(|r| r.path.starts_with("/token"))
        .count();
    assert_eq!(tokens, 2);
}

#[test]
fn credentials_of_docker_login_are_used_where_they_are_asked_for() {
    let made = image(&["one"]);
    let registry = Registry::start(&made, |request| {
        let right = request.header("authorization") == Some("Basic dXNlcjpwYXNz");
        let denied = Answer::new(401, "").header("WWW-Authenticate", r#"Basic realm="tests""#);
        (!right).then_some(denied)
    });
    let place = Place::new();
    let config = json!({"auths": {&registry.address: {"auth": "dXNlcjpwYXNz"}}});
    fs::write(place.folder.path().join("config.json"), config.to_string()).unwrap();
    let status = child(&place, &registry).wait().unwrap();
    assert!(status.success());
    assert!(
        registry.requests()[0].header("authorization").is_none(),
        "a password was sent unasked"
    );
    let error = line(|| Place::new().pull(&registry));
    assert!(
        error.contains("(HTTP status 401)") && error.contains("`docker login 127.0.0.1:"),
        "{error}"
    );
}

#[test]
fn a_token_is_asked_for_with_the_password_or_token_of_docker_login() {
    for identity_token in [false, true] {
        let made = image(&["one"]);
        let registry = Registry::start(&made, move |request| {
            let host = request.header("host").unwrap();
            if request.path.starts_with("/token") {
                let form = "grant_type=refresh_token&client_id=minivm&service=tests&scope=repository%3Ao%2Fn%3Apull&refresh_token=a%26b";
                let right = match identity_token {
                    true => request.body == form && request.header("authorization").is_none(),
                    false => request.header("authorization") == Some("Basic dXNlcjpwYXNz"),
                };
                let good = Answer::new(200, r#"{"access_token":"good"}"#);
                return Some(if right { good } else { Answer::new(403, "") });
            }
            let challenge = format!(r#"Bearer realm="http://{host}/token",service="tests""#);
            let denied = Answer::new(401, "").header("WWW-Authenticate", challenge);
            (request.header("authorization") != Some("Bearer good")).then_some(denied)
        });
        let place = Place::new();
        let mut login = json!({"auth": "dXNlcjpwYXNz"});
        if identity_token {
            login["identitytoken"] = json!("a&b");
        }
        let config = json!({"auths": {&registry.address: login}});
        fs::write(place.folder.path().join("config.json"), config.to_string()).unwrap();
        assert!(child(&place, &registry).wait().unwrap().success());
        let error = line(|| Place::new().pull(&registry));
        assert!(error.contains("(HTTP status 403)"), "{error}");
    }
}

/// Pulls in a process of its own, whose `DOCKER_CONFIG` is the place's folder.
fn child(place: &Place, registry: &Registry) -> std::process::Child {
    child_with(place, &[format!("{}/o/n:1", registry.address)])
}

/// Pulls several images, each to a store of its own if there are more than one.
fn child_with(place: &Place, images: &[String]) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "registry::tests::pulls_what_the_environment_says",
            "--ignored",
        ])
        .env("DOCKER_CONFIG", place.folder.path())
        .env("MINIVM_TEST_STORE", place.folder.path())
        .env("MINIVM_TEST_IMAGE", images.join(" "))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "a part of other tests, which run it as a process of its own"]
fn pulls_what_the_environment_says() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let folder = PathBuf::from(variable("MINIVM_TEST_STORE"));
    let images = variable("MINIVM_TEST_IMAGE");
    let images: Vec<&str> = images.split(' ').collect();
    let mut outcomes = String::new();
    for (number, image) in images.iter().enumerate() {
        let store = match images.len() {
            1 => Store::new(&folder),
            _ => Store::new(folder.join(number.to_string())),
        };
        let source = image.parse().unwrap();
        let pulled = crate::open(&source, &store, &Options::default(), &Unwatched);
        outcomes += &pulled.map_or_else(|error| error.to_string(), |_| "pulled".into());
        outcomes.push('\n');
    }
    fs::write(folder.join("outcomes"), &outcomes).unwrap();
    assert!(outcomes.lines().all(|line| line == "pulled"), "{outcomes}");
}

#[test]
fn final_failures_are_returned_at_once_with_a_remedy() {
    for (status, needle) in [
        (403, "denies 127.0.0.1"),
        (404, "check the name and the tag"),
        (418, "fails to serve"),
    ] {
        let registry = Registry::start(&image(&["one"]), move |_| {
            Some(Answer::new(
                status,
                r#"{"errors":[{"code":"X","message":"as \u001b[2Jthe registry says"}]}"#,
            ))
        });
        let error = line(|| Place::new().pull(&registry));
        assert!(
            error.contains(needle) && error.contains(&format!("HTTP status {status}")),
            "{error}"
        );
        assert!(
            error.contains(r": as \u{1b}[2Jthe registry says)"),
            "{error}"
        );
        assert!(error.contains(&registry.address), "{error}");
        assert_eq!(registry.requests().len(), 1);
    }
}

#[test]
fn an_unreachable_registry_is_an_error_with_a_remedy() {
    // Nobody listens on the port of tcpmux.
    let error = Place::new()
        .open("127.0.0.1:1/o/n:1", &Unwatched)
        .unwrap_err();
    assert!(error.to_string().contains("it can't be reached"), "{error}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("refused"), "{cause}");
}

#[test]
fn a_failure_that_may_pass_is_tried_again() {
    for status in [500, 502, 503, 429] {
        let made = image(&["one"]);
        let registry = Registry::start(&made, move |r| {
            (r.nth == 0).then(|| Answer::new(status, ""))
        });
        check(&Place::new().pull(&registry).unwrap(), &made);
        let registry = Registry::start(&made, move |_| Some(Answer::new(status, "")));
        let error = line(|| Place::new().pull(&registry));
        assert!(
            error.contains(&format!("HTTP status {status}")) && error.contains("try later"),
            "{error}"
        );
        assert_eq!(registry.requests().len(), 3);
    }
}

#[test]
fn a_registrys_pause_is_kept_unless_it_is_too_long() {
    let made = image(&["one"]);
    let registry = Registry::start(&made, |r| {
        (r.path.ends_with("/1") && r.nth == 0)
            .then(|| Answer::new(429, "").header("Retry-After", "1"))
    });
    let start = Instant::now();
    check(&Place::new().pull(&registry).unwrap(), &made);
    assert!(start.elapsed() >= Duration::from_secs(1));
    let registry = Registry::start(&made, |_| {
        Some(Answer::new(429, "").header("Retry-After", "3600"))
    });
    let error = line(|| Place::new().pull(&registry));
    assert!(
        error.contains("HTTP status 429") && error.contains("docker login"),
        "{error}"
    );
}

#[test]
fn a_truncated_layer_is_resumed_where_it_ended() {
    let (made, digest) = large();
    let content = made.layers[0].clone();
    let registry = Registry::start(&made, move |request| {
        let first = request.path.ends_with(&digest.to_string()) && request.nth == 0;
        first.then(|| Answer::new(200, content.clone()).way(Way::Cut(100_000)))
    });
    check(&Place::new().pull(&registry).unwrap(), &made);
    let requests = registry.requests_for(&Digest::of(&made.layers[0]));
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].header("range"), Some("bytes=100000-"));
}

#[test]
fn many_failures_are_forgiven_if_much_arrives_between() {
    let layer = vec![b'x'; 6 << 20];
    let made = image_of(&Platform::here().architecture, vec![layer.clone()]);
    let digest = Digest::of(&layer);
    let ends = digest.to_string();
    let registry = Registry::start(&made, move |request| {
        let start = request.start();
        let cut = Way::Cut((layer.len() - start).min(1_200_000));
        request.path.ends_with(&ends).then(|| match start {
            0 => Answer::new(200, layer.clone()).way(cut),
            _ => partial(&layer, start).way(cut),
        })
    });
    let place = Place::new();
    check(&place.pull(&registry).unwrap(), &made);
    assert_eq!(registry.requests_for(&digest).len(), 6);
    assert!(place.options.retries < 5);
}

#[test]
fn a_configuration_or_layer_that_is_too_large_is_not_even_asked_for() {
    let made = image(&["one"]);
    let good: serde_json::Value = serde_json::from_slice(&made.manifest).unwrap();
    for (pointer, size, needle) in [
        ("/config/size", 9_u64 << 20, "larger than 8388608 bytes"),
        ("/layers/0/size", u64::MAX, "larger than 17179869184 bytes"),
    ] {
        let mut manifest = good.clone();
        *manifest.pointer_mut(pointer).unwrap() = json!(size);
        let blob = pointer.trim_end_matches("size").to_owned() + "digest";
        let blob: Digest = manifest
            .pointer(&blob)
            .unwrap()
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let registry = Registry::start(&made, move |request| {
            request
                .path
                .ends_with("/1")
                .then(|| Answer::new(200, manifest.to_string()))
        });
        let error = line(|| Place::new().pull(&registry));
        assert!(error.contains(needle), "{error}");
        assert_eq!(registry.requests_for(&blob).len(), 0);
    }
}

#[test]
fn a_later_pull_goes_on_where_an_earlier_one_failed() {
    let (made, digest) = large();
    let content = made.layers[0].clone();
    let mends = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mended = mends.clone();
    let registry = Registry::start(&made, move |request| {
        let broken = !mended.load(std::sync::atomic::Ordering::SeqCst)
            && request.path.ends_with(&digest.to_string());
        let start = request.start();
        broken.then(|| match start {
            0 => Answer::new(200, content.clone()).way(Way::Cut(50_000)),
            _ => partial(&content, start).way(Way::Cut(1000)),
        })
    });
    let place = Place::new();
    let digest = Digest::of(&made.layers[0]);
    let error = line(|| place.pull(&registry));
    assert!(error.contains("broke off again and again"), "{error}");
    assert!(!place.has(&digest));
    assert_eq!(fs::metadata(place.partial(&digest)).unwrap().len(), 52_000);
    mends.store(true, std::sync::atomic::Ordering::SeqCst);
    check(&place.pull(&registry).unwrap(), &made);
    let last = registry.requests_for(&digest).pop().unwrap();
    assert_eq!(last.header("range"), Some("bytes=52000-"));
}

#[test]
fn a_registry_without_ranges_is_asked_for_all_of_it() {
    let (made, digest) = large();
    let content = made.layers[0].clone();
    // Once the whole, once "no such range", once another range than was asked for.
    for way in 0..3 {
        let (ends, content) = (digest.to_string(), content.clone());
        let registry = Registry::start(&made, move |request| {
            if !request.path.ends_with(&ends) {
                return None;
            }
            match (request.nth, way) {
                (0, _) => Some(Answer::new(200, content.clone()).way(Way::Cut(100_000))),
                (1, 0) => Some(Answer::new(200, content.clone())),
                (1, 1) => Some(Answer::new(416, "")),
                (1, _) => Some(partial(&content, 50_000)),
                _ => None,
            }
        });
        let place = Place::new();
        check(&place.pull(&registry).unwrap(), &made);
        let requests = registry.requests_for(&digest);
        assert_eq!(requests[1].header("range"), Some("bytes=100000-"));
        assert_eq!(requests.get(2).and_then(|r| r.header("range")), None);
    }
}

#[test]
fn a_registry_that_always_begins_anew_is_not_asked_for_ever() {
    let noise = vec![7; 4 << 20];
    let made = image_of(&Platform::here().architecture, vec![noise.clone()]);
    let digest = Digest::of(&noise);
    let ends = digest.to_string();
    let registry = Registry::start(&made, move |request| {
        let whole = || Answer::new(200, noise.clone()).way(Way::Cut(2 << 20));
        request.path.ends_with(&ends).then(whole)
    });
    let error = line(|| Place::new().pull(&registry));
    assert!(error.contains("broke off again and again"), "{error}");
    assert_eq!(registry.requests_for(&digest).len(), 3);
}

#[test]
fn a_store_is_not_cleared_while_a_layer_is_pulled() {
    let made = image(&["one"]);
    let place = Place::new();
    let digest = Digest::of(&made.layers[0]).to_string();
    let store = place.store();
    let registry = Registry::start(&made, move |request| {
        let free = store.hold_alone().unwrap().is_some();
        // A status that isn't tried again.
        (request.path.ends_with(&digest) && free).then(|| Answer::new(404, ""))
    });
    check(&place.pull(&registry).unwrap(), &made);
    assert!(place.store().hold_alone().unwrap().is_some());
}

#[test]
fn layers_that_are_too_large_together_are_not_pulled() {
    let made = image(&["one", "two"]);
    let registry = Registry::good(&made);
    let mut place = Place::new();
    let total: usize = made.layers.iter().map(Vec::len).sum();
    place.options.largest = total as u64 - 1;
    let error = line(|| place.pull(&registry));
    assert!(error.contains("is larger than"), "{error}");
    for layer in &made.layers {
        assert_eq!(registry.requests_for(&Digest::of(layer)).len(), 0);
    }
    place.options.largest += 1;
    check(&place.pull(&registry).unwrap(), &made);
}

#[test]
fn a_stalled_transfer_is_resumed_and_a_dead_one_ends() {
    let (made, digest) = large();
    let content = made.layers[0].clone();
    let (once, ends) = (content.clone(), digest.to_string());
    let registry = Registry::start(&made, move |request| {
        let first = request.path.ends_with(&ends) && request.nth == 0;
        first.then(|| Answer::new(200, once.clone()).way(Way::Stall(70_000)))
    });
    let less_impatient = || {
        let mut place = Place::new();
        // What a transfer sends before it stalls has to arrive within it.
        place.options.stall_timeout = Duration::from_secs(3);
        place
    };
    check(&less_impatient().pull(&registry).unwrap(), &made);
    assert_eq!(
        registry.requests_for(&digest)[1].header("range"),
        Some("bytes=70000-")
    );
    let ends = digest.to_string();
    let registry = Registry::start(&made, move |request| {
        let start = request.start();
        request.path.ends_with(&ends).then(|| match start {
            0 => Answer::new(200, content.clone()).way(Way::Stall(70_000)),
            _ => partial(&content, start).way(Way::Stall(0)),
        })
    });
    let place = less_impatient();
    let error = line(|| place.pull(&registry));
    assert!(
        error.contains("sends nothing, or next to nothing, for 3s"),
        "{error}"
    );
    assert_eq!(registry.requests_for(&digest).len(), 3);
    assert_eq!(fs::metadata(place.partial(&digest)).unwrap().len(), 70_000);
}

#[test]
fn a_registry_that_drips_is_not_waited_for() {
    // A byte each 100 ms is never silent for 700 ms.
    let drip = Way::Drip(Duration::from_millis(100));
    let made = image(&["one"]);
    let manifest = made.manifest.clone();
    let registry = Registry::start(&made, move |_| {
        Some(Answer::new(200, manifest.clone()).way(drip))
    });
    let error = line(|| Place::impatient().pull(&registry));
    assert!(error.contains("next to nothing"), "{error}");
    let (made, digest) = large();
    let content = made.layers[0].clone();
    let registry = Registry::start(&made, move |request| {
        let start = request.start();
        request
            .path
            .ends_with(&digest.to_string())
            .then(|| match start {
                0 => Answer::new(200, content.clone()).way(drip),
                _ => partial(&content, start).way(drip),
            })
    });
    let error = line(|| Place::impatient().pull(&registry));
    assert!(error.contains("next to nothing"), "{error}");
}

#[test]
fn a_layer_with_another_digest_is_refused_and_not_kept() {
    let (made, digest) = large();
    for longer in [false, true] {
        let mut content = made.layers[0].clone();
        content[1000] ^= 1;
        if longer {
            content.push(0);
        }
        let ends = digest.to_string();
        let registry = Registry::start(&made, move |request| {
            request
                .path
                .ends_with(&ends)
                .then(|| Answer::new(200, content.clone()))
        });
        let place = Place::new();
        let error = line(|| place.pull(&registry));
        let needle = match longer {
            false => format!(
                "layer {digest} of {}/o/n:1 has the digest sha256:",
                registry.address
            ),
            true => "is longer than the 200000 bytes in the manifest".to_owned(),
        };
        assert!(error.contains(&needle), "{error}");
        assert!(!place.has(&digest) && !place.partial(&digest).exists());
        assert_eq!(registry.requests_for(&digest).len(), 1);
    }
}

#[test]
fn a_document_with_another_digest_is_refused_and_not_kept() {
    let made = image(&["one"]);
    let (config, manifest) = (Digest::of(&made.config), Digest::of(&made.manifest));
    let registry = Registry::start(&made, |r| r.is_blob().then(|| Answer::new(200, "{}")));
    let place = Place::new();
    let error = line(|| place.pull(&registry));
    assert!(error.contains(&format!("instead of {config}")), "{error}");
    assert!(!place.has(&config));
    let registry = Registry::start(&made, |_| Some(Answer::new(200, "{}")));
    let place = Place::new();
    let name = format!("{}/o/n@{manifest}", registry.address);
    let error = line(|| place.open(&name, &Unwatched));
    assert!(error.contains(&format!("instead of {manifest}")), "{error}");
    let told = Digest::of("told");
    let header = told.to_string();
    let registry = Registry::start(&made, move |_| {
        Some(Answer::new(200, "{}").header("Docker-Content-Digest", header.clone()))
    });
    let error = line(|| place.pull(&registry));
    assert!(error.contains(&format!("instead of {told}")), "{error}");
}

#[test]
fn an_endless_document_is_refused() {
    let registry = Registry::start(&image(&["one"]), |_| {
        Some(Answer::new(200, vec![b' '; 5 << 20]))
    });
    let error = line(|| Place::new().pull(&registry));
    assert!(
        error.contains("manifest of") && error.contains("larger than 4194304 bytes"),
        "{error}"
    );
}

#[test]
fn a_partial_layer_is_resumed_if_it_is_right_and_dropped_if_not() {
    let (made, digest) = large();
    let layer = &made.layers[0];
    let mut wrong = layer[..1000].to_vec();
    wrong[500] ^= 1;
    let longer = [layer.as_slice(), b"more"].concat();
    let lefts: [(&[u8], &[Option<&str>]); 5] = [
        (&layer[..1000], &[Some("bytes=1000-")]),
        (layer, &[]),
        (&wrong, &[Some("bytes=1000-"), None]),
        (&longer, &[None]),
        (b"", &[None]),
    ];
    for (left, ranges) in lefts {
        let registry = Registry::good(&made);
        let place = Place::new();
        place.leave(&digest, left);
        check(&place.pull(&registry).unwrap(), &made);
        let requests = registry.requests_for(&digest);
        let asked: Vec<Option<&str>> = requests
            .iter()
            .map(|request| request.header("range"))
            .collect();
        assert_eq!(asked, ranges);
        assert!(!place.partial(&digest).exists());
    }
}

#[test]
fn a_damaged_store_is_mended_by_the_next_pull() {
    let (made, digest) = large();
    let registry = Registry::good(&made);
    let place = Place::new();
    place.pull(&registry).unwrap();
    fs::write(place.store().blob_path(&digest), "short").unwrap();
    fs::write(place.store().blob_path(&Digest::of(&made.config)), "{}").unwrap();
    let manifest = place.store().blob_path(&Digest::of(&made.manifest));
    let damaged = vec![b' '; made.manifest.len()];
    fs::write(manifest, damaged).unwrap();
    check(&place.pull(&registry).unwrap(), &made);
}

#[test]
fn two_pulls_of_one_image_share_the_work() {
    let (made, digest) = large();
    let registry = Registry::start(&made, |request| {
        if request.is_blob() {
            std::thread::sleep(Duration::from_millis(100));
        }
        None
    });
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| check(&place.pull(&registry).unwrap(), &made));
        }
    });
    assert_eq!(registry.requests_for(&digest).len(), 1);
}

#[test]
fn layers_are_pulled_three_at_a_time() {
    let contents: Vec<String> = (0..8).map(|n| n.to_string()).collect();
    let contents: Vec<&str> = contents.iter().map(String::as_str).collect();
    let made = image(&contents);
    let asked = (Mutex::new(0), Condvar::new());
    let config = Digest::of(&made.config).to_string();
    let registry = Registry::start(&made, move |request| {
        // The configuration is a blob, too, and comes before the layers.
        if request.is_blob() && !request.path.ends_with(&config) {
            // The first of them wait for the third.
            let (count, changed) = &asked;
            let mut count = count.lock().unwrap();
            *count += 1;
            changed.notify_all();
            let few = |count: &mut i32| *count < 3;
            drop(changed.wait_timeout_while(count, PATIENCE, few).unwrap());
            // A fourth would have time to come.
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    });
    check(&Place::new().pull(&registry).unwrap(), &made);
    assert_eq!(registry.most_at_once(), 3);
}

#[test]
fn one_layers_failure_ends_the_others() {
    let (made, slow) = large();
    let made = image_of(
        &Platform::here().architecture,
        vec![made.layers[0].clone(), b"bad".to_vec()],
    );
    let bad = Digest::of("bad").to_string();
    let (slow, content) = (slow.to_string(), made.layers[0].clone());
    let registry = Registry::start(&made, move |request| {
        if request.path.ends_with(&slow) {
            // More than a kilobyte a second, and so for minutes.
            let drip = Way::Drip(Duration::from_micros(600));
            return Some(Answer::new(200, content.clone()).way(drip));
        }
        request.path.ends_with(&bad).then(|| Answer::new(404, ""))
    });
    let error = line(|| Place::new().pull(&registry));
    assert!(error.contains("HTTP status 404"), "{error}");
}

#[test]
fn the_tag_of_a_failed_pull_is_not_remembered() {
    let made = image(&["one"]);
    for bad in [r#"{"schemaVersion":1}"#, "{", "{}"] {
        let registry = Registry::start(&made, move |request| {
            (request.path.ends_with("/1") && request.nth == 0).then(|| Answer::new(200, bad))
        });
        let place = Place::new();
        line(|| place.pull(&registry));
        check(&place.pull(&registry).unwrap(), &made);
    }
}

/// The reports of each layer: how it started, and all that came.
#[derive(Default)]
struct Watched(Mutex<HashMap<String, Vec<i64>>>);

impl Watched {
    fn note(&self, layer: &Digest, value: i64) {
        self.0
            .lock()
            .unwrap()
            .entry(layer.to_string())
            .or_default()
            .push(value);
    }
}

impl Progress for Watched {
    fn started(&self, layer: &Digest, total: u64) {
        self.note(layer, total.cast_signed());
    }
    fn advanced(&self, layer: &Digest, bytes: u64) {
        self.note(layer, bytes.cast_signed());
    }
    fn done(&self, layer: &Digest) {
        self.note(layer, -1);
    }
}

#[test]
fn progress_is_reported_for_each_layer() {
    let (made, digest) = large();
    let registry = Registry::good(&made);
    let place = Place::new();
    let name = format!("{}/o/n:1", registry.address);
    place.leave(&digest, &made.layers[0][..1000]);
    let watched = Watched::default();
    place.open(&name, &watched).unwrap();
    let told = watched
        .0
        .into_inner()
        .unwrap()
        .remove(&digest.to_string())
        .unwrap();
    assert_eq!(told[..2], [200_000, 1000]);
    assert_eq!(told[told.len() - 2..], [200_000, -1]);
    assert!(told[1..told.len() - 1].is_sorted());
    let watched = Watched::default();
    place.open(&name, &watched).unwrap();
    assert_eq!(watched.0.into_inner().unwrap()[&digest.to_string()], [-1]);
}

#[test]
fn a_killed_pull_leaves_a_beginning_and_no_lock() {
    let (made, digest) = large();
    let content = made.layers[0].clone();
    let registry = Registry::start(&made, move |request: &Request| {
        let first = request.path.ends_with(&digest.to_string()) && request.nth == 0;
        first.then(|| Answer::new(200, content.clone()).way(Way::Stall(120_000)))
    });
    let digest = Digest::of(&made.layers[0]);
    let place = Place::new();
    let mut child = child(&place, &registry);
    let deadline = Instant::now() + Duration::from_secs(300);
    while fs::metadata(place.partial(&digest)).map_or(0, |partial| partial.len()) < 120_000 {
        assert!(Instant::now() < deadline, "the child pulled nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.has(&digest));
    check(&place.pull(&registry).unwrap(), &made);
    assert_eq!(
        registry.requests_for(&digest)[1].header("range"),
        Some("bytes=120000-")
    );
}

#[test]
fn an_old_manifest_is_refused_by_name() {
    let registry = Registry::start(&image(&["one"]), |_| {
        Some(Answer::new(
            200,
            r#"{"schemaVersion":1,"name":"o/n","fsLayers":[{"blobSum":"sha256:x"}],"history":[]}"#,
        ))
    });
    let error = line(|| Place::new().pull(&registry));
    assert!(error.contains("Docker's old schema 1"), "{error}");
}

#[test]
fn a_registry_cannot_choose_a_path() {
    let made = image(&["one"]);
    let text = String::from_utf8(made.manifest.clone()).unwrap();
    let evil = text.replace(
        &Digest::of(&made.layers[0]).to_string(),
        "sha256:../../../../etc/passwd",
    );
    assert_ne!(text, evil);
    let registry = Registry::start(&made, move |r| {
        r.path
            .ends_with("/1")
            .then(|| Answer::new(200, evil.clone()))
    });
    let error = Place::new().pull(&registry).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("is not a valid digest"), "{error}: {cause}");
}
