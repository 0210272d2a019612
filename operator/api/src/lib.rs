//! The Kubernetes API of Torus: [`TorusCluster`] and [`TorusVolume`], group `torus.storage`, version `v1alpha1`.
//!
//! The types are the one definition: `crds/` is made from them (`cargo run -p torus-api`), and a test fails when it is
//! not what they say. There is no admission webhook: what can be refused is refused by the schema itself, by bounds and
//! by CEL rules, so that nothing has to run for a mistake to be noticed. What only a running system can tell (a secret
//! that is missing, an etcd that does not answer) the operator says in conditions.
//!
//! Invariants:
//! 1. Every string and every list has an upper bound: the apiserver's cost estimate of the CEL rules depends on it.
//! 2. Every default is in the schema, so that an object read back shows what it runs with.
//! 3. Every field has a sentence, which `kubectl explain` prints.

#![allow(clippy::duplicated_attributes, reason = "kube's columns and rules are attributes that are repeated")]

mod cluster;
mod cluster_status;
mod condition;
pub mod generate;
mod pods;
mod quantity;
mod volume;

pub use cluster::{
    ClaimTemplate, ClusterDeletionPolicy, CsiSpec, EtcdClaim, EtcdSpec, ExternalEtcd, FailoverSpec, HostPathStorage,
    ManagedEtcd, MonitoringSpec, NetworkSpec, NodePluginSpec, PlacementSpec, RingKind, StorageClassSpec, StorageSpec,
    TorusCluster, TorusClusterSpec, UpdateSpec, UpdateType,
};
pub use cluster_status::{AgentStatus, EtcdStatus, TorusClusterStatus};
pub use condition::{Condition, ConditionStatus, set_condition};
pub use pods::{
    ImagePullPolicy, Label, PodShape, ResourceList, Resources, SecretRef, Toleration, TolerationEffect,
    TolerationOperator,
};
pub use quantity::{BadQuantity, Quantity};
pub use volume::{
    AccessMode, AckMode, ClaimRef, ClusterRef, DeletionPolicy, FsType, ReclaimPolicy, TorusVolume, TorusVolumeSpec,
    TorusVolumeStatus, VolumeMode, VolumeState,
};

/// The API group.
pub const GROUP: &str = "torus.storage";
/// The API version.
pub const VERSION: &str = "v1alpha1";
