//! The surroundings of a command, for a request of the host's and for the image's own command.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use minivm_guest::manifest::{FOLDER, Manifest};

use crate::{Error, cannot, image, mapped, mounts};

/// Makes the surroundings. Returns the image's manifest, and a line for each step that failed and is no reason to stop.
pub(crate) fn make() -> Result<(Manifest, Vec<String>), Error> {
    let (manifest, lost) = match mapped::is_root()? {
        true => mapped::enter()?,
        false => enter_archive()?,
    };
    mounts::others()?;
    // A kernel without a network is good enough for most commands.
    let _ = minivm_guest::pid1::bring_loopback_up();
    Ok((manifest, lost))
}

/// Makes the files of the kernel's archive the root.
fn enter_archive() -> Result<(Manifest, Vec<String>), Error> {
    let restored = image::restore()?;
    mounts::enter_root()?;
    fs::remove_dir(format!("/{FOLDER}")).map_err(cannot("remove the mount point"))?;
    Ok(restored)
}

/// Writes the machine's name, and the addresses that belong to it, into their files. The image's own files stay.
pub(crate) fn write_names(name: &str) {
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t{name}\n");
    for (path, text) in [
        ("/etc/hosts", hosts),
        ("/etc/hostname", format!("{name}\n")),
    ] {
        if fs::metadata(path).is_ok_and(|file| file.len() > 0) {
            continue;
        }
        // An image without /etc, such as one with a single static program, does without.
        let _ = write(path, &text);
    }
}

/// Writes a small file. It doesn't wait for a pipe that an image may have in its place.
pub(crate) fn write(path: &str, text: &str) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    let mut file = options.custom_flags(libc::O_NONBLOCK).open(path)?;
    file.write_all(text.as_bytes())
}
