//! `TorusVolume`: one volume, and the claim by which pods get it.

use crate::{Condition, Quantity};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When a write is acknowledged.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum AckMode {
    /// When it is on stable storage on all members of its extent.
    #[default]
    Durable,
    /// When all members have received it. A flush waits for stable storage.
    Received,
}

/// Who may use a volume at the same time.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum AccessMode {
    /// Pods of one node.
    #[default]
    ReadWriteOnce,
    /// One pod.
    ReadWriteOncePod,
}

/// How a pod sees a volume.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum VolumeMode {
    /// As a mounted directory.
    #[default]
    Filesystem,
    /// As a block device.
    Block,
}

/// Which filesystem is made on a volume that has none.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
}

/// What becomes of the data when the object is deleted.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum DeletionPolicy {
    /// The data is deleted.
    #[default]
    Delete,
    /// The volume stays in the pool; another TorusVolume can adopt it by `volumeName`.
    Retain,
}

/// What becomes of the data when a claim is deleted.
pub type ReclaimPolicy = DeletionPolicy;

/// A TorusCluster.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
pub struct ClusterRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Its namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub namespace: String,
}

/// The claim that pods name.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
pub struct ClaimRef {
    /// Its name. It is made in the namespace of the TorusVolume, bound to it and to nothing else.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// What the volume is to be.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[kube(
    group = "torus.storage",
    version = "v1alpha1",
    kind = "TorusVolume",
    doc = "A replicated block volume, and if asked the PersistentVolumeClaim by which pods mount it.",
    namespaced,
    status = "TorusVolumeStatus",
    derive = "PartialEq",
    shortname = "tv",
    shortname = "tvol",
    category = "torus",
    category = "storage",
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size", description = "Logical size"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used", description = "What of it holds data"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "What it does"),
    printcolumn(
        name = "Redundancy",
        type_ = "string",
        json_path = ".status.redundancy",
        description = "Copies of the worst-off extent, of those asked for"
    ),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node", description = "Where it is attached"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".status.claim", description = "The claim of it"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "How old it is"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready, or is not",
        priority = 1
    ),
    printcolumn(
        name = "Volume",
        type_ = "string",
        json_path = ".status.volumeId",
        description = "Its id in the pool",
        priority = 1
    ),
    selectable = ".status.volumeId"
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.replicas) || !has(self.minReplicas) || self.minReplicas <= self.replicas")
        .message("minReplicas cannot be more than replicas"),
    validation = Rule::new("has(self.replicas) == has(oldSelf.replicas) && (!has(self.replicas) || self.replicas == oldSelf.replicas)")
        .message("replicas cannot be changed: create another volume and copy the data"),
    validation = Rule::new("has(self.minReplicas) == has(oldSelf.minReplicas) && (!has(self.minReplicas) || self.minReplicas == oldSelf.minReplicas)")
        .message("minReplicas cannot be changed"),
    validation = Rule::new("has(self.cluster) == has(oldSelf.cluster) && (!has(self.cluster) || self.cluster == oldSelf.cluster)")
        .message("cluster cannot be changed: a volume stays in its pool"),
    validation = Rule::new("has(self.volumeName) == has(oldSelf.volumeName) && (!has(self.volumeName) || self.volumeName == oldSelf.volumeName)")
        .message("volumeName cannot be changed"),
    validation = Rule::new("!has(oldSelf.claim) || (has(self.claim) && self.claim == oldSelf.claim)")
        .message("claim can be added, but neither changed nor taken away: delete the TorusVolume with deletionPolicy Retain and adopt the volume by volumeName"),
    validation = Rule::new("self.volumeMode == 'Filesystem' || self.fsType == 'ext4'")
        .message("fsType is for volumeMode Filesystem: leave it out for a block device")
)]
pub struct TorusVolumeSpec {
    /// Its logical size, from 1Mi to 64Ti; space in the pool is used only where something was written. It can grow while the volume is
    /// in use, and never shrinks.
    #[x_kube(
        validation = Rule::new("quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('64Ti')) <= 0")
            .message("size must be from 1Mi to 64Ti"),
        validation = Rule::new("quantity(self).compareTo(quantity(oldSelf)) >= 0")
            .message("size can only grow: a volume never shrinks")
    )]
    pub size: Quantity,
    /// Copies of the data, each in a failure domain of its own; unless given, as the cluster says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 7))]
    pub replicas: Option<i32>,
    /// Copies without which no write is acknowledged; unless given, as the cluster says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 7))]
    pub min_replicas: Option<i32>,
    /// When a write is acknowledged.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("ackMode cannot be changed"))]
    pub ack_mode: AckMode,
    /// Who may use it at the same time.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("accessMode cannot be changed"))]
    pub access_mode: AccessMode,
    /// How pods see it.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("volumeMode cannot be changed"))]
    pub volume_mode: VolumeMode,
    /// The filesystem that is made on it when it is first mounted.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("fsType cannot be changed: it is what the data is in"))]
    pub fs_type: FsType,
    /// Make a PersistentVolumeClaim for it, so that pods can name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimRef>,
    /// What becomes of the data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Which cluster it is in; unless given, the one there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterRef>,
    /// Adopt the volume of this name instead of making a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9][-a-z0-9._]*$"))]
    pub volume_name: Option<String>,
}

/// What a volume does.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum VolumeState {
    /// It is not there yet; the condition Ready says why.
    #[default]
    Pending,
    /// It can be attached.
    Available,
    /// A node has it.
    Attached,
    /// It is being deleted; the condition Deleting says what holds it.
    Deleting,
    /// It cannot be what was asked for; the condition Ready says why.
    Failed,
}

/// How the volume is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TorusVolumeStatus {
    /// The generation of the spec that this speaks of.
    #[serde(default)]
    pub observed_generation: i64,
    /// What it does.
    #[serde(default)]
    pub state: VolumeState,
    /// Its id in the pool, 16 hexadecimal digits; the volume handle of CSI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub volume_id: Option<String>,
    /// Its name in the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub volume_name: Option<String>,
    /// Its size as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    pub size: Option<String>,
    /// What of it holds data, such as 3.1Gi, as its owner said last: within half a minute while it is written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    pub used: Option<String>,
    /// Copies of its worst-off extent and copies asked for, such as 2/2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub redundancy: Option<String>,
    /// The node that has it attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Its ownership number: raised each time somebody opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// The claim made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub claim: Option<String>,
    /// The PersistentVolume made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub persistent_volume: Option<String>,
    /// Ready, Healthy, Fenced, Deleting.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
