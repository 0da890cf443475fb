//! Stock and tuned side by side: what is packaged, and what is made for it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// One of the two: how long a boot took to its answer, and by what.
pub(super) struct Side {
    pub(super) to_answer: Duration,
    pub(super) kernel: String,
    /// Where the lab was used.
    pub(super) lab_kernel: Option<String>,
    pub(super) minivm: String,
}

/// A program and its size.
pub(super) fn program(how: &str, path: &Path) -> Result<String> {
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot look at {}", path.display()))?
        .len();
    Ok(format!("{how}, {} MB", size >> 20))
}

/// Prints both, a column each.
pub(super) fn print(stock: &Side, tuned: &Side) {
    println!("\n{}", table(stock, tuned));
}

fn table(stock: &Side, tuned: &Side) -> String {
    let seconds = |side: &Side| format!("{:.2} s", side.to_answer.as_secs_f64());
    let mut rows = vec![
        ("", "stock".to_owned(), "tuned".to_owned()),
        ("boot to answer", seconds(stock), seconds(tuned)),
        (
            "the guest's kernel",
            stock.kernel.clone(),
            tuned.kernel.clone(),
        ),
    ];
    if let (Some(stock), Some(tuned)) = (&stock.lab_kernel, &tuned.lab_kernel) {
        rows.push(("the lab's kernel", stock.clone(), tuned.clone()));
    }
    rows.push(("minivm", stock.minivm.clone(), tuned.minivm.clone()));
    let width = rows.iter().map(|row| row.1.chars().count()).max();
    let width = width.unwrap_or_default();
    let lines = rows
        .iter()
        .map(|(name, stock, tuned)| format!("{name:<20}{stock:<width$}   {tuned}"));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(milliseconds: u64, kernel: &str, lab_kernel: Option<&str>) -> Side {
        Side {
            to_answer: Duration::from_millis(milliseconds),
            kernel: kernel.to_owned(),
            lab_kernel: lab_kernel.map(str::to_owned),
            minivm: "9 MB".to_owned(),
        }
    }

    #[test]
    fn both_sides_stand_in_columns() {
        let table = table(
            &side(13_412, "Debian's", Some("the same")),
            &side(2_370, "ours", Some("ours, too")),
        );
        let expected = [
            "                    stock      tuned",
            "boot to answer      13.41 s    2.37 s",
            "the guest's kernel  Debian's   ours",
            "the lab's kernel    the same   ours, too",
            "minivm              9 MB       9 MB",
        ];
        assert_eq!(table.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_host_with_kvm_has_no_lab() {
        let table = table(&side(1, "a", None), &side(1, "b", None));
        assert!(!table.contains("lab"), "{table}");
    }
}
