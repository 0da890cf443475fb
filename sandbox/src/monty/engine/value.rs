//! The conversion of values between the interpreter and the host, in the types of JSON.
//!
//! The interpreter's values may be nested as deep as its recursion allows, and contain themselves. The depth of converted values is
//! limited to [`DEPTH_MAX`], so that a recursive walk of them needs a bounded stack.

use monty_types::MontyObject;
use serde_json::{Map, Number, Value};

use super::depth::DEPTH_MAX;
use crate::Call;

/// Converts a call of a function of the host. An error is the reason why an argument can't be converted.
pub(super) fn call(
    function: &str,
    args: &[MontyObject],
    kwargs: &[(MontyObject, MontyObject)],
) -> Result<Call, String> {
    let args: Result<Vec<Value>, String> = args.iter().map(to_host).collect();
    let kwargs: Result<Map<String, Value>, String> = kwargs.iter().map(pair).collect();
    let refused = |why| format!("cannot pass an argument of {function}(): {why}");
    Ok(Call {
        function: function.to_owned(),
        args: args.map_err(refused)?,
        kwargs: kwargs.map_err(refused)?,
    })
}

fn pair((name, value): &(MontyObject, MontyObject)) -> Result<(String, Value), String> {
    match name {
        MontyObject::String(name) => Ok((name.clone(), to_host(value)?)),
        other => Err(format!("a key is {}, not str", other.type_name())),
    }
}

/// Converts a value for the host.
pub(super) fn to_host(object: &MontyObject) -> Result<Value, String> {
    outwards(object, DEPTH_MAX)
}

fn outwards(object: &MontyObject, depth: usize) -> Result<Value, String> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| format!("it is nested deeper than {DEPTH_MAX}"))?;
    Ok(match object {
        MontyObject::None => Value::Null,
        MontyObject::Bool(value) => Value::Bool(*value),
        MontyObject::Int(value) => Value::from(*value),
        MontyObject::BigInt(value) => {
            let value = u64::try_from(value).map_err(|_| "an int has more than 64 bits")?;
            Value::from(value)
        }
        MontyObject::Float(value) => Number::from_f64(*value)
            .map(Value::Number)
            .ok_or_else(|| format!("JSON has no {value}"))?,
        MontyObject::String(text) => Value::String(text.clone()),
        MontyObject::List(items)
        | MontyObject::Tuple(items)
        | MontyObject::NamedTuple { values: items, .. } => {
            let items: Result<_, String> = items.iter().map(|item| outwards(item, depth)).collect();
            Value::Array(items?)
        }
        MontyObject::Dict(pairs) => {
            let pairs = pairs.into_iter().map(|(key, value)| match key {
                MontyObject::String(key) => Ok((key.clone(), outwards(value, depth)?)),
                other => Err(format!("a key is {}, not str", other.type_name())),
            });
            Value::Object(pairs.collect::<Result<_, String>>()?)
        }
        MontyObject::Cycle(..) => return Err("it contains itself".into()),
        other => {
            return Err(format!(
                "it is {}, and only None, bool, int, float, str, list, tuple and dict can be passed",
                other.type_name()
            ));
        }
    })
}

/// Converts a value of the host for the interpreter.
pub(super) fn from_host(value: Value) -> Result<MontyObject, String> {
    inwards(value, DEPTH_MAX)
}

fn inwards(value: Value, depth: usize) -> Result<MontyObject, String> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| format!("it is nested deeper than {DEPTH_MAX}"))?;
    Ok(match value {
        Value::Null => MontyObject::None,
        Value::Bool(value) => MontyObject::Bool(value),
        Value::Number(number) => from_number(&number),
        Value::String(text) => MontyObject::String(text),
        Value::Array(items) => {
            let items = items.into_iter().map(|item| inwards(item, depth));
            MontyObject::List(items.collect::<Result<_, String>>()?)
        }
        Value::Object(pairs) => {
            let pairs = pairs
                .into_iter()
                .map(|(key, value)| Ok((MontyObject::String(key), inwards(value, depth)?)));
            MontyObject::dict(pairs.collect::<Result<Vec<_>, String>>()?)
        }
    })
}

fn from_number(number: &Number) -> MontyObject {
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(value), ..) => MontyObject::Int(value),
        (None, Some(value), _) => MontyObject::BigInt(value.into()),
        (None, None, value) => MontyObject::Float(value.unwrap_or(f64::NAN)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::depth::answer;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn json_values_survive_a_round_trip() {
        let value = json!([null, true, -1, u64::MAX, 1.5, "é", {"a": [{}]}]);
        let inside = from_host(value.clone()).unwrap();
        assert_eq!(to_host(&inside).unwrap(), value);
    }

    #[test]
    fn types_that_json_lacks_are_refused_by_name() {
        let refused = |object: MontyObject| to_host(&object).unwrap_err();
        assert!(refused(MontyObject::Float(f64::NAN)).contains("NaN"));
        assert!(refused(MontyObject::Bytes(vec![1])).contains("bytes"));
        assert!(refused(MontyObject::Cycle(1, "[...]".into())).contains("itself"));
        let pairs = vec![(MontyObject::Int(1), MontyObject::None)];
        assert!(refused(MontyObject::dict(pairs)).contains("key is int"));
        assert!(refused(MontyObject::BigInt((1_u128 << 90).into())).contains("64 bits"));
    }

    #[test]
    fn depth_is_limited_in_both_directions() {
        let nested = |levels: usize| (1..levels).fold(json!(1), |value, _| json!([value]));
        assert!(from_host(nested(DEPTH_MAX)).is_ok());
        assert!(from_host(nested(DEPTH_MAX + 1)).is_err());
        assert!(answer(Ok(nested(DEPTH_MAX))).is_ok());
        assert!(answer(Ok(nested(DEPTH_MAX + 1))).is_err());
        let inside = (0..200).fold(MontyObject::None, |item, _| MontyObject::List(vec![item]));
        assert!(to_host(&inside).unwrap_err().contains("deeper than 100"));
    }

    proptest! {
        #[test]
        fn any_json_is_converted_without_a_panic(text in "[\\[\\]{}\":,0-9a-z.eE+-]{0,60}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let inside = from_host(value.clone()).unwrap();
                let _ = to_host(&inside);
            }
        }
    }
}
