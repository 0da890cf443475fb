//! Fills a folder with an image's files, from its archive.
//!
//! Images are hostile, see [`crate::unpack_into`]. Their links may lead anywhere, as they do in the image: processes that follow
//! them have the folder as their root.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use minivm_guest::manifest::{COMPLETE, FOLDER, IMAGES_INIT, INIT};
use minivm_guest::unpack::Unpack;

use crate::unpack_into::{Links, Policy, Target, There};

/// Permissions without set-user-ID and set-group-ID.
const PERMISSIONS: u32 = 0o1777;

/// Fills the folder with what the archive, one of [`minivm_image::rootfs::write`]'s, has of the image.
pub(super) fn fill(folder: OwnedFd, archive: impl Read) -> io::Result<()> {
    let policy = Policy {
        there: There::Refused,
        links: Links::All,
        hard_links: true,
        permissions: PERMISSIONS,
        folders: 0,
        in_order: false,
        is_over: &|| false,
    };
    let mut target = Target::new(folder, policy)?;
    let mut unpack = Unpack::new(archive);
    let mut complete = false;
    while let Some(entry) = unpack.next()? {
        complete |= entry.name == Path::new(COMPLETE);
        match place(&entry.name) {
            Some(path) if path == Path::new(".") => target.be(&entry)?,
            // Devices are left out.
            Some(path) => drop(target.add(&path, &entry, &mut unpack)?),
            None => {}
        }
    }
    if !complete {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    target.finish()
}

/// Where the image has a file of the archive; nowhere, if it is ours.
fn place(name: &Path) -> Option<PathBuf> {
    if let Ok(below) = name.strip_prefix(IMAGES_INIT) {
        let init = Path::new(INIT);
        return Some(match below.as_os_str().is_empty() {
            true => init.to_owned(),
            false => init.join(below),
        });
    }
    let ours = name == Path::new(INIT) || name.starts_with(FOLDER);
    (!ours).then(|| name.to_owned())
}
