//! What the schemas promise: files up to date, structural, bounded, described, and rules that refuse with a sentence.

use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde_json::{Value, json};
use torus_api::{TorusCluster, TorusVolume, generate};

fn schema<T: CustomResourceExt>() -> Value {
    let crd = serde_json::to_value(T::crd()).expect("a definition serializes");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn both() -> [(&'static str, Value); 2] {
    [("TorusCluster", schema::<TorusCluster>()), ("TorusVolume", schema::<TorusVolume>())]
}

/// Calls `look` with every schema of a spec or status and its path.
fn walk(path: &str, schema: &Value, look: &mut dyn FnMut(&str, &Value)) {
    look(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, look);
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            walk(&format!("{path}{suffix}"), &schema[key], look);
        }
    }
}

fn each(mut look: impl FnMut(&str, &Value)) {
    for (kind, schema) in both() {
        for part in ["spec", "status"] {
            walk(&format!("{kind}.{part}"), &schema["properties"][part], &mut look);
        }
    }
}

#[test]
fn the_files_are_what_the_types_say() {
    for directory in generate::DIRECTORIES {
        for (name, text) in generate::files() {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(directory).join(name);
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(found == text, "{directory}/{name} is out of date: run `cargo run -p torus-api`");
        }
    }
}

#[test]
fn schemas_are_structural_and_use_no_format_that_the_apiserver_warns_of() {
    each(|path, schema| {
        assert!(schema["type"].is_string(), "{path} has no type: {schema}");
        for word in ["$ref", "oneOf", "anyOf", "allOf", "not", "definitions", "title"] {
            assert!(schema.get(word).is_none(), "{path} has {word}: {schema}");
        }
        if let Some(format) = schema["format"].as_str() {
            assert!(["int32", "int64", "date-time"].contains(&format), "{path} has format {format}");
        }
    });
}

#[test]
fn every_field_is_described_and_bounded_and_no_text_is_taken_as_it_comes() {
    each(|path, schema| {
        let is_item = path.ends_with("[]") || path.ends_with("{}");
        let words = schema["description"].as_str().unwrap_or_default();
        assert!(is_item || words.len() > 8, "{path} is not described");
        match schema["type"].as_str().unwrap() {
            "string" => {
                assert!(schema["maxLength"].is_u64() || schema["enum"].is_array(), "{path} has no longest text");
                // What people write may come to stand in a path or on a command line.
                let is_written = path.split('.').nth(1) == Some("spec");
                let is_limited = schema["pattern"].is_string() || schema["enum"].is_array();
                assert!(is_limited || !is_written, "{path} takes any text");
            }
            "array" => assert!(schema["maxItems"].is_u64(), "{path} has no longest list"),
            "object" if schema["additionalProperties"].is_object() => {
                assert!(schema["maxProperties"].is_u64(), "{path} has no largest map");
            }
            _ => {}
        }
    });
}

#[test]
fn conditions_are_maps_by_type_and_every_rule_has_a_sentence() {
    let mut rules = 0;
    each(|path, schema| {
        if path.ends_with(".conditions") {
            assert_eq!(schema["x-kubernetes-list-type"], "map", "{path}");
            assert_eq!(schema["x-kubernetes-list-map-keys"], json!(["type"]), "{path}");
        }
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            assert!(rule["message"].as_str().is_some_and(|words| words.len() > 15), "{path}: {rule}");
            rules += 1;
        }
    });
    assert!(rules > 30, "{rules}");
}

fn refusals<T: CustomResourceExt>(new: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema::<T>(), new, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.as_slice().iter().map(ToString::to_string).collect(),
    }
}

fn cluster() -> Value {
    json!({
        "apiVersion": "torus.storage/v1alpha1", "kind": "TorusCluster",
        "metadata": {"name": "main", "namespace": "torus-system"},
        "spec": {
            "replicas": 2, "minReplicas": 1,
            "storage": {"count": 3, "hostPath": {"path": "/var/lib/torus/data", "size": "10Gi"}, "formatDevices": false},
            "placement": {"ring": "Rendezvous", "domainLabels": ["topology.kubernetes.io/zone"]},
            "etcd": {"managed": {"members": 3, "hostPath": "/var/lib/torus/etcd"}},
            "network": {"host": true, "dataPort": 40000, "controlPort": 40001, "httpPort": 4321},
        },
    })
}

fn volume() -> Value {
    json!({
        "apiVersion": "torus.storage/v1alpha1", "kind": "TorusVolume",
        "metadata": {"name": "pg1", "namespace": "default"},
        "spec": {
            "size": "20Gi", "replicas": 2, "ackMode": "Durable", "accessMode": "ReadWriteOnce",
            "volumeMode": "Filesystem", "fsType": "ext4", "claim": {"name": "pg1"}, "deletionPolicy": "Delete",
        },
    })
}

fn with(object: &Value, path: &str, value: Value) -> Value {
    let mut changed = object.clone();
    let (parent, field) = path.rsplit_once('/').expect("a path has a slash");
    let parent = changed.pointer_mut(parent).and_then(Value::as_object_mut).expect("the path leads to an object");
    if value.is_null() {
        parent.remove(field);
    } else {
        parent.insert(field.into(), value);
    }
    changed
}

#[test]
fn sound_objects_pass() {
    assert_eq!(refusals::<TorusCluster>(&cluster(), None), Vec::<String>::new());
    assert_eq!(refusals::<TorusCluster>(&cluster(), Some(&cluster())), Vec::<String>::new());
    assert_eq!(refusals::<TorusVolume>(&volume(), None), Vec::<String>::new());
    assert_eq!(refusals::<TorusVolume>(&volume(), Some(&volume())), Vec::<String>::new());
    let grown = with(&volume(), "/spec/size", json!("0.5Ti"));
    assert_eq!(refusals::<TorusVolume>(&grown, Some(&volume())), Vec::<String>::new());
    let more = with(&cluster(), "/spec/storage/count", json!(5));
    assert_eq!(refusals::<TorusCluster>(&more, Some(&cluster())), Vec::<String>::new());
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    for (path, value, words) in [
        ("/spec/minReplicas", json!(3), "minReplicas cannot be more"),
        ("/spec/replicas", json!(4), "each copy is on an agent of its own"),
        ("/spec/storage/devices", json!(["/dev/sdb"]), "exactly one of storage.claim"),
        ("/spec/storage/hostPath", Value::Null, "exactly one of storage.claim"),
        ("/spec/storage/hostPath/path", json!("/var/../etc"), "has no .. in it"),
        ("/spec/storage/hostPath/size", json!("4Ki"), "from 1Gi to 256Ti"),
        (
            "/spec/etcd/external",
            json!({"endpoints": ["http://a:1"], "prefix": "/torus/"}),
            "exactly one of etcd.external",
        ),
        ("/spec/etcd/managed/members", json!(2), "must be 1, 3 or 5"),
        ("/spec/etcd", json!({"external": {"endpoints": ["http://a:1", "https://b:1"], "prefix": "/t/"}}), "all https"),
        ("/spec/network/httpPort", json!(40_000), "must differ"),
        ("/spec/placement/spreadLevel", json!(3), "do not have"),
        ("/metadata/name", json!("n".repeat(41)), "at most 40 characters"),
    ] {
        let found = refusals::<TorusCluster>(&with(&cluster(), path, value), None).join("; ");
        assert!(found.contains(words), "{path}: {found:?}");
    }
    for (path, value, words) in [
        ("/spec/size", json!("1Ki"), "from 1Mi to 64Ti"),
        ("/spec/size", json!("65Ti"), "from 1Mi to 64Ti"),
        ("/spec/minReplicas", json!(3), "minReplicas cannot be more"),
    ] {
        let found = refusals::<TorusVolume>(&with(&volume(), path, value), None).join("; ");
        assert!(found.contains(words), "{path}: {found:?}");
    }
    let block = with(&with(&volume(), "/spec/volumeMode", json!("Block")), "/spec/fsType", json!("xfs"));
    assert!(refusals::<TorusVolume>(&block, None).join("; ").contains("leave it out for a block device"));
}

#[test]
fn what_cannot_change_is_refused_with_a_sentence() {
    for (path, value, words) in [
        ("/spec/storage/count", json!(2), "can only grow"),
        ("/spec/storage/hostPath/size", json!("20Gi"), "keeps the size"),
        ("/spec/storage/hostPath/path", json!("/data"), "the data is there"),
        ("/spec/storage", json!({"count": 3, "claim": {"size": "10Gi"}}), "kind of storage cannot be changed"),
        ("/spec/etcd", json!({"external": {"endpoints": ["http://a:1"], "prefix": "/t/"}}), "cannot be exchanged"),
        ("/spec/etcd/managed/members", json!(5), "cannot be changed"),
        ("/spec/placement/ring", json!("Mod"), "cannot be changed"),
    ] {
        let found = refusals::<TorusCluster>(&with(&cluster(), path, value), Some(&cluster())).join("; ");
        assert!(found.contains(words), "{path}: {found:?}");
    }
    for (path, value, words) in [
        ("/spec/size", json!("19.9Gi"), "never shrinks"),
        ("/spec/replicas", json!(3), "replicas cannot be changed"),
        ("/spec/replicas", Value::Null, "replicas cannot be changed"),
        ("/spec/minReplicas", json!(1), "minReplicas cannot be changed"),
        ("/spec/ackMode", json!("Received"), "ackMode cannot be changed"),
        ("/spec/accessMode", json!("ReadWriteOncePod"), "accessMode cannot be changed"),
        ("/spec/volumeMode", json!("Block"), "volumeMode cannot be changed"),
        ("/spec/fsType", json!("xfs"), "fsType cannot be changed"),
        ("/spec/claim", json!({"name": "other"}), "neither changed nor taken away"),
        ("/spec/claim", Value::Null, "neither changed nor taken away"),
        ("/spec/volumeName", json!("old"), "volumeName cannot be changed"),
        ("/spec/cluster", json!({"name": "b", "namespace": "c"}), "stays in its pool"),
    ] {
        let found = refusals::<TorusVolume>(&with(&volume(), path, value), Some(&volume())).join("; ");
        assert!(found.contains(words), "{path}: {found:?}");
    }
}
