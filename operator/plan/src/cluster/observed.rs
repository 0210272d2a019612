//! What the cluster's plan looks at. Filled by the executor, made up by tests.

use crate::health::Health;
use crate::objects::{Key, Kind};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use torus_api::TolerationEffect;

/// Everything known when a plan is made.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Observed {
    /// Objects that carry the operator's mark and this cluster's name.
    pub objects: BTreeMap<Key, Value>,
    /// Pods of this cluster, by name.
    pub pods: BTreeMap<String, Pod>,
    /// Nodes, by name.
    pub nodes: BTreeMap<String, Node>,
    /// The secret that the spec names.
    pub secret: Secret,
    /// Why this TorusCluster is not the one to be served, if it is not.
    pub refused: Option<Refusal>,
    /// The metadata store.
    pub store: Store,
    /// What the status says from before.
    pub recorded: Recorded,
    /// Whether the finalizer is set.
    pub has_finalizer: bool,
    /// Whether somebody deleted the TorusCluster.
    pub is_deleting: bool,
    /// Whether its namespace is being deleted, which is the operator's own too: what Kubernetes does not remove by itself has to go now,
    /// whether or not the TorusCluster is being deleted already.
    pub is_namespace_deleting: bool,
    /// TorusVolumes that belong to it: `namespace/name`.
    pub volume_objects: BTreeSet<String>,
}

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// The StatefulSet it belongs to.
    pub set: String,
    /// Which pod of that name.
    pub uid: String,
    /// Where it runs.
    pub node: Option<String>,
    /// Whether it is ready.
    pub is_ready: bool,
    /// Whether it is on its way out.
    pub is_terminating: bool,
    /// The revision of the template it was made from.
    pub revision: String,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is ready.
    pub is_ready: bool,
    /// Whether pods may be placed there.
    pub is_schedulable: bool,
    /// What keeps pods away that do not tolerate it.
    pub taints: Vec<Taint>,
}

/// What keeps pods away from a node: a taint that is no mere preference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value; may be empty.
    pub value: String,
    /// What it does to pods.
    pub effect: TolerationEffect,
}

/// A secret.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Secret {
    /// None is named.
    #[default]
    NotNamed,
    /// There is none of that name.
    Missing,
    /// The operator has no right to read it.
    Forbidden,
    /// It was not read this time; the text says why.
    Unread(String),
    /// Its keys.
    Keys(BTreeSet<String>),
}

/// Why a TorusCluster is not served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// An older one is: `namespace/name`.
    Older(String),
    /// It is not where the operator is.
    Namespace {
        /// The operator's.
        served: String,
    },
}

/// What is known of the metadata store.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Store {
    /// It was not asked: nobody knows yet where it is.
    #[default]
    NotAsked,
    /// It cannot be used; the sentence says why, and what to do.
    Failed(String),
    /// It answers, and holds no Torus cluster.
    Empty,
    /// It holds a cluster.
    Cluster(StoreCluster),
}

/// A Torus cluster as its metadata store has it.
#[derive(Clone, PartialEq, Debug)]
pub struct StoreCluster {
    /// Its id.
    pub id: String,
    /// Its agents, by name.
    pub agents: BTreeMap<String, Agent>,
    /// Its ring.
    pub ring: Option<Ring>,
    /// How the data is.
    pub health: Health,
    /// The names of its volumes.
    pub volumes: BTreeSet<String>,
}

/// An agent as the metadata store has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agent {
    /// Its id.
    pub id: String,
    /// Whether it gives signs of life.
    pub is_alive: bool,
    /// What it runs, as far as it said.
    pub version: Option<String>,
    /// Disks that have failed.
    pub failed_disks: usize,
    /// Bytes in use and bytes there are, as far as it said.
    pub space: Option<(u64, u64)>,
}

/// The ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ring {
    /// Its kind.
    pub kind: String,
    /// Copies.
    pub replicas: u8,
    /// The level that copies are spread over.
    pub spread: Option<u8>,
    /// How many agents it has.
    pub agents: usize,
}

/// What the status says from before: what must not be forgotten.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recorded {
    /// The cluster's id.
    pub cluster_id: Option<String>,
    /// Where etcd was.
    pub endpoints: Vec<String>,
}

impl Observed {
    /// An object of this cluster.
    #[must_use]
    pub fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Value> {
        let namespace = if kind.is_namespaced() { namespace } else { "" };
        self.objects.get(&Key { kind, namespace: namespace.into(), name: name.into() })
    }

    /// The store's cluster, if it is the one that was recorded, or none was.
    #[must_use]
    pub fn cluster(&self) -> Option<&StoreCluster> {
        match (&self.store, &self.recorded.cluster_id) {
            (Store::Cluster(cluster), Some(id)) if cluster.id != *id => None,
            (Store::Cluster(cluster), _) => Some(cluster),
            _ => None,
        }
    }
}
