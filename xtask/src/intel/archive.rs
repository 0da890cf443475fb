//! The machine's initramfs has its init, the command's program with the libraries that it is linked with, and further files and folders, each
//! at the path that it has on this host.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use minivm_guest::newc::{Archive, Attributes, Node};

use crate::process::{capture, output};

/// Process 1.
const INIT: &[u8] = include_bytes!("init.sh");
/// A static busybox, Debian's package busybox-static.
const BUSYBOX: &str = "/bin/busybox";
/// Folders that init mounts file systems on, and one that programs expect.
const FOLDERS: [&str; 4] = ["/dev", "/proc", "/sys", "/tmp"];

/// A command with its surroundings.
pub(super) struct Job<'a> {
    pub(super) command: &'a [OsString],
    /// Folders that are made; the last is the working folder.
    pub(super) folders: &'a [PathBuf],
    pub(super) variables: &'a [(OsString, OsString)],
    /// Files and folders that the command needs.
    pub(super) files: &'a [PathBuf],
}

/// Writes the initramfs to a file. `scratch` is a folder for what is made on the way.
pub(super) fn write(job: &Job, token: &str, scratch: &Path, file: &Path) -> Result<()> {
    let out = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let mut contents = Contents {
        archive: Archive::new(out),
        there: BTreeSet::new(),
        stripped: scratch.join("stripped"),
    };
    for folder in FOLDERS {
        contents.folder(Path::new(folder))?;
    }
    // The kernel opens it as init's standard streams before init can mount a /dev.
    let console = Node::CharDevice { major: 5, minor: 1 };
    let attributes = Attributes::new(0o600);
    contents.archive.node("dev/console", console, attributes)?;
    contents.text("/init", INIT)?;
    contents.text("/token", token.as_bytes())?;
    contents.text("/job", &script(job))?;
    contents.add(Path::new(BUSYBOX))?;
    for folder in job.folders {
        contents.folder(folder)?;
    }
    let program = job.command.first().map(Path::new);
    for path in program
        .into_iter()
        .chain(job.files.iter().map(PathBuf::as_path))
    {
        contents.add(path)?;
    }
    contents.archive.finish()?;
    Ok(())
}

/// Returns the shell's script that runs the command.
fn script(job: &Job) -> Vec<u8> {
    let mut script = Vec::new();
    if let Some(folder) = job.folders.last() {
        script.extend(b"cd ");
        script.extend(quoted(folder.as_os_str()));
    }
    for (name, value) in job.variables {
        script.extend(b"\nexport ");
        script.extend(name.as_bytes());
        script.push(b'=');
        script.extend(quoted(value));
    }
    script.extend(b"\nexec");
    for word in job.command {
        script.push(b' ');
        script.extend(quoted(word));
    }
    script.push(b'\n');
    script
}

/// Returns a word in single quotes, of which a shell changes nothing.
fn quoted(word: &OsStr) -> Vec<u8> {
    let parts = word.as_bytes().split(|byte| *byte == b'\'');
    let parts: Vec<_> = parts.collect();
    [b"'", parts.join(&br"'\''"[..]).as_slice(), b"'"].concat()
}

/// An archive that is being filled.
struct Contents {
    archive: Archive<File>,
    /// All that is in it.
    there: BTreeSet<PathBuf>,
    /// A file for programs without their debug information.
    stripped: PathBuf,
}

impl Contents {
    /// Adds a file, with the libraries of a program, or a folder with all that is below it.
    fn add(&mut self, path: &Path) -> Result<()> {
        if self.there.contains(path) {
            return Ok(());
        }
        let metadata =
            fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            return self.tree(path);
        }
        self.parent(path)?;
        if metadata.mode() & 0o111 == 0 || !is_elf(path) {
            return self.copy(path, path, metadata.mode());
        }
        for library in libraries(path)? {
            self.add(&library)?;
        }
        let stripped = self.stripped.clone();
        capture(Command::new("strip").arg("-o").arg(&stripped).arg(path))?;
        self.copy(&stripped, path, metadata.mode())
    }

    /// Adds a folder as it is: with links as links, and programs without the host's libraries.
    fn tree(&mut self, folder: &Path) -> Result<()> {
        self.folder(folder)?;
        let reading = || format!("cannot read {}", folder.display());
        for entry in fs::read_dir(folder).with_context(reading)? {
            let path = entry.with_context(reading)?.path();
            let metadata = fs::symlink_metadata(&path).with_context(reading)?;
            if metadata.is_dir() {
                self.tree(&path)?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).with_context(reading)?;
                let attributes = Attributes::new(0o777);
                self.archive.symlink(&path, &target, attributes)?;
            } else {
                self.copy(&path, &path, metadata.mode())?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, from: &Path, to: &Path, mode: u32) -> Result<()> {
        let reading = || format!("cannot read {}", from.display());
        let file = File::open(from).with_context(reading)?;
        let size = file.metadata().with_context(reading)?.len();
        let attributes = Attributes::new(mode & 0o7777);
        self.archive.file(to, attributes, size, file)?;
        Ok(())
    }

    /// Adds a file of this text, which may be executed.
    fn text(&mut self, path: &str, text: &[u8]) -> Result<()> {
        let size = text.len() as u64;
        let attributes = Attributes::new(0o755);
        self.archive
            .file(path, attributes, size, Cursor::new(text))?;
        Ok(())
    }

    /// Adds the folder above a path that is added now.
    fn parent(&mut self, path: &Path) -> Result<()> {
        self.there.insert(path.to_owned());
        path.parent().map_or(Ok(()), |above| self.folder(above))
    }

    /// Adds a folder, with those above it.
    fn folder(&mut self, path: &Path) -> Result<()> {
        if path == Path::new("/") || self.there.contains(path) {
            return Ok(());
        }
        self.parent(path)?;
        self.archive.directory(path, Attributes::new(0o755))?;
        Ok(())
    }
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

/// Returns the libraries that a program is linked with, its loader among them; none where it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    let output = output(ldd.arg(program))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(library).collect())
}

/// Returns the path in a line such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f…)` or `/lib64/ld-linux-x86-64.so.2 (0x7f…)`.
fn library(line: &str) -> Option<PathBuf> {
    let (path, _) = line.trim().rsplit_once(" (0x")?;
    let path = path.rsplit_once("=> ").map_or(path, |(_, path)| path);
    path.starts_with('/').then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let of = |line| library(line).map(|path| path.display().to_string());
        assert_eq!(of("\tlinux-vdso.so.1 (0x00007ffc)"), None);
        assert_eq!(of("\tstatically linked"), None);
        let libc = "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2a)";
        assert_eq!(of(libc).unwrap(), "/lib/x86_64-linux-gnu/libc.so.6");
        let loader = "\t/lib64/ld-linux-x86-64.so.2 (0x00007f2a)";
        assert_eq!(of(loader).unwrap(), "/lib64/ld-linux-x86-64.so.2");
    }

    #[test]
    fn a_shell_takes_the_script_for_the_command() {
        let command = ["printf", "%s|", "it's", "$HOME", "", "a b"].map(OsString::from);
        let variables = [("A".into(), "'\"$x".into())];
        let job = Job {
            command: &command,
            folders: &["/".into()],
            variables: &variables,
            files: &[],
        };
        let text = String::from_utf8(script(&job)).unwrap();
        let shown = format!(
            "{}\n",
            text.replace("exec 'printf'", "printf \"$A$PWD\"; printf")
        );
        let said = capture(Command::new("sh").args(["-c", &shown])).unwrap();
        assert_eq!(said, "'\"$x/it's|$HOME||a b|");
    }
}
