//! Whether to run on this host's KVM.
//!
//! The probe that decides it makes a machine and takes it down again, which costs as much as a whole run. Its good news
//! is kept until the host boots anew; its bad news is not, for the remedy may just have been applied.

use std::fs;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use minivm::machine::{self, Place};
use minivm::templates;
use minivm_vmm::Error;

/// Where the virtual machine gets its virtualization from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Accel {
    /// KVM if it can run a kernel, else the lab
    Auto,
    /// This host's KVM
    Kvm,
    /// The lab: an emulated machine with real KVM
    Lab,
}

#[derive(Args)]
pub(super) struct AccelArg {
    /// Where virtualization comes from
    #[arg(long, value_enum, default_value_t = Accel::Auto, value_name = "ACCEL")]
    accel: Accel,
}

impl AccelArg {
    /// Whether somebody has said where.
    pub(super) fn is_set(&self) -> bool {
        self.accel != Accel::Auto
    }

    /// Where machines run; `warn` is told why in the lab, if they do.
    pub(super) fn place(&self, warn: impl FnOnce(&str)) -> Result<Place, Error> {
        let Some(why) = self.why_lab()? else {
            return Ok(Place::Here);
        };
        warn(&format!(
            "running in the lab, an emulated machine with real KVM: {why}"
        ));
        Ok(Place::Lab {
            program: "/proc/self/exe".into(),
        })
    }

    /// Why the lab is to be used, or `None` where this host's KVM is.
    pub(super) fn why_lab(&self) -> Result<Option<String>, Error> {
        match self.accel {
            Accel::Kvm => Ok(None),
            Accel::Lab => Ok(Some("asked for by --accel lab".into())),
            Accel::Auto if was_usable() => Ok(None),
            Accel::Auto => match minivm_vmm::probe() {
                Ok(()) => {
                    remember_usable();
                    Ok(None)
                }
                Err(
                    error @ (Error::KvmMissing
                    | Error::KvmPermission
                    | Error::KvmLacks(_)
                    | Error::KvmUnusable(_)),
                ) => Ok(Some(error.to_string())),
                Err(error) => Err(error),
            },
        }
    }
}

/// The error, with where it comes from: a guest that runs what KVM can't may be at fault itself, or have `--accel kvm` behind
/// it, for which nobody has asked what this KVM can.
pub(super) fn explain(error: anyhow::Error) -> anyhow::Error {
    let stopped = matches!(error.chain().find_map(of_monitor), Some(Error::Exit { .. }));
    match stopped.then(minivm_vmm::probe) {
        Some(Err(why @ Error::KvmUnusable(_))) => {
            anyhow!("{error:#}; {why}: leave out --accel kvm")
        }
        _ => error,
    }
}

/// The monitor's error that it is, or stands for without being its source.
fn of_monitor<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let of_machine = match cause.downcast_ref() {
        Some(templates::Error::Machine(error)) => Some(error),
        _ => cause.downcast_ref(),
    };
    match of_machine {
        Some(machine::Error::Monitor(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}

/// Holds the identity of the boot in which the probe went well.
fn record() -> Option<PathBuf> {
    Some(minivm::cache::folder()?.join("kvm-usable"))
}

/// The kernel makes a new one at every boot.
fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

fn was_usable() -> bool {
    let recorded = record().and_then(|file| fs::read_to_string(file).ok());
    recorded.is_some() && recorded == boot_id()
}

/// Where it can't be kept, the next run probes again. A record that is cut off matches no boot.
fn remember_usable() {
    if let (Some(file), Some(boot_id)) = (record(), boot_id()) {
        let _ = file.parent().map(minivm::cache::make);
        let _ = fs::write(file, boot_id);
    }
}
