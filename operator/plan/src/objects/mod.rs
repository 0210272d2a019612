//! Kubernetes objects as they are meant to be: pure functions from a spec to JSON bodies for server-side apply.
//!
//! JSON rather than the typed structs of `k8s-openapi`: a body holds exactly the fields that the operator owns. That the
//! fields exist and have the right types is shown by a test that reads every body as its type and writes it back.
//!
//! Invariants:
//! 1. Equal input gives an equal body: no clock, no random number, no hash order.
//! 2. Every object carries the labels of [`Labels`]; every namespaced one is owned by the TorusCluster.
//! 3. What a body leaves out is not the operator's: others may set it.

mod agents;
mod csi;
mod etcd;
mod holder;
mod node;
mod pod;

pub use agents::{agent_config, agent_service, agents, disruption_budget, domains};
pub use csi::{controller, driver, storage_class};
pub use etcd::{CLIENT_PORT, etcd_config, etcd_disruption_budget, etcd_member, etcd_service, member_name};
pub use holder::holder;
pub use node::node_plugin;

use crate::contract::{ANNOTATION_APPLIED, LABEL_CLUSTER, LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use torus_api::TorusClusterSpec;

/// The kinds of objects that the operator makes, in the order in which they are made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// `v1 ConfigMap`
    ConfigMap,
    /// `v1 Service`
    Service,
    /// `policy/v1 PodDisruptionBudget`: before what it protects.
    PodDisruptionBudget,
    /// `apps/v1 StatefulSet`
    StatefulSet,
    /// `storage.k8s.io/v1 CSIDriver`
    CsiDriver,
    /// `apps/v1 DaemonSet`
    DaemonSet,
    /// `apps/v1 Deployment`
    Deployment,
    /// `storage.k8s.io/v1 StorageClass`
    StorageClass,
    /// `v1 PersistentVolume`
    PersistentVolume,
    /// `v1 PersistentVolumeClaim`: after the volume it binds to.
    PersistentVolumeClaim,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 10] = [
        Kind::ConfigMap,
        Kind::Service,
        Kind::PodDisruptionBudget,
        Kind::StatefulSet,
        Kind::CsiDriver,
        Kind::DaemonSet,
        Kind::Deployment,
        Kind::StorageClass,
        Kind::PersistentVolume,
        Kind::PersistentVolumeClaim,
    ];

    /// Group (empty for the core one), version, kind, plural.
    #[must_use]
    pub fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Kind::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
            Kind::Service => ("", "v1", "Service", "services"),
            Kind::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            Kind::StatefulSet => ("apps", "v1", "StatefulSet", "statefulsets"),
            Kind::CsiDriver => ("storage.k8s.io", "v1", "CSIDriver", "csidrivers"),
            Kind::DaemonSet => ("apps", "v1", "DaemonSet", "daemonsets"),
            Kind::Deployment => ("apps", "v1", "Deployment", "deployments"),
            Kind::StorageClass => ("storage.k8s.io", "v1", "StorageClass", "storageclasses"),
            Kind::PersistentVolume => ("", "v1", "PersistentVolume", "persistentvolumes"),
            Kind::PersistentVolumeClaim => ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
        }
    }

    /// `apps/v1`, or `v1` in the core group.
    #[must_use]
    pub fn api_version(self) -> String {
        match self.names() {
            ("", version, ..) => version.into(),
            (group, version, ..) => format!("{group}/{version}"),
        }
    }

    /// Whether objects of it are in namespaces.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Kind::CsiDriver | Kind::StorageClass | Kind::PersistentVolume)
    }
}

/// What tells an object from all others.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// Its kind. First, so that the order of keys is the order of making.
    pub kind: Kind,
    /// Its namespace; empty for what is in none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, _, kind, _) = self.kind.names();
        if self.namespace.is_empty() {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        }
    }
}

/// An object as it is meant to be.
#[derive(Clone, PartialEq, Debug)]
pub struct Object {
    /// Which.
    pub key: Key,
    /// The body for server-side apply.
    pub body: Value,
}

/// Who a TorusCluster is, for those that belong to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
}

/// All that objects are made from.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// The TorusCluster.
    pub owner: &'a Owner,
    /// Its spec.
    pub spec: &'a TorusClusterSpec,
    /// The image where the spec names none: the operator's own.
    pub own_image: &'a str,
    /// Where etcd is: `http://host:port` each.
    pub endpoints: &'a [String],
    /// Which keys the secret for etcd has; none where no secret is named.
    pub secret_keys: &'a BTreeSet<String>,
}

impl Source<'_> {
    fn image(&self) -> &str {
        self.spec.image.as_deref().unwrap_or(self.own_image)
    }

    /// The name of the object of a component.
    fn name(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.owner.name)
    }

    fn labels(&self, component: &str) -> BTreeMap<&'static str, String> {
        labels(&self.owner.name, component)
    }

    /// What pods of a component are selected by.
    fn selector(&self, component: &str) -> Value {
        json!({LABEL_CLUSTER: self.owner.name, LABEL_COMPONENT: component})
    }

    /// An object of a component, with everything around `content`.
    fn object(&self, kind: Kind, name: String, component: &str, content: Value) -> Object {
        self.annotated(kind, name, component, json!({}), content)
    }

    fn annotated(&self, kind: Kind, name: String, component: &str, annotations: Value, content: Value) -> Object {
        let mut metadata = json!({"name": name, "labels": self.labels(component), "annotations": annotations});
        let namespace = if kind.is_namespaced() { self.owner.namespace.clone() } else { String::new() };
        if kind.is_namespaced() {
            metadata["namespace"] = json!(namespace);
            metadata["ownerReferences"] = json!([{
                "apiVersion": format!("{}/{}", torus_api::GROUP, torus_api::VERSION),
                "kind": "TorusCluster",
                "name": self.owner.name,
                "uid": self.owner.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }]);
        }
        Object::new(Key { kind, namespace, name }, metadata, content)
    }
}

/// The labels of an object.
#[must_use]
pub fn labels(cluster: &str, component: &str) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name", "torus".into()),
        ("app.kubernetes.io/part-of", "torus".into()),
        (LABEL_MANAGED_BY, MANAGED_BY.into()),
        (LABEL_COMPONENT, component.into()),
        (LABEL_CLUSTER, cluster.into()),
    ])
}

impl Object {
    /// An object with its kind, version and mark filled in.
    #[must_use]
    pub fn new(key: Key, metadata: Value, content: Value) -> Object {
        let (_, _, kind, _) = key.kind.names();
        let mut body = Map::new();
        body.insert("apiVersion".into(), json!(key.kind.api_version()));
        body.insert("kind".into(), json!(kind));
        body.insert("metadata".into(), metadata);
        if let Value::Object(content) = content {
            body.extend(content);
        }
        let mut body = Value::Object(body);
        let mark = digest(&body);
        match &mut body["metadata"]["annotations"] {
            Value::Object(annotations) => drop(annotations.insert(ANNOTATION_APPLIED.into(), json!(mark))),
            none => *none = json!({ANNOTATION_APPLIED: mark}),
        }
        Object { key, body }
    }
}

/// A short digest of a value: FNV-1a over its JSON. Tells versions of one text apart; nobody gains by
/// forging it.
#[must_use]
pub fn digest(value: &Value) -> String {
    let bytes = value.to_string().into_bytes();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests;
