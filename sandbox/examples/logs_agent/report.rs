//! An HTML file with a bar chart, which runs no script and loads nothing. All its texts come from untrusted code and untrusted
//! logs.

use std::fmt::Write;

use minivm_sandbox::Call;
use serde_json::Value;

/// The largest number of bars of a chart.
const BARS_MAX: usize = 50;
/// The largest number of characters of a text.
const TEXT_MAX: usize = 300;
/// Pixels of a bar's line, of the longest bar, and of where bars begin.
const LINE: usize = 24;
const LONGEST: f64 = 400.0;
const START: usize = 10;

/// The content of a report.
#[derive(Debug, PartialEq)]
pub(crate) struct Report {
    title: String,
    note: String,
    bars: Vec<(String, f64)>,
}

impl Report {
    /// Reads the arguments of `report(title, bars, note='')`. Each bar is a label and a number that is not negative.
    pub(crate) fn of(call: &Call) -> Result<Report, String> {
        let [Value::String(title), Value::Array(bars)] = call.args.as_slice() else {
            return Err("report() takes a title and a list of bars".into());
        };
        if bars.len() > BARS_MAX {
            return Err(format!("a report has at most {BARS_MAX} bars"));
        }
        let note = match call.kwargs.get("note") {
            None => "",
            Some(Value::String(note)) => note,
            Some(_) => return Err("the note of report() is a text".into()),
        };
        Ok(Report {
            title: shortened(title),
            note: shortened(note),
            bars: bars.iter().map(bar).collect::<Result<_, String>>()?,
        })
    }
}

fn bar(bar: &Value) -> Result<(String, f64), String> {
    let pair = bar.as_array().map(Vec::as_slice);
    let Some([Value::String(label), Value::Number(value)]) = pair else {
        return Err("a bar is a label and a number".into());
    };
    match value.as_f64() {
        Some(value) if value >= 0.0 => Ok((shortened(label), value)),
        _ => Err("a bar's number is not negative".into()),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

/// Returns the HTML file's text.
pub(crate) fn html(report: &Report) -> String {
    let title = escaped(&report.title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n\
         <style>body {{ font: 14px sans-serif; margin: 2em }} rect {{ fill: #36c }} text {{ dominant-baseline: middle }}</style>\n\
         <h1>{title}</h1>\n<p>{}</p>\n{}</html>\n",
        escaped(&report.note),
        chart(&report.bars)
    )
}

fn chart(bars: &[(String, f64)]) -> String {
    let largest = bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let scale = if largest > 0.0 {
        LONGEST / largest
    } else {
        0.0
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"900\" height=\"{}\">\n",
        bars.len() * LINE
    );
    for (index, (label, value)) in bars.iter().enumerate() {
        let (top, middle, width) = (index * LINE + 3, index * LINE + LINE / 2, value * scale);
        let (label, after) = (escaped(label), width + 18.0);
        writeln!(
            svg,
            "<rect x=\"{START}\" y=\"{top}\" width=\"{width:.1}\" height=\"{}\"/>\
             <text x=\"{after:.1}\" y=\"{middle}\">{label}: {value}</text>",
            LINE - 6
        )
        .expect("a String takes all");
    }
    svg + "</svg>\n"
}

/// Escapes a text for an element or a quoted attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
