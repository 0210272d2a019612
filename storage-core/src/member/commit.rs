//! The group commit, and the only mint of proofs that something is durable.
//!
//! At most one commit of a disk is in flight. What is accepted meanwhile gathers in the next [`Batch`], which goes out
//! whole when the one before it is done: under load one sync carries what many owners asked for, and an idle disk
//! waits for nobody.
//!
//! An acknowledgement needs a [`Durable`], a `Durable` comes from a [`Landed`], and a `Landed` is made in one place:
//! where a disk reports that a commit succeeded. Both fields are private to this file, so that acknowledging what no
//! commit has covered does not compile, here or anywhere else:
//!
//! ```compile_fail
//! use torus_core::member::Durable;
//! let wishful = Durable(7_u32); // error: the field is private
//! ```
//!
//! ```compile_fail
//! use torus_core::member::{MemberEffects, ReqId};
//! use torus_core::peer::Response;
//! let mut out = MemberEffects::default();
//! out.replies.push((ReqId(1), Response::Appended { length: 7 })); // error: no such method
//! ```

use super::port::DiskError;
use crate::format::Pieces;
use crate::format::disk::Superblock;
use crate::format::slot::SlotState;
use crate::ids::{Blocks, Epoch, Vseq};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A commit succeeded. Made by [`Commits::report`] alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landed(());

/// A value that describes what is on stable storage. Only a successful commit makes one: see
/// the `commit` module of `member`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Durable<T>(T);

impl Landed {
    /// Says that `value` describes what the commit, or one before it, has made durable.
    pub(super) fn proves<T>(self, value: T) -> Durable<T> {
        Durable(value)
    }
}

impl<T> Durable<T> {
    /// The value.
    pub fn get(&self) -> &T {
        &self.0
    }
}

/// How far a copy reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Reach {
    /// Blocks.
    pub length: Blocks,
    /// The highest LAC in its frames.
    pub lac: Vseq,
}

impl Durable<Reach> {
    /// No blocks at all are always durable.
    pub(super) const NOTHING: Self = Durable(Reach { length: 0, lac: Vseq(0) });

    /// A prefix of what is durable is durable.
    ///
    /// # Panics
    /// When `length` is no prefix.
    pub(super) fn prefix(&self, length: Blocks) -> Durable<Blocks> {
        assert!(length <= self.0.length, "a prefix of {length} blocks of {} durable ones", self.0.length);
        Durable(length)
    }
}

/// A frame on its way to the disk.
#[derive(Debug)]
pub(super) struct FrameWrite {
    pub slot: u32,
    pub offset: Blocks,
    pub header: Bytes,
    pub payload: Pieces,
}

/// What one commit writes, and what it will have proved.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In the order they were accepted.
    pub frames: Vec<FrameWrite>,
    /// Footers, each from its first block on.
    pub footers: Vec<(u32, Vec<Bytes>)>,
    /// The last word on each slot: two headers of a slot that differ never go into one commit, or a crash could keep the
    /// second and lose the first.
    pub headers: BTreeMap<u32, SlotState>,
    /// Blocks of the fence table.
    pub fence_blocks: BTreeSet<usize>,
    /// Only the first commit of a run has one.
    pub superblock: Option<Superblock>,
    /// How far copies will reach when it is done.
    pub reaches: BTreeMap<u32, Reach>,
    /// Fences that wait for it.
    pub fences: Vec<(Ticket, Epoch)>,
}

/// Names a fence that waits for a disk.
pub(super) type Ticket = u64;

impl Batch {
    fn is_empty(&self) -> bool {
        self.frames.is_empty()
            && self.footers.is_empty()
            && self.headers.is_empty()
            && self.fence_blocks.is_empty()
            && self.superblock.is_none()
    }
}

/// The commits of one disk.
#[derive(Debug, Default)]
pub(super) struct Commits {
    next: u64,
    pending: Batch,
    in_flight: Option<(u64, Batch)>,
    last: Option<Landed>,
}

impl Commits {
    /// What the next commit will carry.
    pub fn pending(&mut self) -> &mut Batch {
        &mut self.pending
    }

    /// The proof from the last commit that succeeded; `None` before the first.
    pub fn landed(&self) -> Option<Landed> {
        self.last
    }

    /// Makes `ticket` wait for everything accepted so far; `Some` when there is nothing to wait for.
    pub fn wait(&mut self, ticket: Ticket, epoch: Epoch) -> Option<Landed> {
        if !self.pending.is_empty() {
            self.pending.fences.push((ticket, epoch));
            return None;
        }
        match &mut self.in_flight {
            Some((_, batch)) => batch.fences.push((ticket, epoch)),
            None => return Some(self.last.expect("a disk serves only after its first commit")),
        }
        None
    }

    /// Sends the pending batch off, when there is one and nothing is in flight: its number and its content.
    pub fn begin(&mut self) -> Option<(u64, &mut Batch)> {
        if self.in_flight.is_some() || self.pending.is_empty() {
            return None;
        }
        self.next += 1;
        let (id, batch) = self.in_flight.insert((self.next, std::mem::take(&mut self.pending)));
        Some((*id, batch))
    }

    /// The disk's word on commit `id`. An error ends the disk: nothing more is sent, and the fences that waited for
    /// this batch or the next are handed back.
    ///
    /// # Panics
    /// When that commit is not in flight: the driver's defect.
    pub fn report(&mut self, id: u64, result: Result<(), DiskError>) -> Result<(Landed, Batch), Abandoned> {
        let (expected, mut batch) = self.in_flight.take().expect("a report without a commit in flight");
        assert_eq!(id, expected, "a report of another commit than the one in flight");
        match result {
            Ok(()) => {
                let landed = Landed(());
                self.last = Some(landed);
                Ok((landed, batch))
            }
            Err(error) => {
                batch.fences.append(&mut std::mem::take(&mut self.pending).fences);
                Err(Abandoned { error, fences: batch.fences })
            }
        }
    }
}

/// What a failed commit leaves behind.
#[derive(Debug)]
pub(super) struct Abandoned {
    pub error: DiskError,
    pub fences: Vec<(Ticket, Epoch)>,
}
