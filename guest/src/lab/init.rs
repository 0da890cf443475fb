//! The lab's init: process 1 of its machine.
//!
//! The kernel starts it from the initramfs with a console as its standard streams, and panics if it ever ends.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};
use rustix::system::{RebootCommand, finit_module};

use super::frame::{self, Kind};
use super::job::{self, LabJob};
use super::relay::Relay;
use super::{MODULES, clock, root};
use crate::io_error::{HostError, cannot};

/// The port that QEMU's `nr=1` makes on the first virtio-serial device.
const CHANNEL: &str = "/dev/vport0p1";

/// Runs the job in the initramfs and powers the machine off.
///
/// In any process but process 1, prints an error and exits with code 125.
pub fn run_as_init() -> ! {
    if rustix::process::getpid() != Pid::INIT {
        eprintln!("minivm: {} is for the lab only", super::INIT_COMMAND);
        std::process::exit(125);
    }
    if let Err(error) = answer() {
        print(&chain(&error));
    }
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        print(&format!("cannot power off: {error}"));
    }
    loop {
        thread::park();
    }
}

/// Prints a line on the lab's console, which is shown when the lab gives no answer. The line is one of the kernel's own error messages
/// (`<3>`), which arrive even where the console's driver doesn't work. If it fails, no other way would work.
fn print(line: &str) {
    let _ = fs::write("/dev/kmsg", format!("<3>minivm: {line}\n"));
}

/// Returns the error and its cause in one line.
fn chain(error: &HostError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// Runs the command and sends its exit code, or the reason why it can't be run.
fn answer() -> Result<(), HostError> {
    root::mount_kernel_file_systems()?;
    load_modules()?;
    let fault = clock::fault();
    let channel = open_channel()?;
    if let Some(why) = fault {
        let sent = frame::send(Kind::Retry, why.as_bytes(), &channel);
        sent.map_err(cannot("send the reason"))?;
    } else {
        let sent = match &run(&channel) {
            Ok(code) => frame::send(Kind::Exit, &code.to_le_bytes(), &channel),
            Err(error) => frame::send(Kind::Failed, chain(error).as_bytes(), &channel),
        };
        sent.map_err(cannot("send the answer"))?;
    }
    wait_for_hangup(&channel);
    Ok(())
}

/// Loads the kernel's modules, where it came with some: the channel's devices and KVM may be among them.
fn load_modules() -> Result<(), HostError> {
    let Ok(folder) = fs::read_dir(MODULES) else {
        return Ok(());
    };
    let modules = folder.map(|entry| Ok(entry?.path()));
    let modules = modules.collect::<io::Result<BTreeSet<_>>>();
    for module in modules.map_err(cannot(format!("read {MODULES}")))? {
        let loaded = File::open(&module).and_then(|file| Ok(finit_module(file, c"", 0)?));
        loaded.map_err(cannot(format!("load {}", module.display())))?;
    }
    Ok(())
}

/// Waits until the host has read the answer, and ends the machine or closes the channel. Until then the answer may still be in QEMU,
/// and would be lost with it.
fn wait_for_hangup(mut channel: &File) {
    let mut ignored = [0; 4096];
    while matches!(channel.read(&mut ignored), Ok(1..)) {}
}

/// Opens the channel's port, which appears once the kernel and QEMU have negotiated it: maybe after this process has started.
fn open_channel() -> Result<File, HostError> {
    let start = Instant::now();
    loop {
        match File::options().read(true).write(true).open(CHANNEL) {
            // Never by sleeping, which may have no end (see `clock`). The kernel's threads run meanwhile.
            Err(_) if start.elapsed() < Duration::from_secs(10) => thread::yield_now(),
            opened => return opened.map_err(cannot(format!("open {CHANNEL}"))),
        }
    }
}

fn run(channel: &File) -> Result<i32, HostError> {
    let job = fs::read(job::PATH).map_err(cannot(format!("read {}", job::PATH)))?;
    let job: LabJob = serde_json::from_slice(&job)
        .map_err(|error| cannot(format!("parse {}", job::PATH))(error.into()))?;
    root::prepare(job.root)?;
    crate::pid1::bring_loopback_up().map_err(cannot("bring up the loopback interface"))?;
    std::env::set_current_dir(&job.cwd).map_err(cannot(format!("enter {}", job.cwd.display())))?;

    frame::send(Kind::Started, &[], channel).map_err(cannot("report the command's start"))?;
    let Some((program, arguments)) = job.command.split_first() else {
        return Ok(0);
    };
    let command = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(job.env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    match command {
        Ok(mut child) => {
            let relay = Relay::start(channel, &mut child).map_err(cannot("start a thread"))?;
            let status = wait_for(child.id())
                .map_err(|errno| cannot("wait for the command")(errno.into()))?;
            // Processes that it left behind hold its output open. Group 1 stands for all processes but this one: the call is
            // `kill(-1, …)`. It fails where there are none.
            let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
            relay.finish();
            Ok(exit_code(status))
        }
        Err(error) => {
            let message = format!("minivm: cannot run {}: {error}\n", program.display());
            frame::send(Kind::Stderr, message.as_bytes(), channel)
                .map_err(cannot("send a message"))?;
            Ok(if error.kind() == std::io::ErrorKind::NotFound {
                127
            } else {
                126
            })
        }
    }
}

/// Waits for one child. Process 1 inherits orphans, and waits for them as well.
fn wait_for(child: u32) -> rustix::io::Result<ExitStatus> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_pid().cast_unsigned() == child => {
                return Ok(ExitStatus::from_raw(status.as_raw()));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Returns the exit code that a shell would report.
fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(125)
}
