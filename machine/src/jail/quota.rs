//! A bound on a process's share of the processors, by a control group of its own.
//!
//! The kernel counts the time that all threads of a group run, and stops them for the rest of a period once they have had their share of it.
//! Memory and processes are not bounded: this is for a machine's monitor, whose memory is the guest's and known.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Error;
use super::cgroup::{make, own, remove};

/// The period of the count, in microseconds: the kernel's default.
const PERIOD: u32 = 100_000;
/// The smallest share of a period that the kernel takes is a millisecond.
const LEAST: f64 = 0.01;
/// More processors than a machine has vCPUs are no bound.
const MOST: f64 = 1024.0;

/// A share of the processors: 0.5 is half of one, 2 are two.
///
/// ```
/// use minivm_machine::jail::CpuQuota;
///
/// assert_eq!("0.5".parse::<CpuQuota>().unwrap().to_string(), "0.5");
/// assert!("0".parse::<CpuQuota>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuQuota(f64);

impl CpuQuota {
    /// Returns the time in each period, in microseconds.
    fn micros(self) -> u64 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "both bounds are checked when it is made"
        )]
        let micros = (self.0 * f64::from(PERIOD)).round() as u64;
        micros
    }
}

impl FromStr for CpuQuota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.parse().ok();
        let share = share.filter(|share| (LEAST..=MOST).contains(share));
        share.map(CpuQuota).ok_or_else(|| {
            format!("a number of processors from {LEAST} to {MOST} is wanted, as in 0.5")
        })
    }
}

impl std::fmt::Display for CpuQuota {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(out)
    }
}

/// The control group of one process whose processor time is bounded. Dropping it removes the group, whose process has to have ended by then;
/// the group of a minivm that was killed goes when the next one is made.
#[derive(Debug)]
pub struct CpuGroup {
    folder: PathBuf,
}

impl CpuGroup {
    /// Makes a group with this share of the processors. It is made before the process, so that one that can't be had is refused before
    /// anything is started.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] where this process may make no group with such a bound.
    pub fn create(quota: CpuQuota) -> Result<CpuGroup, Error> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = CpuGroup::in_version_2(&groups, quota);
        let group = group.or_else(|| CpuGroup::in_version_1(&groups, quota));
        group.ok_or_else(|| Error::Unavailable {
            why: "processor time cannot be bounded: minivm may make no control group with the controller `cpu` beside or below its own".into(),
            hint: "start it in one where it may, or leave the quota out".into(),
        })
    }

    fn in_version_2(groups: &str, quota: CpuQuota) -> Option<CpuGroup> {
        let own = own(Path::new("/sys/fs/cgroup"), groups, "0:", "")?;
        let group = CpuGroup {
            folder: make(&own, "cpu.max")?,
        };
        let bound = format!("{} {PERIOD}", quota.micros());
        fs::write(group.folder.join("cpu.max"), bound).ok()?;
        Some(group)
    }

    fn in_version_1(groups: &str, quota: CpuQuota) -> Option<CpuGroup> {
        let own = own(Path::new("/sys/fs/cgroup/cpu"), groups, "", "cpu")?;
        let group = CpuGroup {
            folder: make(&own, "cpu.cfs_quota_us")?,
        };
        fs::write(group.folder.join("cpu.cfs_period_us"), PERIOD.to_string()).ok()?;
        let bound = quota.micros().to_string();
        fs::write(group.folder.join("cpu.cfs_quota_us"), bound).ok()?;
        Some(group)
    }

    /// Moves a process into the group, with all its threads and those that it starts from then on.
    ///
    /// # Errors
    ///
    /// The kernel's error: the process has ended, or isn't this user's.
    pub fn enter(&self, process: u32) -> io::Result<()> {
        fs::write(self.folder.join("cgroup.procs"), process.to_string())
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        remove(&[&self.folder]);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use minivm_tests::patience::wait_until;

    use super::*;

    #[test]
    fn a_share_is_a_number_of_processors() {
        let micros = |text: &str| text.parse().map(CpuQuota::micros);
        assert_eq!(micros("0.5"), Ok(50_000));
        assert_eq!(micros("0.01"), Ok(1_000));
        assert_eq!(micros("2"), Ok(200_000));
        assert_eq!(micros("1024"), Ok(102_400_000));
        for wrong in [
            "", "0", "0.009", "-1", "1025", "nan", "inf", "50%", "0.5 ", "1e9",
        ] {
            let error = micros(wrong).unwrap_err();
            assert!(error.contains("from 0.01 to 1024"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_process_is_stopped_when_it_has_had_its_share() {
        let Ok(group) = CpuGroup::create("0.05".parse().unwrap()) else {
            eprintln!("no control group with a bound can be made here");
            return;
        };
        let folder = group.folder.clone();
        let mut child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        group.enter(child.id()).unwrap();
        wait_until("it is never stopped", || {
            let stat = fs::read_to_string(folder.join("cpu.stat")).unwrap();
            let times = stat
                .lines()
                .find_map(|line| line.strip_prefix("nr_throttled "));
            times.is_some_and(|times| times != "0")
        });
        child.kill().unwrap();
        child.wait().unwrap();
        drop(group);
        assert!(!folder.exists());
    }

    #[test]
    fn the_group_of_a_minivm_that_was_killed_goes_at_the_next_start() {
        let Ok(group) = CpuGroup::create("1".parse().unwrap()) else {
            eprintln!("no control group with a bound can be made here");
            return;
        };
        let mut ended = Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        // As of a process that has had that number.
        let stale = group
            .folder
            .with_file_name(format!("minivm-{}-0", ended.id()));
        fs::create_dir(&stale).unwrap();
        let next = CpuGroup::create("1".parse().unwrap()).unwrap();
        assert!(!stale.exists() && next.folder.exists() && group.folder.exists());
    }
}
