//! The lab's machine: QEMU's command line, its process, and its console.
//!
//! The machine is QEMU's `microvm` for x86-64: a processor, memory, a serial port and virtio devices on MMIO, and firmware that does
//! next to nothing. Its kernel is loaded through the PVH entry if it is an ELF file. For arm64 it is `virt`, which has the same devices,
//! and no firmware.
//!
//! A lab that shares nothing with the host may run hostile code, so its QEMU runs with a filter of system calls and in a jail
//! (see `jail`). A lab that shows the host's files has the user's rights, as any program that is started by hand.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use minivm_image::io_error::cannot;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::Error;
use super::jail::{JailEnd, Prepared, prepare, set_unjailed};
use super::{INIT_COMMAND, Processor, Root, initramfs};
use crate::printable::printable;

/// QEMU's own filter of system calls: it denies those that are obsolete, gain rights, start a program or change the scheduling.
const FILTER: &str =
    "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// How often [`raise_interrupts`] writes a byte.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(700);
/// How long a process may take to end after its channel.
const END_WAIT: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};
/// The most lines of the console that are kept for an error.
const CONSOLE_LINES: usize = 20;
/// The most characters of a line.
const LINE_MAX: usize = 500;

/// The configuration of the lab's machine.
#[derive(Debug)]
pub(super) struct QemuConfig {
    pub(super) processor: Processor,
    pub(super) kernel: PathBuf,
    pub(super) root: Root,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) icount: bool,
    /// The file of the block device that the lab reads.
    pub(super) disk: Option<PathBuf>,
}

impl QemuConfig {
    /// Checks that a lab can have the disk: QEMU's own message would name another path.
    ///
    /// # Errors
    ///
    /// [`Error::NoDisk`] where the lab's kernel has no driver for one, [`Error::Host`] where the file can't be read.
    pub(super) fn check_disk(&self) -> Result<(), Error> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        if !self.processor.emulator().has_disk {
            return Err(Error::NoDisk {
                disk: disk.clone(),
                processor: self.processor,
            });
        }
        let opened = fs::File::open(disk).and_then(|file| file.metadata());
        let metadata = opened.map_err(cannot(format!("read {}", disk.display())))?;
        if !metadata.is_file() {
            let what = io::Error::other("it is not a regular file");
            return Err(cannot(format!("map {}", disk.display()))(what).into());
        }
        Ok(())
    }

    /// Returns QEMU's arguments. `initramfs`, `channel` and `ports` are file descriptors that QEMU inherits; `disk` is the path under
    /// which it finds the disk, without commas.
    fn arguments(
        &self,
        kernel: &OsStr,
        initramfs: RawFd,
        channel: RawFd,
        ports: &[RawFd],
        disk: Option<&str>,
        tsc_khz: Option<u64>,
    ) -> Vec<OsString> {
        let emulator = self.processor.emulator();
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |text: &str| arguments.extend(text.split(' ').map(OsString::from));
        add("-nodefaults -no-user-config -display none -no-reboot -serial stdio");
        add(&format!(
            "-M {} -cpu {}",
            emulator.machine,
            self.processor.model()
        ));
        add(&format!("-smp {} -m {}M", self.cpus, self.memory_mib));
        if self.icount {
            add("-accel tcg,thread=single -icount shift=0");
        } else {
            add("-accel tcg,thread=multi");
        }
        add(&format!("-chardev socket,id=channel,fd={channel}"));
        add(&format!(
            "-device virtio-serial-device{} -device virtserialport,chardev=channel,nr=1",
            emulator.first_device
        ));
        for (number, port) in (2..).zip(ports) {
            add(&format!("-chardev socket,id=port{number},fd={port}"));
            add(&format!(
                "-device virtserialport,chardev=port{number},nr={number}"
            ));
        }
        if let Some(disk) = disk {
            // Through this host's page cache, so that all labs share what they read. QEMU reads on threads of its own: its loop would
            // stand still otherwise, and the channel with it.
            add(&format!(
                "-drive if=none,id=disk,format=raw,readonly=on,cache=writeback,aio=threads,file={disk}"
            ));
            add("-device virtio-blk-device,drive=disk");
        }
        match self.root {
            Root::Host => {
                add("-fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap");
                add("-device virtio-9p-device,fsdev=root,mount_tag=root");
            }
            Root::Private => add(FILTER),
        }
        add(&format!("-initrd /proc/self/fd/{initramfs} -kernel"));
        arguments.push(kernel.to_owned());
        arguments.push("-append".into());
        arguments.push(self.kernel_command_line(tsc_khz).into());
        arguments
    }

    fn kernel_command_line(&self, tsc_khz: Option<u64>) -> String {
        let emulator = self.processor.emulator();
        let tsc = match self.processor {
            Processor::Epyc => self.known_tsc(tsc_khz),
            // Its clock has a register with its frequency.
            Processor::CortexA72 | Processor::ArmMax => String::new(),
        };
        format!(
            "console={} {}{tsc} rdinit={} -- {INIT_COMMAND}",
            emulator.console,
            emulator.cmdline,
            initramfs::INIT,
        )
    }

    /// Returns the parameter that names the TSC's frequency. Without it, the kernel measures the TSC against the PIT, which never ends
    /// under emulation. QEMU's TSC is the host's, or 1 GHz if it counts instructions.
    fn known_tsc(&self, tsc_khz: Option<u64>) -> String {
        let tsc_khz = if self.icount {
            Some(1_000_000)
        } else {
            tsc_khz
        };
        tsc_khz
            .map(|khz| format!(" tsc_early_khz={khz}"))
            .unwrap_or_default()
    }
}

/// Returns the host's clock frequency in kHz as its kernel reports it, which is what the TSC counts under QEMU.
fn host_tsc_khz() -> Option<u64> {
    parse_tsc_khz(&fs::read_to_string("/proc/cpuinfo").ok()?)
}

fn parse_tsc_khz(cpuinfo: &str) -> Option<u64> {
    let line = cpuinfo.lines().find(|line| line.starts_with("cpu MHz"))?;
    let (mhz, fraction) = line.split_once(':')?.1.trim().split_once('.')?;
    format!("{mhz}{}", fraction.get(..3)?).parse().ok()
}

/// A running machine. It is killed when this is dropped, and by the kernel when the thread that started it ends.
pub(super) struct Qemu {
    process: Arc<Process>,
    console: Option<JoinHandle<String>>,
    /// The end of its jail, if it has one.
    jailed: Option<JailEnd>,
    /// The thread of [`raise_interrupts`] ends when this is dropped.
    _running: mpsc::Sender<()>,
}

/// QEMU itself, or the jail around it.
struct Process {
    child: Mutex<Child>,
    jailed: bool,
    /// Whether this process killed it.
    killed: AtomicBool,
}

impl Qemu {
    /// Starts the machine, with `ports` as its further ports. Returns it with this process's end of its channel.
    ///
    /// # Errors
    ///
    /// [`Error::QemuMissing`], or [`Error::Io`] where QEMU can't be started.
    pub(super) fn start(
        config: &QemuConfig,
        initramfs: OwnedFd,
        ports: Vec<OwnedFd>,
    ) -> Result<(Qemu, UnixStream), Error> {
        let emulator = config.processor.emulator();
        let (ours, theirs) = UnixStream::pair().map_err(cannot("create a socket"))?;
        let (console, output) = io::pipe().map_err(cannot("create a pipe"))?;
        let messages = output.try_clone().map_err(cannot("duplicate a pipe"))?;
        let numbers: Vec<_> = ports.iter().map(AsRawFd::as_raw_fd).collect();
        let (initramfs_number, channel_number) = (initramfs.as_raw_fd(), theirs.as_raw_fd());
        let mut files: Vec<OwnedFd> = [initramfs, theirs.into()]
            .into_iter()
            .chain(ports)
            .collect();
        let kernel: OsString = match config.root {
            Root::Host => config.kernel.clone().into(),
            Root::Private => {
                let kernel = super::jail::copy(&config.kernel)?;
                let path = format!("/proc/self/fd/{}", kernel.as_raw_fd());
                files.push(kernel);
                path.into()
            }
        };
        let arguments = |disk: Option<&str>| {
            let tsc_khz = host_tsc_khz();
            let (initramfs, channel) = (initramfs_number, channel_number);
            config.arguments(&kernel, initramfs, channel, &numbers, disk, tsc_khz)
        };
        let disk = config.disk.as_deref();
        let Prepared {
            mut command,
            entry,
            end: jailed,
        } = prepare(emulator, config.root, files, disk, arguments)?;
        command
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(messages)
            // A process group of its own: Ctrl-C reaches this process alone, which acts on it.
            .process_group(0);
        entry.install(&mut command);
        let mut process = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::qemu_missing(emulator),
            _ => {
                if jailed.is_some() {
                    set_unjailed(format!("this user cannot make a jail ({error})"));
                }
                cannot(format!("start {}", emulator.program))(error).into()
            }
        })?;
        // The command has copies of the inherited files: while they are open, the other ends don't see QEMU's end.
        drop(command);
        let console = Some(thread::spawn(move || last_lines(console)));
        let serial_input = process.stdin.take().expect("it is piped");
        let (running, ended) = mpsc::channel();
        if emulator.loses_interrupts {
            thread::spawn(move || raise_interrupts(serial_input, &ended));
        }
        Ok((
            Qemu {
                process: Arc::new(Process {
                    child: Mutex::new(process),
                    jailed: jailed.is_some(),
                    killed: AtomicBool::new(false),
                }),
                console,
                jailed,
                _running: running,
            },
            ours,
        ))
    }

    /// Returns why QEMU was never executed, where that is the jail's fault. To be called when the channel has ended, and not by this
    /// process.
    pub(super) fn jail_failed(&mut self) -> Option<String> {
        let jailed = self.jailed.take()?;
        let by_itself = self.process.ends_by_itself()? && !jailed.has_begun();
        by_itself.then(|| {
            let said = self.console();
            let said = said.lines().last().unwrap_or_default();
            format!("bubblewrap cannot make a jail ({said})")
        })
    }

    /// Kills the machine at a time limit, unless the returned [`Limit`] is dropped before.
    pub(super) fn kill_after(&self, limit: Duration) -> Limit {
        let (cancel, cancelled) = mpsc::channel();
        let process = Arc::clone(&self.process);
        let watch = thread::spawn(move || {
            let reached = cancelled.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if reached {
                process.kill();
            }
            reached
        });
        Limit { cancel, watch }
    }

    /// Kills the machine, waits until all of its jail has ended, and returns the last lines of its console.
    pub(super) fn end(mut self) -> String {
        self.process.end();
        self.console()
    }

    fn console(&mut self) -> String {
        self.console
            .take()
            .and_then(|console| console.join().ok())
            .unwrap_or_default()
    }
}

impl Process {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills QEMU, or the first process in its jail. It may have ended already.
    fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        let mut child = self.child();
        if !self.jailed {
            let _ = child.kill();
        } else if kill_only_child(child.id()).is_none() {
            crate::jail::kill(&child);
        }
    }

    fn end(&self) {
        self.kill();
        // The process is a child and was killed: no error is known, and none could be handled.
        let _ = self.child().wait();
    }

    /// Waits up to [`END_WAIT`] for its end, and returns whether it had an exit code of its own; `None` where it hasn't ended.
    fn ends_by_itself(&self) -> Option<bool> {
        let mut child = self.child();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok()?;
        let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
        let (1, Ok(status)) = (poll(&mut ended, Some(&END_WAIT)).ok()?, child.wait()) else {
            return None;
        };
        Some(status.code().is_some() && !self.killed.load(Ordering::Relaxed))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.process.end();
    }
}

/// Kills the only child of a process; returns `None` where it has none. Killing the first process in a jail ends all others in it, and
/// then the process that made the jail, which waits for it. If that parent were killed instead, its child's next parent might never wait
/// for it.
fn kill_only_child(parent: u32) -> Option<()> {
    let only_child = || {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        Pid::from_raw(children.trim().parse().ok()?)
    };
    let child = only_child()?;
    let pidfd = pidfd_open(child, PidfdFlags::empty()).ok()?;
    // The number still was that child's when the pidfd was opened.
    (only_child() == Some(child)).then_some(())?;
    pidfd_send_signal(&pidfd, Signal::KILL).ok()
}

/// Writes a byte to the lab's serial console every [`INTERRUPT_INTERVAL`], to raise an interrupt, until the other end of `ended` is
/// dropped. No program in the lab reads the byte.
///
/// The lab must not be without an interrupt for long, see [`channel`](super::channel). Where the lost interrupt is the channel's own,
/// the channel raises no other: a device that has raised its line waits until the driver asks it why. The serial console is another
/// device.
fn raise_interrupts(mut serial_input: ChildStdin, ended: &mpsc::Receiver<()>) {
    while ended.recv_timeout(INTERRUPT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        // It fails when QEMU has ended.
        if serial_input.write_all(b"\0").is_err() {
            return;
        }
    }
}

/// A time limit that runs.
pub(super) struct Limit {
    cancel: mpsc::Sender<()>,
    watch: JoinHandle<bool>,
}

impl Limit {
    /// Ends the time limit, and returns whether it was reached.
    pub(super) fn reached(self) -> bool {
        drop(self.cancel);
        self.watch.join().unwrap_or(false)
    }
}

/// Parts of lines that each start has, and that say nothing: QEMU's warnings about the processor, and what KVM for Intel's processors
/// says of AMD's, as QEMU's is.
const NOISE: [&str; 2] = [
    "TCG doesn't support requested feature",
    "kvm_intel: VMX not supported by CPU",
];

/// Reads the console to its end and returns its last lines, without [`NOISE`].
fn last_lines(console: PipeReader) -> String {
    let mut kept: Vec<String> = Vec::new();
    for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
        let line = printable(&String::from_utf8_lossy(&line), LINE_MAX);
        if line.is_empty() || NOISE.iter().any(|noise| line.contains(noise)) {
            continue;
        }
        if kept.len() == CONSOLE_LINES {
            kept.remove(0);
        }
        kept.push(line);
    }
    if kept.is_empty() {
        "its console is empty".to_owned()
    } else {
        kept.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn command_line(config: &QemuConfig) -> String {
        let kernel = OsStr::new("/proc/self/fd/9");
        let arguments = config.arguments(kernel, 7, 8, &[], None, Some(2_596_142));
        arguments
            .join(std::ffi::OsStr::new(" "))
            .into_string()
            .unwrap()
    }

    fn config() -> QemuConfig {
        QemuConfig {
            processor: Processor::Epyc,
            kernel: "/k/vmlinux".into(),
            root: Root::Private,
            cpus: 2,
            memory_mib: 512,
            icount: false,
            disk: None,
        }
    }

    #[test]
    fn a_private_root_shares_nothing() {
        let line = command_line(&config());
        assert!(!line.contains("9p") && !line.contains("fsdev"), "{line}");
        assert!(line.contains("-smp 2 -m 512M"), "{line}");
        assert!(line.contains("-chardev socket,id=channel,fd=8"), "{line}");
        assert!(
            line.contains("-initrd /proc/self/fd/7 -kernel /proc/self/fd/9 -append console"),
            "{line}"
        );
        assert!(line.contains("tsc_early_khz=2596142"), "{line}");
        assert!(line.ends_with("rdinit=/minivm -- lab-init"), "{line}");
        assert!(line.contains("-sandbox on,"), "{line}");
    }

    #[test]
    fn a_disk_is_read_only_and_there_if_it_is_asked_for() {
        assert!(!command_line(&config()).contains("virtio-blk"));
        let arguments = config().arguments(OsStr::new("/k"), 7, 8, &[], Some("/disk"), None);
        let drive = arguments.iter().position(|word| word == "-drive").unwrap();
        let options = arguments[drive + 1].to_str().unwrap();
        assert!(options.contains("format=raw,readonly=on,"), "{options}");
        assert!(options.ends_with(",file=/disk"), "{options}");
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_refused_by_name() {
        let check = |disk: &Path, processor| {
            let disk = Some(disk.to_owned());
            let config = QemuConfig {
                processor,
                disk,
                ..config()
            };
            config.check_disk().map_err(|error| error.to_string())
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image");
        fs::write(&file, "").unwrap();
        check(&file, Processor::Epyc).unwrap();
        for (disk, processor) in [
            (file.with_file_name("none"), Processor::Epyc),
            (folder.path().to_owned(), Processor::Epyc),
            (file, Processor::ArmMax),
        ] {
            let error = check(&disk, processor).unwrap_err();
            assert!(error.contains(disk.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn an_arm64_processor_is_in_a_machine_of_its_own() {
        for (processor, model) in [
            (Processor::CortexA72, "-cpu cortex-a72 "),
            (Processor::ArmMax, "-cpu max,pauth-impdef=on "),
        ] {
            let line = command_line(&QemuConfig {
                processor,
                ..config()
            });
            assert!(
                line.contains("-M virt,virtualization=on,gic-version=3 "),
                "{line}"
            );
            assert!(line.contains(model), "{line}");
            assert!(!line.contains("tsc") && !line.contains("ttyS0"), "{line}");
        }
    }

    #[test]
    fn a_host_root_is_shared_read_only() {
        let line = command_line(&QemuConfig {
            root: Root::Host,
            ..config()
        });
        assert!(
            line.contains("path=/,security_model=none,readonly=on"),
            "{line}"
        );
    }

    #[test]
    fn counting_instructions_takes_one_thread_and_a_clock_of_1_ghz() {
        let line = command_line(&QemuConfig {
            icount: true,
            ..config()
        });
        assert!(line.contains("thread=single -icount shift=0"), "{line}");
        assert!(line.contains("tsc_early_khz=1000000"), "{line}");
    }

    #[test]
    fn the_clock_is_read_to_the_khz() {
        let cpuinfo = "processor\t: 0\ncpu MHz\t\t: 2596.142\ncache size\t: 512 KB\n";
        assert_eq!(parse_tsc_khz(cpuinfo), Some(2_596_142));
        assert_eq!(parse_tsc_khz("processor\t: 0\n"), None);
    }
}
