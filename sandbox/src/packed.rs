//! A task's files as an archive, made when the task starts. It holds files, folders and links only.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::fd::OwnedFd;

use minivm_image::io_error::cannot;

use super::{Error, Limits, Task, Warning};

/// Packs the task's files into an archive, in an unnamed temporary file. The archive has to fit into the sandbox's memory. Returns
/// the file, and warnings about what the archive lacks.
pub(super) fn packed(task: &Task, limits: &Limits) -> Result<(OwnedFd, Vec<Warning>), Error> {
    let mut file = tempfile::tempfile().map_err(cannot("create a temporary file"))?;
    let out = Bounded {
        to: &file,
        left: limits.memory.unwrap_or(u64::MAX),
    };
    let left_out = task.files.pack(BufWriter::new(out))?;
    file.rewind().map_err(cannot("read a temporary file"))?;
    Ok((file.into(), left_out))
}

/// A file with a limit on its size.
struct Bounded<'a> {
    to: &'a File,
    left: u64,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len() as u64;
        if len > self.left {
            let why =
                "the files to copy in are larger than the sandbox's memory: raise -m/--memory";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let written = self.to.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_machine::{CopyIn, Files};

    #[test]
    fn files_larger_than_the_memory_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("large"), vec![b'x'; 1 << 20]).unwrap();
        let mut task = Task::code("pass");
        let files = Files {
            from: folder.path().into(),
            to: "/in".into(),
        };
        task.files = CopyIn::of(vec![files]).unwrap();
        let within = |memory: u64| packed(&task, &Limits::default().with_memory(memory));
        let whole = File::from(within(2 << 20).unwrap().0);
        let size = whole.metadata().unwrap().len();
        assert!((1 << 20..2 << 20).contains(&size), "{size}");
        let error = within(1 << 20).unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains("--memory"), "{text}");
    }
}
