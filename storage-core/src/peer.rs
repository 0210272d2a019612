//! What an owner and an agent say to each other about extents. `proto` and TDP give these their bytes; the simulator
//! passes them as they are.
//!
//! Three answers are kept apart everywhere, because mixing them up is how data is lost:
//! *done* (a [`Response`] other than [`Response::Rejected`]), *refused* ([`Rejection`]: positively not done), and
//! *unknown* ([`Unanswered`]: it may have been done, or may yet be).
//!
//! Every request is idempotent: an identical resend gets the answer of the first.

#![allow(missing_docs, reason = "the fields of a message are described by its own line")]

use crate::format::{Digest, Frame, Pieces, Stream};
use crate::ids::{Blocks, Epoch, ExtentId, ExtentSeq, VolumeId, Vseq};
use crate::time::Duration;
use bytes::Bytes;
use smallvec::SmallVec;

/// What an extent is wanted for. A nearly full disk keeps its last slots for what makes room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// New writes.
    Data,
    /// Garbage collection, checkpoints and repair: allowed into the reserve.
    Reserve,
}

/// From an owner to a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Take a slot for `extent`, ready for appends at offset 0. Space is promised here, so that no append ever fails
    /// for want of it. → [`Response::Created`].
    Create { extent: ExtentId, epoch: Epoch, stream: Stream, class: Class },
    /// Append `frame`, which its header places at (extent, offset); durable before it is answered.
    /// → [`Response::Appended`]; with `early`, a [`Response::Received`] comes first.
    Append { extent: ExtentId, epoch: Epoch, offset: Blocks, frame: Frame, early: bool },
    /// Read `blocks` blocks from `offset`, verified. → [`Response::Data`].
    Read { extent: ExtentId, epoch: Epoch, offset: Blocks, blocks: Blocks },
    /// From now on take nothing for `volume` from an epoch below `epoch`; durable before it is answered. Says what is
    /// held of each extent asked for. → [`Response::Fenced`].
    Fence { volume: VolumeId, epoch: Epoch, extents: Vec<ExtentSeq> },
    /// The headers of the frames from block `from` on, up to some 1 MiB of them. → [`Response::Frames`].
    Frames { extent: ExtentId, epoch: Epoch, from: Blocks },
    /// Add `bytes`, whole raw frames that another member holds at `offset`, to a copy that takes no appends: in
    /// recovery and repair. A copy that does not exist yet is begun by `offset` 0, as the owner's copy number `copy`.
    /// → [`Response::Appended`].
    Fill { extent: ExtentId, epoch: Epoch, stream: Stream, copy: u64, offset: Blocks, bytes: Pieces },
    /// Cut the copy at `length` and close it for ever. A copy that is shorter refuses. → [`Response::Sealed`].
    Seal { extent: ExtentId, epoch: Epoch, length: Blocks },
    /// Give the slot back, if what it holds was not begun by a fill of a number above `copy`: a deletion that comes late does
    /// not hit the copy that the same owner has made since. Asked for extents that a committed HEAD lists as dead, that are
    /// sealed and empty, for copies that are no longer of the ensemble, and for a volume that is marked as being deleted.
    /// → [`Response::Deleted`].
    Delete { extent: ExtentId, epoch: Epoch, copy: u64 },
    /// Renew the read lease of `epoch` on `volume`. → [`Response::Leased`].
    Lease { volume: VolumeId, epoch: Epoch },
    /// Name the extents of `volume` of which there are copies, from `from` on, in order. → [`Response::Listed`].
    List { volume: VolumeId, epoch: Epoch, from: ExtentSeq },
}

/// A member's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// The slot is taken (not necessarily durably: the first append makes it so).
    Created { free: FreeSpace },
    /// `early` only: the frame is in memory, in order, and will be written.
    Received { length: Blocks },
    /// Everything up to `length` is durable. Grants a read lease.
    Appended { length: Blocks },
    /// The blocks asked for, each already checked against `crcs`, which the reader checks again.
    Data { crcs: SmallVec<[u32; 8]>, bytes: Bytes },
    /// The fence stands. A lease granted to an older epoch runs out after `lease`.
    Fenced { lease: Duration, extents: Vec<(ExtentSeq, Copy)> },
    /// Header blocks of consecutive frames, in order; `end`: there are no more below the copy's valid length.
    Frames { headers: Vec<Bytes>, end: bool },
    /// The copy is closed at this length with this content.
    Sealed { length: Blocks, digest: Digest },
    /// The slot is free (or was).
    Deleted { free: FreeSpace },
    /// The lease stands for [`READ_LEASE`](crate::limits::READ_LEASE).
    Leased,
    /// Copies there are; `end`: there are no more; `hidden`: a disk or a slot is lost, so there may be some that are not
    /// seen.
    Listed { extents: Vec<ExtentSeq>, end: bool, hidden: bool },
    /// Not done, and it never will be by this request.
    Rejected(Rejection),
}

/// Space of an agent, all disks together, in slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct FreeSpace {
    /// Slots that hold nothing.
    pub free: u32,
    /// All slots of disks that work.
    pub total: u32,
}

/// The space of several disks, or agents, together.
impl std::iter::Sum for FreeSpace {
    fn sum<I: Iterator<Item = FreeSpace>>(parts: I) -> FreeSpace {
        parts.fold(FreeSpace::default(), |sum, part| FreeSpace {
            free: sum.free + part.free,
            total: sum.total + part.total,
        })
    }
}

/// What a member knows of its copy of an extent when it is fenced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copy {
    /// Its disks are whole and never held this extent. As good as a copy of length 0.
    Never,
    /// It cannot tell: a slot header or a disk is damaged, or a disk is missing. Never to be taken for a length.
    Unknown,
    /// Open, or closed by a restart.
    Open {
        /// Blocks of the longest valid prefix.
        length: Blocks,
        /// Highest LAC in that prefix's frames.
        lac: Vseq,
        /// After `length` lies a frame of this extent that is damaged. It may have been acknowledged: this copy is
        /// good for its prefix but not as proof that there was no more.
        damaged: bool,
    },
    /// Closed for ever.
    Sealed { length: Blocks, digest: Digest },
}

/// Why a member refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rejection {
    /// A newer epoch has been here.
    #[error("fenced by epoch {epoch}")]
    Fenced { epoch: Epoch },
    /// No such extent here.
    #[error("the agent holds no copy of this extent")]
    NoSuchExtent,
    /// The copy takes no appends: sealed, or its agent has restarted since it was created.
    #[error("the copy is closed at block {length}")]
    Closed { length: Blocks },
    /// Not where the copy ends, and not what is already there.
    #[error("the copy ends at block {length}")]
    WrongOffset { length: Blocks },
    /// The bytes of the request are not what they claim to be.
    #[error("the request's bytes fail their checks: {0}")]
    BadBytes(String),
    /// The blocks lie beyond the end of the copy.
    #[error("the copy ends at block {length}, before the end of the read")]
    PastEnd { length: Blocks },
    /// Blocks of the copy fail their checksum; the first is named.
    #[error("block {block} of the copy is damaged")]
    Damaged { block: Blocks },
    /// No slot for this class.
    #[error("no space: {free:?} of slots are free")]
    NoSpace { free: FreeSpace },
    /// The copy was begun after the deletion was asked for.
    #[error("the copy is number {copy}, newer than the deletion")]
    NewerCopy { copy: u64 },
    /// The disk that holds, or would hold, the copy has failed.
    #[error("the disk has failed: {0}")]
    DiskFailed(String),
    /// More volumes are fenced than the disk can remember.
    #[error("the disk remembers the fences of {0} volumes already")]
    TooManyVolumes(usize),
}

/// No answer, so nothing is known: the connection broke, or time ran out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no answer: the request may or may not have been carried out")]
pub struct Unanswered;
