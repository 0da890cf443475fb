//! A bound on a process's share of the processors, by a control group of its own.
//!
//! The kernel counts the time that all threads of a group run, and stops them for the rest of a period once they have had their share of it.
//! Memory and processes are not bounded: this is for a machine's monitor, whose memory is the guest's and known.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Error;
use super::cgroup::{Folder, Version, own};

/// The period of the count, in microseconds. A process that has used its share up runs, or is killed, when the next one begins: the kernel's
/// default of 100 ms would be felt.
const PERIOD: u64 = 20_000;
/// The period where the kernel's least share of one, a millisecond, is too much of the other.
const LONG_PERIOD: u64 = 100_000;
/// The least time in a period that the kernel takes, in microseconds.
const LEAST_TIME: u64 = 1_000;
/// A millisecond of the long period.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct CpuQuota {
    /// The time in each second, in microseconds.
    micros: u32,
}

impl CpuQuota {
    const SECOND: u32 = 1_000_000;

    /// Returns the time in each period, and the period, in microseconds.
    fn of_period(self) -> (u64, u64) {
        let time = |period| u64::from(self.micros) * period / u64::from(CpuQuota::SECOND);
        match time(PERIOD) {
            LEAST_TIME.. => (time(PERIOD), PERIOD),
            _ => (time(LONG_PERIOD), LONG_PERIOD),
        }
    }
}

/// The error of a number that is not a share of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of processors from {LEAST} to {MOST}, such as 0.5")]
pub struct NotAQuota;

impl TryFrom<f64> for CpuQuota {
    type Error = NotAQuota;

    fn try_from(processors: f64) -> Result<CpuQuota, NotAQuota> {
        let is_valid = (LEAST..=MOST).contains(&processors);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "both bounds were checked"
        )]
        let micros = || (processors * f64::from(CpuQuota::SECOND)).round() as u32;
        is_valid
            .then(|| CpuQuota { micros: micros() })
            .ok_or(NotAQuota)
    }
}

impl FromStr for CpuQuota {
    type Err = NotAQuota;

    fn from_str(text: &str) -> Result<CpuQuota, NotAQuota> {
        text.parse::<f64>().map_err(|_| NotAQuota)?.try_into()
    }
}

impl From<CpuQuota> for f64 {
    fn from(quota: CpuQuota) -> f64 {
        f64::from(quota.micros) / f64::from(CpuQuota::SECOND)
    }
}

impl fmt::Display for CpuQuota {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        f64::from(*self).fmt(out)
    }
}

/// The control group of one process whose processor time is bounded. Dropping it removes the group, whose process has to have ended by then;
/// the group of a minivm that was killed goes when the next one is made.
#[derive(Debug)]
pub struct CpuGroup {
    folder: Folder,
    version: Version,
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
            why: format!(
                "no bound of {quota} on the processors' time: it takes a control group, and minivm may make none with the controller `cpu` \
                 in its own or beside it"
            ),
            hint: "run minivm as root, or where the controller is delegated to its user, or leave the bound out".into(),
        })
    }

    /// Returns the error of a bound on a machine in the lab.
    pub fn none_in_lab() -> Error {
        Error::Unavailable {
            why: "no bound on the processors' time holds in the lab, whose emulator runs more than the machine".into(),
            hint: "leave it out, or run the machine on this host's KVM".into(),
        }
    }

    /// Refuses a bound on a machine in this process: a group would hold all that the process does.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if there is a bound.
    pub(crate) fn refuse_here(quota: Option<CpuQuota>) -> Result<(), Error> {
        match quota {
            None => Ok(()),
            Some(_) => Err(Error::Unavailable {
                why: "no bound on the processors' time holds for a machine in this program's own process".into(),
                hint: "leave it out, or let the program's `main` begin with `monitor::answer`".into(),
            }),
        }
    }

    fn in_version_2(groups: &str, quota: CpuQuota) -> Option<CpuGroup> {
        let own = own(Path::new("/sys/fs/cgroup"), groups, "0:", "")?;
        let group = CpuGroup {
            folder: Folder::make(&own, "cpu.max")?,
            version: Version::Two,
        };
        let (time, period) = quota.of_period();
        group.write("cpu.max", &format!("{time} {period}")).ok()?;
        Some(group)
    }

    fn in_version_1(groups: &str, quota: CpuQuota) -> Option<CpuGroup> {
        let own = own(Path::new("/sys/fs/cgroup/cpu"), groups, "", "cpu")?;
        let group = CpuGroup {
            folder: Folder::make(&own, "cpu.cfs_quota_us")?,
            version: Version::One,
        };
        let (time, period) = quota.of_period();
        group.write("cpu.cfs_period_us", &period.to_string()).ok()?;
        group.write("cpu.cfs_quota_us", &time.to_string()).ok()?;
        Some(group)
    }

    /// Moves a process of one thread into the group, with all threads that it starts from then on.
    ///
    /// # Errors
    ///
    /// The kernel's error: the process has ended, or isn't this user's.
    pub fn enter(&self, process: u32) -> io::Result<()> {
        self.write(self.version.entry(), &process.to_string())
    }

    /// Lifts the bound, so that the process ends without it: one that has used its share up would have to wait for the next periods.
    pub fn lift(&self) {
        // Where it can't be lifted, the end takes longer.
        let _ = match self.version {
            Version::One => self.write("cpu.cfs_quota_us", "-1"),
            Version::Two => self.write("cpu.max", "max"),
        };
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.folder.path().join(file), text)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use minivm_tests::patience::wait_until;

    use super::*;

    #[test]
    fn a_share_is_a_number_of_processors() {
        let times = |text: &str| text.parse::<CpuQuota>().map(CpuQuota::of_period);
        assert_eq!(times("0.5"), Ok((10_000, 20_000)));
        assert_eq!(times("0.05"), Ok((1_000, 20_000)));
        assert_eq!(times("0.049"), Ok((4_900, 100_000)));
        assert_eq!(times("0.01"), Ok((1_000, 100_000)));
        assert_eq!(times("1.5"), Ok((30_000, 20_000)));
        assert_eq!(times("1024"), Ok((20_480_000, 20_000)));
        for wrong in [
            "", "0", "0.009", "-1", "1025", "nan", "inf", "50%", "0.5 ", "1e9",
        ] {
            let error = times(wrong).unwrap_err().to_string();
            assert!(error.contains("from 0.01 to 1024"), "{wrong}: {error}");
        }
        let half: CpuQuota = serde_json::from_str("0.5").unwrap();
        assert_eq!(serde_json::to_string(&half).unwrap(), "0.5");
        assert!(serde_json::from_str::<CpuQuota>("0").is_err());
    }

    #[test]
    fn a_process_is_stopped_when_it_has_had_its_share() {
        let Ok(group) = CpuGroup::create("0.05".parse().unwrap()) else {
            eprintln!("no control group with a bound can be made here");
            return;
        };
        let folder = group.folder.path().to_owned();
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
        group.lift();
        let bound = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let bounds = [bound("cpu.max"), bound("cpu.cfs_quota_us")].concat();
        assert!(["max 20000\n", "-1\n"].contains(&&*bounds), "{bounds}");
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
        let stale = format!("minivm-{}-0", ended.id());
        let stale = group.folder.path().with_file_name(stale);
        fs::create_dir(&stale).unwrap();
        let next = CpuGroup::create("1".parse().unwrap()).unwrap();
        let folders = [&next.folder, &group.folder].map(Folder::path);
        assert!(!stale.exists() && folders.iter().all(|folder| folder.exists()));
    }
}
