//! The turducken: Pyodide in Deno in gVisor in a machine, one sandbox inside another.
//!
//! The machine's image has `runsc`, and gVisor's root below `/inner`: Deno, its libraries, Pyodide. It is made once, of the parts
//! of the backends gvisor and deno, and cached as an archive like those of other images. The code passes through all of them on
//! stdin.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minivm_image::io_error::cannot;
use minivm_image::{Blob, Config, Digest, Image, Layer, Root};
use tar::{Builder, EntryType, Header};

use super::bundle::{self, Container};
use super::{Deno, Error, Microvm, Program, Task, gvisor, pyodide, python};
use minivm_machine::Accel;
use minivm_machine::images::{Archive, ImageCache, MachineRoot};

const LAUNCHER: &str = include_str!("../js/turducken.mjs");
/// The version of the image's format. It changes where unchanged parts make another image.
const FORMAT: &str = "1";
const RUNSC: &str = "/runsc";
/// gVisor's root folder, in the machine's root.
const INNER: &str = "/inner";
/// The launcher's path in gVisor's root.
const LAUNCHER_PATH: &str = "/task/turducken.mjs";
const MOUNT_POINTS: [&str; 5] = ["dev", "etc", "proc", "sys", "tmp"];

/// V8's flags: it compiles Pyodide once, by its quick compiler, on the thread that waits for it. Under emulation, its optimizing
/// compilers on other threads take longer than they save.
const V8: &str = "--v8-flags=--liftoff-only,--single-threaded";

/// The cached image of the turducken's machine.
pub struct Turducken {
    archive: Archive,
}

impl Turducken {
    /// Opens the image, and makes it of the cache's tools where it is missing; `making` is called before that.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] where Deno, Pyodide or `runsc` isn't installed, [`Error::Images`] and [`Error::Host`] where the image
    /// can't be made.
    pub fn open(cache: &Path, making: impl FnOnce()) -> Result<Turducken, Error> {
        let runsc = gvisor::find_runsc(cache)?;
        let deno = Deno::open(cache)?;
        let parts = Parts::new(&runsc, &deno)?;
        let archive = ImageCache::new(cache).archive_of(&parts.identity()?, || {
            making();
            parts.image()
        })?;
        Ok(Turducken { archive })
    }

    /// Makes the sandbox of the outermost machine.
    pub fn microvm(self, kernel: PathBuf, accel: Accel) -> Microvm {
        let root = MachineRoot::Unpacked(self.archive);
        Microvm::new(root, Config::default(), kernel, accel)
    }

    /// Makes the task of that machine: `runsc`, with the code on stdin.
    ///
    /// # Errors
    ///
    /// [`Error::Code`] where the code is too long, [`Error::Host`] where there is no memory to keep it.
    pub fn task(code: &str) -> Result<Task, Error> {
        python(code)?;
        let words = argv().into_iter().map(Into::into).collect();
        let mut task = Task::new(Program::Command(words));
        task.vm.hostname = Some("turducken".into());
        let task = task.with_input(code.as_bytes());
        Ok(task.map_err(cannot("keep the code in memory"))?)
    }
}

/// Returns the machine's command: `runsc` as root, which may make namespaces there. The platform systrap is quicker on a host, but
/// its threads spin for each other: on the one emulated vCPU of a machine it takes more than twice the time of ptrace.
fn argv() -> Vec<String> {
    let mut argv = vec![RUNSC.to_owned(), "--platform=ptrace".to_owned()];
    argv.extend(bundle::runsc_args());
    argv.push("turducken".into());
    argv
}

/// The image's files.
struct Parts {
    /// Files and folders of the host, and their paths in the image.
    copied: Vec<(PathBuf, String)>,
    /// Paths in the image, and the contents of their files.
    written: Vec<(String, Vec<u8>)>,
}

impl Parts {
    fn new(runsc: &Path, deno: &Deno) -> Result<Parts, Error> {
        let mut copied = vec![(runsc.to_owned(), RUNSC.to_owned())];
        let below = |inside: &str| format!("{INNER}{inside}");
        let snapshot = deno.snapshot();
        let shown = snapshot.map(|snapshot| (snapshot, pyodide::SNAPSHOT.to_owned()));
        let parts = deno.parts().into_iter().chain(shown);
        copied.extend(parts.map(|(host, inside)| (host.to_owned(), below(&inside))));
        let mut arguments = vec!["/deno"];
        arguments.extend(super::deno::OPTIONS);
        arguments.extend([
            super::deno::KEEP_NOTHING,
            V8,
            super::deno::READABLE,
            LAUNCHER_PATH,
        ]);
        arguments.extend(snapshot.map(|_| pyodide::SNAPSHOT));
        let env: Vec<String> = super::deno::VARIABLES
            .map(|(name, value)| format!("{name}={value}"))
            .to_vec();
        let container = Container {
            root: INNER,
            arguments: &arguments,
            env: &env,
            capabilities: &[],
            shares: &[],
        };
        let written = vec![
            (bundle::CONFIG.to_owned(), container.config()),
            (below(LAUNCHER_PATH), LAUNCHER.into()),
            (below("/task/pyodide.mjs"), pyodide::SHARED.into()),
            (below("/task/bootstrap.py"), pyodide::BOOTSTRAP.into()),
        ];
        Ok(Parts { copied, written })
    }

    /// Returns the image's identity, a digest of the files' names, sizes and times: their contents are too large to read each time.
    fn identity(&self) -> Result<String, Error> {
        let mut fields = FORMAT.to_owned();
        for (host, inside) in &self.copied {
            let looked = fs::metadata(host).map_err(cannot(format!("read {}", host.display())))?;
            let (size, time) = (looked.size(), (looked.mtime(), looked.mtime_nsec()));
            fields += &format!("\0{}\0{inside}\0{size}\0{time:?}", host.display());
        }
        for (inside, bytes) in &self.written {
            fields += &format!("\0{inside}\0{}", Digest::of(bytes).hex());
        }
        Ok(format!("turducken:{}", Digest::of(fields).hex()))
    }

    /// Makes the image, of one layer in an unnamed temporary file.
    fn image(&self) -> Result<Image, Error> {
        let wrap = || cannot("write the turducken's image");
        let file = tempfile::tempfile().map_err(wrap())?;
        self.write(&file).map_err(wrap())?;
        let blob = Blob {
            len: file.metadata().map_err(wrap())?.len(),
            file: Arc::new(file),
            offset: 0,
            name: "the turducken's layer".into(),
        };
        Ok(Image {
            identity: self.identity()?,
            config: Config::default(),
            root: Root::Layers(vec![Layer {
                blob,
                diff_id: None,
            }]),
        })
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let mut tar = Builder::new(BufWriter::with_capacity(1 << 20, file));
        for folder in MOUNT_POINTS {
            let mut header = header(EntryType::Directory, 0, 0o755);
            tar.append_data(
                &mut header,
                relative(&format!("{INNER}/{folder}")),
                io::empty(),
            )?;
        }
        for (host, inside) in &self.copied {
            copy(&mut tar, host, inside)?;
        }
        for (inside, bytes) in &self.written {
            let mut header = header(EntryType::Regular, bytes.len() as u64, 0o644);
            tar.append_data(&mut header, relative(inside), &bytes[..])?;
        }
        tar.into_inner()?.flush()
    }
}

/// Adds a file, or the files in a folder. It follows links, which are the host's own.
fn copy(tar: &mut Builder<impl Write>, host: &Path, inside: &str) -> io::Result<()> {
    if host.is_dir() {
        let mut names: Vec<_> = fs::read_dir(host)?.collect::<io::Result<_>>()?;
        names.sort_by_key(fs::DirEntry::file_name);
        for entry in names.iter().filter(|entry| entry.path().is_file()) {
            let name = entry.file_name();
            copy(tar, &entry.path(), &format!("{inside}/{}", name.display()))?;
        }
        return Ok(());
    }
    let file = File::open(host)?;
    let looked = file.metadata()?;
    let executable = looked.mode() & 0o111;
    let mut header = header(EntryType::Regular, looked.len(), 0o644 | executable);
    tar.append_data(&mut header, relative(inside), file)
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_the_image_depends_on_its_parts() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pyodide")).unwrap();
        fs::write(folder.path().join("pyodide/a"), "a").unwrap();
        fs::write(folder.path().join("deno"), "one").unwrap();
        let mut parts = Parts {
            copied: vec![
                (folder.path().join("deno"), "/inner/deno".into()),
                (folder.path().join("pyodide"), "/inner/pyodide".into()),
            ],
            written: vec![("/inner/task/x".into(), b"x".to_vec())],
        };
        let first = parts.identity().unwrap();
        assert_eq!(parts.identity().unwrap(), first);
        let image = parts.image().unwrap();
        assert_eq!(image.identity, first);
        parts.written[0].1.push(b'y');
        assert_ne!(parts.identity().unwrap(), first);
        let cache = tempfile::tempdir().unwrap();
        let root = ImageCache::new(cache.path()).root(&image, || {}).unwrap();
        for (path, text) in [("deno", "one"), ("pyodide/a", "a"), ("task/x", "x")] {
            let read = fs::read_to_string(root.path.join("inner").join(path)).unwrap();
            assert_eq!(read, text);
        }
        assert!(root.path.join("inner/proc").is_dir());
        parts.copied[0].0 = folder.path().join("missing");
        let error = parts.identity().unwrap_err();
        assert!(error.to_string().ends_with("/missing"), "{error}");
    }
}
