//! The limit on the depth of values that are passed to the host and back.

use serde_json::Value;

/// The largest depth of nested values. serde_json reads 128 levels, of which a message needs some around the value.
pub(super) const DEPTH_MAX: usize = 100;

/// Returns a function's result, or the message of an exception where it is nested too deep.
pub(super) fn answer(returned: Result<Value, String>) -> Result<Value, String> {
    match returned {
        Ok(value) if is_deeper(&value, DEPTH_MAX) => Err(format!(
            "it returned a value that is nested deeper than {DEPTH_MAX}"
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
