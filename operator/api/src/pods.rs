//! What people may say about pods. Types of our own rather than those of Kubernetes: bounded, and no wider than what the
//! operator really passes on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// When to pull an image.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum ImagePullPolicy {
    /// Unless the node has it.
    #[default]
    IfNotPresent,
    /// At every start.
    Always,
    /// Never: it must be on the node.
    Never,
}

impl ImagePullPolicy {
    /// As Kubernetes spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IfNotPresent => "IfNotPresent",
            Self::Always => "Always",
            Self::Never => "Never",
        }
    }
}

/// A secret in the same namespace.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, JsonSchema)]
pub struct SecretRef {
    /// The secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// Amounts by resource.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
pub struct ResourceList {
    /// Processor time, such as 500m or 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12), regex(pattern = r"^[0-9]+(\.[0-9]{1,3}|m)?$"))]
    pub cpu: Option<String>,
    /// Memory, such as 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = r"^[0-9]{1,12}(\.[0-9]{1,3})?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"))]
    pub memory: Option<String>,
}

/// What a container gets.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
pub struct Resources {
    /// What it is sure of.
    #[serde(default)]
    pub requests: ResourceList,
    /// What it may not exceed. A memory limit below what the agent needs ends it under load.
    #[serde(default)]
    pub limits: ResourceList,
}

/// How a toleration compares.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum TolerationOperator {
    /// The taint has the same value.
    #[default]
    Equal,
    /// Any value.
    Exists,
}

/// What a tolerated taint would do.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, JsonSchema)]
pub enum TolerationEffect {
    /// Keep new pods away.
    NoSchedule,
    /// Keep them away if that is possible.
    PreferNoSchedule,
    /// Send pods away that are there.
    NoExecute,
}

/// A taint that does not keep the pods away.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
pub struct Toleration {
    /// The taint's key; none with operator Exists: all keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 316), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9_./]*$"))]
    pub key: Option<String>,
    /// How the value is compared.
    #[serde(default)]
    pub operator: TolerationOperator,
    /// The taint's value, with operator Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"))]
    pub value: Option<String>,
    /// The taint's effect; none: all effects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TolerationEffect>,
}

/// Where a kind of pod runs and what it gets.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodShape {
    /// What its container gets.
    #[serde(default)]
    pub resources: Resources,
    /// Taints that do not keep it away.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Labels that a node must have.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 16))]
    pub node_selector: BTreeMap<String, Label>,
    /// The name of its priority class; none: as the operator sees fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub priority_class_name: Option<String>,
}

/// The value of a label.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
#[serde(transparent)]
pub struct Label(
    #[schemars(length(max = 63), regex(pattern = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"))] pub String,
);
