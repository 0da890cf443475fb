//! `--cpu-quota` and `--max-output`: bounds on what a machine takes of this host.

use anyhow::bail;
use clap::Args;
use minivm_machine::Accel;
use minivm_machine::jail::CpuQuota;
use minivm_machine::monitor::Spec;

use super::accel::AccelArg;
use super::units;

/// The bounds of a machine with a console.
#[derive(Args)]
pub(super) struct LimitArgs {
    #[command(flatten)]
    pub(super) quota: QuotaArg,
    /// Most bytes of the console that are passed on
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, hide_short_help = true, help_heading = "Limits")]
    pub(super) max_output: Option<u64>,
}

impl LimitArgs {
    /// Returns the machine with its bounds.
    pub(super) fn of(&self, machine: Spec) -> Spec {
        machine
            .cpu_quota(self.quota.get())
            .max_output(self.max_output)
    }
}

#[derive(Args)]
pub(super) struct QuotaArg {
    /// Most processor time of the machine: 0.5 is half of a processor, 2 are two
    ///
    /// All of the machine's monitor is in a control group of its own, which has to be allowed.
    #[arg(
        long,
        value_name = "PROCESSORS",
        hide_short_help = true,
        help_heading = "Limits"
    )]
    cpu_quota: Option<CpuQuota>,
}

impl QuotaArg {
    /// Returns the bound, if there is one.
    pub(super) fn get(&self) -> Option<CpuQuota> {
        self.cpu_quota
    }

    /// Checks that a template's machine can be bounded.
    pub(super) fn allow(&self, accel: &Accel) -> anyhow::Result<()> {
        match accel {
            Accel::Kvm => Ok(()),
            Accel::Lab { .. } => self.refuse_lab("the template lives there"),
        }
    }

    /// Checks, where there is a bound, that machines run on this host's KVM.
    pub(super) fn check(&self, accel: &AccelArg) -> anyhow::Result<()> {
        match self.cpu_quota {
            None => Ok(()),
            Some(_) => match accel.why_lab()? {
                None => Ok(()),
                Some(why) => self.refuse_lab(&why),
            },
        }
    }

    /// Refuses the bound, if there is one, for a machine that would run in the lab for this reason.
    pub(super) fn refuse_lab(&self, why: &str) -> anyhow::Result<()> {
        match self.cpu_quota {
            None => Ok(()),
            Some(quota) => bail!(
                "--cpu-quota {quota} needs this host's KVM, and the machine would run in the lab, whose emulator runs more than the \
                 machine ({why}): leave it out there"
            ),
        }
    }
}
