//! What a takeover is asked for, and what comes of it.

#![allow(missing_docs, reason = "the fields of a variant are described by its own line")]

use crate::format::Record;
use crate::ids::{AgentId, Blocks, Epoch, ExtentSeq, VolumeId, Vseq};
use crate::meta::docs::{BadDoc, ExtentDoc, HeadDoc, Holder, VolumeDoc};
use crate::meta::{LeaseId, MetaError, Revision};
use crate::time::Duration;
use smallvec::SmallVec;
use std::collections::BTreeSet;

/// How a volume is to be opened.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Which.
    pub volume: VolumeId,
    /// Who opens it, for people.
    pub holder: Holder,
    /// Drawn at random by the opener.
    pub nonce: u64,
    /// The lease that the opener's `owner` key lives by.
    pub lease: Option<LeaseId>,
    /// Take it from a holder that seems to be alive.
    pub force: bool,
    /// How long to go on without getting ahead before giving up with a reason.
    pub patience: Duration,
}

/// Why a volume cannot be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// No such volume.
    #[error("there is no volume {0}")]
    NotFound(VolumeId),
    /// It is being deleted.
    #[error("volume {0:?} is being deleted")]
    Deleting(String),
    /// Another process holds it, as far as its lease tells.
    #[error("volume {name:?} is held by {} (pid {}, epoch {epoch}): stop it there, or take the volume over with --fence", .holder.host, .holder.pid)]
    Held { name: String, holder: Holder, epoch: Epoch },
    /// Another opener was faster.
    #[error("volume {name:?} was taken by another opener (epoch {epoch})")]
    Overtaken { name: String, epoch: Epoch },
    /// Too few copies of an extent can be reached to know what was acknowledged.
    #[error("extent {extent} has no sound copy that can be reached: {remedy}")]
    Missing { extent: ExtentSeq, remedy: String },
    /// The metadata store gave no answer.
    #[error("{0}")]
    Metadata(MetaError),
    /// A document cannot be read.
    #[error(transparent)]
    BadDoc(#[from] BadDoc),
    /// What is there contradicts itself: opening would lose data.
    #[error("the volume's log contradicts itself: {0}; nothing was changed, keep the disks as they are")]
    Inconsistent(String),
}

/// What a person can do about an extent of which none of `members` has what is missing: those that have `told` so need not
/// be started.
pub(crate) fn remedy(members: &[AgentId], told: &BTreeSet<AgentId>, name: impl Fn(AgentId) -> String) -> String {
    let names = |agents: Vec<AgentId>, or: &str| agents.into_iter().map(&name).collect::<Vec<_>>().join(or);
    let (told, silent): (Vec<AgentId>, Vec<AgentId>) = members.iter().partition(|agent| told.contains(agent));
    match silent.is_empty() {
        // They may have ended since: that they run is not known.
        true => format!(
            "{} have answered, and none has all of it: give one of them back the disk that it had",
            names(told, " and ")
        ),
        false => format!("start {}", names(silent, " or ")),
    }
}

/// A frame of the log, as replay needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameInfo {
    /// Block of its header.
    pub offset: Blocks,
    /// `vseq` of its first record.
    pub base: Vseq,
    /// Its records.
    pub records: SmallVec<[Record; 2]>,
}

impl FrameInfo {
    pub(super) fn last(&self) -> Vseq {
        Vseq(self.base.0 + self.records.len() as u64 - 1)
    }
    pub(super) fn end(&self) -> Blocks {
        self.offset + 1 + self.records.iter().map(|r| Blocks::from(r.payload_blocks)).sum::<Blocks>()
    }
}

/// An extent as it stands after recovery: sealed.
#[derive(Clone, Debug)]
pub struct RecoveredExtent {
    /// Which.
    pub seq: ExtentSeq,
    /// Its document, with its seal.
    pub doc: ExtentDoc,
    /// When that was written.
    pub revision: Revision,
    /// Its frames below the seal; empty for checkpoints.
    pub frames: Vec<FrameInfo>,
}

/// A volume that has been taken over.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// What was asked for.
    pub meta: VolumeDoc,
    /// This owner's epoch.
    pub epoch: Epoch,
    /// The bytes of its document: what every transaction compares with.
    pub epoch_doc: Vec<u8>,
    /// The checkpoint to start from, and its key's revision.
    pub head: Option<(HeadDoc, Revision)>,
    /// Extents registered since that checkpoint.
    pub extents: Vec<RecoveredExtent>,
    /// The first `vseq` that is free.
    pub next: Vseq,
    /// An older owner left a witness.
    pub witness: bool,
}
