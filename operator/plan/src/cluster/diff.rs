//! Whether an object is as it is meant to be.

use crate::contract::ANNOTATION_APPLIED;
use crate::objects::Object;
use serde_json::Value;

/// Whether `observed` lacks something of `desired`: it was made from another body, or somebody changed a field of it.
#[must_use]
pub fn differs(desired: &Object, observed: &Value) -> bool {
    let mark = |body: &Value| body["metadata"]["annotations"][ANNOTATION_APPLIED].clone();
    mark(&desired.body) != mark(observed) || !covers(observed, &desired.body)
}

/// Whether all that `part` says is so in `whole`. Defaults that the apiserver filled in, and what others own, are only in
/// `whole`. An absent field is as good as an empty one: the apiserver keeps neither.
#[must_use]
pub fn covers(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).map_or_else(|| is_empty(value), |found| covers(found, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| covers(whole, part))
        }
        (Value::String(whole), Value::String(part)) => {
            whole == part
                || matches!((thousandths(whole), thousandths(part)), (Some(whole), Some(part)) if whole == part)
        }
        _ => whole == part,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::String(text) => text.is_empty(),
        Value::Bool(is_set) => !is_set,
        Value::Number(number) => number.as_i64() == Some(0),
    }
}

/// A quantity such as 500m, 2 or 1Gi in thousandths: the apiserver writes the same amount in its own way.
fn thousandths(text: &str) -> Option<u128> {
    const UNITS: [(&str, u128); 11] = [
        ("m", 1),
        ("Ki", 1000 << 10),
        ("Mi", 1000 << 20),
        ("Gi", 1000 << 30),
        ("Ti", 1000 << 40),
        ("Pi", 1000 << 50),
        ("k", 1_000_000),
        ("M", 1_000_000_000),
        ("G", 1_000_000_000_000),
        ("T", 1_000_000_000_000_000),
        ("P", 1_000_000_000_000_000_000),
    ];
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (number, factor) =
        unit.map_or((text, 1000), |(unit, factor)| (text.strip_suffix(unit).unwrap_or(text), *factor));
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let is_short = whole.len() <= 15 && decimals.len() <= 3 && !whole.is_empty();
    if !is_short || !whole.bytes().chain(decimals.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: u128 = format!("{whole}{decimals:0<3}").parse().ok()?;
    Some(digits * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_and_other_spellings_are_no_difference() {
        let part = json!({"cpu": "0.5", "memory": "1024Mi", "list": [{"a": 1}], "no": [], "not": false, "none": {}});
        let whole = json!({"cpu": "500m", "memory": "1Gi", "list": [{"a": 1, "default": true}], "more": 7});
        assert!(covers(&whole, &part));
    }

    #[test]
    fn changed_missing_and_added_things_are_differences() {
        let part = json!({"cpu": "500m", "list": [1, 2], "yes": true, "name": "10"});
        for whole in [
            json!({"cpu": "501m", "list": [1, 2], "yes": true, "name": "10"}),
            json!({"cpu": "500m", "list": [1, 2, 3], "yes": true, "name": "10"}),
            json!({"cpu": "500m", "list": [2, 1], "yes": true, "name": "10"}),
            json!({"cpu": "500m", "list": [1, 2], "name": "10"}),
            json!({"cpu": "500m", "list": [1, 2], "yes": true, "name": "ten"}),
        ] {
            assert!(!covers(&whole, &part), "{whole}");
        }
    }
}
