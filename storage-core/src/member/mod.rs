//! An agent's half of an extent: append, fence, seal, read, restart.
//!
//! Owners send [`Request`](crate::peer::Request)s; a [`Member`] turns them into [`DiskOp`]s and, when the disks have
//! reported, into [`Response`](crate::peer::Response)s. It does no I/O and reads no clock: `torus-agent` drives it over
//! real disks, `torus-sim` over disks that tear, lose and rot. One member is one agent with all its disks; nothing in
//! it is shared, so nothing in it is locked.
//!
//! # What always holds
//! 1. What claims durability is said after the commit that covers it, and everything of that extent before it, was
//!    reported a success; [`Durable`] makes anything else a type error.
//! 2. An append is taken only from the epoch that created the copy in this run, unfenced, and where the copy ends.
//!    Bytes at (extent, offset) are accepted once; the same frame again gets the answer of the first.
//! 3. A copy from before a restart, and one that was filled, never takes an append again.
//! 4. A fence counts from its receipt, for all disks. It is answered when it is durable on every disk that works and
//!    all appends accepted before it have been decided.
//! 5. Length means the durable length. A copy that may have been longer says so (`damaged`); an extent that may have
//!    been here is [`Unknown`](crate::peer::Copy::Unknown), and [`Never`](crate::peer::Copy::Never) is said only while
//!    no disk, and no slot header, is lost.
//! 6. A sealed header never points to a footer that is not durable: footer and header go in two commits.
//! 7. A slot is used again only when its freeing is durable and nobody reads it any more.
//! 8. No byte is handed out that does not match the sum taken of it when it was accepted.
//! 9. After one failed commit a disk takes nothing more, and nothing that was in that commit is called done; it may
//!    still show after a restart. What can be read, and checks, is read.
//! 10. The start of a run is recorded, with a sync of all that earlier runs wrote, before anything is answered.
//!
//! # Why this way
//! There is no journal. A frame carries everything needed to find it again, so it is written once, to its place; the
//! slot's header goes along with the first frame in the same commit, in either order, because a header without frames
//! is an empty copy and frames without a header are a free slot. It goes to both of its places: a disk that loses one
//! write must not make the agent swear that it never held the extent. Slots, not files: no directory, no allocation map and
//! no metadata of a filesystem has to be durable beside the data.
//!
//! Frames of an earlier life: when an extent was deleted here and is filled again into the same slot, frames of its
//! first life may still lie beyond what was filled, and a crash before the seal would count them in. They are the same
//! bytes as on every other member (extent ids are never reused), and only sealed extents are moved, by owners that
//! know where they end.
//!
//! # Not here
//! Which members an extent has, when it is sealed and at which length: the owner's (`log`). Bytes on disk: [`format`].
//! The network, and how many requests an owner may have open: the agent's, which thereby bounds every queue here.
//!
//! # Tests that hold it
//! `tests/serve/` goes through the requests, `tests/restart.rs` through crashes and damage one by one,
//! `tests/random.rs` drives random requests into a crash at every point that keeps any sectors of the commit in flight,
//! `tests/golden.rs` reads disks that earlier versions wrote. Each of these changes makes at least one fail (tried one
//! by one): answering at acceptance; keeping a fence in memory only, writing it to one of its places only, or answering
//! it before appends accepted earlier; comparing epochs with `<=`, or not at all; forgetting a lease; appending after a
//! restart or a fill; taking another frame for a resend; acknowledging beyond a seal; sealing at another length;
//! writing footer and sealed header in one commit; reading what is not durable; skipping a sum, on a read or in the
//! scan, or taking one header for another; not looking beyond the valid prefix, hiding what is found there, or
//! forgetting it at the first fill; answering `Never` beside a damaged slot; beginning a copy by a fill as if nothing
//! could be missing; using a slot under a reader, or freeing it without a write; using an incarnation twice; going on
//! after a failed commit; serving before the first.
//!
//! [`format`]: crate::format

mod commit;
mod copy;
mod disk;
mod fences;
mod gate;
mod port;
mod read;
mod recover;
mod replies;
mod router;
mod write;

pub use commit::Durable;
pub use disk::DiskCore;
pub use port::{
    DiskError, DiskErrorKind, DiskEvent, DiskNo, DiskOp, DiskReader, DiskWrite, MemberEffects, MemberEvent, ReqId,
};
pub use recover::{Expected, Findings, RecoverError, format_disk, inspect};
pub use replies::Replies;
pub use router::Member;

use crate::format::{Digest, Stream};
use crate::ids::{Blocks, Epoch, ExtentId};

/// A copy an agent holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Of which extent.
    pub extent: ExtentId,
    /// Which order its records belong to.
    pub stream: Stream,
    /// The epoch that made it.
    pub epoch: Epoch,
    /// Length and digest, when it is closed for ever.
    pub sealed: Option<(Blocks, Digest)>,
}

/// What a member has done since it started, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct MemberStats {
    pub appends: u64,
    pub append_blocks: u64,
    /// Appends answered as resends of one before.
    pub resends: u64,
    pub fills: u64,
    pub seals: u64,
    pub deletes: u64,
    pub commits: u64,
    /// Separate writes in these commits.
    pub commit_writes: u64,
    pub reads: u64,
    pub read_blocks: u64,
    /// Reads refused because blocks failed their checks or could not be read.
    pub reads_damaged: u64,
    /// Footer blocks that were not in memory.
    pub footer_reads: u64,
}

impl std::ops::AddAssign for MemberStats {
    fn add_assign(&mut self, other: MemberStats) {
        self.appends += other.appends;
        self.append_blocks += other.append_blocks;
        self.resends += other.resends;
        self.fills += other.fills;
        self.seals += other.seals;
        self.deletes += other.deletes;
        self.commits += other.commits;
        self.commit_writes += other.commit_writes;
        self.reads += other.reads;
        self.read_blocks += other.read_blocks;
        self.reads_damaged += other.reads_damaged;
        self.footer_reads += other.footer_reads;
    }
}

#[cfg(test)]
mod tests;
