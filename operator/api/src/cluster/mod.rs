//! `TorusCluster`: a pool of disks, the agents that keep it, and how volumes of it get into pods.

mod access;
mod etcd;
mod storage;

pub use access::{CsiSpec, MonitoringSpec, NetworkSpec, NodePluginSpec, StorageClassSpec};
pub use etcd::{EtcdClaim, EtcdSpec, ExternalEtcd, ManagedEtcd};
pub use storage::{ClaimTemplate, HostPathStorage, PlacementSpec, RingKind, StorageSpec};

use crate::{ImagePullPolicy, PodShape, SecretRef, TorusClusterStatus};
use access::yes;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the cluster is to be.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[kube(
    group = "torus.storage",
    version = "v1alpha1",
    kind = "TorusCluster",
    doc = "Storage agents on the nodes of this cluster, the pool that they keep, and the CSI driver for volumes of it.",
    namespaced,
    status = "TorusClusterStatus",
    derive = "PartialEq",
    shortname = "tc",
    shortname = "tcluster",
    category = "torus",
    category = "storage",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "How far it is"),
    printcolumn(name = "Health", type_ = "string", json_path = ".status.health", description = "How the data is"),
    printcolumn(name = "Agents", type_ = "string", json_path = ".status.agentsSummary", description = "Agents that run, of those asked for"),
    printcolumn(
        name = "Redundancy",
        type_ = "string",
        json_path = ".status.redundancy",
        description = "Copies of the worst-off extent, of those asked for"
    ),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used", description = "Space in use, of all there is"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", description = "What its agents run"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "How old it is"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready, or is not",
        priority = 1
    ),
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("the name of a TorusCluster has at most 40 characters: names of other objects are made of it")
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.replicas").message("minReplicas cannot be more than replicas"),
    validation = Rule::new("self.replicas <= self.storage.count")
        .message("replicas cannot be more than storage.count: each copy is on an agent of its own")
)]
pub struct TorusClusterSpec {
    /// The image that agents, node plugin and controller run; unless given, the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9_./:@]*$"))]
    pub image: Option<String>,
    /// When to pull images.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// Secrets with which to pull images.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<SecretRef>,
    /// The agents, and the disks they keep data on.
    pub storage: StorageSpec,
    /// Copies of the data of a volume that does not say how many.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 7))]
    pub replicas: i32,
    /// Copies without which no write is acknowledged, for a volume that does not say how many.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 7))]
    pub min_replicas: i32,
    /// Which agents the copies go to.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// The etcd that coordinates the agents.
    pub etcd: EtcdSpec,
    /// How agents are reached.
    #[serde(default)]
    pub network: NetworkSpec,
    /// Where agents run and what they get.
    #[serde(default)]
    pub agent: PodShape,
    /// How agents are brought to a new version.
    #[serde(default)]
    pub update: UpdateSpec,
    /// The node plugin: what attaches volumes on a node.
    #[serde(default)]
    pub node_plugin: NodePluginSpec,
    /// The CSI controller: what makes volumes from claims.
    #[serde(default)]
    pub csi: CsiSpec,
    /// The StorageClass for volumes of this cluster.
    #[serde(default)]
    pub storage_class: StorageClassSpec,
    /// How metrics are found.
    #[serde(default)]
    pub monitoring: MonitoringSpec,
    /// What happens when a node dies.
    #[serde(default)]
    pub failover: FailoverSpec,
    /// What happens when this object is deleted while there are volumes.
    #[serde(default)]
    pub deletion_policy: ClusterDeletionPolicy,
    /// Leave everything as it is: nothing is made, changed or deleted while this is set.
    #[serde(default)]
    pub paused: bool,
}

fn one() -> i32 {
    1
}

fn two() -> i32 {
    2
}

/// How agents are brought to a new version.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum UpdateType {
    /// One after the other, the next when all data has all of its copies again.
    #[default]
    WhenRedundant,
    /// When somebody deletes their pods.
    OnDelete,
}

/// How agents are brought to a new version.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateSpec {
    /// What it waits for.
    #[serde(default, rename = "type")]
    pub kind: UpdateType,
}

/// What happens when a node dies.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailoverSpec {
    /// Fence the volumes of a dead node by epoch, so that another node can have them.
    #[serde(default = "yes")]
    pub fence: bool,
    /// Then mark the node with the taint node.kubernetes.io/out-of-service, so that its pods are replaced at once. That ends
    /// pods which use other volumes too: leave it off where those volumes are not fenced when their node is cut off.
    #[serde(default)]
    pub out_of_service_taint: bool,
    /// How long a node must have been not ready, and its agent silent, to be taken for dead.
    #[serde(default = "grace")]
    #[schemars(range(min = 5, max = 3600))]
    pub grace_seconds: i32,
}

fn grace() -> i32 {
    10
}

impl Default for FailoverSpec {
    fn default() -> Self {
        Self { fence: true, out_of_service_taint: false, grace_seconds: grace() }
    }
}

/// What happens when a cluster is deleted while there are volumes.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum ClusterDeletionPolicy {
    /// It waits, and names them.
    #[default]
    RefuseWhileVolumesExist,
    /// Agents go, disks and etcd's data stay as they are: the same TorusCluster, made again, finds them.
    KeepData,
}
