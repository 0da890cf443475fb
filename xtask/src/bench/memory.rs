//! The monitor's own memory: what it has resident without the guest's RAM, of which kinds.

use std::fmt::{self, Display};
use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A mapping of at least this many KiB is the guest's RAM; nothing else is as large.
const GUEST_RAM_KIB: u64 = 32 << 10;

/// What a process has resident, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Unchanged pages of files, which all processes of the same program share.
    pub(crate) clean: u64,
    /// The other ones, which are this process's alone.
    pub(crate) own: u64,
}

impl Resident {
    pub(crate) fn all(self) -> u64 {
        self.clean + self.own
    }
}

impl Display for Resident {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (all, own, clean) = (self.all(), self.own, self.clean);
        write!(
            f,
            "{all} KiB, of which {own} are its own and {clean} of files"
        )
    }
}

/// Starts a machine whose guest says its mark and goes on for ever; returns what is resident in its monitor, beside the guest's RAM.
pub(crate) fn resident(command: &mut Command) -> Result<Resident> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    let mut mark = [0];
    let read = child
        .stdout
        .take()
        .context("its stdout is not a pipe")?
        .read_exact(&mut mark);
    let smaps = monitor(child.id())
        .and_then(|monitor| Ok(std::fs::read_to_string(format!("/proc/{monitor}/smaps"))?));
    child.kill()?;
    child.wait()?;
    read?;
    Ok(own(&smaps?))
}

/// Returns the ID of the monitor that a process has started, which may have other children.
fn monitor(of: u32) -> Result<u32> {
    for thread in std::fs::read_dir(format!("/proc/{of}/task"))? {
        let children = std::fs::read_to_string(thread?.path().join("children"))?;
        for child in children.split_whitespace() {
            let words = std::fs::read(format!("/proc/{child}/cmdline"))?;
            if words.split(|byte| *byte == 0).nth(1) == Some(b"monitor") {
                return Ok(child.parse()?);
            }
        }
    }
    bail!("the machine has no monitor")
}

/// The sum of all resident memory in a `smaps` but in mappings as large as a guest.
fn own(smaps: &str) -> Resident {
    let mut total = Resident::default();
    let mut size = 0;
    for line in smaps.lines() {
        if let Some(kib) = field(line, "Size:") {
            size = kib;
        } else if size >= GUEST_RAM_KIB {
            continue;
        } else if let Some(kib) = field(line, "Rss:") {
            total.clean += kib;
        } else if let Some(kib) = field(line, "Anonymous:") {
            total.clean -= kib;
            total.own += kib;
        }
    }
    total
}

fn field(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_ram_does_not_count() {
        let smaps = "7f00-7f10 rw-p 0 00:00 0\nSize: 262144 kB\nRss: 4096 kB\nAnonymous: 4096 kB\n\
                     5500-5510 r-xp 0 00:00 0 /minivm\nSize: 1500 kB\nKernelPageSize: 4 kB\nRss: 900 kB\nAnonymous: 40 kB\n";
        let (clean, own_pages) = (860, 40);
        let expected = Resident {
            clean,
            own: own_pages,
        };
        assert_eq!((own(smaps), expected.all()), (expected, 900));
    }
}
