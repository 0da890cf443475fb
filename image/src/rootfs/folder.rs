//! Images that are folders on the host.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;

use super::entry::Xattrs;
use super::error::Error;
use super::reserved::stored;
use minivm_guest::manifest::{self, Xattr};
use minivm_guest::newc::{self, Archive};
use minivm_guest::walk::{self, Owner};

/// What has to be known of a folder before its files are written.
#[derive(Default)]
pub(super) struct Survey {
    /// The extended attributes of the folder and of everything below it, sorted.
    pub(super) xattrs: Vec<Xattr>,
    /// Bytes of all files: nearly the whole archive.
    pub(super) data: u64,
    /// Files with several names, whose data the archive has once.
    linked: HashSet<(u64, u64)>,
}

/// Surveys a folder.
pub(super) fn survey(root: &Path) -> Result<Survey, newc::Error> {
    // The folder itself, if it is named by a link.
    let root = fs::canonicalize(root).map_err(walk::reading(root))?;
    let mut found = Survey::default();
    collect(&root, Path::new(""), &mut found)?;
    Ok(found)
}

/// Returns the names and values of a file's extended attributes, sorted; without those of the host's own security modules.
pub(super) fn xattrs(path: &Path) -> Result<Xattrs, newc::Error> {
    let mut found = Vec::new();
    for attribute in list(path).map_err(walk::reading(path))? {
        let hosts: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];
        if hosts.contains(&&*attribute) {
            continue;
        }
        let value = value(path, &attribute).map_err(walk::reading(path))?;
        found.push((attribute.into(), value.into()));
    }
    Ok(found.into())
}

fn collect(path: &Path, name: &Path, found: &mut Survey) -> Result<(), newc::Error> {
    let xattrs = xattrs(path)?.into_iter();
    found.xattrs.extend(xattrs.map(|(attribute, value)| Xattr {
        path: name.as_os_str().as_bytes().to_vec(),
        name: attribute.into(),
        value: value.into(),
    }));
    let metadata = fs::symlink_metadata(path).map_err(walk::reading(path))?;
    if metadata.is_file() {
        let inode = (metadata.dev(), metadata.ino());
        if metadata.nlink() == 1 || found.linked.insert(inode) {
            found.data = found.data.saturating_add(metadata.len());
        }
    }
    if metadata.is_dir() {
        for below in walk::names(path)? {
            collect(&path.join(&below), &name.join(&below), found)?;
        }
    }
    Ok(())
}

/// Returns the names of a file's attributes, sorted; empty where the file system has no attributes.
fn list(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let list = sized(|buffer| rustix::fs::llistxattr(path, buffer));
    let list = match list {
        Err(Errno::NOTSUP) => Vec::new(),
        list => list?,
    };
    let names = list.split(|&byte| byte == 0);
    let mut names: Vec<_> = names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    Ok(names)
}

fn value(path: &Path, name: &[u8]) -> io::Result<Vec<u8>> {
    let name = OsStr::from_bytes(name);
    Ok(sized(|buffer| rustix::fs::lgetxattr(path, name, buffer))?)
}

/// Reads names or a value into a buffer of 64 KiB, the most that Linux allows for either.
fn sized(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 64 << 10];
    let count = read(&mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

/// Writes the folder and everything below it, and returns the number of names.
pub(super) fn write(root: &Path, archive: &mut Archive<impl Write>) -> Result<u64, Error> {
    check_names(root)?;
    Ok(walk::archive_root(root, Owner::Keep, stored, archive)?)
}

/// Refuses a folder that has minivm's own.
pub(super) fn check_names(root: &Path) -> Result<(), Error> {
    let reserved = root.join(manifest::FOLDER);
    match fs::symlink_metadata(&reserved) {
        Ok(_) => Err(Error::Reserved { path: reserved }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(walk::reading(&reserved)(error).into()),
    }
}
