//! The lab's machine: QEMU's command line, its process, and its console.
//!
//! The machine is QEMU's `microvm`: a processor, memory, a serial port and virtio devices on MMIO, and firmware that does
//! next to nothing. Its kernel is loaded through the PVH entry if it is an ELF file.
//!
//! A lab that shares nothing with the host may run hostile code, so its QEMU runs with a filter of system calls and in a jail
//! (see `jail`). One that shows the host's files has the user's rights, as any program that is started by hand.

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

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::{Error, cannot};
use super::jail::{JailEnd, Prepared, prepare, set_unjailed};
use super::{INIT_COMMAND, QEMU, Root, initramfs};
use crate::printable::printable;

/// QEMU's own filter of system calls: none that is obsolete, gains rights, starts a program or changes how threads are scheduled.
const FILTER: &str =
    "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// How often a key is pressed.
const PING: Duration = Duration::from_millis(700);
/// How long a process takes to end whose channel has ended.
const MOMENT: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};
/// How much of the console is kept for an error.
const CONSOLE_LINES: usize = 20;
/// How much of a line, in characters.
const LINE_MAX: usize = 500;

/// What the machine is made of.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) kernel: PathBuf,
    pub(super) root: Root,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) icount: bool,
}

impl Machine {
    /// QEMU's arguments. It finds the initramfs and its end of the channel as open files of these numbers.
    fn arguments(
        &self,
        kernel: &OsStr,
        initramfs: RawFd,
        channel: RawFd,
        ports: &[RawFd],
        tsc_khz: Option<u64>,
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |text: &str| arguments.extend(text.split(' ').map(OsString::from));
        add("-nodefaults -no-user-config -display none -no-reboot -serial stdio");
        add("-M microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial=on,pcie=off");
        // TCG has no XSAVES, and says so on each start unless it's taken away.
        // Without XSAVE, and so without AVX: TCG doesn't intercept a guest's XSETBV, so KVM would put the reset value of
        // XCR0 back at every entry, and the guest's kernel would not save its programs' SSE registers.
        add("-cpu EPYC,+svm,+npt,-xsave,-avx,-avx2,-f16c,-fma");
        add(&format!("-smp {} -m {}M", self.cpus, self.memory_mib));
        if self.icount {
            add("-accel tcg,thread=single -icount shift=0");
        } else {
            add("-accel tcg,thread=multi");
        }
        add(&format!("-chardev socket,id=channel,fd={channel}"));
        add("-device virtio-serial-device -device virtserialport,chardev=channel,nr=1");
        for (number, port) in (2..).zip(ports) {
            add(&format!("-chardev socket,id=port{number},fd={port}"));
            add(&format!(
                "-device virtserialport,chardev=port{number},nr={number}"
            ));
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
        // Without a known TSC the kernel measures it against the PIT, which never ends under emulation. QEMU's TSC is the
        // host's, or 1 GHz if it counts instructions.
        let tsc_khz = if self.icount {
            Some(1_000_000)
        } else {
            tsc_khz
        };
        let tsc = tsc_khz
            .map(|khz| format!(" tsc_early_khz={khz}"))
            .unwrap_or_default();
        // Not `noapictimer`, which would save the 100 ms of measuring the APIC's: machines on this KVM then hang.
        // A kernel that panics resets the machine at once (-1) by a triple fault (t), and QEMU ends instead of resetting.
        format!(
            "console=ttyS0 quiet panic=-1 reboot=t pci=off tsc=reliable no_timer_check{tsc} rdinit={} -- {INIT_COMMAND}",
            initramfs::INIT,
        )
    }
}

/// The host's clock frequency as far as the kernel knows it, which is what its TSC counts under QEMU.
fn host_tsc_khz() -> Option<u64> {
    parse_tsc_khz(&fs::read_to_string("/proc/cpuinfo").ok()?)
}

fn parse_tsc_khz(cpuinfo: &str) -> Option<u64> {
    let line = cpuinfo.lines().find(|line| line.starts_with("cpu MHz"))?;
    let (mhz, fraction) = line.split_once(':')?.1.trim().split_once('.')?;
    format!("{mhz}{}", fraction.get(..3)?).parse().ok()
}

/// A running machine. It's killed when this is dropped, and by the kernel when the thread that started it ends.
pub(super) struct Qemu {
    process: Arc<Process>,
    console: Option<JoinHandle<String>>,
    /// Of one in a jail.
    jailed: Option<JailEnd>,
    /// The pings end with it.
    _running: mpsc::Sender<()>,
}

/// QEMU itself, or the jail around it.
struct Process {
    child: Mutex<Child>,
    jailed: bool,
    /// Whether it was killed from here.
    killed: AtomicBool,
}

impl Qemu {
    /// Starts the machine; the stream is our end of its channel. It gets the others' ends of more ports.
    pub(super) fn start(
        machine: &Machine,
        initramfs: OwnedFd,
        ports: Vec<OwnedFd>,
    ) -> Result<(Qemu, UnixStream), Error> {
        let (ours, theirs) = UnixStream::pair().map_err(cannot("create a socket"))?;
        let (console, output) = io::pipe().map_err(cannot("create a pipe"))?;
        let messages = output.try_clone().map_err(cannot("duplicate a pipe"))?;
        let numbers: Vec<_> = ports.iter().map(AsRawFd::as_raw_fd).collect();
        let (initramfs_number, channel_number) = (initramfs.as_raw_fd(), theirs.as_raw_fd());
        let mut files: Vec<OwnedFd> = [initramfs, theirs.into()]
            .into_iter()
            .chain(ports)
            .collect();
        let kernel: OsString = match machine.root {
            Root::Host => machine.kernel.clone().into(),
            Root::Private => {
                let kernel = super::jail::copy(&machine.kernel)?;
                let path = format!("/proc/self/fd/{}", kernel.as_raw_fd());
                files.push(kernel);
                path.into()
            }
        };
        let arguments = machine.arguments(
            &kernel,
            initramfs_number,
            channel_number,
            &numbers,
            host_tsc_khz(),
        );
        let Prepared {
            mut command,
            entry,
            end: jailed,
        } = prepare(machine.root, &arguments, files)?;
        command
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(messages)
            // Ctrl-C is for us to act on.
            .process_group(0);
        entry.install(&mut command);
        let mut process = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::QemuMissing { program: QEMU },
            _ => {
                if jailed.is_some() {
                    set_unjailed(format!("this user can make none ({error})"));
                }
                cannot(format!("start {QEMU}"))(error)
            }
        })?;
        // With its copies of the files that have gone in: the end of one among them is to be seen.
        drop(command);
        let console = Some(thread::spawn(move || last_lines(console)));
        let keys = process.stdin.take().expect("it is piped");
        let (running, ended) = mpsc::channel();
        thread::spawn(move || ping(keys, &ended));
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

    /// Why it never came to be, where that is the jail's fault. The channel has ended, and was not cut from here.
    pub(super) fn jail_failed(&mut self) -> Option<String> {
        let jailed = self.jailed.take()?;
        let by_itself = self.process.ends_by_itself()? && !jailed.has_begun();
        by_itself.then(|| {
            let said = self.console();
            let said = said.lines().last().unwrap_or_default();
            format!("bubblewrap cannot make one ({said})")
        })
    }

    /// Kills the machine when the time is up, unless the answer is dropped before.
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

    /// Kills the machine and returns the last lines of its console. All of its jail is gone then, too.
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

    /// It may have ended already, which is just as well.
    fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        let mut child = self.child();
        if !self.jailed || kill_only_child(child.id()).is_none() {
            let _ = child.kill();
        }
    }

    fn end(&self) {
        self.kill();
        // The process is ours and was killed: there's nothing to be done about an error, and none is known.
        let _ = self.child().wait();
    }

    /// Whether it has ended with an exit code of its own, for which it gets a moment; `None` where it hasn't ended.
    fn ends_by_itself(&self) -> Option<bool> {
        let mut child = self.child();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok()?;
        let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
        let (1, Ok(status)) = (poll(&mut ended, Some(&MOMENT)).ok()?, child.wait()) else {
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

/// Kills a process's child; `None` where it has none. The first process in a jail takes all others with it, and is waited for
/// by the one that has made the jail, which then ends too: where that one is killed instead, who becomes its child's parent may
/// never wait for it.
fn kill_only_child(parent: u32) -> Option<()> {
    let only_child = || {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        Pid::from_raw(children.trim().parse().ok()?)
    };
    let child = only_child()?;
    let pidfd = pidfd_open(child, PidfdFlags::empty()).ok()?;
    // Its number was no other's by then.
    (only_child() == Some(child)).then_some(())?;
    pidfd_send_signal(&pidfd, Signal::KILL).ok()
}

/// Presses a key that nobody looks at, again and again, until the other end is dropped.
///
/// The lab is not left without an interrupt for long, see [`channel`](super::channel). Where the interrupt that is lost is the
/// channel's own, there comes no other of its kind: a device that has raised its line waits to be asked why. This one is
/// another device's.
fn ping(mut keys: ChildStdin, ended: &mpsc::Receiver<()>) {
    while ended.recv_timeout(PING) == Err(RecvTimeoutError::Timeout) {
        // It fails when QEMU has ended.
        if keys.write_all(b"\0").is_err() {
            return;
        }
    }
}

/// A time limit that counts.
pub(super) struct Limit {
    cancel: mpsc::Sender<()>,
    watch: JoinHandle<bool>,
}

impl Limit {
    /// Whether it was reached; it no longer counts after this.
    pub(super) fn reached(self) -> bool {
        drop(self.cancel);
        self.watch.join().unwrap_or(false)
    }
}

/// Reads the console to its end and keeps its last lines, without what QEMU says about the processor on each start.
fn last_lines(console: PipeReader) -> String {
    let mut kept: Vec<String> = Vec::new();
    for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
        let line = printable(&String::from_utf8_lossy(&line), LINE_MAX);
        if line.is_empty() || line.contains("TCG doesn't support requested feature") {
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
    use super::*;

    fn command_line(machine: &Machine) -> String {
        let kernel = OsStr::new("/proc/self/fd/9");
        let arguments = machine.arguments(kernel, 7, 8, &[], Some(2_596_142));
        arguments
            .join(std::ffi::OsStr::new(" "))
            .into_string()
            .unwrap()
    }

    fn machine() -> Machine {
        Machine {
            kernel: "/k/vmlinux".into(),
            root: Root::Private,
            cpus: 2,
            memory_mib: 512,
            icount: false,
        }
    }

    #[test]
    fn a_private_root_shares_nothing() {
        let line = command_line(&machine());
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
    fn a_host_root_is_shared_read_only() {
        let line = command_line(&Machine {
            root: Root::Host,
            ..machine()
        });
        assert!(
            line.contains("path=/,security_model=none,readonly=on"),
            "{line}"
        );
    }

    #[test]
    fn counting_instructions_takes_one_thread_and_a_clock_of_1_ghz() {
        let line = command_line(&Machine {
            icount: true,
            ..machine()
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
