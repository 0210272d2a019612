//! `TorusCluster`: a pool of disks, the agents that keep it, and how volumes of it get into pods.

use crate::{FsType, ImagePullPolicy, PodShape, Quantity, ReclaimPolicy, SecretRef, TorusClusterStatus};
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

/// The etcd that coordinates the agents. Exactly one of `external` and `managed`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.external) != has(self.managed)").message("give exactly one of etcd.external and etcd.managed"),
    validation = Rule::new("has(self.external) == has(oldSelf.external)")
        .message("external etcd and managed etcd cannot be exchanged: what is in etcd belongs to the data")
)]
pub struct EtcdSpec {
    /// An etcd that is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalEtcd>,
    /// A small etcd of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedEtcd>,
}

/// An etcd that is there already.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.endpoints.all(e, e.startsWith('https://')) || self.endpoints.all(e, e.startsWith('http://'))")
        .message("all endpoints must use http, or all https")
)]
pub struct ExternalEtcd {
    /// Its members, such as http://10.0.0.1:2379.
    #[schemars(
        length(min = 1, max = 9),
        inner(length(min = 8, max = 260), regex(pattern = r"^https?://[A-Za-z0-9\[][-A-Za-z0-9.:\[\]]*$"))
    )]
    pub endpoints: Vec<String>,
    /// A secret in the same namespace: ca.crt for https endpoints, tls.crt and tls.key for a client certificate, username and
    /// password for a user. Each part is used if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,
    /// What all keys begin with; two clusters in one etcd need different ones.
    #[serde(default = "prefix")]
    #[schemars(length(min = 3, max = 128), regex(pattern = r"^/[A-Za-z0-9][-A-Za-z0-9_./]*/$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("prefix cannot be changed: what is there belongs to the data"))]
    pub prefix: String,
}

fn prefix() -> String {
    "/torus/".into()
}

/// A small etcd of its own.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ManagedEtcd {
    /// Members: 1, 3 or 5. With 1, losing its disk is losing the map to all data.
    #[serde(default = "three")]
    #[x_kube(
        validation = Rule::new("self in [1, 3, 5]").message("etcd.managed.members must be 1, 3 or 5"),
        validation = Rule::new("self == oldSelf").message("etcd.managed.members cannot be changed")
    )]
    pub members: i32,
    /// The image to run; unless given, the one of the cluster, which has etcd in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9_./:@]*$"))]
    pub image: Option<String>,
    /// Keep each member's data on a PersistentVolumeClaim; unless given, in `hostPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the claim of a managed etcd cannot be changed"))]
    pub claim: Option<EtcdClaim>,
    /// Keep each member's data in this directory of its node, where there is no `claim`. The member then stays on that node.
    #[serde(default = "etcd_directory")]
    #[schemars(length(min = 2, max = 256), regex(pattern = r"^/[A-Za-z0-9][-A-Za-z0-9_./]*$"))]
    #[x_kube(
        validation = Rule::new("!self.contains('..')").message("hostPath has no .. in it"),
        validation = Rule::new("self == oldSelf").message("hostPath cannot be changed: the data is there")
    )]
    pub host_path: String,
    /// Where members run and what they get.
    #[serde(default)]
    pub pod: PodShape,
}

/// A claim for each member of a managed etcd.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EtcdClaim {
    /// Its StorageClass; unless given, the default one. It must not be a class of Torus itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,
    /// Its size.
    pub size: Quantity,
}

fn three() -> i32 {
    3
}

fn etcd_directory() -> String {
    "/var/lib/torus/etcd".into()
}

/// How agents are reached.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.dataPort != self.controlPort && self.dataPort != self.httpPort && self.controlPort != self.httpPort")
        .message("dataPort, controlPort and httpPort must differ")
)]
pub struct NetworkSpec {
    /// Use the network of the node. The kernel's NBD needs it: its devices belong to the node's network alone. Without it
    /// volumes are attached over FUSE and a loop device.
    #[serde(default = "yes")]
    pub host: bool,
    /// Where agents take data.
    #[serde(default = "data_port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub data_port: i32,
    /// Where agents take control calls.
    #[serde(default = "control_port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub control_port: i32,
    /// Where agents and node plugins serve metrics and health.
    #[serde(default = "http_port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub http_port: i32,
}

fn yes() -> bool {
    true
}

fn data_port() -> i32 {
    40_000
}

fn control_port() -> i32 {
    40_001
}

fn http_port() -> i32 {
    4_321
}

impl Default for NetworkSpec {
    fn default() -> Self {
        Self { host: true, data_port: data_port(), control_port: control_port(), http_port: http_port() }
    }
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

/// What attaches volumes on a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct NodePluginSpec {
    /// Run it on nodes that have no storage agent. Pods there cannot use volumes without it.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Where it runs and what it gets. Unless tolerations are given it tolerates every taint.
    #[serde(default)]
    pub pod: PodShape,
    /// The kubelet's directory on the nodes.
    #[serde(default = "kubelet_directory")]
    #[schemars(length(min = 2, max = 256), regex(pattern = r"^/[A-Za-z0-9][-A-Za-z0-9_./]*$"))]
    #[x_kube(validation = Rule::new("!self.contains('..')").message("kubeletDir has no .. in it"))]
    pub kubelet_dir: String,
    /// The directory of FlexVolume drivers on the nodes, for old clusters: the driver is put there. Unless given, it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 256), regex(pattern = r"^/[A-Za-z0-9][-A-Za-z0-9_./]*$"))]
    #[x_kube(validation = Rule::new("!self.contains('..')").message("flexVolumeDir has no .. in it"))]
    pub flex_volume_dir: Option<String>,
}

fn kubelet_directory() -> String {
    "/var/lib/kubelet".into()
}

impl Default for NodePluginSpec {
    fn default() -> Self {
        Self { enabled: true, pod: PodShape::default(), kubelet_dir: kubelet_directory(), flex_volume_dir: None }
    }
}

/// What makes volumes from claims.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CsiSpec {
    /// How many of it; one works, the others wait.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 3))]
    pub replicas: i32,
    /// Where it runs and what its own container gets.
    #[serde(default)]
    pub pod: PodShape,
    /// The image of the external-provisioner.
    #[serde(default = "provisioner_image")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9_./:@]*$"))]
    pub provisioner_image: String,
    /// The image of the external-attacher.
    #[serde(default = "attacher_image")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9_./:@]*$"))]
    pub attacher_image: String,
    /// The image of the external-resizer.
    #[serde(default = "resizer_image")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9_./:@]*$"))]
    pub resizer_image: String,
}

fn provisioner_image() -> String {
    "registry.k8s.io/sig-storage/csi-provisioner:v6.3.0".into()
}

fn attacher_image() -> String {
    "registry.k8s.io/sig-storage/csi-attacher:v4.13.0".into()
}

fn resizer_image() -> String {
    "registry.k8s.io/sig-storage/csi-resizer:v2.3.0".into()
}

impl Default for CsiSpec {
    fn default() -> Self {
        Self {
            replicas: 1,
            pod: PodShape::default(),
            provisioner_image: provisioner_image(),
            attacher_image: attacher_image(),
            resizer_image: resizer_image(),
        }
    }
}

/// The StorageClass for volumes of this cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct StorageClassSpec {
    /// Make one.
    #[serde(default = "yes")]
    pub create: bool,
    /// Its name.
    #[serde(default = "class_name")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Make it the class of claims that name none.
    #[serde(default)]
    pub default: bool,
    /// What becomes of the data when a claim is deleted.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
    /// The filesystem that is made on volumes.
    #[serde(default)]
    pub fs_type: FsType,
}

fn class_name() -> String {
    "torus".into()
}

impl Default for StorageClassSpec {
    fn default() -> Self {
        Self {
            create: true,
            name: class_name(),
            default: false,
            reclaim_policy: ReclaimPolicy::default(),
            fs_type: FsType::default(),
        }
    }
}

/// How metrics are found.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MonitoringSpec {
    /// Mark pods with the annotations prometheus.io/scrape, port and path.
    #[serde(default = "yes")]
    pub scrape_annotations: bool,
}

impl Default for MonitoringSpec {
    fn default() -> Self {
        Self { scrape_annotations: true }
    }
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
