//! A Linux kernel's messages: their lines, and the parts of a boot that some of them mark.
//!
//! A guest wrote them, and may have written anything. So no line is kept that isn't the kernel's own, and not more of them, and no
//! longer ones, than a boot has; times are checked against those of the monitor before they come here (`phases`).
//!
//! The marks are messages that kernels have printed for many years, whatever their configuration. A kernel that prints none of them has
//! no parts.

use super::model::{Clock, Line, Phase};
use crate::printable::printable;

/// The most lines that are kept.
const LINES_MAX: usize = 4096;
/// The most characters of a line.
const TEXT_MAX: usize = 200;

/// The beginnings of messages, in the order of a boot, and the parts that begin with them. The functions are those that
/// the kernel's `init/main.c` has or calls.
const MARKS: [(&str, &str); 5] = [
    // setup_arch: the processor, the memory map, ACPI's tables.
    ("Linux version ", "architecture"),
    // start_kernel: allocators, scheduler, interrupts, timers, the console.
    ("Kernel command line: ", "memory, scheduler, interrupts"),
    // smp_init.
    ("smp: Bringing up secondary CPUs", "other vCPUs"),
    // do_basic_setup: drivers, file systems, network protocols, by initcalls.
    ("devtmpfs: initialized", "drivers"),
    // kernel_init: free_initmem and mark_readonly, then execve.
    ("Freeing unused kernel", "start of init"),
];
/// The beginnings of messages between which the initramfs is unpacked (`init/initramfs.c`), since Linux 5.13 beside the drivers. The
/// first has two forms.
const UNPACKING: [&str; 2] = ["Trying to unpack rootfs image", "Unpacking initramfs"];
const UNPACKED: &str = "Freeing initrd memory";
/// The last message of a kernel before its first process.
const FIRST_PROCESS: (&str, &str) = ("Run ", " as init process");

/// A record of `/dev/kmsg`: its time in nanoseconds, and its text.
pub(super) fn records(bytes: &[u8]) -> Vec<(u64, String)> {
    let lines = bytes.split(|&byte| byte == b'\n');
    lines.filter_map(record).take(LINES_MAX).collect()
}

/// Parses "priority,number,time,flags…;text". Lines that a program has written to the log (priorities from 8 on, for the kernel changes
/// lower ones) aren't the kernel's, nor are a record's further lines, which begin with a space.
fn record(line: &[u8]) -> Option<(u64, String)> {
    let line = String::from_utf8_lossy(line);
    let (head, text) = line.split_once(';')?;
    let mut numbers = head.split(',').map(str::parse::<u64>);
    let (Ok(0..8), Ok(_), Ok(micros)) = (numbers.next()?, numbers.next()?, numbers.next()?) else {
        return None;
    };
    let nanos = micros.checked_mul(1000)?;
    Some((nanos, printable(text, TEXT_MAX)))
}

/// Returns a console's line without the stamps at its beginning: `[    0.123456][    T1] text`.
pub(super) fn unstamped(line: &str) -> String {
    let mut text = line.trim_start();
    while let Some((stamp, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        let is_stamp = |c: char| c.is_ascii_digit() || matches!(c, '.' | ' ' | 'T' | 'C');
        if stamp.is_empty() || !stamp.chars().all(is_stamp) {
            break;
        }
        text = rest.trim_start();
    }
    printable(text, TEXT_MAX)
}

/// Returns the kernel's name: `Linux version` and the word after it.
pub(super) fn name(lines: &[Line]) -> Option<String> {
    let line = lines
        .iter()
        .find(|line| line.text.starts_with(MARKS[0].0))?;
    let words: Vec<_> = line.text.split(' ').take(3).collect();
    Some(words.join(" "))
}

/// Returns when the kernel started its first process.
pub(super) fn first_process(lines: &[Line]) -> Option<u64> {
    let (begins, ends) = FIRST_PROCESS;
    let last = |line: &&Line| line.text.starts_with(begins) && line.text.trim_end().ends_with(ends);
    lines.iter().find(last).map(|line| line.time.0)
}

/// Returns the lines that came to a console when the kernel logged them, and not all at once when it had found the console.
pub(super) fn live(lines: &[Line]) -> &[Line] {
    let begins = |line: &Line| line.text.contains("console [") && line.text.ends_with("] enabled");
    let first = lines.iter().position(begins);
    &lines[first.unwrap_or(lines.len())..]
}

/// Returns the parts of a kernel's boot from `start` to `end`, in their order, as far as its lines mark them.
pub(super) fn parts(lines: &[Line], start: u64, end: u64, clock: Clock) -> Vec<Phase> {
    let time = |text: &str| {
        let line = lines.iter().find(|line| line.text.starts_with(text))?;
        Some(line.time.0).filter(|time| (start..=end).contains(time))
    };
    let mut marks: Vec<(u64, &str)> = Vec::new();
    for (text, name) in MARKS {
        // A mark before the one before it is not what it looks like.
        let after = marks.last().map_or(start, |(time, _)| *time);
        marks.extend(
            time(text)
                .filter(|time| *time >= after)
                .map(|time| (time, name)),
        );
    }
    let Some((first, _)) = marks.first() else {
        return Vec::new();
    };
    let before = match clock {
        Clock::Console => "before its console",
        _ => "before its first message",
    };
    let mut parts = vec![Phase::new(before, start, *first, clock)];
    let ends = marks.iter().skip(1).map(|(time, _)| *time).chain([end]);
    let spans = marks.iter().zip(ends);
    parts.extend(spans.map(|((from, name), to)| Phase::new(name, *from, to, clock)));
    if let (Some(from), Some(to)) = (UNPACKING.into_iter().find_map(time), time(UNPACKED))
        && from <= to
    {
        let place = parts.partition_point(|part| part.start.0 <= from);
        parts.insert(place, Phase::new("unpacking", from, to, clock));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Nanos;

    fn lines(lines: &[(u64, &str)]) -> Vec<Line> {
        let line = |(time, text): &(u64, &str)| Line {
            time: Nanos(*time),
            text: (*text).to_owned(),
        };
        lines.iter().map(line).collect()
    }

    fn shown(parts: &[Phase]) -> Vec<(&str, u64, u64)> {
        let show = |part: &Phase| (part.start.0, part.end().0);
        parts
            .iter()
            .map(|part| (&*part.name, show(part).0, show(part).1))
            .collect()
    }

    #[test]
    fn a_boot_has_its_parts_in_order() {
        let log = lines(&[
            (10, "Linux version 6.12.48-minivm (gcc) #1"),
            (20, "Kernel command line: quiet"),
            (30, "smp: Bringing up secondary CPUs ..."),
            (31, "devtmpfs: initialized"),
            (40, "Trying to unpack rootfs image as initramfs..."),
            (50, "a driver"),
            (60, "Freeing initrd memory: 1234K"),
            (70, "Freeing unused kernel image (initmem) memory: 1K"),
            (75, "Run /init as init process"),
        ]);
        let parts = parts(&log, 5, 80, Clock::Log);
        assert_eq!(
            shown(&parts),
            [
                ("before its first message", 5, 10),
                ("architecture", 10, 20),
                ("memory, scheduler, interrupts", 20, 30),
                ("other vCPUs", 30, 31),
                ("drivers", 31, 70),
                ("unpacking", 40, 60),
                ("start of init", 70, 80),
            ]
        );
        assert_eq!(first_process(&log), Some(75));
        assert_eq!(name(&log).as_deref(), Some("Linux version 6.12.48-minivm"));
    }

    #[test]
    fn an_unknown_kernel_has_no_parts_and_no_end() {
        let log = lines(&[(1, "NetBSD 10.0"), (2, "Run away as fast as you can")]);
        assert_eq!(parts(&log, 0, 10, Clock::Log), []);
        assert_eq!((first_process(&log), name(&log)), (None, None));
        assert_eq!(parts(&[], 0, 10, Clock::Log), []);
    }

    #[test]
    fn marks_out_of_order_or_out_of_the_boot_are_left_out() {
        let log = lines(&[
            (10, "Linux version 1"),
            (5, "Kernel command line: forged"),
            (u64::MAX, "devtmpfs: initialized"),
            (60, "Freeing initrd memory: 1K"),
            (61, "Unpacking initramfs..."),
            (70, "Freeing unused kernel image"),
        ]);
        let parts = parts(&log, 0, 100, Clock::Log);
        let names: Vec<_> = shown(&parts);
        assert_eq!(
            names,
            [
                ("before its first message", 0, 10),
                ("architecture", 10, 70),
                ("start of init", 70, 100),
            ]
        );
    }

    #[test]
    fn records_are_the_kernels_own_and_no_others() {
        let log = b"6,1,1500,-;Linux version 6\n SUBSYSTEM=x\n DEVICE=y;z\n\
            12,2,1600,-;Kernel command line: written by a program\n\
            5,3,1700,-,caller=T1;a\x1b[2Jb\n\
            6,4,18446744073709551615,-;too late\n\
            6,4;no time\nx,1,2,-;no priority\n6,4,-1,-;before\n\n;\n\xff,\xfe\n\
            6,5,1800,-;cut o";
        let records = records(log);
        let expected = [
            (1_500_000, "Linux version 6"),
            (1_700_000, "a[2Jb"),
            (1_800_000, "cut o"),
        ];
        assert_eq!(
            records,
            expected.map(|(time, text)| (time, text.to_owned()))
        );
    }

    #[test]
    fn a_flood_of_records_is_cut() {
        let flood = "6,1,1,-;x\n".repeat(2 * LINES_MAX);
        assert_eq!(records(flood.as_bytes()).len(), LINES_MAX);
        let long = format!("6,1,1,-;{}\n", "ä".repeat(100_000));
        assert_eq!(records(long.as_bytes())[0].1.chars().count(), TEXT_MAX);
    }

    #[test]
    fn a_console_shows_live_what_comes_after_it_was_found() {
        let log = lines(&[
            (50, "Linux version 6"),
            (60, "printk: legacy console [ttyS0] enabled"),
            (70, "devtmpfs: initialized"),
        ]);
        assert_eq!(live(&log), &log[1..]);
        assert_eq!(
            shown(&parts(live(&log), 0, 100, Clock::Console)),
            [("before its console", 0, 70), ("drivers", 70, 100)]
        );
        assert_eq!(live(&log[..1]), []);
    }

    #[test]
    fn stamps_of_a_console_are_taken_off() {
        for stamped in [
            "[    0.000000] Linux version 6",
            "[    0.000000][    T0] Linux version 6",
            "Linux version 6\r",
        ] {
            assert_eq!(unstamped(stamped), "Linux version 6");
        }
        for other in ["[mem 0x0-0x1] x", "[] x", "[", "[ x", "x [1] y"] {
            assert_eq!(unstamped(other), other);
        }
    }
}
