//! Carrying out what a plan says against the apiserver.

use crate::watched::resource;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Debug;
use torus_plan::contract::{
    FIELD_MANAGER, LABEL_CLUSTER, LABEL_MANAGED_BY, LABEL_VOLUME, TAINT_OUT_OF_SERVICE, TAINT_VALUE,
};
use torus_plan::objects::{Key, Kind, Object};

/// Why an action was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The apiserver refused, or did not answer.
    #[error("cannot {doing} {object}")]
    Kube {
        /// What was being done.
        doing: &'static str,
        /// To what.
        object: String,
        /// Its words.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody else has an object of that name.
    #[error("cannot make {0}: there is one already that is not the operator's. Rename or delete it")]
    Foreign(String),
    /// What was planned is no object.
    #[error("cannot write {object}")]
    Body {
        /// Which.
        object: String,
        /// The parser's word.
        #[source]
        source: serde_json::Error,
    },
}

/// The error of a call, with what it was about.
pub fn failed(doing: &'static str, object: impl ToString) -> impl FnOnce(kube::Error) -> ApplyError {
    let object = object.to_string();
    move |source| ApplyError::Kube { doing, object, source: Box::new(source) }
}

/// Whether the apiserver answered with this code.
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn api(client: &Client, key: &Key) -> Api<DynamicObject> {
    let resource = resource(key.kind);
    if key.namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &key.namespace, &resource)
    }
}

/// Makes an object. One that is there already is applied over if it is ours: the watch has not seen it yet.
///
/// What is applied later is made by applying, too: fields of an object that was *created* belong to that creation, and would stay when a
/// later body leaves them out. PersistentVolumes and claims are made once, and creating is what nobody else can slip in between.
pub async fn create(client: &Client, object: &Object) -> Result<(), ApplyError> {
    let api = api(client, &object.key);
    if matches!(object.key.kind, Kind::PersistentVolume | Kind::PersistentVolumeClaim) {
        let body = |source| ApplyError::Body { object: object.key.to_string(), source };
        let data: DynamicObject = serde_json::from_value(object.body.clone()).map_err(body)?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        return match api.create(&params, &data).await {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, 409) => match api.get_opt(&object.key.name).await {
                Ok(found) if found.as_ref().is_none_or(|found| is_same(found, object)) => Ok(()),
                Ok(_) => Err(ApplyError::Foreign(object.key.to_string())),
                Err(error) => Err(failed("read", &object.key)(error)),
            },
            Err(error) => Err(failed("make", &object.key)(error)),
        };
    }
    match api.get_opt(&object.key.name).await.map_err(failed("read", &object.key))? {
        Some(found) if !is_same(&found, object) => Err(ApplyError::Foreign(object.key.to_string())),
        _ => update(client, object).await,
    }
}

/// Whether an object is the operator's, and of the same cluster or volume.
fn is_same(found: &DynamicObject, object: &Object) -> bool {
    let none = BTreeMap::new();
    let labels = found.metadata.labels.as_ref().unwrap_or(&none);
    let wanted = &object.body["metadata"]["labels"];
    [LABEL_MANAGED_BY, LABEL_CLUSTER, LABEL_VOLUME]
        .into_iter()
        .all(|label| labels.get(label).map(String::as_str) == wanted[label].as_str())
}

/// Applies an object that is ours.
pub async fn update(client: &Client, object: &Object) -> Result<(), ApplyError> {
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patched = api(client, &object.key).patch(&object.key.name, &params, &Patch::Apply(&object.body)).await;
    patched.map(drop).map_err(failed("apply", &object.key))
}

/// Sets or takes away a finalizer, if the object still is the version that was seen.
pub async fn finalize<K>(api: &Api<K>, object: &K, finalizer: &str, is_set: bool) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let meta = object.meta();
    let mut list: Vec<String> = meta.finalizers.clone().unwrap_or_default();
    list.retain(|name| name != finalizer);
    if is_set {
        list.push(finalizer.into());
    }
    let name = meta.name.clone().unwrap_or_default();
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": list}});
    match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        // Gone, or changed by somebody since it was seen: the next pass sees it as it is.
        Err(error) if is_code(&error, 404) || is_code(&error, 409) => Ok(()),
        Err(error) => Err(failed("set the finalizer of", name)(error)),
    }
}

/// Deletes an object, if it still is the one of this uid.
pub async fn delete(client: &Client, key: &Key, uid: &str) -> Result<(), ApplyError> {
    over(api(client, key).delete(&key.name, &only(uid)).await.map(drop), "delete", key)
}

/// Deletes a pod, if it still is the one of this uid.
pub async fn delete_pod(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), ApplyError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    over(pods.delete(name, &only(uid)).await.map(drop), "delete", format!("pod {namespace}/{name}"))
}

fn only(uid: &str) -> DeleteParams {
    DeleteParams::background().preconditions(Preconditions { uid: Some(uid.into()), resource_version: None })
}

/// To what is not there any more, or is another by now, nothing is done: the next pass sees it as it is.
fn over(result: Result<(), kube::Error>, doing: &'static str, object: impl ToString) -> Result<(), ApplyError> {
    match result {
        Err(error) if is_code(&error, 404) || is_code(&error, 409) => Ok(()),
        other => other.map_err(failed(doing, object)),
    }
}

/// Asks for a larger claim.
pub async fn grow_claim(client: &Client, key: &Key, size: &str) -> Result<(), ApplyError> {
    let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    api(client, key).patch(&key.name, &params, &Patch::Merge(patch)).await.map(drop).map_err(failed("grow", key))
}

/// Sets a label of a node. A node that is gone has none.
pub async fn label_node(client: &Client, node: &str, label: &str, value: &str) -> Result<(), ApplyError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = json!({"metadata": {"labels": {label: value}}});
    let patched = nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await;
    over(patched.map(drop), "label", format!("node {node}"))
}

/// Takes a label from a node, if it still has the value that was `seen`: one that was set since is of somebody who means it, and who
/// may set it only once.
pub async fn unlabel_node(client: &Client, name: &str, label: &str, seen: &str) -> Result<(), ApplyError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let Some(node) = nodes.get_opt(name).await.map_err(failed("read", format!("node {name}")))? else { return Ok(()) };
    if node.labels().get(label).is_none_or(|value| value != seen) {
        return Ok(());
    }
    let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version, "labels": {label: null}}});
    let patched = nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    over(patched.map(drop), "take a label from", format!("node {name}"))
}

/// Taints a node out of service, or takes our taint away. Conditional on the version that was read: taints are one list.
pub async fn taint_node(client: &Client, name: &str, is_tainted: bool) -> Result<(), ApplyError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.get(name).await.map_err(failed("read", format!("node {name}")))?;
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let mut list: Vec<Value> = taints.iter().filter_map(|taint| serde_json::to_value(taint).ok()).collect();
    if list.iter().any(|taint| taint["key"] == TAINT_OUT_OF_SERVICE && taint["value"] != TAINT_VALUE) {
        return Ok(());
    }
    list.retain(|taint| taint["key"] != TAINT_OUT_OF_SERVICE);
    if is_tainted {
        list.push(json!({"key": TAINT_OUT_OF_SERVICE, "value": TAINT_VALUE, "effect": "NoExecute"}));
    }
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": list},
    });
    let patched = nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map(drop).map_err(failed("taint", format!("node {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stub::{Call, Stub};

    /// What becomes of the label `l`, seen as `old`, of a node that has `value` there, and what patches are sent. `refusal`: with what
    /// these are refused.
    async fn unlabelled(value: &'static str, refusal: Option<u16>) -> (Result<(), ApplyError>, Vec<Value>) {
        let node = json!({"metadata": {"name": "n1", "resourceVersion": "7", "labels": {"l": value}}});
        let answer = move |call: &Call| match refusal {
            Some(code) if call.method == "PATCH" => Err(code),
            _ => Ok(node.clone()),
        };
        let stub = Stub::start(move |calls| answer(calls.last().unwrap())).await;
        let done = unlabel_node(&stub.client, "n1", "l", "old").await;
        let patches = stub.calls().into_iter().filter(|call| call.method == "PATCH").map(|call| call.body);
        (done, patches.collect())
    }

    #[tokio::test]
    async fn a_label_that_was_set_since_stays() {
        let (done, patches) = unlabelled("old", None).await;
        done.unwrap();
        assert_eq!(patches, [json!({"metadata": {"resourceVersion": "7", "labels": {"l": null}}})]);
        let (done, patches) = unlabelled("new", None).await;
        done.unwrap();
        assert_eq!(patches, [] as [Value; 0]);
        // It changed between the look and the patch.
        unlabelled("old", Some(409)).await.0.unwrap();
        let refused = unlabelled("old", Some(403)).await.0.unwrap_err().to_string();
        assert_eq!(refused, "cannot take a label from node n1");
    }
}
