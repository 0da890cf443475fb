//! Files into a guest, as a cpio archive.

use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use minivm_guest::newc::{self, Archive};
use minivm_guest::{FILE_MAX, Nodes, Owner, append_path};
use minivm_image::io_error::cannot;

use super::Error;
use super::copies::Files;
use crate::printable::printable;

/// The most characters of a line for the user.
const TEXT_MAX: usize = 500;
/// What a file takes of a file system in memory is a multiple of this.
const PAGE: u64 = 4096;

/// Checks that the files can be copied into a guest; returns how many bytes of its memory they take at least.
///
/// # Errors
///
/// Where one isn't there, is neither a file nor a folder, or is larger than an archive takes.
pub fn check_copies(all: &[Files]) -> Result<u64, Error> {
    let survey = Survey::of(all)?;
    // Such a file system has an inode for each two pages of the memory, half of which files may take.
    Ok(survey.bytes.max(survey.inodes.saturating_mul(PAGE)))
}

/// Returns what of the files a sandbox doesn't get, in lines for the user.
///
/// # Errors
///
/// As [`check_copies`]'.
pub fn left_out(all: &[Files]) -> Result<Vec<String>, Error> {
    Ok(lines(&Survey::of(all)?.nodes))
}

/// Totals of what there is to copy.
#[derive(Default)]
struct Survey {
    /// What it takes of a file system in memory at least.
    bytes: u64,
    /// Files, folders and links.
    inodes: u64,
    nodes: Nodes,
}

impl Survey {
    fn of(all: &[Files]) -> Result<Survey, Error> {
        let mut survey = Survey::default();
        for Files { from, .. } in all {
            let surveyed = check_source(from).and_then(|source| match source.is_dir() {
                true => survey.folder(from),
                false => survey.file(from, &source),
            });
            surveyed.map_err(cannot(format!("copy {} into the guest", from.display())))?;
        }
        Ok(survey)
    }

    /// Adds what is in a folder and below it, however deep that is.
    fn folder(&mut self, folder: &Path) -> io::Result<()> {
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(naming(&folder))? {
                let path = entry.map_err(naming(&folder))?.path();
                let metadata = path.symlink_metadata().map_err(naming(&path))?;
                let kind = metadata.file_type();
                let copied = kind.is_dir() || kind.is_file() || kind.is_symlink();
                self.inodes += u64::from(copied);
                match () {
                    () if kind.is_dir() => folders.push(path),
                    () if kind.is_file() => self.file(&path, &metadata)?,
                    () if kind.is_symlink() => {}
                    () => self.nodes.add(&path),
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        let size = metadata.len();
        if size > FILE_MAX {
            return Err(io::Error::other(format!(
                "{} has {size} bytes, and only files of less than 4 GiB can be copied",
                path.display()
            )));
        }
        self.bytes = self.bytes.saturating_add(size.next_multiple_of(PAGE));
        Ok(())
    }
}

/// Returns the metadata of what is to be copied; a link stands for what it leads to.
fn check_source(from: &Path) -> io::Result<Metadata> {
    let metadata = fs::metadata(from)?;
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() || kind.is_file() => Ok(metadata),
        () if kind.is_fifo() => Err(io::Error::other(
            "it is a pipe: write what comes from it into a file first",
        )),
        () => Err(io::Error::other(format!("it is {}", what_is(&metadata)))),
    }
}

fn naming(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn lines(nodes: &Nodes) -> Vec<String> {
    let line = |path: &PathBuf| {
        let there = path.symlink_metadata();
        let what = there.map_or("it is gone", |there| what_is(&there));
        printable(&format!("left out {}: {what}", path.display()), TEXT_MAX)
    };
    let mut lines: Vec<String> = nodes.first.iter().map(line).collect();
    if nodes.more > 0 {
        lines.push(format!("left out {} more such files", nodes.more));
    }
    lines
}

/// Checks that a guest with `memory` bytes of memory has room for `files` bytes of files.
///
/// # Errors
///
/// [`Error::NoRoom`] where none of its file systems has.
pub fn check_room(files: u64, memory: u64) -> Result<(), Error> {
    // A file system in memory takes at most half of it.
    match files > memory / 2 {
        false => Ok(()),
        true => Err(Error::NoRoom(format!(
            "the files for the guest take {} MiB, and its file system at most half of its memory of {} MiB: more -m/--memory helps",
            files.div_ceil(1 << 20),
            memory >> 20
        ))),
    }
}

/// Writes what is to go into the guest as one archive. Returns what is left out, in lines for the user.
///
/// # Errors
///
/// As [`check_copies`]', and where it can't be written.
pub fn pack<W: Write>(all: &[Files], out: W) -> Result<Vec<String>, Error> {
    let mut archive = Archive::new(out);
    let mut left_out = Vec::new();
    for files in all {
        let wrap = |error: newc::Error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            let whole = io::Error::other(format!("{error}{}", cause.unwrap_or_default()));
            cannot(format!("copy {} into the guest", files.from.display()))(whole)
        };
        let name = guest_name(&files.to, &files.from)?;
        check_source(&files.from).map_err(cannot(format!(
            "copy {} into the guest",
            files.from.display()
        )))?;
        let nodes = append_path(&mut archive, &files.from, &name, Owner::Root).map_err(wrap)?;
        left_out.extend(lines(&nodes));
    }
    let finished = archive.finish().map(drop);
    finished.map_err(|error| cannot("copy files into the guest")(io::Error::other(error)))?;
    Ok(left_out)
}

fn what_is(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "neither a file, a folder nor a link",
    }
}

/// Returns the name that a path in the guest has in an archive. A path with a slash at its end is a folder, into which `from` goes.
///
/// # Errors
///
/// Where it is not absolute, has `..` in it, or is `/` alone.
pub fn guest_name(to: &Path, from: &Path) -> Result<PathBuf, Error> {
    let into_folder = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let whole = match (into_folder, from.file_name()) {
        (true, Some(name)) => to.join(name),
        _ => to.to_owned(),
    };
    let name = whole.strip_prefix("/").unwrap_or(&whole);
    let plain = name
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.as_os_str().is_empty() || !whole.is_absolute() {
        let action = format!("copy to {} in the guest", to.display());
        let why = "the path has to be absolute, without `..`, and not `/` alone";
        let why = io::Error::new(io::ErrorKind::InvalidInput, why);
        return Err(cannot(action)(why).into());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    fn files(from: &Path) -> Vec<Files> {
        vec![Files {
            from: from.into(),
            to: "/in".into(),
        }]
    }

    fn told(error: Error) -> String {
        format!("{:#}", anyhow::Error::from(error))
    }

    #[test]
    fn what_no_guest_can_get_is_left_out_and_named() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..12 {
            UnixListener::bind(folder.path().join(format!("socket{number:02}"))).unwrap();
        }
        fs::write(folder.path().join("file"), "x").unwrap();
        let files = files(folder.path());
        let packed = pack(&files, io::sink()).unwrap();
        assert_eq!(packed.len(), 11, "{packed:?}");
        let first = folder.path().join("socket00");
        assert_eq!(packed[0], format!("left out {}: a socket", first.display()));
        assert_eq!(packed[10], "left out 2 more such files");
        let surveyed = left_out(&files).unwrap();
        assert_eq!((surveyed.len(), surveyed.last()), (11, packed.last()));
        assert_eq!(check_copies(&files).unwrap(), PAGE, "the file alone");
    }

    #[test]
    fn what_cannot_be_copied_is_refused_by_name_before_anything_runs() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        let large = folder.path().join("large");
        fs::File::create(&large).unwrap().set_len(1 << 32).unwrap();
        let size = "has 4294967296 bytes, and only files of less than 4 GiB can be copied";
        for (path, why) in [
            (&*socket, "it is a socket".to_owned()),
            (Path::new("/dev/null"), "it is a device".to_owned()),
            (
                &pipe,
                "it is a pipe: write what comes from it into a file first".into(),
            ),
            (&large, format!("{} {size}", large.display())),
        ] {
            let said = format!("cannot copy {} into the guest: {why}", path.display());
            assert_eq!(told(check_copies(&files(path)).unwrap_err()), said);
        }
        // Packing without a check before finds the same.
        let late = told(pack(&files(&pipe), io::sink()).unwrap_err());
        assert!(late.contains("it is a pipe"), "{late}");
        let late = told(pack(&files(&large), io::sink()).unwrap_err());
        let begin = format!(
            "cannot copy {0} into the guest: {0} has 4294967296 bytes",
            large.display()
        );
        assert!(late.starts_with(&begin), "{late}");
    }

    #[test]
    fn files_that_no_file_system_of_the_guest_holds_are_told_with_the_remedy() {
        check_room(128 << 20, 256 << 20).unwrap();
        let told = told(check_room(1 << 30, 264 << 20).unwrap_err());
        assert_eq!(
            told,
            "the files for the guest take 1024 MiB, and its file system at most half of its memory of 264 MiB: \
             more -m/--memory helps"
        );
    }

    #[test]
    fn places_in_the_guest_are_absolute_and_plain() {
        let name = |to: &str| guest_name(Path::new(to), Path::new("a/b.txt")).ok();
        assert_eq!(name("/work/x"), Some("work/x".into()));
        assert_eq!(name("/work/"), Some("work/b.txt".into()));
        assert_eq!(name("/"), Some("b.txt".into()));
        assert_eq!(name("work"), None);
        assert_eq!(name("/a/../b"), None);
    }
}
