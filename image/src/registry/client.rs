//! An HTTP client of one registry: it sends requests, follows redirects, pauses, and tries again.
//!
//! `reqwest`'s blocking client is a thread with a Tokio runtime of one thread; what it does here is one GET after another.
//! Two things are done here, since they decide how long a user waits: which failures may pass and are tried again, and when a
//! body counts as stalled. So is a third, following redirects, since it decides to which hosts credentials go: to the
//! registry's origin (scheme, host and port) and nowhere else.

use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::blocking::{self, RequestBuilder, Response};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;

use super::failure::{Failure, unreachable_for};
use super::redirect::{self, host_of};
use crate::error::{Cause, Error, innermost};
use crate::helpers::Credential;
use crate::options::Options;
use crate::reference::Reference;
use crate::shown::shown;

/// The media types of manifests and indexes.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// The fewest bytes of a body that have to arrive in a second, on average over the stall timeout.
const SLOWEST: f64 = 1024.0;
/// The most redirects that are followed for a request.
const MOST_REDIRECTS: usize = 10;
/// The fewest bytes that have to arrive between failures for these to be forgiven.
const HEADWAY: u64 = 1 << 20;

/// A client of a registry, for one image.
pub(super) struct Client<'a> {
    http: blocking::Client,
    name: &'a Reference,
    image: String,
    base: Url,
    pub(super) options: &'a Options,
    /// The `Authorization` for the registry, once it has asked for one.
    authorization: Mutex<Option<String>>,
    stopped: AtomicBool,
}

impl<'a> Client<'a> {
    pub(super) fn new(name: &'a Reference, options: &'a Options) -> Result<Client<'a>, Error> {
        let plain = name.is_loopback() || options.plain_http.iter().any(|r| r == name.registry());
        let host = match name.registry() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let image = name.to_string();
        let scheme = if plain { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/v2/{}/", name.repository()));
        let base = base.map_err(|error| Error::Transfer {
            image: image.clone(),
            registry: name.registry().into(),
            problem: "its name is not a valid host; is it spelled right?".into(),
            source: Some(innermost(&error)),
        })?;
        let http = http(plain, name.is_loopback(), options).map_err(|error| Error::Transfer {
            image: image.clone(),
            registry: name.registry().into(),
            problem: "TLS can't be set up; are there root certificates (ca-certificates)?".into(),
            source: Some(innermost(&error)),
        })?;
        Ok(Client {
            http,
            image,
            base,
            name,
            options,
            authorization: Mutex::new(None),
            stopped: AtomicBool::new(false),
        })
    }

    /// Stops the requests of all threads, at their next byte or pause.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Tries until it works, fails for good, or has failed too often without headway between.
    pub(super) fn retrying<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let mut failures = 0;
        loop {
            let (error, after) = match attempt() {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(*error),
                Err(Failure::Passing {
                    error,
                    after,
                    headway,
                }) => {
                    if headway >= HEADWAY {
                        failures = 0;
                    }
                    (error, after)
                }
            };
            let longest = self.options.longest_pause;
            let doubled = self.options.backoff.saturating_mul(1 << failures.min(10));
            let pause = after.unwrap_or_default().max(doubled.min(longest));
            if failures >= self.options.retries || pause > longest {
                return Err(*error);
            }
            failures += 1;
            log::debug!("{error}; trying again in {pause:?}");
            if !self.pause(pause) {
                return Err(*error);
            }
        }
    }

    /// Waits. Returns false if the client was stopped meanwhile.
    fn pause(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        while !self.is_stopped() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        false
    }

    /// Keeps the `Authorization` for the requests that follow.
    pub(super) fn authorize(&self, authorization: String) {
        *self.authorization.lock().expect("no holder panics") = Some(authorization);
    }

    /// Sends a request and follows redirects. Returns the last answer, and whether it is the registry's with no other origin
    /// asked before it.
    pub(super) fn follow(&self, path: &str, start: u64) -> Result<(Response, bool), Failure> {
        let base = self.base.join(path);
        let mut url = base.map_err(|_| {
            self.transfer(
                "its address is not a valid URL with the image's name".into(),
                None,
            )
        })?;
        let mut own = true;
        for _ in 0..=MOST_REDIRECTS {
            let request = self.request(url, path, start, own);
            let response = request.send().map_err(|error| self.not_sent(&error))?;
            let next = redirect::next(response.status(), response.url(), response.headers());
            let next = next.map_err(|problem| self.transfer(problem, None))?;
            let Some(next) = next else {
                return Ok((response, own));
            };
            own = own && self.is_own(&next);
            url = next;
        }
        let problem =
            format!("it sends the request on more than {MOST_REDIRECTS} times; try later");
        Err(self.transfer(problem, None).into())
    }

    /// Returns the request, with credentials where it is the registry's own address.
    fn request(&self, url: Url, path: &str, start: u64, own: bool) -> RequestBuilder {
        let mut request = self.http.get(url);
        if path.starts_with("manifests/") {
            request = request.header(ACCEPT, MANIFESTS);
        }
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let authorization = self.authorization.lock().expect("no holder panics").clone();
        match authorization.filter(|_| own) {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        }
    }

    /// Whether an address has the registry's origin.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Whether no other host can read or forge what is exchanged with the registry: by TLS, or since it is on this machine.
    pub(super) fn is_private(&self) -> bool {
        self.base.scheme() == "https" || self.name.is_loopback()
    }

    /// Returns the host of an address, if it is another than the registry.
    fn elsewhere(&self, url: &Url) -> Option<String> {
        (!self.is_own(url)).then(|| host_of(url))
    }

    /// Returns the failure for a 401 that is not answered, since it is not the registry's.
    pub(super) fn wants_credentials(&self, url: &Url) -> Failure {
        let problem = format!(
            "it sends the request on to {}, which asks for credentials (HTTP status 401), and the registry's go to the registry alone; try later, or ask its operator",
            host_of(url)
        );
        self.transfer(problem, None).into()
    }

    /// Reads a body to its end, part by part.
    pub(super) fn read(
        &self,
        mut response: Response,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Failure> {
        let patience = self.options.stall_timeout;
        let mut buffer = vec![0; 64 << 10];
        let mut total = 0;
        let (mut since, mut window) = (Instant::now(), 0);
        loop {
            if self.is_stopped() {
                return Err(self.transfer("another layer failed".into(), None).into());
            }
            let count = match response.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken_off(total, Some(&error))),
            };
            take(&buffer[..count])?;
            total += count as u64;
            window += count;
            if since.elapsed() >= patience {
                if (window as f64) < SLOWEST * patience.as_secs_f64() {
                    return Err(self.stalled(total));
                }
                (since, window) = (Instant::now(), 0);
            }
        }
    }

    /// Returns the credential that is stored for the registry.
    pub(super) fn credential(&self) -> Option<Credential> {
        self.options.helpers.credential(self.name)
    }

    pub(super) fn http(&self) -> &blocking::Client {
        &self.http
    }

    pub(super) fn name(&self) -> &Reference {
        self.name
    }

    pub(super) fn image(&self) -> &str {
        &self.image
    }

    /// Sorts answers into successes, final failures and failures that may pass.
    pub(super) fn check(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = retry_after(response.headers());
        let (image, registry) = (self.image.clone(), self.name.registry().to_owned());
        let elsewhere = self.elsewhere(response.url());
        let elsewhere = elsewhere.map(|host| format!(" from {host}"));
        let detail = elsewhere.unwrap_or_default() + &self.detail(response);
        let code = status.as_u16();
        let remedy = match code {
            401 | 403 => {
                return Err(Failure::from(Error::Denied {
                    image,
                    registry,
                    status: code,
                    detail,
                }));
            }
            404 => {
                return Err(Failure::from(Error::NotFound {
                    image,
                    registry,
                    detail,
                }));
            }
            429 => {
                format!("log in with `docker login {registry}` for a higher limit, or try later")
            }
            _ => "try later".to_owned(),
        };
        let error = Error::Registry {
            image,
            registry,
            status: code,
            detail,
            remedy,
        };
        match code {
            408 | 416 | 429 | 500.. => Err(Failure::Passing {
                error: Box::new(error),
                after,
                headway: 0,
            }),
            _ => Err(error.into()),
        }
    }

    /// Returns the registry's message about a failure, `{"errors":[{"code":…,"message":…}]}`; empty where there is none.
    fn detail(&self, response: Response) -> String {
        let mut body = Vec::new();
        let read = self.read(response, &mut |part| {
            body.extend_from_slice(part);
            match body.len() > 64 << 10 {
                true => Err(Error::invalid("", "")),
                false => Ok(()),
            }
        });
        if read.is_err() {
            return String::new();
        }
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let first = &body["errors"][0];
        let text = [&first["message"], &first["code"], &body["details"]];
        let text = text
            .into_iter()
            .find_map(|text| text.as_str().filter(|text| !text.is_empty()));
        text.map(|text| format!(": {}", shown(text)))
            .unwrap_or_default()
    }

    fn not_sent(&self, error: &reqwest::Error) -> Failure {
        let cause = innermost(error);
        if error.is_connect() {
            let problem = unreachable_for(error);
            let problem = match error.url().and_then(|url| self.elsewhere(url)) {
                Some(host) => format!("it sends the request on to {host}, which fails: {problem}"),
                None => problem.to_owned(),
            };
            return self.transfer(problem, Some(cause)).into();
        }
        if error.is_builder() {
            let problem = "it sends the request where it can't go".to_owned();
            return self.transfer(problem, Some(cause)).into();
        }
        if error.is_timeout() {
            return self.stalled(0);
        }
        Failure::passing(self.transfer("it doesn't answer; try later".into(), Some(cause)))
    }

    /// Returns the failure of a transfer that ended too early.
    pub(super) fn broken_off(&self, headway: u64, error: Option<&io::Error>) -> Failure {
        let timed_out = |error: &&io::Error| {
            let inner = error
                .get_ref()
                .and_then(|e| e.downcast_ref::<reqwest::Error>());
            error.kind() == io::ErrorKind::TimedOut || inner.is_some_and(reqwest::Error::is_timeout)
        };
        if error.filter(timed_out).is_some() {
            return self.stalled(headway);
        }
        let cause = error.map(|error| innermost(error));
        let problem = "the transfer broke off again and again; try later, it will be resumed";
        Failure::passing(self.transfer(problem.into(), cause)).after_headway(headway)
    }

    fn stalled(&self, headway: u64) -> Failure {
        let problem = format!(
            "it sends nothing, or next to nothing, for {:?}; try later, the transfer will be resumed",
            self.options.stall_timeout
        );
        Failure::passing(self.transfer(problem, None)).after_headway(headway)
    }

    pub(super) fn transfer(&self, problem: String, source: Option<Cause>) -> Error {
        Error::Transfer {
            image: self.image.clone(),
            registry: self.name.registry().into(),
            problem,
            source,
        }
    }
}

/// Makes the HTTP client. `timeout` is for an answer's head, and for each read of its body.
fn http(plain: bool, loopback: bool, options: &Options) -> reqwest::Result<blocking::Client> {
    // Ring, once for the process; a provider that was installed before is fine too.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = blocking::Client::builder()
        .user_agent(concat!("minivm/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(options.connect_timeout)
        .timeout(options.stall_timeout)
        // `Client::follow` follows redirects; those of token servers are not followed at all.
        .redirect(Policy::none())
        // A registry with TLS may not redirect requests, and a password with them, to one without.
        .https_only(!plain);
    if loopback {
        builder = builder.no_proxy();
    }
    builder.build()
}

/// Returns the pause that a registry asks for, in seconds. For a date, which the header may have too, the usual pauses do.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse();
    seconds.ok().map(Duration::from_secs)
}
