//! Answers to a registry's challenges.
//!
//! A registry that asks for credentials answers 401 and says how in `WWW-Authenticate`: `Basic`, or `Bearer` with the address
//! of a server that issues tokens, to anonymous users or for a password (distribution documentation, "Token Authentication").
//! The password is what `docker login` has stored, read only when it is needed.
//!
//! Only the registry's own challenges are answered, since it alone may name the server that gets its password. That is the
//! registry itself, or a token server with TLS, and never the target of a token server's redirect.

use base64::prelude::{BASE64_STANDARD, Engine};
use reqwest::Url;
use reqwest::blocking::RequestBuilder;
use reqwest::header::{CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::client::Client;
use super::failure::Failure;
use super::redirect::host_of;
use crate::error::{Error, innermost};
use crate::helpers::Credential;
use crate::reference::is_loopback;

/// The most bytes of a token server's answer.
const LARGEST_TOKEN: usize = 1 << 20;

/// Returns the `Authorization` that answers a 401; `None` where there are no credentials for it.
pub(super) fn answer(client: &Client<'_>, headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let challenges = headers.get_all(WWW_AUTHENTICATE).iter();
    let challenges: Vec<Challenge> = challenges
        .filter_map(|text| Challenge::parse(text.to_str().ok()?))
        .collect();
    let of = |scheme: &str| {
        challenges
            .iter()
            .find(|c| c.scheme.eq_ignore_ascii_case(scheme))
    };
    if let Some(bearer) = of("Bearer") {
        let realm = realm(client, bearer)?;
        let credential = client.credential();
        return token(client, bearer, realm, credential)
            .map(|token| Some(format!("Bearer {token}")));
    }
    if of("Basic").is_none() {
        return Ok(None);
    }
    let Some(Credential::Password { user, password }) = client.credential() else {
        return Ok(None);
    };
    if !client.is_private() {
        return Err(no_tls(client));
    }
    let registry = client.name().registry();
    log::debug!("the password for registry {registry} goes to {registry}");
    let proof = BASE64_STANDARD.encode(format!("{user}:{password}"));
    Ok(Some(format!("Basic {proof}")))
}

/// Returns the address of the token server that the registry names, if requests may go there at all.
fn realm(client: &Client<'_>, challenge: &Challenge) -> Result<Url, Failure> {
    let realm = challenge.get("realm").unwrap_or_default();
    let mut url = Url::parse(realm)
        .map_err(|_| nonsense(client, "the address of its token server is not a valid URL"))?;
    let local = |url: &Url| url.host_str().is_some_and(is_loopback);
    let near = client.is_own(&url) || (client.name().is_loopback() && local(&url));
    match url.scheme() {
        "https" => {}
        "http" if near => {}
        scheme => {
            let problem = format!(
                "it names the token server {scheme}://{}, which has no TLS: ask its operator for one with https",
                host_of(&url)
            );
            return Err(client.transfer(problem, None).into());
        }
    }
    // The address may have a user and a password, which would be sent instead of the user's own.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok(url)
}

/// Refuses to send a credential to a token server where other hosts may read it.
fn check_way(client: &Client<'_>, realm: &Url) -> Result<(), Failure> {
    if !client.is_private() {
        return Err(no_tls(client));
    }
    if realm.scheme() == "https" || client.is_own(realm) {
        return Ok(());
    }
    let problem = format!(
        "its token server http://{} has no TLS and is not the registry itself, so what `docker login` has stored doesn't go there: use one with https, or `docker logout {}`",
        host_of(realm),
        client.name().registry()
    );
    Err(client.transfer(problem, None).into())
}

fn no_tls(client: &Client<'_>) -> Failure {
    let registry = client.name().registry();
    let problem = format!(
        "it has no TLS, so what `docker login` has stored doesn't go there: give it a certificate, or `docker logout {registry}`"
    );
    client.transfer(problem, None).into()
}

/// A token server's answer: the token, by its older or its newer name.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Returns the request for a token: with a refresh token or a password, if there is one, else anonymous.
fn request(
    client: &Client<'_>,
    challenge: &Challenge,
    mut url: Url,
    credential: Option<Credential>,
) -> RequestBuilder {
    let scope = challenge.get("scope").map(str::to_owned);
    let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", client.name().repository()));
    let service = challenge.get("service").unwrap_or_default();
    if let Some(Credential::IdentityToken(refresh)) = credential {
        // A query and a form are written alike.
        let mut form = url.clone();
        form.set_query(None);
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", "minivm")
            .append_pair("service", service)
            .append_pair("scope", &scope)
            .append_pair("refresh_token", &refresh);
        let body = form.query().unwrap_or_default().to_owned();
        let form_type = "application/x-www-form-urlencoded";
        let request = client.http().post(url).header(CONTENT_TYPE, form_type);
        return request.body(body);
    }
    url.query_pairs_mut()
        .append_pair("service", service)
        .append_pair("scope", &scope);
    let request = client.http().get(url);
    match credential {
        Some(Credential::Password { user, password }) => request.basic_auth(user, Some(password)),
        _ => request,
    }
}

fn token(
    client: &Client<'_>,
    challenge: &Challenge,
    realm: Url,
    credential: Option<Credential>,
) -> Result<String, Failure> {
    if credential.is_some() {
        check_way(client, &realm)?;
    }
    let (registry, host) = (client.name().registry(), host_of(&realm));
    let shown_there = match &credential {
        Some(Credential::Password { .. }) => "the password",
        Some(Credential::IdentityToken(_)) => "the identity token",
        None => "no password",
    };
    log::debug!("{shown_there} for registry {registry} goes to its token server {host}");
    let request = request(client, challenge, realm, credential);
    let response = request.send().map_err(|error| {
        let problem = format!("its token server {host} can't be reached; is the network up?");
        let error_is_final = error.is_connect() || error.is_builder();
        let error = client.transfer(problem, Some(innermost(&error)));
        match error_is_final {
            true => error.into(),
            false => Failure::passing(error),
        }
    })?;
    if response.status().is_redirection() {
        let problem = format!(
            "its token server {host} sends the request on (HTTP status {}), where no password may follow; ask its operator for the server's right address",
            response.status().as_u16()
        );
        return Err(client.transfer(problem, None).into());
    }
    let mut body = Vec::new();
    client.read(client.check(response)?, &mut |part| {
        body.extend_from_slice(part);
        match body.len() > LARGEST_TOKEN {
            true => Err(Error::TooLarge {
                what: format!("the token for {}", client.image()),
                limit: LARGEST_TOKEN as u64,
            }),
            false => Ok(()),
        }
    })?;
    let token = serde_json::from_slice(&body)
        .ok()
        .and_then(|t: Token| t.token.or(t.access_token));
    let visible = |token: &String| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    token
        .filter(visible)
        .ok_or_else(|| nonsense(client, "its token server sends no token"))
}

fn nonsense(client: &Client<'_>, problem: &str) -> Failure {
    client
        .transfer(format!("{problem}; try later"), None)
        .into()
}

/// A way to authenticate: `Bearer realm="https://…",service="…",scope="…"`.
#[derive(Debug)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parse(text: &str) -> Option<Challenge> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
            parameters.push((key, value.to_owned()));
            rest = after;
        }
        (!scheme.is_empty()).then(|| Challenge {
            scheme: scheme.to_owned(),
            parameters,
        })
    }

    fn get(&self, key: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Options, Reference};

    #[test]
    fn a_challenge_is_parsed() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io", scope="repository:a/b:pull,push",x=1"#;
        let challenge = Challenge::parse(text).unwrap();
        assert_eq!(challenge.scheme, "Bearer");
        assert_eq!(challenge.get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenge.get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(challenge.get("x"), Some("1"));
        assert_eq!(challenge.get("absent"), None);
    }

    #[test]
    fn a_password_goes_to_its_registry_or_to_a_token_server_with_tls() {
        let options = Options {
            plain_http: vec!["plain.example".into()],
            ..Options::default()
        };
        // Whether tokens may be had there, and whether for a password.
        for (registry, realm, token, password) in [
            ("r.example", "https://r.example/token", true, true),
            ("r.example", "https://auth.example:7/token", true, true),
            ("r.example", "http://r.example/token", false, false),
            ("r.example", "http://127.0.0.1/token", false, false),
            ("r.example", "ftp://r.example/token", false, false),
            ("r.example", "unix:/run/token", false, false),
            ("r.example", "/token", false, false),
            ("r.example", "", false, false),
            ("localhost:5000", "http://localhost:5000/token", true, true),
            ("localhost:5000", "http://localhost/token", true, false),
            ("localhost:5000", "http://127.0.0.1:5001/", true, false),
            ("localhost:5000", "http://[::1]:5000/", true, false),
            ("localhost:5000", "https://auth.example/", true, true),
            ("localhost:5000", "http://auth.example/", false, false),
            (
                "localhost:5000",
                "http://localhost.auth.example/",
                false,
                false,
            ),
            ("plain.example", "http://plain.example/token", true, false),
            ("plain.example", "https://auth.example/token", true, false),
            ("plain.example", "http://127.0.0.1/token", false, false),
        ] {
            let name: Reference = format!("{registry}/o/n").parse().unwrap();
            let client = Client::new(&name, &options).unwrap();
            let challenge = Challenge::parse(&format!("Bearer realm=\"{realm}\"")).unwrap();
            let url = super::realm(&client, &challenge);
            assert_eq!(url.is_ok(), token, "{registry}: {realm}");
            let way = url.and_then(|url| check_way(&client, &url));
            assert_eq!(way.is_ok(), password, "{registry}: {realm}");
        }
        let name: Reference = "r.example/o/n".parse().unwrap();
        let client = Client::new(&name, &options).unwrap();
        let challenge = Challenge::parse(r#"Bearer realm="https://a:b@auth.example/""#).unwrap();
        let Ok(url) = super::realm(&client, &challenge) else {
            panic!("it has TLS");
        };
        assert_eq!(url.as_str(), "https://auth.example/");
    }

    proptest! {
        #[test]
        fn no_challenge_panics(text in "[A-Za-z]{0,8}[ =,\"a-z]{0,40}") {
            let _ = Challenge::parse(&text);
        }
    }
}
