//! The files that a fetcher reaches behind its walls: the cache's folders of images and of what is made of them; its image; and for a registry's,
//! what requests need.
//!
//! The rest of the cache stays closed: kernels, tools and templates are what this host's user runs.

use std::env;
use std::path::{Path, PathBuf};

use minivm_image::{Source, publish};

use crate::confine::Reach;

/// The folders of the cache that the fetcher fills.
const FOLDERS: [&str; 4] = ["images", "initramfs", "erofs", "rootfs"];
/// Devices that are read: nothing, and random numbers, where the C library has no call for them.
const DEVICES: [&str; 3] = ["/dev/null", "/dev/random", "/dev/urandom"];
/// Files and folders that requests to registries need: name servers, the domain to search, and root certificates as distributions have
/// them, with the folders that they link to. A file that is a link to another place is granted there.
const FOR_REQUESTS: [&str; 16] = [
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc/sys/kernel/hostname",
    "/etc/ca-certificates",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/certs/ca-certificates.crt",
    "/usr/local/share/ca-certificates",
    "/usr/share/ca-certificates",
    "/var/lib/ca-certificates",
];
/// Variables of the environment that name root certificates: a file, and folders with colons between them.
const CERTIFICATES: [&str; 2] = ["SSL_CERT_DIR", "SSL_CERT_FILE"];

/// Returns what a fetcher of this source reaches. Makes the cache's folders, which can be made no more behind the walls.
pub(super) fn of(source: &Source, cache: &Path) -> Reach {
    let filled = FOLDERS.map(|name| cache.join(name));
    for folder in &filled {
        // A cache that can only be read is read, as far as that goes.
        let _ = publish::make_folder(folder);
    }
    let network = matches!(source, Source::Registry(_));
    let mut read = DEVICES.map(PathBuf::from).to_vec();
    read.extend(source.path().map(Path::to_owned));
    if network {
        let named = CERTIFICATES.into_iter().filter_map(env::var_os);
        read.extend(FOR_REQUESTS.map(PathBuf::from));
        read.extend(named.flat_map(|named| env::split_paths(&named).collect::<Vec<_>>()));
    }
    Reach {
        filled: filled.into(),
        read,
        network,
    }
}

#[cfg(test)]
mod tests;
