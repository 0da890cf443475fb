//! Tables of medians with their spread, and what each is to the first.

use super::sample::Times;

/// Prints a row a contender: median, least and most of what `pick` picks, and its ratio to the last row.
pub(crate) fn print(
    title: &str,
    unit: &str,
    names: &[String],
    all: &[Times],
    pick: fn(&Times) -> &Vec<f64>,
) {
    println!("\n{title}");
    println!(
        "  {:<34} {:>9} {:>9} {:>9}  {:>6}",
        unit, "median", "min", "max", "ratio"
    );
    let last = all.last().map_or(1.0, |times| median(pick(times)));
    for (name, times) in names.iter().zip(all) {
        let values = pick(times);
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        println!(
            "  {name:<34} {:>9.2} {least:>9.2} {most:>9.2}  {:>6.2}",
            median(values),
            median(values) / last
        );
    }
}

/// The value that so many hundredths of all are within.
pub(crate) fn percentile(values: &[f64], hundredths: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * hundredths).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len.is_multiple_of(2) => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
        len => sorted[len / 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_hundredths_are_within_a_percentile() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let at = |hundredths| percentile(&values, hundredths);
        assert_eq!([at(50), at(99), at(100)], [100.0, 198.0, 200.0]);
        assert_eq!(percentile(&[7.0], 50), 7.0);
        assert!(percentile(&[], 99).is_nan());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
