//! `crds/`: the definitions as files, and the chart's copy of them, as a chart cannot reach beyond its directory.

use crate::{TorusCluster, TorusVolume};
use kube::CustomResourceExt;

/// Where the files are, from the repository's root.
pub const DIRECTORIES: [&str; 2] = ["crds", "charts/torus/files/crds"];

/// Says what made a file.
const HEADER: &str = "# Made by `cargo run -p torus-api` from operator/api: change it there.\n";

/// The definitions: file names and their text.
///
/// # Panics
/// Never: what the types derive can be written as YAML, as the test shows.
#[must_use]
pub fn files() -> [(&'static str, String); 2] {
    [("torusclusters.yaml", TorusCluster::crd()), ("torusvolumes.yaml", TorusVolume::crd())].map(|(name, crd)| {
        let yaml = serde_yaml::to_string(&whole_numbers(serde_json::to_value(crd).expect("a definition serializes")));
        (name, format!("{HEADER}{}", yaml.expect("a definition is YAML")))
    })
}

/// Bounds are kept as floating point numbers on the way; `minimum: 1.0` is right and reads badly.
#[allow(clippy::cast_possible_truncation, reason = "only whole numbers within 53 bits are converted")]
fn whole_numbers(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9.0e15 => (float as i64).into(),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(whole_numbers).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, whole_numbers(value))).collect(),
        other => other,
    }
}
