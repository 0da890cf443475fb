//! Folders of the host's: Linux's FUSE mounts them, and threads pass its messages on to the host and back, as they are.
//!
//! A thread for each folder, `requests`, takes the kernel's requests from the folder's device file and puts them into the ring to the host.
//! The thread `answers` takes the host's replies out of the other ring, writes them to the device files, and waits for COM3's bells, for all
//! of them. What the kernel may hold up until it has another reply, a further thread writes, `notices`. None waits for the command, nor it
//! for them, but in the kernel, for its files.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use minivm_guest::channel::folders::{HEADER, Header, Kind, MESSAGE_MAX};
use minivm_guest::channel::ring::{Consumer, Producer};
use minivm_guest::channel::{COM3, SharedFolder};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::register::Register;
use crate::rings::{Ring, Rings};
use crate::user::User;
use crate::wire::{Wire, open_raw, write_all};
use crate::{Error, cannot, mounts, print};

/// Linux's device file for COM3.
const TTY: &str = "/dev/ttyS2";
/// Linux's device file for FUSE: each opening of it is one file system's.
const DEVICE: &str = "/dev/fuse";
/// The stack of a thread, in bytes.
const STACK: usize = 64 << 10;
/// The most bytes that are taken out of the ring at once.
const CHUNK: usize = 64 << 10;

/// The mounted folders.
pub(crate) struct Folders(Vec<PathBuf>);

/// The folders' own rings and bell, before there are folders.
pub(crate) struct Line {
    tty: OwnedFd,
    rings: Rings,
}

/// Lays the folders' rings out, for the host to find. In a machine that is saved before its request comes this is done before as well: it
/// takes some forty exits, and the clones' folders are mounted without them.
pub(crate) fn lay_out(wire: &Wire) -> Result<Line, Error> {
    let control = wire.rings().ok_or(
        "folders need rings in the guest's memory, and its kernel shows init no addresses (CONFIG_PROC_PAGE_MONITOR)",
    )?;
    let tty = open_raw(TTY, OFlags::empty()).map_err(cannot(format!(
        "share folders: the guest's kernel has no third UART (CONFIG_SERIAL_8250_NR_UARTS=3): open {TTY}"
    )))?;
    let rings = Rings::new().map_err(cannot("lay out the folders' rings"))?;
    control.announce(&rings);
    Ok(Line { tty, rings })
}

/// Mounts the folders, whose files belong to the user, and starts the threads that serve them.
pub(crate) fn mount_all(
    wire: &Wire,
    line: Option<Line>,
    folders: &[SharedFolder],
    user: &User,
) -> Result<Folders, Error> {
    if folders.is_empty() {
        return Ok(Folders(Vec::new()));
    }
    let Line { tty, rings } = line.map_or_else(|| lay_out(wire), Ok)?;
    let devices = folders.iter().map(|_| {
        let device = File::options().read(true).write(true).open(DEVICE);
        device.map_err(cannot(format!(
            "share folders: the guest's kernel has no FUSE (CONFIG_FUSE_FS): open {DEVICE}"
        )))
    });
    let devices: Arc<[File]> = devices.collect::<Result<_, _>>()?;
    let Rings { output, input, .. } = rings;
    let channel = Arc::new(Channel {
        tty,
        output: Mutex::new(output),
        bells: Mutex::new(0),
        rung: Condvar::new(),
    });
    let (noticed, notices) = mpsc::channel();
    let (answering, written) = (channel.clone(), devices.clone());
    spawn("answers", move || {
        answers(&answering, &written, input, &noticed)
    })?;
    let written = devices.clone();
    spawn("notices", move || {
        notices
            .iter()
            .try_for_each(|(header, message): (_, Vec<u8>)| answer(&written, header, &message))
    })?;
    let mut mounted = Folders(Vec::new());
    for (number, folder) in folders.iter().enumerate() {
        // Its place may be in another one, which is served by now.
        mount_one(folder, &devices[number])?;
        mounted.0.push(point(folder).to_owned());
        let (channel, devices) = (channel.clone(), devices.clone());
        let (number, owner) = (u16::try_from(number)?, (user.uid, user.gid));
        spawn("requests", move || {
            requests(&channel, &devices[usize::from(number)], number, owner)
        })?;
    }
    Ok(mounted)
}

fn spawn(
    name: &'static str,
    work: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let thread = thread::Builder::new().name(name.into()).stack_size(STACK);
    let work = move || {
        if let Err(error) = work() {
            print(&format!("the host's folders are lost: {error}"));
        }
    };
    thread.spawn(work).map_err(cannot("start a thread"))?;
    Ok(())
}

fn point(folder: &SharedFolder) -> &Path {
    Path::new(OsStr::from_bytes(&folder.at))
}

/// Mounts a folder. The kernel's first request waits in the device file, and all others for its reply.
fn mount_one(folder: &SharedFolder, device: &File) -> Result<(), Error> {
    let at = point(folder);
    let mode = match folder.is_file {
        true => {
            make_file(at)?;
            libc::S_IFREG
        }
        false => {
            mounts::make_folder(at, 0o755)?;
            libc::S_IFDIR
        }
    };
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if folder.read_only {
        flags |= MountFlags::RDONLY;
    }
    // The kernel checks permissions by the owners and modes that the host reports; the host checks those of its user.
    let options = CString::new(format!(
        "fd={},rootmode={mode:o},user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    ))?;
    mount("minivm", at, "fuse", flags, &*options)
        .map_err(cannot(format!("mount a folder on {}", at.display())))
}

/// Creates a file to mount another one on, and the folders above it, if they aren't there.
fn make_file(path: &Path) -> Result<(), Error> {
    if let Some(above) = path.parent() {
        mounts::make_folder(above, 0o755)?;
    }
    match File::options().create_new(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
    .map_err(cannot(format!("create {}", path.display())))
}

impl Folders {
    /// Waits for the end of a pipe, if there are folders: what the last processes have written through memory maps is written out by then.
    pub(crate) fn wait_for(&self, mut left: PipeReader) -> io::Result<()> {
        if !self.0.is_empty() {
            io::copy(&mut left, &mut io::sink())?;
        }
        Ok(())
    }

    /// Writes out what programs have written through memory maps, and unmounts the folders: all reaches the host before the machine ends.
    pub(crate) fn unmount(self) {
        for at in self.0.iter().rev() {
            // One that is in use, or that the command has unmounted or covered, is written out at least.
            if unmount(at, UnmountFlags::NOFOLLOW).is_err()
                && let Ok(root) = File::open(at)
            {
                let _ = rustix::fs::syncfs(root);
            }
        }
    }
}

/// What the threads share.
struct Channel {
    tty: OwnedFd,
    /// Held while a message is put in, which is whole then.
    output: Mutex<Producer<Ring>>,
    /// The number of reads that have returned bells.
    bells: Mutex<u64>,
    rung: Condvar,
}

impl Channel {
    /// Rings the host's bell. `register` is the calling thread's.
    fn ring(&self, register: Option<&Register>) -> io::Result<()> {
        match register {
            Some(register) => register.write(&[0]),
            None => write_all(&self.tty, &[0])?,
        }
        Ok(())
    }

    /// Puts a message into the ring, and waits where that is full.
    fn send(&self, register: Option<&Register>, mut message: &[u8]) -> Result<(), Error> {
        let mut output = lock(&self.output);
        loop {
            let before = *lock(&self.bells);
            let moved = output.push(message)?;
            message = &message[moved.bytes..];
            let full = !message.is_empty() && moved.bytes == 0 && output.sleep()?;
            if moved.bell {
                self.ring(register)?;
            }
            if message.is_empty() {
                return Ok(());
            }
            if full {
                self.wait(before);
            }
        }
    }

    /// Waits for bells, and wakes a thread that waits for one.
    fn listen(&self) -> rustix::io::Result<()> {
        let mut buffer = [0; 64];
        loop {
            match rustix::io::read(&self.tty, &mut buffer) {
                Err(Errno::INTR) => {}
                read => {
                    *lock(&self.bells) += 1;
                    self.rung.notify_all();
                    return read.map(drop);
                }
            }
        }
    }

    /// Waits for more bells than there were `before`.
    fn wait(&self, before: u64) {
        let waited = self
            .rung
            .wait_while(lock(&self.bells), |bells| *bells == before);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Passes the kernel's requests about one folder on to the host, as long as that is mounted.
fn requests(
    channel: &Channel,
    mut device: &File,
    folder: u16,
    (user, group): (u32, u32),
) -> Result<(), Error> {
    let register = Register::permitted(COM3);
    // A header, and a request.
    let mut buffer = vec![0; HEADER + MESSAGE_MAX];
    let header = |kind, len| Header { len, folder, kind }.encode();
    let owner = [user.to_le_bytes(), group.to_le_bytes()].concat();
    let message = [&header(Kind::Owner, owner.len())[..], &owner].concat();
    channel.send(register.as_ref(), &message)?;
    // The host looks for the rings at the first bell, and says from then on when it waits for one.
    channel.ring(register.as_ref())?;
    loop {
        match device.read(&mut buffer[HEADER..]) {
            Ok(len) => {
                buffer[..HEADER].copy_from_slice(&header(Kind::Fuse, len));
                channel.send(register.as_ref(), &buffer[..HEADER + len])?;
            }
            // The mount is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            // A request that was given up meanwhile.
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(cannot(format!("read {DEVICE}"))(error)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether an error of the device's is about one message.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EINTR, libc::EAGAIN, libc::ENOENT];
    passing.map(Some).contains(&error.raw_os_error())
}

/// Passes the host's replies on to the kernel.
fn answers(
    channel: &Channel,
    devices: &[File],
    mut ring: Consumer<Ring>,
    notices: &Sender<(Header, Vec<u8>)>,
) -> Result<(), Error> {
    let register = Register::permitted(COM3);
    let mut buffer = vec![0; CHUNK];
    let mut pending = Vec::new();
    loop {
        let moved = ring.pop(&mut buffer)?;
        if moved.bell {
            channel.ring(register.as_ref())?;
        }
        pending.extend_from_slice(&buffer[..moved.bytes]);
        let mut taken = 0;
        while let Some((header, message)) = whole(&pending[taken..])? {
            taken += HEADER + message.len();
            match header.kind {
                Kind::Notice => notices.send((header, message.to_vec()))?,
                _ => answer(devices, header, message)?,
            }
        }
        pending.drain(..taken);
        if moved.bytes == 0 && ring.sleep()? {
            channel.listen()?;
        }
    }
}

/// Returns the message at the beginning, if it is whole.
fn whole(bytes: &[u8]) -> Result<Option<(Header, &[u8])>, Error> {
    let Some((header, rest)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    let header = Header::decode(*header)?;
    Ok(rest.get(..header.len).map(|message| (header, message)))
}

/// Gives the kernel a reply. It refuses one whose request was interrupted or never made, or whose mount is gone.
fn answer(devices: &[File], header: Header, reply: &[u8]) -> Result<(), Error> {
    let device = devices.get(usize::from(header.folder));
    let mut device = device.ok_or("the host has answered for a folder that is not there")?;
    match device.write(reply) {
        Ok(_) => {}
        Err(error) if is_passing(&error) || error.raw_os_error() == Some(libc::ENODEV) => {}
        Err(error) => return Err(cannot(format!("write to {DEVICE}"))(error)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_when_it_is_whole() {
        let header = Header {
            len: 3,
            folder: 7,
            kind: Kind::Fuse,
        };
        let bytes = [&header.encode()[..], b"abcd"].concat();
        for len in 0..HEADER + 3 {
            assert_eq!(whole(&bytes[..len]).unwrap(), None, "{len}");
        }
        assert_eq!(whole(&bytes).unwrap(), Some((header, &b"abc"[..])));
        assert!(whole(&[0xff; HEADER]).is_err());
    }
}
