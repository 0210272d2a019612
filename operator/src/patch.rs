//! Statuses as merge patches that hold what changed and nothing else.

use serde_json::{Map, Value};

/// What turns `before` into `after` as a JSON merge patch (RFC 7386); `None` when they are the same. A field that is gone is `null`
/// there: left out, it would stay, and be written again at every look.
pub fn merge_patch(before: &Value, after: &Value) -> Option<Value> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let mut patch = Map::new();
            for name in before.keys().filter(|name| !after.contains_key(*name)) {
                patch.insert(name.clone(), Value::Null);
            }
            for (name, value) in after {
                let changed = merge_patch(before.get(name).unwrap_or(&Value::Null), value);
                if let Some(changed) = changed {
                    patch.insert(name.clone(), changed);
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        _ => (before != after).then(|| after.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_changed_is_sent_and_what_is_gone_is_taken_away() {
        let before = json!({"node": "n1", "state": "Attached", "etcd": {"endpoints": ["a"]}, "conditions": [1, 2]});
        let after = json!({"state": "Available", "etcd": {"endpoints": ["a"]}, "conditions": [1, 3], "epoch": 2});
        let patch = json!({"node": null, "state": "Available", "conditions": [1, 3], "epoch": 2});
        assert_eq!(merge_patch(&before, &after), Some(patch));
        assert_eq!(merge_patch(&after, &after), None);
        assert_eq!(merge_patch(&Value::Null, &after), Some(after.clone()));
        assert_eq!(merge_patch(&json!({"etcd": {"a": 1}}), &json!({"etcd": {}})), Some(json!({"etcd": {"a": null}})));
    }
}
