//! Root file systems without an image around them: a folder, or a tar archive.
//!
//! Neither has a digest, and reading all of one to compute it would cost more than starting a machine. Their identity is
//! computed from attributes of their files instead: a change of content changes at least the time of the last change of the
//! inode (`st_ctime`), which no process can set. The kernel's clock for it ticks every few milliseconds: a file that is
//! changed twice within a tick, and looked at in between, looks the same.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::digest::Hasher;
use super::error::Error;
use super::files;
use super::image::{Config, Image, Layer, Root};

/// Opens a folder as an image.
pub(super) fn open_folder(path: &Path) -> Result<Image, Error> {
    let root = fs::canonicalize(path).map_err(Error::reading(path.display()))?;
    let metadata = fs::metadata(&root).map_err(Error::reading(path.display()))?;
    if !metadata.is_dir() {
        let problem = "is not a folder; an archive of a root file system is tar:FILE";
        return Err(Error::invalid(path.display().to_string(), problem));
    }
    let mut hasher = Hasher::default();
    hasher.field(b"dir");
    hasher.field(root.as_os_str().as_bytes());
    entry(&mut hasher, Path::new(""), &metadata);
    walk(&mut hasher, &root, Path::new(""))?;
    Ok(Image {
        identity: hasher.finish().to_string(),
        config: Config::default(),
        root: Root::Folder(root),
    })
}

fn walk(hasher: &mut Hasher, folder: &Path, name: &Path) -> Result<(), Error> {
    let mut entries = fs::read_dir(folder)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(Error::reading(folder.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for found in entries {
        let path = found.path();
        let name = name.join(found.file_name());
        // Of the link itself where it is one.
        let metadata = found.metadata().map_err(Error::reading(path.display()))?;
        entry(hasher, &name, &metadata);
        if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(Error::reading(path.display()))?;
            hasher.field(target.as_os_str().as_bytes());
        } else if metadata.is_dir() {
            walk(hasher, &path, &name)?;
        }
    }
    Ok(())
}

/// Adds all attributes by which a changed file is known.
fn entry(hasher: &mut Hasher, name: &Path, metadata: &Metadata) {
    hasher.field(name.as_os_str().as_bytes());
    for number in [
        metadata.mode().into(),
        metadata.uid().into(),
        metadata.gid().into(),
        metadata.dev(),
        metadata.ino(),
        metadata.rdev(),
        metadata.size(),
        metadata.mtime().cast_unsigned(),
        metadata.mtime_nsec().cast_unsigned(),
        metadata.ctime().cast_unsigned(),
        metadata.ctime_nsec().cast_unsigned(),
    ] {
        hasher.update(&u64::to_le_bytes(number));
    }
}

/// Opens the archive of a root file system as an image of one layer.
pub(super) fn open_tar(path: &Path) -> Result<Image, Error> {
    let name = path.display().to_string();
    let file = files::open_regular(path).map_err(Error::reading(&name))?;
    let metadata = file.metadata().map_err(Error::reading(&name))?;
    let mut start = [0; 512];
    let read = file.read_at(&mut start, 0).map_err(Error::reading(&name))?;
    if !may_be_an_archive(&start[..read]) {
        return Err(Error::invalid(
            name,
            "is not a tar archive, plain or compressed",
        ));
    }
    let mut hasher = Hasher::default();
    hasher.field(b"tar");
    entry(&mut hasher, Path::new(""), &metadata);
    let blob = files::whole(file, name).map_err(Error::reading(path.display()))?;
    Ok(Image {
        identity: hasher.finish().to_string(),
        config: Config::default(),
        root: Root::Layers(vec![Layer {
            blob,
            diff_id: None,
        }]),
    })
}

/// Whether these may be the first bytes of an archive. It is a first look, so that a wrong file is refused before a machine is
/// made: the reader of the layer has the last word.
fn may_be_an_archive(start: &[u8]) -> bool {
    let compressed: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh"];
    let ustar = start.get(257..262) == Some(b"ustar");
    let zeros = start.len() == 512 && start.iter().all(|&byte| byte == 0);
    ustar || zeros || compressed.iter().any(|magic| start.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Waits until the clock of inodes has moved on: at 100 Hz, the slowest, it does after 10 ms.
    fn tick() {
        thread::sleep(Duration::from_millis(20));
    }

    fn tar_of(content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, "etc/motd", content)
            .unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_tar_archive_is_one_layer_and_another_image_once_it_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        fs::write(&path, tar_of(b"hello")).unwrap();
        let first = open_tar(&path).unwrap();
        let Root::Layers(layers) = &first.root else {
            panic!("no layers");
        };
        assert_eq!((layers.len(), layers[0].blob.offset), (1, 0));
        assert_eq!(layers[0].blob.len, fs::metadata(&path).unwrap().len());
        assert_eq!(first.identity, open_tar(&path).unwrap().identity);
        tick();
        fs::write(&path, tar_of(b"hallo")).unwrap();
        assert_ne!(first.identity, open_tar(&path).unwrap().identity);
    }

    #[test]
    fn a_file_that_is_not_an_archive_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        fs::write(&path, "not at all").unwrap();
        let error = open_tar(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("a.tar is not a tar archive, plain or compressed"),
            "{error}"
        );
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(open_tar(&pipe).is_err());
        assert!(open_tar(&folder.path().join("absent")).is_err());
    }

    #[test]
    fn a_folder_is_another_image_after_any_change() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("bin")).unwrap();
        fs::write(root.join("bin/sh"), "one").unwrap();
        symlink("sh", root.join("bin/ash")).unwrap();
        let identity = || open_folder(root).unwrap().identity;
        let mut seen = vec![identity()];
        assert_eq!(seen[0], identity());
        let mut changed = |what: &str| {
            let now = identity();
            assert!(!seen.contains(&now), "{what} changed nothing");
            seen.push(now);
        };
        tick();
        let mut file = File::options()
            .write(true)
            .open(root.join("bin/sh"))
            .unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.write_all(b"two").unwrap();
        file.set_modified(time).unwrap();
        changed("content of the same size and time");
        fs::set_permissions(root.join("bin/sh"), fs::Permissions::from_mode(0o755)).unwrap();
        changed("a mode");
        fs::rename(root.join("bin/sh"), root.join("bin/bash")).unwrap();
        changed("a name");
        fs::remove_file(root.join("bin/ash")).unwrap();
        symlink("no", root.join("bin/ash")).unwrap();
        changed("a link's target");
    }

    #[test]
    fn a_file_as_a_folder_is_refused_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let error = open_folder(&folder.path().join("file")).unwrap_err();
        assert!(error.to_string().contains("tar:FILE"), "{error}");
        symlink("/", folder.path().join("up")).unwrap();
        symlink(".", folder.path().join("round")).unwrap();
        assert!(open_folder(folder.path()).is_ok());
    }
}
