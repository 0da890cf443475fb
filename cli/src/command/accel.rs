//! The choice of an accelerator: this host's KVM, or the lab.
//!
//! The probe that decides it makes a machine and takes it down again, which costs as much as a whole run. Its good news
//! is kept until the host boots anew; its bad news is not, for the remedy may just have been applied.
//!
//! The lab is an emulator and no wall against hostile code: `--accel kvm` or the variable `MINIVM_ACCEL` refuse it.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};
use minivm_image::Platform;
use minivm_machine::lab::{self, Processor};
use minivm_machine::printable::printable;
use minivm_machine::templates;
use minivm_machine::{self, Accel};
use minivm_vmm::Error;

/// The variable that says the same as the flag, where that isn't given.
const VARIABLE: &str = "MINIVM_ACCEL";
/// What the lab is, in the words of every message that names it.
pub(super) const LAB: &str = "an emulator for development, no wall against hostile code";

/// The source of a machine's virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// This host's KVM if it can run a kernel, else the lab
    Auto,
    /// This host's KVM
    Kvm,
    /// The lab: an emulator for development, no wall against hostile code
    Lab,
}

/// The accelerator that was asked for, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    accel: Choice,
    by: &'static str,
}

#[derive(Args)]
pub(super) struct AccelArg {
    /// Source of the virtualization [default: $MINIVM_ACCEL, or auto]
    #[arg(long, value_enum, value_name = "ACCEL", hide_short_help = true)]
    accel: Option<Choice>,
}

impl AccelArg {
    /// Returns whether the flag chooses an accelerator.
    pub(super) fn is_set(&self) -> bool {
        self.accel.is_some_and(|accel| accel != Choice::Auto)
    }

    /// Returns what the flag asks for, or else the variable.
    fn asked(&self) -> anyhow::Result<Asked> {
        match self.accel {
            Some(accel) => Ok(Asked {
                accel,
                by: "--accel ",
            }),
            None => of_variable(std::env::var_os(VARIABLE).as_deref()),
        }
    }

    /// Returns whether this host's KVM was asked for, without probing it.
    pub(super) fn is_kvm(&self) -> bool {
        self.asked().is_ok_and(|asked| asked.accel == Choice::Kvm)
    }

    /// Looks whether the variable says something that can be meant, where it counts.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.asked().map(drop)
    }

    /// Looks whether a machine may run at a place that is given by something else, such as its template.
    pub(super) fn allow(&self, accel: &Accel) -> anyhow::Result<()> {
        match (self.asked()?, accel) {
            (
                Asked {
                    accel: Choice::Kvm,
                    by,
                },
                Accel::Lab { .. },
            ) => bail!("the template lives in the lab, {LAB}, which {by}kvm refuses"),
            _ => Ok(()),
        }
    }

    /// Returns where machines run, and calls `warn` with the reason if that is the lab.
    pub(super) fn choose(&self, warn: impl FnOnce(&str)) -> anyhow::Result<Accel> {
        let Some(why) = self.why_lab()? else {
            return Ok(Accel::Kvm);
        };
        warn(&running_in_lab(&why));
        Ok(Accel::lab("/proc/self/exe"))
    }

    /// Returns the lab for guests of another architecture than this host's, which emulates a processor for them, and calls `warn`.
    pub(super) fn foreign(
        &self,
        platform: &Platform,
        warn: impl FnOnce(&str),
    ) -> anyhow::Result<Accel> {
        if let Asked {
            accel: Choice::Kvm,
            by,
        } = self.asked()?
        {
            bail!("{platform} guests run in the lab here, {LAB}, which {by}kvm refuses");
        }
        let processor = Processor::of_platform(&platform.architecture);
        let processor = processor.with_context(|| format!("no lab emulates {platform}"))?;
        let program = lab::find_program(processor)?;
        warn(&running_in_lab(&format!(
            "{platform} guests need a processor that this host doesn't have, and emulating one is slow"
        )));
        Ok(Accel::Lab { program, processor })
    }

    /// Returns why the lab is used, or `None` where this host's KVM is.
    pub(super) fn why_lab(&self) -> anyhow::Result<Option<String>> {
        let Asked { accel, by } = self.asked()?;
        match accel {
            Choice::Kvm => Ok(None),
            Choice::Lab => Ok(Some(format!("asked for by {by}lab"))),
            Choice::Auto if was_usable() => Ok(None),
            Choice::Auto => match minivm_machine::probe() {
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
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// The warning of a machine that runs in the lab.
pub(super) fn running_in_lab(why: &str) -> String {
    format!("running in the lab, {LAB}: {why}")
}

/// Returns whether the variable lets machines run on this host's KVM, and in the lab.
pub(super) fn allowed() -> anyhow::Result<(bool, bool)> {
    let Asked { accel, .. } = of_variable(std::env::var_os(VARIABLE).as_deref())?;
    Ok((accel != Choice::Lab, accel != Choice::Kvm))
}

fn of_variable(value: Option<&OsStr>) -> anyhow::Result<Asked> {
    let accel = match value {
        None => Choice::Auto,
        Some(value) => {
            let known = value
                .to_str()
                .and_then(|text| Choice::from_str(text, false).ok());
            let shown = || printable(&value.to_string_lossy(), 40);
            known.ok_or_else(|| {
                anyhow!(
                    "{VARIABLE} is {:?}, which it cannot be: set it to kvm, lab or auto",
                    shown()
                )
            })?
        }
    };
    Ok(Asked {
        accel,
        by: "MINIVM_ACCEL=",
    })
}

/// The error, with where it comes from: a guest that runs what KVM can't may be at fault itself, or have `--accel kvm` behind
/// it (or the variable), which skips the probe of this KVM.
pub(super) fn explain(error: anyhow::Error) -> anyhow::Error {
    let stopped = matches!(error.chain().find_map(of_monitor), Some(Error::Exit { .. }));
    match stopped.then(minivm_machine::probe) {
        Some(Err(why @ Error::KvmUnusable(_))) => {
            let variable = std::env::var_os(VARIABLE).map_or("", |_| " and unset MINIVM_ACCEL");
            anyhow!("{error:#}; {why}: leave out --accel kvm{variable}")
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
        Some(minivm_machine::Error::Monitor(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}

/// Holds the identity of the boot in which the probe went well.
fn record() -> Option<PathBuf> {
    Some(minivm_machine::cache::folder()?.join("kvm-usable"))
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
        let _ = file.parent().map(minivm_machine::cache::make);
        let _ = fs::write(file, boot_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_says_one_of_three_words() {
        let accel = |text: &str| of_variable(Some(OsStr::new(text))).map(|asked| asked.accel);
        assert_eq!(of_variable(None).unwrap().accel, Choice::Auto);
        for (text, means) in [
            ("kvm", Choice::Kvm),
            ("lab", Choice::Lab),
            ("auto", Choice::Auto),
        ] {
            assert_eq!(accel(text).unwrap(), means);
        }
        // What was to refuse the lab must not allow it by a slip.
        for text in ["", "KVM", "kvm ", "none", "1", "\u{1b}[2J"] {
            let error = accel(text).unwrap_err().to_string();
            assert!(error.starts_with("MINIVM_ACCEL is \""), "{error}");
            assert!(!error.contains('\u{1b}'), "{error}");
        }
    }
}
