//! What the operator made, so that two Kubernetes can be compared.

use crate::world::World;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What a TorusCluster owns in its namespace: gone with it.
pub const OWNED: [&str; 6] =
    ["configmaps", "services", "statefulsets", "daemonsets", "deployments", "poddisruptionbudgets"];
/// What else the operator makes.
const FURTHER: [&str; 4] = ["csidrivers", "storageclasses", "persistentvolumes", "persistentvolumeclaims"];

/// The objects of some kinds that the operator made.
pub fn of_kinds(world: &World, kinds: &[&str]) -> Vec<Value> {
    let ours = "app.kubernetes.io/managed-by=torus-operator";
    kinds.iter().flat_map(|kind| world.client.list(kind, "", ours)).collect()
}

/// All objects that the operator made.
pub fn made(world: &World) -> Vec<Value> {
    [&OWNED[..], &FURTHER].iter().flat_map(|kinds| of_kinds(world, kinds)).collect()
}

/// Everything that the operator made, without what differs between two objects of the same spec.
pub fn objects(world: &World) -> Value {
    let cluster = world.cluster();
    // Ids that are drawn, and whose they are.
    let mut ids = BTreeMap::new();
    let mut learn = |value: &Value, name: String| drop(value.as_str().map(|id| ids.insert(id.to_owned(), name)));
    learn(&cluster["metadata"]["uid"], "<uid of main>".into());
    for volume in world.volumes() {
        let name = volume["metadata"]["name"].as_str().unwrap();
        learn(&volume["metadata"]["uid"], format!("<uid of {name}>"));
        learn(&volume["status"]["volumeId"], format!("<id of {name}>"));
    }
    let mut normal = Map::new();
    for object in made(world) {
        let mut text = normalised(&object).to_string();
        for (id, name) in &ids {
            text = text.replace(id, name);
        }
        // What etcd is at differs by the port.
        if let Some(etcd) = &world.etcd {
            text = text.replace(&etcd.url(), "<etcd>");
        }
        let object: Value = serde_json::from_str(&text).unwrap();
        let metadata = &object["metadata"];
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        normal.insert(
            format!("{} {}/{}", word(&object["kind"]), word(&metadata["namespace"]), word(&metadata["name"])),
            object,
        );
    }
    Value::Object(normal)
}

/// Without what the apiserver and the controllers write.
fn normalised(object: &Value) -> Value {
    let mut object = object.clone();
    object.as_object_mut().unwrap().remove("status");
    let metadata = object["metadata"].as_object_mut().unwrap();
    for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "finalizers"] {
        metadata.remove(field);
    }
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| {
            name.starts_with("torus.storage/") && !is_digest(name) || name.starts_with("storageclass.")
        });
    }
    if let Some(annotations) = object.pointer_mut("/spec/template/metadata/annotations").and_then(Value::as_object_mut)
    {
        // Digests of texts that hold etcd's port.
        annotations.retain(|name, _| !is_digest(name));
    }
    if let Some(claim) = object.pointer_mut("/spec/claimRef").and_then(Value::as_object_mut) {
        claim.retain(|name, _| !["uid", "resourceVersion"].contains(&name.as_str()));
    }
    object
}

fn is_digest(annotation: &str) -> bool {
    ["torus.storage/applied", "torus.storage/config"].contains(&annotation)
}
