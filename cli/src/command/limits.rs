//! `--cpu-quota`: a bound on the processor time of a machine.

use anyhow::bail;
use clap::Args;
use minivm_machine::Accel;
use minivm_machine::jail::CpuQuota;

use super::accel::AccelArg;

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
