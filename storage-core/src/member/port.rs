//! What an agent's half of an extent asks of its disks, and what it is told. Written by the side that asks; carried
//! out by `torus-store` on real disks and by `torus-sim` on disks that tear, lose and rot.
//!
//! Two operations are all there is while serving: [`DiskOp::Commit`], "write all of this, make it durable, then say
//! so", and [`DiskOp::Read`]. There is no write without a sync, so no caller can forget one; and there is one commit in
//! flight per disk, so no two writes race. Start-up reads synchronously, through [`DiskReader`], before anything is
//! served.
//!
//! Offsets and lengths are bytes from the start of the disk and multiples of [`BLOCK_SIZE`](crate::ids::BLOCK_SIZE);
//! each piece of a write is a whole number of blocks too, but need not be aligned in memory.
//!
//! **What a disk must keep to.** A 512-byte sector is written whole or not at all. Apart from that a crash may keep any
//! part of a commit that was not reported, in any order.

use super::replies::Replies;
use crate::format::Pieces;
use crate::peer::Request;
use bytes::Bytes;

/// Which of an agent's disks: its place in the list given to `Member::new`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct DiskNo(pub u16);

/// Names a request until its last answer. Drawn by the driver, unique while the request is open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ReqId(pub u64);

/// Bytes for one place of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskWrite {
    /// Bytes from the start of the disk.
    pub offset: u64,
    /// What to write, in order and without a gap.
    pub pieces: Pieces,
}

impl DiskWrite {
    /// Bytes it writes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Whether it writes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A wish of the member to one disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// Carry out all of `writes`, in any order (they do not overlap), then make durable everything this process *or an
    /// earlier one* has written to the disk, then report. So a device flush or `fdatasync` after the writes: per-write
    /// FUA alone would leave behind what a killed process had written. At most one is in flight per disk.
    /// → [`DiskEvent::Committed`].
    Commit {
        /// Comes back in the event.
        id: u64,
        /// What to write.
        writes: Vec<DiskWrite>,
    },
    /// Read exactly `len` bytes. Never touches what a commit in flight writes. → [`DiskEvent::Read`].
    Read {
        /// Comes back in the event.
        id: u64,
        /// Bytes from the start of the disk.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
}

/// A disk's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskEvent {
    /// All of the commit is durable, or it cannot be said what of it is. An error fails the disk for good: the
    /// operation is never repeated, because after a failed sync a kernel may call the next one a success without
    /// having written what the first one lost.
    Committed {
        /// The commit.
        id: u64,
        /// Whether it is durable.
        result: Result<(), DiskError>,
    },
    /// The bytes, or why there are none.
    Read {
        /// The read.
        id: u64,
        /// Exactly as many bytes as were asked for.
        result: Result<Bytes, DiskError>,
    },
}

/// What a disk error means for what comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskErrorKind {
    /// The device reports that it could not carry out this operation (`EIO`, `ENOSPC` of a file's filesystem, …).
    Io,
    /// The device is not there any more.
    Gone,
}

/// A disk operation that failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct DiskError {
    /// What kind of failure.
    pub kind: DiskErrorKind,
    /// The operation, the object and the system's word for it: `write /dev/sdb at 8192: Input/output error`.
    pub text: String,
}

/// A disk before it serves: for the scan at start-up, which runs on a thread that may block.
pub trait DiskReader {
    /// Bytes the disk has.
    fn size(&self) -> u64;

    /// Reads exactly `len` bytes at `offset`.
    ///
    /// # Errors
    /// When the device cannot, or the range ends beyond the disk.
    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, DiskError>;
}

/// What happens to a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberEvent {
    /// An owner asks.
    Request {
        /// Names the request in its answers.
        req: ReqId,
        /// What it asks.
        request: Request,
    },
    /// A disk answers.
    Disk {
        /// Which.
        disk: DiskNo,
        /// Its answer.
        event: DiskEvent,
    },
}

/// What a member wants done. A driver carries all of it out after each step and clears it, keeping the allocations.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberEffects {
    /// For the disks.
    pub ops: Vec<(DiskNo, DiskOp)>,
    /// For the owners, in order. Exactly one per request, after at most one
    /// [`Received`](crate::peer::Response::Received).
    pub replies: Replies,
    /// Disks that have just failed for good: tell a human.
    pub failed: Vec<(DiskNo, DiskError)>,
}

impl MemberEffects {
    /// Forgets everything, keeping the allocations.
    pub fn clear(&mut self) {
        self.ops.clear();
        self.replies.clear();
        self.failed.clear();
    }
}
