//! Every key there is. The prefix (`/torus/` unless configured) is the adapter's business: it is not seen here.
//!
//! ```text
//! cluster                     ClusterDoc    identity and format, written once by init
//! ring                        RingDoc       the current ring
//! agents/<agent>              AgentDoc      an agent that was admitted; stays while it is down
//! agent-names/<name>          AgentNameDoc  an agent's name
//! alive/<agent>               AliveDoc      leased: an agent that runs, and where
//! nodes/<node>                NodeDoc       a host on which volumes can be attached
//! names/<name>                NameDoc       a volume's name
//! volumes/<volume>/meta       VolumeDoc     what was asked for
//! volumes/<volume>/epoch      EpochDoc      who may write
//! volumes/<volume>/owner      OwnerDoc      leased: the owner that runs
//! volumes/<volume>/head       HeadDoc       the newest checkpoint
//! volumes/<volume>/published  PublishedDoc  the host that may attach it, where a control plane decides that
//! volumes/<volume>/used       UsedDoc       what of it holds data, for people
//! volumes/<volume>/witness    WitnessDoc    its owner may be serving reads without any extent
//! volumes/<volume>/x/<seq>    ExtentDoc     extents registered since that checkpoint
//! ```

use crate::ids::{AgentId, ExtentSeq, VolumeId};

/// Identity and format of the cluster.
pub const CLUSTER: &str = "cluster";
/// The ring.
pub const RING: &str = "ring";
/// All admitted agents.
pub const AGENTS: &str = "agents/";
/// All names of agents.
pub const AGENT_NAMES: &str = "agent-names/";
/// All running agents.
pub const ALIVE: &str = "alive/";
/// All hosts on which volumes can be attached.
pub const NODES: &str = "nodes/";
/// All volume names.
pub const NAMES: &str = "names/";
/// All volumes.
pub const VOLUMES: &str = "volumes/";

/// An admitted agent.
#[must_use]
pub fn agent(id: AgentId) -> String {
    format!("{AGENTS}{id}")
}
/// An agent's name.
#[must_use]
pub fn agent_name(name: &str) -> String {
    format!("{AGENT_NAMES}{name}")
}
/// A running agent.
#[must_use]
pub fn alive(id: AgentId) -> String {
    format!("{ALIVE}{id}")
}
/// A volume's name.
#[must_use]
pub fn name(name: &str) -> String {
    format!("{NAMES}{name}")
}
/// All keys of a volume.
#[must_use]
pub fn volume(id: VolumeId) -> String {
    format!("{VOLUMES}{id}/")
}
/// What was asked for.
#[must_use]
pub fn volume_meta(id: VolumeId) -> String {
    format!("{VOLUMES}{id}/meta")
}
/// Who may write.
#[must_use]
pub fn volume_epoch(id: VolumeId) -> String {
    format!("{VOLUMES}{id}/epoch")
}
/// The owner that runs.
#[must_use]
pub fn volume_owner(id: VolumeId) -> String {
    format!("{VOLUMES}{id}/owner")
}
/// The newest checkpoint.
#[must_use]
pub fn volume_head(id: VolumeId) -> String {
    format!("{VOLUMES}{id}/head")
}
/// The host that may attach it.
#[must_use]
pub fn volume_published(id: VolumeId) -> String {
    format!("{VOLUMES}{id}/published")
}
/// What of it holds data.
#[must_use]
pub fn volume_used(id: VolumeId) -> String {
    format!("{VOLUMES}{id}/used")
}
/// Its owner may be serving reads without any extent.
#[must_use]
pub fn volume_witness(id: VolumeId) -> String {
    format!("{VOLUMES}{id}/witness")
}
/// A host on which volumes can be attached.
#[must_use]
pub fn node(name: &str) -> String {
    format!("{NODES}{name}")
}
/// All registered extents of a volume.
#[must_use]
pub fn extents(id: VolumeId) -> String {
    format!("{VOLUMES}{id}/x/")
}
/// One registered extent. Fixed width, so that key order is the order of registration.
#[must_use]
pub fn extent(id: VolumeId, seq: ExtentSeq) -> String {
    format!("{VOLUMES}{id}/x/{:016x}", seq.0)
}

/// The id at the end of a key such as `agents/<id>` or `x/<seq>`.
#[must_use]
pub fn last_part(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// The extent that a key of the form `volumes/<id>/x/<seq>` names.
#[must_use]
pub fn parse_extent(key: &str) -> Option<ExtentSeq> {
    u64::from_str_radix(last_part(key), 16).ok().map(ExtentSeq)
}
