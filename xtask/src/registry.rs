//! Python's root file system from a container registry: `skopeo` copies the image, `umoci` unpacks it.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::packages;
use crate::process::capture;

/// The image that the demo takes, unless a variable names another.
pub(crate) const DEFAULT: &str = "docker.io/library/python:3-alpine";

/// How long looking for a registry may take, name look-up and all.
const PATIENCE: Duration = Duration::from_secs(2);

/// Refuses, with the reason, where the image's registry doesn't answer. A proxy that is set speaks for the registry.
pub(crate) fn check_reachable(image: &str) -> Result<()> {
    let address = match proxy() {
        Some(proxy) if !is_local(image) => proxy,
        _ => address(image),
    };
    check_answers(&address, PATIENCE)
}

fn check_answers(address: &str, patience: Duration) -> Result<()> {
    let (sender, answer) = mpsc::channel();
    let wanted = address.to_owned();
    thread::spawn(move || {
        let reached = wanted.to_socket_addrs().and_then(connect);
        let _ = sender.send(reached); // Nobody listens any more when this came too late.
    });
    match answer.recv_timeout(patience) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => bail!("{address} can't be reached ({error})"),
        Err(_) => bail!("{address} didn't answer within {} s", patience.as_secs()),
    }
}

/// Fills `root` with the image's files.
pub(crate) fn fill(image: &str, root: &Path) -> Result<()> {
    packages::install_some(&["skopeo", "umoci", "ca-certificates"])?;
    let work = tempfile::tempdir().context("cannot create a temporary folder")?;
    let layout = format!("{}:image", work.path().join("layout").display());
    let mut copy = Command::new("skopeo");
    copy.args([
        "--insecure-policy",
        "--command-timeout=300s",
        "copy",
        "--quiet",
    ]);
    if is_local(image) {
        copy.arg("--src-tls-verify=false");
    }
    capture(
        copy.arg(format!("docker://{image}"))
            .arg(format!("oci:{layout}")),
    )?;
    let bundle = work.path().join("bundle");
    capture(
        Command::new("umoci")
            .args(["unpack", "--rootless", "--image", &layout])
            .arg(&bundle),
    )?;
    capture(
        Command::new("cp")
            .arg("--archive")
            .arg(bundle.join("rootfs/."))
            .arg(root),
    )?;
    Ok(())
}

fn connect(addresses: impl Iterator<Item = std::net::SocketAddr>) -> std::io::Result<()> {
    let mut last = std::io::Error::other("no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The first part of an image's name is a registry if it looks like a host; Docker's own is the default.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Registries on the own machine speak plain HTTP, here as in Docker.
fn is_local(image: &str) -> bool {
    let host = registry(image).split(':').next().unwrap_or_default();
    host == "localhost" || host.starts_with("127.")
}

fn address(image: &str) -> String {
    match registry(image) {
        "docker.io" => "registry-1.docker.io:443".to_owned(),
        host if host.contains(':') => host.to_owned(),
        host if is_local(image) => format!("{host}:80"),
        host => format!("{host}:443"),
    }
}

/// The host and port of the proxy that skopeo would use.
fn proxy() -> Option<String> {
    let value = ["https_proxy", "HTTPS_PROXY"]
        .iter()
        .find_map(|name| std::env::var(name).ok())?;
    let host = value
        .split_once("://")
        .map_or(value.as_str(), |(_, rest)| rest);
    let host = host
        .rsplit_once('@')
        .map_or(host, |(_, host)| host)
        .trim_end_matches('/');
    (!host.is_empty()).then(|| {
        if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:80")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_found_in_the_images_name() {
        assert_eq!(address("python:3-alpine"), "registry-1.docker.io:443");
        assert_eq!(address(DEFAULT), "registry-1.docker.io:443");
        assert_eq!(address("quay.io/a/b:1"), "quay.io:443");
        assert_eq!(address("localhost:5000/py:1"), "localhost:5000");
        assert!(
            is_local("localhost:5000/py:1")
                && is_local("127.0.0.1:5000/py:1")
                && !is_local("quay.io/a/b")
        );
    }

    #[test]
    fn a_closed_port_is_not_reachable() {
        let error = check_answers("127.0.0.1:1", Duration::from_secs(300)).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("127.0.0.1:1 can't be reached"), "{error}");
    }
}
