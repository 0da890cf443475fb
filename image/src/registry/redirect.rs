//! Redirects.
//!
//! They may lead to any host, since registries keep layers where they like, and digests show whether these are right. They
//! don't lead from TLS to none.

use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{StatusCode, Url};

/// Returns the next address, if the answer names one.
///
/// # Errors
///
/// What is wrong with the address, in words about the registry.
pub(super) fn next(
    status: StatusCode,
    from: &Url,
    headers: &HeaderMap,
) -> Result<Option<Url>, String> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = headers.get(LOCATION);
    let location = location.and_then(|text| std::str::from_utf8(text.as_bytes()).ok());
    let Some(mut to) = location.and_then(|text| from.join(text).ok()) else {
        return Err(format!(
            "{} sends the request on and doesn't say where (HTTP status {}); try later",
            host_of(from),
            status.as_u16()
        ));
    };
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, scheme) => {
            return Err(format!(
                "{} sends the request on to {scheme}://{}, which has no TLS; ask its operator for an address with https",
                host_of(from),
                host_of(&to)
            ));
        }
    }
    // A user and a password in the address are not used.
    let _ = to.set_username("");
    let _ = to.set_password(None);
    Ok(Some(to))
}

/// Returns an address's host, with its port where it isn't the usual one.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn led(status: u16, from: &str, to: &'static [u8]) -> Result<Option<String>, String> {
        let headers = [(LOCATION, HeaderValue::from_bytes(to).unwrap())];
        let headers = headers.into_iter().collect();
        let status = StatusCode::from_u16(status).unwrap();
        let next = next(status, &from.parse().unwrap(), &headers)?;
        Ok(next.map(String::from))
    }

    #[test]
    fn an_address_is_resolved_against_that_of_the_request() {
        for status in [301, 302, 303, 307, 308] {
            for (to, url) in [
                (&b"/b"[..], "https://r.example:5/b"),
                (b"//c.example/x?y=z", "https://c.example/x?y=z"),
                (b"https://c.example:7/", "https://c.example:7/"),
                (b"https://bob:secret@c.example/", "https://c.example/"),
                ("/é".as_bytes(), "https://r.example:5/%C3%A9"),
            ] {
                let led = led(status, "https://r.example:5/v2/a", to);
                assert_eq!(led, Ok(Some(url.into())));
            }
        }
        for status in [200, 300, 304, 305, 401, 404] {
            assert_eq!(led(status, "https://r.example/", b"/b"), Ok(None));
        }
    }

    #[test]
    fn redirects_never_leave_tls() {
        let plain = led(307, "http://localhost:5000/", b"http://c.example/");
        assert_eq!(plain, Ok(Some("http://c.example/".into())));
        for to in [
            &b"http://c.example:8/"[..],
            b"ftp://c.example:8/",
            b"file://c.example/",
        ] {
            let error = led(302, "https://r.example/", to).unwrap_err();
            assert!(
                error.contains("r.example") && error.contains("://c.example"),
                "{error}"
            );
        }
        assert!(led(302, "http://localhost:5000/", b"unix://x/").is_err());
    }

    #[test]
    fn a_missing_or_invalid_address_is_an_error() {
        for to in [&b"https://"[..], b"\xff"] {
            let error = led(302, "https://r.example/", to).unwrap_err();
            assert!(error.contains("doesn't say where"), "{error}");
        }
    }
}
