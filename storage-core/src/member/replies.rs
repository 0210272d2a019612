//! The answers of a member. One method per answer, so that each names what it takes to give it: those that claim
//! durability take a [`Durable`].

use super::commit::Durable;
use super::port::ReqId;
use crate::format::slot::SealName;
use crate::ids::{Blocks, Epoch, ExtentSeq};
use crate::peer::{Copy, FreeSpace, Rejection, Response};
use crate::time::Duration;
use bytes::Bytes;
use smallvec::SmallVec;

/// Answers in the order they were given. Read them like a slice, or [drain](Replies::drain) them; only the member adds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replies(Vec<(ReqId, Response)>);

impl std::ops::Deref for Replies {
    type Target = [(ReqId, Response)];
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Replies {
    type Item = &'a (ReqId, Response);
    type IntoIter = std::slice::Iter<'a, (ReqId, Response)>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// What a proof says of an extent that has no copy on a disk, and would have none after a crash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Absent;

impl Replies {
    /// Takes answers out, keeping the allocation.
    pub fn drain(&mut self, range: impl std::ops::RangeBounds<usize>) -> std::vec::Drain<'_, (ReqId, Response)> {
        self.0.drain(range)
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn refuse(&mut self, req: ReqId, why: Rejection) {
        self.0.push((req, Response::Rejected(why)));
    }

    pub(super) fn created(&mut self, req: ReqId) {
        self.0.push((req, Response::Created { free: FreeSpace::default() }));
    }

    pub(super) fn received(&mut self, req: ReqId, length: Blocks) {
        self.0.push((req, Response::Received { length }));
    }

    pub(super) fn leased(&mut self, req: ReqId) {
        self.0.push((req, Response::Leased));
    }

    pub(super) fn listed(&mut self, req: ReqId, extents: Vec<ExtentSeq>, end: bool, hidden: bool) {
        self.0.push((req, Response::Listed { extents, end, hidden }));
    }

    pub(super) fn data(&mut self, req: ReqId, crcs: SmallVec<[u32; 8]>, bytes: Bytes) {
        self.0.push((req, Response::Data { crcs, bytes }));
    }

    pub(super) fn frames(&mut self, req: ReqId, headers: Vec<Bytes>, end: bool) {
        self.0.push((req, Response::Frames { headers, end }));
    }

    pub(super) fn appended(&mut self, req: ReqId, length: Durable<Blocks>) {
        self.0.push((req, Response::Appended { length: *length.get() }));
    }

    pub(super) fn sealed(&mut self, req: ReqId, seal: &Durable<SealName>) {
        let SealName { length, digest, .. } = *seal.get();
        self.0.push((req, Response::Sealed { length, digest }));
    }

    pub(super) fn deleted(&mut self, req: ReqId, _gone: Durable<Absent>) {
        self.0.push((req, Response::Deleted { free: FreeSpace::default() }));
    }

    pub(super) fn fenced(
        &mut self,
        req: ReqId,
        _stands: Durable<Epoch>,
        lease: Duration,
        extents: Vec<(ExtentSeq, Copy)>,
    ) {
        self.0.push((req, Response::Fenced { lease, extents }));
    }

    /// Disks do not know of each other: puts the whole agent's space into the answers from `first` on.
    pub(super) fn fill_in_space(&mut self, first: usize, space: FreeSpace) {
        for (_, response) in &mut self.0[first..] {
            match response {
                Response::Created { free }
                | Response::Deleted { free }
                | Response::Rejected(Rejection::NoSpace { free }) => *free = space,
                _ => {}
            }
        }
    }
}
