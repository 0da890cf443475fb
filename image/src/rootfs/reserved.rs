//! Files of minivm's own in the archive: init, and the manifest that init reads.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use minivm_guest::manifest::{self, Manifest, Xattr};
use minivm_guest::newc::{Archive, Attributes};

use super::error::Error;
use crate::image::Config;

/// Writes the files that aren't the image's.
pub(super) fn write(
    config: &Config,
    xattrs: Vec<Xattr>,
    init: &[u8],
    archive: &mut Archive<impl Write>,
) -> Result<(), Error> {
    let bytes = |texts: &[String]| texts.iter().map(|text| text.clone().into_bytes()).collect();
    let manifest = Manifest {
        argv: bytes(&[&config.entrypoint[..], &config.cmd].concat()),
        env: bytes(&config.env),
        cwd: config.working_dir.clone().into_bytes(),
        user: config.user.clone(),
        xattrs,
    };
    let manifest = manifest.to_bytes();
    archive.directory(manifest::FOLDER, Attributes::new(0o700))?;
    let size = manifest.len() as u64;
    archive.file(manifest::PATH, Attributes::new(0o600), size, &*manifest)?;
    let size = init.len() as u64;
    archive.file(manifest::INIT, Attributes::new(0o755), size, init)?;
    Ok(())
}

/// Returns the path in the archive of a file of the image: its own, unless that is reserved for minivm.
pub(super) fn stored(path: &Path) -> Cow<'_, Path> {
    match path.strip_prefix(manifest::INIT) {
        Ok(below) if below.as_os_str().is_empty() => Path::new(manifest::IMAGES_INIT).into(),
        Ok(below) => Path::new(manifest::IMAGES_INIT).join(below).into(),
        Err(_) => path.into(),
    }
}
