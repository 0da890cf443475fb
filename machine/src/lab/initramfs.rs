//! The lab's initramfs: the program `minivm` as its init, the job, and the request's files.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Cursor, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use minivm_guest::lab::job::{self, LabJob};
use minivm_guest::newc::{self, Archive, Attributes, Node};
use minivm_image::io_error::cannot;
use rustix::fs::MemfdFlags;

use super::error::Error;

/// This program's path in the lab.
pub(super) const INIT: &str = "/minivm";

/// Folders that init mounts file systems on, or that programs expect.
const FOLDERS: [&str; 6] = ["dev", "proc", "sys", "tmp", "run", "root"];

/// Writes the archive to a memory file (memfd), which has no name, so that nothing remains of it however this process ends. The kernel
/// copies files into it.
///
/// # Errors
///
/// [`Error::Initramfs`] where a file can't be read, [`Error::Io`] where the memory file can't be made.
pub(super) fn build(
    program: &Path,
    job: &LabJob,
    files: &[(PathBuf, PathBuf)],
    contents: &[(Vec<u8>, PathBuf)],
) -> Result<OwnedFd, Error> {
    let memory = rustix::fs::memfd_create("lab-initramfs", MemfdFlags::CLOEXEC);
    let memory = memory.map_err(|errno| cannot("create a memory file")(errno.into()))?;
    let mut memory = write(job, program, files, contents, File::from(memory))?;
    memory.rewind().map_err(cannot("rewind the initramfs"))?;
    Ok(memory.into())
}

fn write<W: Write>(
    job: &LabJob,
    program: &Path,
    files: &[(PathBuf, PathBuf)],
    contents: &[(Vec<u8>, PathBuf)],
    out: W,
) -> Result<W, Error> {
    let mut archive = Archive::new(out);
    let mut folders = BTreeSet::from(FOLDERS.map(PathBuf::from));
    for folder in FOLDERS {
        archive.directory(folder, Attributes::new(0o755))?;
    }
    // The kernel opens it as init's standard streams before init can mount a /dev.
    archive.node(
        "dev/console",
        Node::CharDevice { major: 5, minor: 1 },
        Attributes::new(0o600),
    )?;
    let json =
        serde_json::to_vec(job).map_err(|error| cannot("write the lab's job")(error.into()))?;
    archive.file(
        job::PATH,
        Attributes::new(0o600),
        json.len() as u64,
        Cursor::new(json),
    )?;
    add(&mut archive, program, Path::new(INIT))?;
    for (host, lab) in files {
        parents(&mut archive, lab, &mut folders)?;
        add(&mut archive, host, lab)?;
    }
    for (bytes, lab) in contents {
        parents(&mut archive, lab, &mut folders)?;
        let len = bytes.len() as u64;
        archive.file(lab, Attributes::new(0o600), len, Cursor::new(bytes))?;
    }
    Ok(archive.finish()?)
}

fn add<W: Write>(archive: &mut Archive<W>, host: &Path, lab: &Path) -> Result<(), newc::Error> {
    let reading = |source| newc::Error::Read {
        path: host.into(),
        source,
    };
    let data = File::open(host).map_err(reading)?;
    let metadata = data.metadata().map_err(reading)?;
    let permissions = metadata.mode();
    archive.file(lab, Attributes::new(permissions), metadata.len(), data)
}

/// Adds the folders above `lab` that the archive doesn't have yet.
fn parents<W: Write>(
    archive: &mut Archive<W>,
    lab: &Path,
    folders: &mut BTreeSet<PathBuf>,
) -> Result<(), newc::Error> {
    let relative = lab.strip_prefix("/").unwrap_or(lab);
    let mut above: Vec<_> = relative
        .ancestors()
        .skip(1)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    above.reverse();
    for folder in above {
        if folders.insert(folder.into()) {
            archive.directory(folder, Attributes::new(0o755))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Root;
    use super::*;

    #[test]
    fn files_come_with_their_folders_once() {
        let job = LabJob {
            root: Root::Private,
            command: vec![],
            env: vec![],
            cwd: "/".into(),
        };
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().join("f");
        std::fs::write(&host, "DATA").unwrap();
        let files = [
            (host.clone(), "/a/b/one".into()),
            (host.clone(), "/a/two".into()),
        ];
        let contents = [(b"TEXT".to_vec(), "/a/three".into())];
        let archive = write(&job, &host, &files, &contents, Vec::new()).unwrap();
        let archive = String::from_utf8(archive).unwrap();
        let names = ["0a\0", "a/b\0", "a/b/one\0", "a/two\0", "a/three\0", "TEXT"];
        let places = names.map(|name| {
            archive
                .match_indices(name)
                .map(|(at, _)| at)
                .collect::<Vec<_>>()
        });
        assert!(places.iter().all(|places| places.len() == 1), "{places:?}");
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(archive.matches("DATA").count(), 3);
    }
}
