//! Where credentials go: a registry, a host that it sends requests on to, and a third one that an answer names and that gets no request.

use std::fs;

use serde_json::json;

use super::server::{Answer, Registry, Request};
use super::{Place, check, child_with, line};
use crate::fixtures::{Made, image};
use crate::{Digest, Unwatched};

const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
/// `user:pass`.
const BASIC: &str = "Basic dXNlcjpwYXNz";
const FORM: &str = "grant_type=refresh_token&client_id=minivm&service=tests&scope=repository%3Aa%3Apull&refresh_token=refresh";

/// The credentials that a registry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Basic,
    /// A token, which a token server issues for the password.
    Bearer,
    /// A token, which a token server issues for what `docker login` calls an identity token.
    Identity,
}

impl Way {
    fn challenge(self, realm: &str) -> Answer {
        let challenge = match self {
            Way::Basic => r#"Basic realm="tests""#.to_owned(),
            _ => format!(r#"Bearer realm="{realm}",service="tests",scope="repository:a:pull""#),
        };
        Answer::new(401, "").header("WWW-Authenticate", challenge)
    }

    /// The `Authorization` of requests to the registry itself.
    fn authorization(self) -> &'static str {
        match self {
            Way::Basic => BASIC,
            _ => "Bearer good",
        }
    }

    /// The token server's answer.
    fn token(self, request: &Request) -> Answer {
        let right = match self {
            Way::Identity => request.body == FORM && request.header("authorization").is_none(),
            _ => request.header("authorization") == Some(BASIC),
        };
        match right {
            true => Answer::new(200, r#"{"token":"good"}"#),
            false => Answer::new(403, ""),
        }
    }

    /// Lets the child's `docker login` have been for this registry.
    fn log_in(self, place: &Place, registry: &Registry) {
        let login = match self {
            Way::Identity => json!({"auth": "dXNlcjpwYXNz", "identitytoken": "refresh"}),
            _ => json!({"auth": "dXNlcjpwYXNz"}),
        };
        let config = json!({"auths": {&registry.address: login}});
        fs::write(place.folder.path().join("config.json"), config.to_string()).unwrap();
    }
}

/// Of an image's content what a path ends with.
fn content(made: &Made, path: &str) -> Answer {
    let found = made
        .blobs()
        .find(|(digest, _)| path.ends_with(&digest.to_string()));
    let blob = found.map_or_else(|| made.manifest.clone(), |(_, blob)| blob.clone());
    let digest = Digest::of(&blob).to_string();
    Answer::new(200, blob).header("Docker-Content-Digest", digest)
}

/// Both kinds of challenge, in whose answer a third host would hear something.
fn lure(third: &str) -> Answer {
    Answer::new(401, "")
        .header(
            "WWW-Authenticate",
            format!(r#"Bearer realm="http://{third}/token",service="tests""#),
        )
        .header("WWW-Authenticate", r#"Basic realm="tests""#)
}

fn outcomes(place: &Place, images: &[String]) -> Vec<String> {
    child_with(place, images).wait().unwrap();
    let outcomes = fs::read_to_string(place.folder.path().join("outcomes")).unwrap();
    let outcomes: Vec<String> = outcomes.lines().map(str::to_owned).collect();
    assert_eq!(outcomes.len(), images.len());
    outcomes
}

fn shows_credentials(request: &Request) -> bool {
    let text = format!("{request:?}");
    request.header("authorization").is_some()
        || ["dXNlcjpwYXNz", "refresh", "good"]
            .iter()
            .any(|secret| text.contains(secret))
}

#[test]
fn credentials_go_to_their_registry_and_nowhere_else() {
    let made = image(&["one"]);
    for way in [Way::Basic, Way::Bearer, Way::Identity] {
        let third = Registry::good(&made);
        let (address, there) = (third.address.clone(), made.clone());
        // It serves the content, or asks for credentials, or redirects the request back.
        let cdn = Registry::start(&made, move |request| {
            let (case, rest) = request.path[1..].split_once('/')?;
            Some(match case {
                "served" => content(&there, rest),
                "back" => Answer::new(307, "").header("Location", format!("http://{rest}")),
                _ => lure(&address),
            })
        });
        let (address, there, to) = (third.address.clone(), made.clone(), cdn.address.clone());
        let registry = Registry::start(&made, move |request| {
            let host = request.header("host").unwrap();
            if request.path.starts_with("/token") {
                return Some(way.token(request));
            }
            // Not the registry's word, though it is the registry's host.
            if request.path.starts_with("/astray/") {
                return Some(lure(&address));
            }
            if request.header("authorization") != Some(way.authorization()) {
                return Some(way.challenge(&format!("http://{host}/token")));
            }
            if let Some(rest) = request.path.strip_prefix("/own/") {
                return Some(content(&there, rest));
            }
            let (repository, rest) = request.path.strip_prefix("/v2/o/")?.split_once('/')?;
            let (status, case) = repository.split_once('-')?;
            let location = match case {
                "own" => format!("/own/{rest}"),
                "back" => format!("http://{to}/back/{host}/astray/{rest}"),
                case => format!("http://{to}/{case}/{rest}"),
            };
            Some(Answer::new(status.parse().unwrap(), "").header("Location", location))
        });
        let place = Place::new();
        way.log_in(&place, &registry);
        let cases = ["served", "own", "denied", "back"];
        let named = |status, case| format!("{}/o/{status}-{case}:1", registry.address);
        let images: Vec<String> = REDIRECTS
            .iter()
            .flat_map(|status| cases.map(|case| named(status, case)))
            .collect();
        for (image, outcome) in images.iter().zip(outcomes(&place, &images)) {
            let host = match image.contains("-denied") {
                true => &cdn.address,
                false => &registry.address,
            };
            match image.contains("-served") || image.contains("-own") {
                true => assert_eq!(outcome, "pulled", "{way:?}: {image}"),
                false => assert!(
                    outcome.contains(&format!("{host}, which asks for credentials"))
                        && outcome.contains("HTTP status 401"),
                    "{way:?}: {image}: {outcome}"
                ),
            }
        }
        assert!(third.requests().is_empty(), "{way:?}");
        assert!(!cdn.requests().is_empty());
        assert!(!cdn.requests().iter().any(shows_credentials), "{way:?}");
        let (astray, own): (Vec<_>, Vec<_>) = registry
            .requests()
            .into_iter()
            .partition(|request| request.path.starts_with("/astray/"));
        assert!(!astray.is_empty() && !astray.iter().any(shows_credentials));
        assert!(own.iter().any(shows_credentials));
    }
}

#[test]
fn a_token_server_may_not_send_a_request_on() {
    let made = image(&["one"]);
    for way in [Way::Bearer, Way::Identity] {
        let third = Registry::good(&made);
        let to = third.address.clone();
        let registry = Registry::start(&made, move |request| {
            let host = request.header("host").unwrap();
            if let Some(status) = request.path.strip_prefix("/token/") {
                let status = status.get(..3).unwrap().parse().unwrap();
                let location = format!("http://{to}{}", request.path);
                return Some(Answer::new(status, "").header("Location", location));
            }
            let (status, _) = request.path.strip_prefix("/v2/o/")?.split_once('/')?;
            Some(way.challenge(&format!("http://{host}/token/{status}")))
        });
        let named = |status| format!("{}/o/{status}:1", registry.address);
        let images = REDIRECTS.map(named);
        let place = Place::new();
        way.log_in(&place, &registry);
        for (status, outcome) in REDIRECTS.iter().zip(outcomes(&place, &images)) {
            let told = format!(
                "its token server {} sends the request on (HTTP status {status})",
                registry.address
            );
            assert!(outcome.contains(&told), "{outcome}");
        }
        // Nor where there is no password.
        let error = line(|| Place::new().open(&images[0], &Unwatched));
        assert!(error.contains("sends the request on"), "{error}");
        assert!(third.requests().is_empty());
    }
}

#[test]
fn another_token_server_without_tls_gets_no_password() {
    let made = image(&["one"]);
    for way in [Way::Bearer, Way::Identity] {
        let tokens = Registry::start(&made, |_| Some(Answer::new(200, r#"{"token":"good"}"#)));
        let realm = format!("http://{}/token", tokens.address);
        let registry = Registry::start(&made, move |request| {
            let denied = request.header("authorization") != Some("Bearer good");
            denied.then(|| way.challenge(&realm))
        });
        let place = Place::new();
        way.log_in(&place, &registry);
        let images = [
            format!("{}/o/n:1", registry.address),
            format!("{}/o/n:2", registry.address),
        ];
        for outcome in outcomes(&place, &images) {
            let told = format!(
                "its token server http://{} has no TLS and is not the registry itself",
                tokens.address
            );
            let remedy = format!("`docker logout {}`", registry.address);
            assert!(
                outcome.contains(&told) && outcome.contains(&remedy),
                "{outcome}"
            );
        }
        assert!(tokens.requests().is_empty());
        // On this machine it may issue tokens to anonymous users.
        check(&Place::new().pull(&registry).unwrap(), &made);
        let asked = tokens.requests();
        assert!(asked.len() == 1 && asked[0].header("authorization").is_none());
    }
}

#[test]
fn a_token_server_elsewhere_without_tls_is_refused_by_name() {
    let made = image(&["one"]);
    let registry = Registry::start(&made, |_| {
        Some(Way::Bearer.challenge("http://auth.example:5001/token"))
    });
    let error = line(|| Place::new().pull(&registry));
    assert!(
        error.contains("the token server http://auth.example:5001, which has no TLS"),
        "{error}"
    );
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn a_request_is_not_sent_on_for_ever() {
    let made = image(&["one"]);
    let registry = Registry::start(&made, |request| {
        Some(Answer::new(302, "").header("Location", format!("{}x", request.path)))
    });
    let error = line(|| Place::new().pull(&registry));
    assert!(error.contains("more than 10 times"), "{error}");
    assert_eq!(registry.requests().len(), 11);
    let registry = Registry::start(&made, |_| Some(Answer::new(302, "")));
    let error = line(|| Place::new().pull(&registry));
    assert!(
        error.contains("doesn't say where (HTTP status 302)"),
        "{error}"
    );
}

#[test]
fn a_host_that_a_request_is_sent_on_to_is_named_where_it_fails() {
    let made = image(&["one"]);
    // Nothing listens on the port of tcpmux.
    let registry = Registry::start(&made, |_| {
        Some(Answer::new(307, "").header("Location", "http://127.0.0.1:1/x"))
    });
    let error = line(|| Place::new().pull(&registry));
    assert!(
        error.contains("sends the request on to 127.0.0.1:1, which fails: it can't be reached"),
        "{error}"
    );
    for status in [403, 404, 418] {
        let cdn = Registry::start(&made, move |_| Some(Answer::new(status, "")));
        let to = cdn.address.clone();
        let registry = Registry::start(&made, move |_| {
            Some(Answer::new(307, "").header("Location", format!("http://{to}/x")))
        });
        let error = line(|| Place::new().pull(&registry));
        let told = format!("(HTTP status {status} from {})", cdn.address);
        assert!(
            error.contains(&told) && error.contains(&registry.address),
            "{error}"
        );
    }
}
