//! Messages for `-v` and `-vv`, on stderr.

use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use minivm_machine::printable::printable;
use minivm_machine::streams;

/// The most messages of a process: a guest can cause one with each access to a device.
const MESSAGES_MAX: u64 = 10_000;
/// The most characters of a message: it can have the bytes of such an access.
const MESSAGE_MAX: usize = 500;

/// Logs messages up to this level to stderr.
pub(super) fn to_stderr(level: LevelFilter) {
    static LOG: StderrLog = StderrLog(Budget(AtomicU64::new(0)));
    // It fails where a logger is set already, which nothing else does.
    let _ = log::set_logger(&LOG).map(|()| log::set_max_level(level));
}

/// Writes each message as a line, as minivm's other messages are.
struct StderrLog(Budget);

impl Log for StderrLog {
    fn enabled(&self, metadata: &Metadata) -> bool {
        is_of_interest(metadata, log::max_level())
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if let Some(line) = self.0.line(record) {
            streams::tell(&line);
        }
    }

    fn flush(&self) {}
}

/// Returns whether a message is logged: a library's, unless it is a warning, only where all are.
fn is_of_interest(metadata: &Metadata, all: LevelFilter) -> bool {
    metadata.target().starts_with("minivm")
        || metadata.level() <= Level::Warn
        || all == LevelFilter::Trace
}

/// The number of messages so far.
struct Budget(AtomicU64);

impl Budget {
    /// Returns the line for a message; the last one says that no more come.
    fn line(&self, record: &Record) -> Option<String> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            ..MESSAGES_MAX => Some(printable(&record.args().to_string(), MESSAGE_MAX)),
            MESSAGES_MAX => Some(format!(
                "there were {MESSAGES_MAX} messages, and further ones are not logged"
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_librarys_details_are_logged_with_all_others_alone() {
        for (target, level, at_debug) in [
            ("minivm_machine::session", Level::Debug, true),
            ("minivm", Level::Debug, true),
            ("globset", Level::Debug, false),
            ("globset", Level::Warn, true),
        ] {
            let metadata = Metadata::builder().target(target).level(level).build();
            let seen = is_of_interest(&metadata, LevelFilter::Debug);
            assert_eq!(seen, at_debug, "{target} {level}");
            assert!(is_of_interest(&metadata, LevelFilter::Trace));
        }
    }

    #[test]
    fn messages_are_bounded_in_number_and_length() {
        let budget = Budget(AtomicU64::new(0));
        let line =
            |text: &str| budget.line(&Record::builder().args(format_args!("{text}")).build());
        assert_eq!(line("a\nb"), Some("ab".into()));
        let long = line(&"x".repeat(100_000));
        assert_eq!(long.map(|line| line.len()), Some(MESSAGE_MAX));
        let rest: Vec<_> = (2..3 * MESSAGES_MAX).filter_map(|_| line("x")).collect();
        assert_eq!(rest.len() as u64, MESSAGES_MAX - 1);
        let last = rest.last().map(String::as_str).unwrap_or_default();
        assert!(last.ends_with("further ones are not logged"), "{last}");
    }
}
