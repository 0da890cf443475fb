//! Fills a folder with an image's files, from its archive.
//!
//! Images are hostile. The folder is opened once and never left: what is put into it is looked up below it, and its links are
//! made last, when nothing can be put through one any more. They may lead anywhere, as they do in the image: whoever follows
//! them has the folder as its root. Devices are left out, and the bits that give privileges: here they would be the host's.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use minivm_guest::manifest::{COMPLETE, FOLDER, IMAGES_INIT, INIT};
use minivm_guest::unpack::{Entry, Kind, Unpack};
use rustix::fs::{AtFlags, utimensat};

use crate::times;

/// Permissions without set-user-ID and set-group-ID.
const PERMISSIONS: u32 = 0o1777;

/// Fills the folder with what the archive, one of [`minivm_image::rootfs::write`]'s, has of the image.
pub(super) fn fill(dir: &Dir, archive: impl Read) -> io::Result<()> {
    let mut unpack = Unpack::new(archive);
    let mut filled = Filled {
        dir,
        names: HashMap::new(),
        folders: Vec::new(),
        links: Vec::new(),
    };
    let mut complete = false;
    while let Some(entry) = unpack.next()? {
        complete |= entry.name == Path::new(COMPLETE);
        if let Some(path) = place(&entry.name) {
            filled.add(path, entry, &mut unpack)?;
        }
    }
    if !complete {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    filled.finish()
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

struct Filled<'a> {
    dir: &'a Dir,
    /// The first name of each file that has more.
    names: HashMap<u32, PathBuf>,
    /// Folders with their permissions and times, which they get when all is in them.
    folders: Vec<(PathBuf, u32, u32)>,
    links: Vec<(PathBuf, PathBuf)>,
}

impl Filled<'_> {
    fn add(&mut self, path: PathBuf, entry: Entry, data: &mut impl Read) -> io::Result<()> {
        match entry.kind {
            Kind::Folder => {
                if path != Path::new(".") {
                    self.dir.create_dir(&path)?;
                }
                set_permissions(self.dir, &path, 0o700)?;
                self.folders.push((path, entry.permissions, entry.mtime));
            }
            Kind::File { .. } => match entry.link.and_then(|link| self.names.get(&link)) {
                Some(first) => self.dir.hard_link(first, self.dir, &path)?,
                None => {
                    self.write(&path, &entry, data)?;
                    if let Some(link) = entry.link {
                        self.names.insert(link, path);
                    }
                }
            },
            Kind::Symlink(to) => self.links.push((path, to)),
            Kind::Other => {}
        }
        Ok(())
    }

    fn write(&self, path: &Path, entry: &Entry, data: &mut impl Read) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = self.dir.open_with(path, &options)?;
        io::copy(data, &mut file)?;
        rustix::fs::futimens(&file, &times(entry.mtime))?;
        let permissions = fs::Permissions::from_mode(entry.permissions & PERMISSIONS);
        file.set_permissions(cap_std::fs::Permissions::from_std(permissions))
    }

    fn finish(self) -> io::Result<()> {
        for (path, to) in &self.links {
            self.dir.symlink_contents(to, path)?;
        }
        // The deepest first: a folder may be closed even to its owner.
        for (path, permissions, mtime) in self.folders.iter().rev() {
            utimensat(self.dir, path, &times(*mtime), AtFlags::SYMLINK_NOFOLLOW)?;
            set_permissions(self.dir, path, permissions & PERMISSIONS)?;
        }
        Ok(())
    }
}

fn set_permissions(dir: &Dir, path: &Path, permissions: u32) -> io::Result<()> {
    let permissions = fs::Permissions::from_mode(permissions);
    dir.set_permissions(path, cap_std::fs::Permissions::from_std(permissions))
}
