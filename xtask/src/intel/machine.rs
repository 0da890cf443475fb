//! Bochs emulates an old PC with one of Intel's processors, which boots the lab's kernel from a CD image.
//!
//! Bochs is the only emulator in Debian with Intel's VMX, EPT and unrestricted guests, so kvm-intel works in it. It can share no files with
//! the host: all that the machine needs is in its initramfs, and what it sends comes over a serial port. Its clock counts its
//! instructions, so a busy host makes it slow, but never late.

use std::fs::{self, File};
use std::io::{BufReader, PipeReader};
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};

use crate::process::{cannot_start, capture};

/// The boot loader's two files, and the folder on the CD in which it looks for its configuration.
const LOADER: [&str; 2] = [
    "/usr/lib/ISOLINUX/isolinux.bin",
    "/usr/lib/syslinux/modules/bios/ldlinux.c32",
];
const LOADER_FOLDER: &str = "isolinux";
/// Instructions in a second of the machine's clock. In a real second there are about as many, on an idle host.
const INSTRUCTIONS_PER_SECOND: u32 = 40_000_000;
/// The most lines of a log that an error shows.
const LOG_LINES: usize = 12;

/// What the machine is made of.
pub(super) struct Machine<'a> {
    /// The processor, as `bochs --help cpu` has it.
    pub(super) cpu: &'a str,
    pub(super) memory_mib: u32,
    /// The kernel, as a bzImage.
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// Words for the kernel's command line.
    pub(super) cmdline: &'a str,
    /// A folder for the machine's own files.
    pub(super) folder: &'a Path,
}

/// A running machine. It is killed when this is dropped, and by the kernel when this process ends.
pub(super) struct Running {
    bochs: Child,
    /// What it sends over COM2.
    pub(super) port: BufReader<PipeReader>,
}

impl Machine<'_> {
    /// Starts it; it is killed after `limit` seconds.
    pub(super) fn start(&self, limit: u32) -> Result<Running> {
        let write = |name: &str, text: &str| {
            let file = self.folder.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        self.make_disc()?;
        write("bochsrc", &self.configuration())?;
        // Debian's Bochs is its debugger, which waits for a command: to continue.
        write("commands", "continue\n")?;
        let (port, sender) = std::io::pipe().context("cannot create a pipe")?;
        let output = File::create(self.folder.join("output")).context("cannot create a file")?;
        let errors = output.try_clone().context("cannot duplicate a file")?;
        let mut command = Command::new("bwrap");
        command
            // Bubblewrap, and all that it has started, ends with this process.
            .args(["--die-with-parent", "--unshare-pid", "--dev-bind", "/", "/"])
            // Bochs serves its screen by VNC, on all of the host's addresses: it gets a network of its own.
            .args(["--unshare-net", "--proc", "/proc"])
            .args(["timeout", "--signal=KILL", &limit.to_string()])
            .args(["bochs", "-q", "-f", "bochsrc", "-rc", "commands"])
            .current_dir(self.folder)
            // No input, but the port's other end under a number that Bochs can open.
            .stdin(sender)
            .stdout(output)
            .stderr(errors);
        let bochs = command
            .spawn()
            .map_err(|error| cannot_start(&command, &error))?;
        // Our own end, or the port would have no end.
        drop(command);
        Ok(Running {
            bochs,
            port: BufReader::new(port),
        })
    }

    /// Makes the CD's image, which isolinux boots.
    fn make_disc(&self) -> Result<()> {
        let root = self.folder.join("disc");
        let loader = root.join(LOADER_FOLDER);
        fs::create_dir_all(&loader)
            .with_context(|| format!("cannot create {}", loader.display()))?;
        let copy = |from: &Path, to: &Path| {
            fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))
        };
        for file in LOADER.map(Path::new) {
            copy(file, &loader.join(file.file_name().unwrap_or_default()))?;
        }
        copy(self.kernel, &root.join("kernel"))?;
        fs::rename(self.initramfs, root.join("initramfs"))
            .with_context(|| format!("cannot move {}", self.initramfs.display()))?;
        let menu = format!(
            "DEFAULT lab\nPROMPT 0\nLABEL lab\nKERNEL /kernel\nINITRD /initramfs\nAPPEND {}\n",
            self.command_line()
        );
        fs::write(loader.join("isolinux.cfg"), menu).context("cannot write isolinux.cfg")?;
        let mut xorriso = Command::new("xorriso");
        xorriso
            .args(["-as", "mkisofs", "-quiet", "-o"])
            .arg(self.folder.join("disc.iso"))
            .args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
            .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
            .arg(&root);
        capture(&mut xorriso)?;
        // The image has all of it.
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
    }

    fn command_line(&self) -> String {
        // The time stamp counter counts instructions, whatever frequency the processor reports. Without XSAVEC and XSAVES: Bochs gives
        // the size of their form of the state too large, for which Linux would leave XSAVE alone, and AVX with it.
        format!(
            "console=ttyS0,115200 quiet panic=-1 reboot=t tsc=reliable tsc_early_khz={} clearcpuid=xsavec,xsaves {}",
            INSTRUCTIONS_PER_SECOND / 1000,
            self.cmdline
        )
    }

    /// Bochs's configuration. COM1 is the kernel's console. COM2 is this process's pipe, which Bochs has as its stdin.
    fn configuration(&self) -> String {
        let Machine {
            cpu, memory_mib, ..
        } = self;
        format!(
            "cpu: model={cpu}, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0\n\
             memory: guest={memory_mib}, host={memory_mib}\n\
             romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
             vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
             display_library: rfb, options=\"timeout=0\"\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata0-master: type=cdrom, path=disc.iso, status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=file, dev=console\n\
             com2: enabled=1, mode=file, dev=/proc/self/fd/0\n\
             clock: sync=none\n\
             log: log\n\
             panic: action=fatal\n\
             error: action=report\n\
             info: action=ignore\n"
        )
    }

    /// The ends of Bochs's output, of its log and of the machine's console, for an error.
    pub(super) fn last_lines(&self) -> String {
        let end = |name: &str| {
            let text = fs::read(self.folder.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let lines: Vec<_> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            format!("{name}:\n{}\n", last.join("\n"))
        };
        ["output", "log", "console"].map(end).concat()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended. Where bubblewrap is killed, the kernel kills all that it has started.
        let _ = self.bochs.kill();
        let _ = self.bochs.wait();
    }
}

impl Running {
    /// Waits until the machine has ended by itself, or at its limit.
    pub(super) fn wait(mut self) -> Result<()> {
        self.bochs.wait().context("cannot wait for Bochs").map(drop)
    }
}
