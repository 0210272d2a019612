//! How the pool is reached: ports, the CSI driver and its class, metrics.

use super::one;
use crate::{FsType, PodShape, ReclaimPolicy};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

pub(super) fn yes() -> bool {
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
