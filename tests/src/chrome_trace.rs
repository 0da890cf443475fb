//! A checker of Chrome's trace format, by its description: "Trace Event Format", Nduca and Sinclair, 2016, the sections "JSON Array
//! Format", "Duration Events", "Complete Events", "Instant Events" and "Metadata Events".

use std::collections::BTreeSet;

use serde_json::Value;

/// What a trace has, after its check.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The complete events' names, in the file's order.
    pub complete: Vec<String>,
    /// The instant events' names.
    pub instant: Vec<String>,
    /// The names of the threads.
    pub threads: Vec<String>,
}

/// Checks the text of a trace file.
///
/// # Errors
///
/// The event that isn't as the format has it, and why.
pub fn check(text: &str) -> Result<Checked, String> {
    let file: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Value::Array(events) = file else {
        return Err("the file is not an array".into());
    };
    let mut checked = Checked::default();
    let (mut named, mut used) = (BTreeSet::new(), BTreeSet::new());
    for event in &events {
        let wrong = |why: &str| format!("{why}: {event}");
        let text = |key: &str| {
            event[key]
                .as_str()
                .ok_or_else(|| wrong(&format!("no {key}")))
        };
        let name = text("name")?.to_owned();
        event["pid"].as_u64().ok_or_else(|| wrong("no pid"))?;
        if !(event["args"].is_object() || event["args"].is_null()) {
            return Err(wrong("args is not an object"));
        }
        let time = |key: &str| {
            let time = event[key]
                .as_f64()
                .filter(|time| *time >= 0.0 && time.is_finite());
            time.ok_or_else(|| wrong(&format!("{key} is not a time")))
        };
        match text("ph")? {
            "M" => {
                let value = event["args"]["name"]
                    .as_str()
                    .ok_or_else(|| wrong("no args.name"))?;
                match &*name {
                    "process_name" => {}
                    "thread_name" => {
                        named.insert(thread(event).ok_or_else(|| wrong("no tid"))?);
                        checked.threads.push(value.into());
                    }
                    _ => return Err(wrong("an unknown kind of metadata")),
                }
                continue;
            }
            "X" => {
                time("dur")?;
                text("cat")?;
                checked.complete.push(name);
            }
            "i" => {
                if !["g", "p", "t"].contains(&text("s")?) {
                    return Err(wrong("s is not a scope"));
                }
                checked.instant.push(name);
            }
            _ => return Err(wrong("ph is not a phase that minivm uses")),
        }
        time("ts")?;
        used.insert(thread(event).ok_or_else(|| wrong("no tid"))?);
    }
    match used.difference(&named).next() {
        Some(thread) => Err(format!("thread {thread} has no name")),
        None => Ok(checked),
    }
}

fn thread(event: &Value) -> Option<u64> {
    event["tid"].as_u64()
}
