//! A test of this host's KVM: a guest of a few instructions.
//!
//! `/dev/kvm` alone proves little: some hosts emulate a kernel's mode and get system calls wrong. So the guest
//! goes to user mode, comes back by a system call, writes a byte to COM1, and resets.

use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use minivm_vmm::{Builder, Config, Error, Kernel, MEMORY_MIN, Outcome, Reset, Result};

/// The guest.
#[cfg_attr(target_arch = "aarch64", path = "probe/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "probe/x86_64.rs")]
mod code;

use code::{DONE, guest};

/// The guest's time limit: a thousand times what it takes.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs a guest that goes to user mode and back by a system call.
///
/// # Errors
///
/// [`Error::KvmUnusable`] where the guest fails; those of [`Builder::build`] where there is no usable KVM at all.
pub fn probe() -> Result<()> {
    let (sender, output) = channel();
    let config = Config {
        memory: MEMORY_MIN,
        ..Config::new(Kernel::Code(guest()))
    };
    let machine = Builder::new(config).console_output(Tap(sender)).build()?;
    let control = machine.control();
    let (ended, wait) = channel::<()>();
    let watch = move || {
        if wait.recv_timeout(PATIENCE).is_err() {
            control.stop();
        }
    };
    let watchdog = thread::Builder::new().spawn(watch);
    let watchdog = watchdog.map_err(|source| Error::Host {
        what: "a thread".into(),
        source,
    })?;
    let outcome = machine.run();
    // Where the watchdog is gone already, it has stopped the machine.
    let _ = ended.send(());
    let _ = watchdog.join();
    match outcome {
        Ok(Outcome::Reboot(Reset::Line)) if output.try_recv() == Ok(DONE) => Ok(()),
        Ok(Outcome::Stopped) => Err(Error::KvmUnusable(
            "a guest of a few instructions hangs in it".into(),
        )),
        Ok(_) => Err(Error::KvmUnusable(
            "a guest that goes to user mode and makes a system call crashes in it".into(),
        )),
        Err(error @ (Error::Exit { .. } | Error::Kvm { .. })) => {
            Err(Error::KvmUnusable(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// A writer that sends the guest's output to a channel.
struct Tap(Sender<u8>);

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0.send(*byte).map_err(io::Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
