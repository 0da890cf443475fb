//! How deep values may be nested that cross to the host and back.

use serde_json::Value;

/// How deep values may be nested. A reader of JSON takes 128 levels, some of which a message needs around them.
pub(super) const DEPTH_MAX: usize = 100;

/// What a function has returned, where it can cross; otherwise the message of an exception.
pub(super) fn answer(returned: Result<Value, String>) -> Result<Value, String> {
    match returned {
        Ok(value) if is_deeper(&value, DEPTH_MAX) => Err(format!(
            "it returned what is nested deeper than {DEPTH_MAX}"
        )),
        other => other,
    }
}

fn is_deeper(value: &Value, than: usize) -> bool {
    let Some(than) = than.checked_sub(1) else {
        return true;
    };
    match value {
        Value::Array(items) => items.iter().any(|item| is_deeper(item, than)),
        Value::Object(pairs) => pairs.values().any(|item| is_deeper(item, than)),
        _ => false,
    }
}
