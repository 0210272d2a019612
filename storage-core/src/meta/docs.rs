//! The documents behind the keys: JSON, so that `etcdctl get` shows a person what is there. Unknown fields are ignored
//! on reading (version N+1 may have written them); a missing field that has no default is an error, never a guess.

use crate::format::{Digest, Stream};
use crate::ids::{AgentId, Blocks, ClusterId, DiskId, Epoch, ExtentSeq, Incarnation, Lba, VolumeId, Vseq};
use crate::peer::FreeSpace;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::ring::RingDoc;

/// A document that is not what its key should hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the document at {key:?} cannot be read: {reason}")]
pub struct BadDoc {
    /// The key.
    pub key: String,
    /// What the parser says.
    pub reason: String,
}

/// A document's bytes.
///
/// # Panics
/// Never for the documents here: they hold nothing that JSON cannot.
#[must_use]
pub fn encode<T: Serialize>(doc: &T) -> Vec<u8> {
    serde_json::to_vec(doc).expect("documents serialize")
}

/// The document in `value`, which was read at `key`.
///
/// # Errors
/// When the bytes are not such a document.
pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, BadDoc> {
    serde_json::from_slice(value).map_err(|e| BadDoc { key: key.into(), reason: e.to_string() })
}

/// The version of everything that is kept: refused when it is newer than this program knows.
pub const FORMAT: u32 = 1;

/// `cluster`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterDoc {
    /// Drawn at init.
    pub id: ClusterId,
    /// [`FORMAT`] when it was made.
    pub format: u32,
    /// Blocks of data in an extent.
    pub extent_blocks: Blocks,
    /// Copies that a volume gets unless it says otherwise.
    pub replicas: u8,
}

/// `agents/<agent>`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentDoc {
    /// What people call it: unique in the cluster, by default the host's name.
    pub name: String,
    /// Failure domain path, outermost first: `zone-a/rack-3/node-7`. The last part is the machine.
    pub domain: String,
    /// Share of the ring; by default its slots.
    pub weight: u64,
    /// Its disks.
    pub disks: Vec<DiskId>,
}

/// `agent-names/<name>`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentNameDoc {
    /// The agent of that name.
    pub agent: AgentId,
}

/// `alive/<agent>`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AliveDoc {
    /// Which run of the agent this is.
    pub incarnation: Incarnation,
    /// Where it takes TDP: `host:port`.
    pub data: String,
    /// Where it takes gRPC: `host:port`.
    pub control: String,
    /// Where it serves metrics and health: `host:port`, if it does.
    #[serde(default)]
    pub http: Option<String>,
    /// Its program's version.
    pub version: String,
    /// Space when this was written.
    pub space: FreeSpace,
    /// Disks that have failed since it started.
    #[serde(default)]
    pub failed_disks: Vec<DiskId>,
}

/// How a volume acknowledges writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckMode {
    /// When the write is on stable storage on all members.
    #[default]
    Durable,
    /// When all members have received it; a flush waits for stable storage.
    Received,
}

/// `volumes/<volume>/meta`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeDoc {
    /// Its name: the key `names/<name>` points back here.
    pub name: String,
    /// Logical size. Only ever grows.
    pub size: Lba,
    /// Copies of each extent.
    pub replicas: u8,
    /// Copies without which nothing is acknowledged.
    pub min_replicas: u8,
    /// When a write is acknowledged.
    #[serde(default)]
    pub ack_mode: AckMode,
    /// Set while the volume is being deleted: nobody opens it any more.
    #[serde(default)]
    pub deleting: bool,
}

/// Who owns, or owned, a volume; for people.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Holder {
    /// The machine's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// How it serves the volume, such as `nbd+unix:///…`.
    #[serde(default)]
    pub serves: String,
}

/// `volumes/<volume>/epoch`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EpochDoc {
    /// Raised by one at every open.
    pub epoch: Epoch,
    /// Who raised it.
    pub holder: Holder,
    /// A number the opener drew: tells its own write from another's after an unknown outcome.
    pub nonce: u64,
}

/// `volumes/<volume>/owner`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OwnerDoc {
    /// The epoch it serves in.
    pub epoch: Epoch,
    /// Who it is.
    pub holder: Holder,
}

/// `volumes/<volume>/published`: a control plane's word. It permits; only the epoch fences.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishedDoc {
    /// The host that may attach the volume.
    pub node: String,
    /// It may only read.
    #[serde(default)]
    pub read_only: bool,
}

/// `volumes/<volume>/used`: written by its owner now and then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UsedDoc {
    /// Blocks of the volume that hold data.
    pub blocks: u64,
}

/// `volumes/<volume>/witness`: written by an owner that finds no agent to take an extent, while it serves reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WitnessDoc {
    /// The owner's epoch.
    pub epoch: Epoch,
}

/// `nodes/<node>`: written by each agent of role `node` when it starts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeDoc {
    /// Its failure domain.
    pub domain: String,
    /// The version of its program.
    pub version: String,
}

/// A piece of a checkpoint, or any extent with its copies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedExtent {
    /// Which extent.
    pub seq: ExtentSeq,
    /// The agents that hold it.
    pub members: Vec<AgentId>,
    /// Its length.
    pub length: Blocks,
    /// Its content.
    pub digest: Digest,
}

/// `volumes/<volume>/head`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeadDoc {
    /// The epoch of the owner that wrote it.
    pub epoch: Epoch,
    /// The last record that the checkpoint contains; replay begins after it.
    pub vseq: Vseq,
    /// The checkpoint's extents, in order.
    pub extents: Vec<SealedExtent>,
    /// Bytes of the checkpoint in those extents' payload.
    pub bytes: u64,
}

/// `volumes/<volume>/x/<seq>`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExtentDoc {
    /// Log or checkpoint.
    pub stream: Stream,
    /// The ensemble.
    pub members: Vec<AgentId>,
    /// Agents that were of the ensemble and may still hold a copy that is to be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<AgentId>,
    /// Why the ensemble is smaller or less spread than asked, if it is.
    #[serde(default)]
    pub degraded: bool,
    /// Set once, by the compare-and-swap that seals it.
    #[serde(default)]
    pub sealed: Option<Seal>,
}

/// How an extent ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seal {
    /// Blocks that belong to the extent; what a member holds beyond is void.
    pub length: Blocks,
    /// The last record in it; 0 when it is empty.
    pub last: Vseq,
}

/// `names/<name>`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NameDoc {
    /// The volume of that name.
    pub volume: VolumeId,
}
