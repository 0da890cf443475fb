//! Streams that other processes share and may have made non-blocking: a terminal is one open file for all its programs.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;

/// How long to wait before a full output is tried again. Not every writer has a file that could be polled.
const RETRY: Duration = Duration::from_millis(2);

/// How long [`tell_soon`] waits for lines that may never be taken.
const MOMENT: Duration = Duration::from_millis(100);

/// Writes all bytes, and waits as long as that takes.
///
/// # Errors
///
/// Any error but that there is no room yet.
pub fn write_all(out: &mut (impl Write + ?Sized), mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => bytes = &bytes[len..],
            Err(error) => wait_after(error)?,
        }
    }
    loop {
        match out.flush() {
            Err(error) => wait_after(error)?,
            Ok(()) => return Ok(()),
        }
    }
}

fn wait_after(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => {
            thread::sleep(RETRY);
            Ok(())
        }
        _ => Err(error),
    }
}

/// Writes a line to stderr, as minivm's own. A line that can't be written is lost: there is no other place to say so.
pub fn tell(line: &str) {
    let line = format!("minivm: {line}\n");
    let _ = write_all(&mut io::stderr().lock(), line.as_bytes());
}

/// Makes a file of these bytes in memory, without a name, to be read from its start.
///
/// # Errors
///
/// Where there is no memory to keep them.
pub fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("minivm", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Writes lines to stderr, and waits for a moment at most until they are taken.
pub fn tell_soon(lines: Vec<String>) {
    let (said, saying) = mpsc::channel();
    // Where no thread can be made, the exit code has to say it alone.
    let _ = thread::Builder::new().spawn(move || {
        lines.iter().for_each(|line| tell(line));
        let _ = said.send(());
    });
    let _ = saying.recv_timeout(MOMENT);
}

/// Reads what there is, and waits where there is nothing yet.
///
/// # Errors
///
/// Any error but that there is nothing yet.
pub fn read(from: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(&from, &mut *buffer) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut input = [PollFd::new(&from, PollFlags::IN)];
                match poll(&mut input, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_full_output_is_waited_for_and_so_is_an_empty_input() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        // More than a pipe holds.
        let all = vec![7; 300_000];
        let written = all.clone();
        let writing = thread::spawn(move || write_all(&mut writer, &written));
        let (mut seen, mut buffer) = (Vec::new(), vec![0; 4096]);
        loop {
            let len = read(&reader, &mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..len]);
            if len == 0 {
                break;
            }
            thread::sleep(Duration::from_micros(100));
        }
        writing.join().unwrap().unwrap();
        assert_eq!(seen, all);
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
    }
}
