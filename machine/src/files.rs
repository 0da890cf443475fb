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
use crate::Warning;
use crate::printable::printable;

/// The most characters of a line for the user.
const TEXT_MAX: usize = 500;
/// What a file takes of a file system in memory is a multiple of this.
const PAGE: u64 = 4096;

/// Files to copy into a guest, which were there when this list was made.
#[derive(Clone, Debug, Default)]
pub struct CopyIn {
    files: Vec<Files>,
    /// What they take of the guest's memory at least.
    bytes: u64,
}

impl CopyIn {
    /// Makes the list of files that can be copied into a guest, to absolute paths.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where one isn't there, is neither a file nor a folder, is larger than an archive takes, or where its path in the
    /// guest is not absolute, has `..` in it, or is `/` alone.
    pub fn of(files: Vec<Files>) -> Result<CopyIn, Error> {
        let mut survey = Survey::default();
        for Files { from, to } in &files {
            survey
                .add(from)
                .map_err(cannot(format!("copy {} into the guest", from.display())))?;
            guest_name(to, from)?;
        }
        // Such a file system has an inode for each two pages of the memory, half of which files may take.
        let bytes = survey.bytes.max(survey.inodes.saturating_mul(PAGE));
        Ok(CopyIn { files, bytes })
    }

    /// Returns whether there is nothing to copy.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Returns the files, as they were given.
    pub fn files(&self) -> &[Files] {
        &self.files
    }

    /// Checks that a guest with `memory` bytes of memory has room for the files.
    ///
    /// # Errors
    ///
    /// [`Error::NoRoom`] where none of its file systems has.
    pub fn check_room(&self, memory: u64) -> Result<(), Error> {
        // A file system in memory takes at most half of it.
        match self.bytes > memory / 2 {
            false => Ok(()),
            true => Err(Error::NoRoom(format!(
                "the files for the guest take {} MiB, and its file system at most half of its memory of {} MiB: more -m/--memory helps",
                self.bytes.div_ceil(1 << 20),
                memory >> 20
            ))),
        }
    }

    /// Writes the files as one archive. Returns warnings about what is left out.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where one can't be copied by now, or the archive can't be written.
    pub fn pack<W: Write>(&self, out: W) -> Result<Vec<Warning>, Error> {
        let mut archive = Archive::new(out);
        let mut left_out = Vec::new();
        for Files { from, to } in &self.files {
            let name = guest_name(to, from)?;
            let copying = || cannot(format!("copy {} into the guest", from.display()));
            check_source(from).map_err(copying())?;
            let packed = append_path(&mut archive, from, &name, Owner::Root);
            let nodes = packed.map_err(|error| copying()(in_one_line(&error)))?;
            left_out.extend(warnings(&nodes));
        }
        let finished = archive.finish().map(drop);
        finished.map_err(|error| cannot("copy files into the guest")(io::Error::other(error)))?;
        Ok(left_out)
    }
}

/// Returns an archive's error with its cause, as a system call's.
fn in_one_line(error: &newc::Error) -> io::Error {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    io::Error::other(format!("{error}{}", cause.unwrap_or_default()))
}

/// Totals of what there is to copy.
#[derive(Default)]
struct Survey {
    /// What it takes of a file system in memory at least.
    bytes: u64,
    /// Files, folders and links.
    inodes: u64,
}

impl Survey {
    /// Adds a file, or a folder with what is in it.
    fn add(&mut self, from: &Path) -> io::Result<()> {
        let source = check_source(from)?;
        match source.is_dir() {
            true => self.folder(from),
            false => self.file(from, &source),
        }
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
                    () => {}
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

/// Returns warnings about the nodes that no archive takes.
fn warnings(nodes: &Nodes) -> Vec<Warning> {
    let line = |path: &PathBuf| {
        let there = path.symlink_metadata();
        let what = there.map_or("it is gone", |there| what_is(&there));
        printable(&format!("left out {}: {what}", path.display()), TEXT_MAX)
    };
    let mut lines: Vec<String> = nodes.first.iter().map(line).collect();
    if nodes.more > 0 {
        lines.push(format!("left out {} more such files", nodes.more));
    }
    lines.into_iter().map(Warning::Other).collect()
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
pub(crate) fn guest_name(to: &Path, from: &Path) -> Result<PathBuf, Error> {
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

    fn checked(from: &Path) -> Result<CopyIn, Error> {
        CopyIn::of(vec![Files {
            from: from.into(),
            to: "/in".into(),
        }])
    }

    /// Returns the error of packing what was not checked before.
    fn packing(from: &Path) -> String {
        let unchecked = CopyIn {
            files: vec![Files {
                from: from.into(),
                to: "/in".into(),
            }],
            bytes: 0,
        };
        told(unchecked.pack(io::sink()).unwrap_err())
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
        let files = checked(folder.path()).unwrap();
        let packed = files.pack(io::sink()).unwrap();
        let packed: Vec<_> = packed.iter().map(ToString::to_string).collect();
        assert_eq!(packed.len(), 11, "{packed:?}");
        let first = folder.path().join("socket00");
        assert_eq!(packed[0], format!("left out {}: a socket", first.display()));
        assert_eq!(packed[10], "left out 2 more such files");
        assert_eq!(files.bytes, PAGE, "the file alone");
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
            assert_eq!(told(checked(path).unwrap_err()), said);
        }
        let outside = CopyIn::of(vec![Files {
            from: "/etc/hostname".into(),
            to: "/in/../..".into(),
        }]);
        let said = told(outside.unwrap_err());
        assert!(
            said.starts_with("cannot copy to /in/../.. in the guest: "),
            "{said}"
        );
        // Packing without a check before finds the same.
        let late = packing(&pipe);
        assert!(late.contains("it is a pipe"), "{late}");
        let late = packing(&large);
        let begin = format!(
            "cannot copy {0} into the guest: {0} has 4294967296 bytes",
            large.display()
        );
        assert!(late.starts_with(&begin), "{late}");
    }

    #[test]
    fn files_that_no_file_system_of_the_guest_holds_are_told_with_the_remedy() {
        let files = |bytes| CopyIn {
            files: Vec::new(),
            bytes,
        };
        files(128 << 20).check_room(256 << 20).unwrap();
        let told = told(files(1 << 30).check_room(264 << 20).unwrap_err());
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
