//! The monitor's own memory: what it has resident without the guest's RAM.

use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A mapping of at least this many KiB is the guest's RAM; nothing else is as large.
const GUEST_RAM_KIB: u64 = 32 << 10;

/// Starts a machine whose guest says its mark and goes on for ever; returns KiB resident in its monitor, beside the guest's RAM.
pub(crate) fn resident(command: &mut Command) -> Result<u64> {
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

/// Returns the ID of the monitor that a process has started.
fn monitor(of: u32) -> Result<u32> {
    for thread in std::fs::read_dir(format!("/proc/{of}/task"))? {
        let children = std::fs::read_to_string(thread?.path().join("children"))?;
        if let Some(child) = children.split_whitespace().next() {
            return Ok(child.parse()?);
        }
    }
    bail!("the machine has no monitor")
}

/// The sum of all resident memory in a `smaps` but in mappings as large as a guest.
fn own(smaps: &str) -> u64 {
    let mut total = 0;
    let mut size = 0;
    for line in smaps.lines() {
        if let Some(kib) = field(line, "Size:") {
            size = kib;
        } else if let Some(kib) = field(line, "Rss:").filter(|_| size < GUEST_RAM_KIB) {
            total += kib;
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
        let smaps = "7f00-7f10 rw-p 0 00:00 0\nSize: 262144 kB\nRss: 4096 kB\n\
                     5500-5510 r-xp 0 00:00 0 /minivm\nSize: 1500 kB\nKernelPageSize: 4 kB\nRss: 900 kB\n";
        assert_eq!(own(smaps), 900);
    }
}
