//! Agents and their disks, and where copies go.

use crate::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The agents, and the disks they keep data on. Exactly one of `claim`, `hostPath` and `devices`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.claim), has(self.hostPath), has(self.devices)].filter(x, x).size() == 1")
        .message("give exactly one of storage.claim, storage.hostPath and storage.devices"),
    validation = Rule::new("has(self.claim) == has(oldSelf.claim) && has(self.hostPath) == has(oldSelf.hostPath) && has(self.devices) == has(oldSelf.devices)")
        .message("the kind of storage cannot be changed: make another TorusCluster and move the data"),
    validation = Rule::new("self.count >= oldSelf.count")
        .message("storage.count can only grow: to take an agent out, its data has to move away first")
)]
pub struct StorageSpec {
    /// How many agents, each on a node of its own.
    #[schemars(range(min = 1, max = 512))]
    pub count: i32,
    /// Keep the data of each agent on a PersistentVolumeClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimTemplate>,
    /// Keep the data of each agent in a file in a directory of its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathStorage>,
    /// Keep the data of each agent on these block devices of its node, by stable paths such as
    /// /dev/disk/by-id/…. All of them must be there on every node that `agent.nodeSelector` selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 32),
        inner(length(min = 6, max = 256), regex(pattern = r"^/dev/[A-Za-z0-9][-A-Za-z0-9_.:+/]*$"))
    )]
    #[x_kube(
        validation = Rule::new("self.all(device, !device.contains('..'))").message("a device path has no .. in it"),
        validation = Rule::new("oldSelf.all(device, device in self)").message("a device cannot be taken away, only added"),
        validation = Rule::new("self.all(device, self.exists_one(other, other == device))").message("list each device once")
    )]
    pub devices: Option<Vec<String>>,
    /// Format devices that hold something other than Torus: what they hold is lost.
    #[serde(default)]
    pub format_devices: bool,
}

/// A claim for each agent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("storageClassName cannot be changed")
)]
pub struct ClaimTemplate {
    /// Its StorageClass; unless given, the default one. It must not be a class of Torus itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,
    /// Its size, from 1Gi to 256Ti.
    #[x_kube(
        validation = Rule::new("quantity(self).compareTo(quantity('1Gi')) >= 0 && quantity(self).compareTo(quantity('256Ti')) <= 0")
            .message("size must be from 1Gi to 256Ti"),
        validation = Rule::new("quantity(self).compareTo(quantity(oldSelf)) == 0")
            .message("size cannot be changed: a disk keeps the size it was made with; raise storage.count instead")
    )]
    pub size: Quantity,
}

/// A file on each node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct HostPathStorage {
    /// The directory, made when it is not there.
    #[serde(default = "host_directory")]
    #[schemars(length(min = 2, max = 256), regex(pattern = r"^/[A-Za-z0-9][-A-Za-z0-9_./]*$"))]
    #[x_kube(
        validation = Rule::new("!self.contains('..')").message("path has no .. in it"),
        validation = Rule::new("self == oldSelf").message("path cannot be changed: the data is there")
    )]
    pub path: String,
    /// The size of the file, from 1Gi to 256Ti. Its space is taken at once.
    #[x_kube(
        validation = Rule::new("quantity(self).compareTo(quantity('1Gi')) >= 0 && quantity(self).compareTo(quantity('256Ti')) <= 0")
            .message("size must be from 1Gi to 256Ti"),
        validation = Rule::new("quantity(self).compareTo(quantity(oldSelf)) == 0")
            .message("size cannot be changed: a disk keeps the size it was made with; raise storage.count instead")
    )]
    pub size: Quantity,
}

fn host_directory() -> String {
    "/var/lib/torus/data".into()
}

/// How the ring places extents.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum RingKind {
    /// By weighted rendezvous hashing: moves the least when agents come and go.
    #[default]
    Rendezvous,
    /// By a ketama continuum.
    Ketama,
    /// By the remainder of a division: moves almost everything when agents come and go.
    Mod,
}

impl RingKind {
    /// As the ring's document spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rendezvous => "rendezvous",
            Self::Ketama => "ketama",
            Self::Mod => "mod",
        }
    }
}

/// Which agents copies go to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.spreadLevel) || self.spreadLevel <= size(self.domainLabels) + 1")
        .message("spreadLevel names a level that failure domains do not have: one for each of domainLabels, and the node")
)]
pub struct PlacementSpec {
    /// How the ring places extents.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("placement.ring cannot be changed"))]
    pub ring: RingKind,
    /// Labels of nodes that make up their failure domains, outermost first; the node's name comes last by itself.
    #[serde(default = "zone")]
    #[schemars(length(max = 4), inner(length(min = 1, max = 316), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9_./]*$")))]
    pub domain_labels: Vec<String>,
    /// Spread copies over this level of the failure domains, 1 being the outermost; unless given, over nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    pub spread_level: Option<i32>,
}

fn zone() -> Vec<String> {
    vec!["topology.kubernetes.io/zone".into()]
}

impl Default for PlacementSpec {
    fn default() -> Self {
        Self { ring: RingKind::default(), domain_labels: zone(), spread_level: None }
    }
}
