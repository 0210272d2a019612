//! What the operator made, in a form in which two Kubernetes can be compared.

use super::Kubectl;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Kinds of which the operator makes objects.
const KINDS: &str = "configmaps,services,statefulsets,daemonsets,deployments,poddisruptionbudgets,csidrivers,storageclasses,\
                     persistentvolumes,persistentvolumeclaims";
/// The label of what it made.
const OURS: &str = "app.kubernetes.io/managed-by=torus-operator";

/// Everything that the operator made for the TorusCluster `cluster` (null: for one that is gone) and all TorusVolumes.
///
/// # Errors
/// When the apiserver does not answer.
pub fn made(kubectl: &Kubectl, cluster: &Value) -> Result<Value> {
    let volumes = kubectl.json(["get", "torusvolumes", "-A"])?;
    let volumes = volumes["items"].as_array().context("a list without items")?;
    comparable(&list(kubectl)?, cluster, volumes, &[])
}

/// Objects that the operator made for a TorusCluster and TorusVolumes, by kind, namespace and name, without what differs between two objects
/// of the same spec. `named`: further texts that differ, and what to call them.
///
/// # Errors
/// When an object is none.
pub fn comparable(found: &[Value], cluster: &Value, volumes: &[Value], named: &[(String, &str)]) -> Result<Value> {
    let mut ids: BTreeMap<String, String> = named.iter().map(|(id, name)| (id.clone(), (*name).to_owned())).collect();
    let mut learn = |value: &Value, name: String| drop(value.as_str().map(|id| ids.insert(id.to_owned(), name)));
    // Ids that are drawn, whose they are, and addresses that are given out.
    learn(&cluster["metadata"]["uid"], "<uid of main>".into());
    for volume in volumes {
        let name = word(&volume["metadata"]["name"]);
        learn(&volume["metadata"]["uid"], format!("<uid of {name}>"));
        learn(&volume["status"]["volumeId"], format!("<id of {name}>"));
    }
    for service in found.iter().filter(|object| object["kind"] == "Service" && object["spec"]["clusterIP"] != "None") {
        learn(&service["spec"]["clusterIP"], format!("<address of {}>", word(&service["metadata"]["name"])));
    }
    let mut all = Map::new();
    for object in found {
        let mut text = normal(object).to_string();
        // The longer ones first: an address may be the beginning of another.
        let mut names: Vec<_> = ids.iter().collect();
        names.sort_by_key(|(id, _)| std::cmp::Reverse(id.len()));
        for (id, name) in names {
            text = text.replace(id, name);
        }
        let object: Value = serde_json::from_str(&text).context("an object that is no JSON")?;
        let metadata = &object["metadata"];
        let key = format!("{} {}/{}", word(&object["kind"]), word(&metadata["namespace"]), word(&metadata["name"]));
        all.insert(key, object);
    }
    Ok(Value::Object(all))
}

/// What there is of the operator's making.
///
/// # Errors
/// When the apiserver does not answer.
pub fn list(kubectl: &Kubectl) -> Result<Vec<Value>> {
    let mut found = kubectl.json(["get", KINDS, "-A", "-l", OURS])?;
    serde_json::from_value(found["items"].take()).context("a list without items")
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Without what the apiserver and the controllers write.
fn normal(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "finalizers"] {
            metadata.remove(field);
        }
    }
    let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    if let Some(annotations) = annotations {
        annotations.retain(|name, _| {
            name.starts_with("torus.storage/") && !is_digest(name) || name.starts_with("storageclass.")
        });
    }
    let of_pods = object.pointer_mut("/spec/template/metadata/annotations").and_then(Value::as_object_mut);
    if let Some(annotations) = of_pods {
        // Digests of texts that hold addresses.
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
