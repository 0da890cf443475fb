//! The kernel's log, for a host that draws a timeline.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use minivm_guest::channel::{KernelLog, LOG_MAX, Moment};

use crate::clock;

/// The kernel's log: a read returns one record, a write adds one.
const KMSG: &str = "/dev/kmsg";
/// A line by which the log's clock is compared with this process's: a debug message (`<7>`), which no console shows.
const LINE: &str = "minivm-init: the log's clock is compared here";
/// The most records that are read: more than any kernel's buffer has.
const RECORDS_MAX: usize = 16 << 10;
/// The length of the longest record (the kernel's PRINTKRB_RECORD_MAX and CONSOLE_EXT_LOG_MAX).
const RECORD_MAX: usize = 8192;

/// Gathers what a timeline needs. `booted` says whether the log is that of this machine's own boot.
pub(crate) fn gather(marks: Option<[Moment; 2]>, booted: bool) -> KernelLog {
    let mut log = KernelLog {
        marks,
        ..KernelLog::default()
    };
    if booted && let Some(written) = write_line() {
        let (records, time) = read();
        log.line = time.map(|time| (time, written));
        log.records = records;
    }
    log.gathered = clock();
    log
}

/// Adds the line to the log. `O_NONBLOCK`: the command may have put something else in the log's place.
fn write_line() -> Option<Moment> {
    let mut options = File::options();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    let mut kmsg = options.open(KMSG).ok()?;
    let line = format!("<7>{LINE}\n");
    let before = clock();
    kmsg.write_all(line.as_bytes()).ok()?;
    let after = clock();
    Some(Moment { before, after })
}

/// Reads the log's records, and the time of init's line among them.
fn read() -> (Vec<u8>, Option<u64>) {
    let (mut records, mut time) = (Vec::new(), None);
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let Ok(mut kmsg) = options.open(KMSG) else {
        return (records, time);
    };
    let mut buffer = [0; RECORD_MAX];
    for _ in 0..RECORDS_MAX {
        let record = match kmsg.read(&mut buffer) {
            // EPIPE: the record was overwritten before it was read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => continue,
            Ok(0) | Err(_) => break,
            Ok(len) => &buffer[..len],
        };
        if records.len() + record.len() <= LOG_MAX {
            records.extend_from_slice(record);
        }
        time = time_of_line(record).or(time);
    }
    (records, time)
}

/// Returns the record's time in microseconds, if it is that of [`LINE`]. A record is "priority,number,time,flags…;text".
fn time_of_line(record: &[u8]) -> Option<u64> {
    let (head, text) = std::str::from_utf8(record).ok()?.split_once(';')?;
    let is_line = text.lines().next() == Some(LINE);
    is_line.then(|| head.split(',').nth(2)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_that_of_inits_own_line() {
        let record = format!("15,339,5140900,-;{LINE}\n");
        assert_eq!(time_of_line(record.as_bytes()), Some(5_140_900));
        let record = format!("6,339,5140900,-,caller=T1;{LINE}\n KEY=value\n");
        assert_eq!(time_of_line(record.as_bytes()), Some(5_140_900));
        for other in [
            "6,1,2,-;another line\n",
            "6,1;",
            "",
            "6,1,x,-;minivm-init: the log's clock is compared here\n",
        ] {
            assert_eq!(time_of_line(other.as_bytes()), None, "{other}");
        }
        assert_eq!(time_of_line(b"6,1,2,-;\xff\n"), None);
    }
}
