//! Where the metadata is.

use crate::{PodShape, Quantity, SecretRef};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
