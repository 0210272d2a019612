//! How a `TorusCluster` is.

use crate::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the cluster is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TorusClusterStatus {
    /// The generation of the spec that this speaks of.
    #[serde(default)]
    pub observed_generation: i64,
    /// Pending, Installing, Ready, Updating, Degraded, Refused, Paused or Deleting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub phase: Option<String>,
    /// Healthy, Degraded, AtRisk or Unknown: how the data is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub health: Option<String>,
    /// Agents that run and agents asked for, such as 3/3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub agents_summary: Option<String>,
    /// Copies of the worst-off extent and copies asked for, such as 2/2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub redundancy: Option<String>,
    /// Space in use and space there is, such as 1.2Ti/9Ti.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub used: Option<String>,
    /// What the agents run; two versions during an update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub version: Option<String>,
    /// The id of the cluster in etcd, 16 hexadecimal digits. An etcd that holds another, or none any more, is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub cluster_id: Option<String>,
    /// Where etcd is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdStatus>,
    /// Volumes in the pool.
    #[serde(default)]
    pub volumes: i64,
    /// The agents, by name.
    #[serde(default)]
    #[schemars(length(max = 512), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub agents: Vec<AgentStatus>,
    /// Accepted, Etcd, Ready, Healthy, Updating, Deleting.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Where etcd is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EtcdStatus {
    /// The addresses of its members; those of a managed etcd are kept for as long as the cluster lives.
    #[serde(default)]
    #[schemars(length(max = 9), inner(length(max = 260)))]
    pub endpoints: Vec<String>,
}

/// How one agent is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Its name: that of its pod.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The node it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Its id in the pool, 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub id: Option<String>,
    /// Up, Down, FailedDisk or Starting.
    #[schemars(length(max = 16))]
    pub state: String,
    /// What it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,
    /// Whether it runs what the spec asks for.
    #[serde(default)]
    pub updated: bool,
}
