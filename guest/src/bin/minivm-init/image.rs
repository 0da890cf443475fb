//! The image's files as the image has them: without minivm's own, and with the attributes that the archive can't hold.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use minivm_guest::manifest::{COMPLETE, FOLDER, IMAGES_INIT, INIT, Manifest, PATH, Xattr};
use rustix::fs::{XattrFlags, lsetxattr};

use crate::{Error, cannot};

/// Returns the manifest of the archive that this guest was started with; `None` for one that was made by hand, with this program
/// in it.
pub(crate) fn manifest() -> Result<Option<Manifest>, Error> {
    let root = Path::new("/");
    let manifest = match fs::read(root.join(PATH)) {
        Ok(bytes) => Manifest::from_bytes(&bytes).map_err(cannot("understand the manifest"))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot("read the manifest")(error)),
    };
    if !root.join(COMPLETE).exists() {
        return Err(
            "the image does not fit into the guest's memory: more -m/--memory helps".into(),
        );
    }
    Ok(Some(manifest))
}

/// Removes minivm's own files and sets attributes; returns the manifest, and a line for each attribute that can't be set.
pub(crate) fn restore() -> Result<(Manifest, Vec<String>), Error> {
    let Some(manifest) = manifest()? else {
        return Ok(Default::default());
    };
    let root = Path::new("/");
    fs::remove_file(root.join(INIT)).map_err(cannot("remove /init"))?;
    match fs::rename(root.join(IMAGES_INIT), root.join(INIT)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(cannot("put back the image's /init")(error));
        }
        _ => {}
    }
    let folder = root.join(FOLDER);
    fs::remove_dir_all(&folder).map_err(cannot(format!("remove {}", folder.display())))?;
    let lost = manifest.xattrs.iter().filter_map(|xattr| set(xattr).err());
    let lost = lost.map(|error| error.to_string()).collect();
    Ok((manifest, lost))
}

fn set(xattr: &Xattr) -> Result<(), Error> {
    let path = PathBuf::from("/").join(OsStr::from_bytes(&xattr.path));
    let name = OsStr::from_bytes(&xattr.name);
    lsetxattr(&path, name, &xattr.value, XattrFlags::empty()).map_err(cannot(format!(
        "set the attribute {} of {}",
        name.display(),
        path.display()
    )))
}
