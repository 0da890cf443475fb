//! Pages: HTML in one file, which needs nothing else.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use minivm_machine::output_path::Output;

/// The file of a page.
pub(super) struct PageFile<'a> {
    path: &'a Path,
    output: Output,
}

impl<'a> PageFile<'a> {
    /// Opens it, before the work is done.
    pub(super) fn open(path: &'a Path) -> anyhow::Result<Self> {
        let output = Output::open(path, 0o666).with_context(|| cannot_write(path))?;
        Ok(PageFile { path, output })
    }

    /// Writes the page; a file appears whole, or not at all.
    pub(super) fn write(mut self, text: &str) -> anyhow::Result<()> {
        let written = self.output.write_all(text.as_bytes());
        written
            .and_then(|()| self.output.finish())
            .with_context(|| cannot_write(self.path))
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// Returns how many processors this host has, and their name, from /proc/cpuinfo.
pub(super) fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("a processor of unknown make", |line| {
        line.trim_start_matches([' ', '\t', ':']).trim()
    });
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} × {model}")
}

/// A part of a whole in percent, with two digits behind the point.
pub(super) fn percent(part: u64, whole: u64) -> String {
    // In hundredths of a percent, a whole number.
    let parts = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02}", parts / 100, parts % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_has_two_digits_behind_the_point() {
        assert_eq!(percent(1, 3), "33.33");
        assert_eq!(percent(u64::MAX, u64::MAX), "100.00");
        assert_eq!(percent(0, 0), "0.00");
    }
}
