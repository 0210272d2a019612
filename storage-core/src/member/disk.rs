//! One disk of an agent: its slots, what is in flight, and what follows when a commit lands or the disk fails.
//!
//! The requests are handled in `write` and `read`; the state they leave behind is here.

use super::commit::{Commits, Durable, Landed, Ticket};
use super::copy::{OpenCopy, Sealing};
use super::fences::FenceTable;
use super::port::{DiskError, DiskEvent, DiskNo, DiskOp, DiskWrite, MemberEffects, ReqId};
use super::read::Reads;
use super::recover::Findings;
use super::replies::Absent;
use super::{Held, MemberStats};
use crate::format::disk::{DiskIds, Geometry};
use crate::format::slot::{SealName, SlotCopy, SlotHeader, SlotState};
use crate::ids::{Blocks, Epoch, ExtentId, Incarnation, VolumeId};
use crate::limits::reserve_slots;
use crate::mutation::{Mutation, active};
use crate::peer::{Copy, FreeSpace, Rejection};
use std::collections::{BTreeMap, VecDeque};

/// A slot as the agent sees it.
#[derive(Debug)]
pub(super) struct Slot {
    /// Of its newest header on disk, or on its way there.
    pub generation: u64,
    /// Reads in flight. A slot is not used again before they are done.
    pub readers: u32,
    pub content: Content,
}

/// What a slot holds.
#[derive(Debug)]
pub(super) enum Content {
    Free,
    /// A copy that may grow.
    Open(Box<OpenCopy>),
    /// A seal that recovery found; the first commit of the run makes sure that it stays.
    Found(SlotCopy, SealName),
    /// A copy closed for ever.
    Sealed(SlotCopy, Durable<SealName>),
    /// Its header is being overwritten with a free one; these wait for that.
    Leaving(ExtentId, Vec<ReqId>),
    /// It cannot be told what it holds. Never used again.
    Damaged,
}

/// One disk of an agent. Made by [`DiskCore::recover`], driven by [`Member`](super::Member).
#[derive(Debug)]
pub struct DiskCore {
    pub(super) no: DiskNo,
    pub(super) ids: DiskIds,
    pub(super) geometry: Geometry,
    pub(super) incarnation: Incarnation,
    pub(super) findings: Findings,
    pub(super) slots: Vec<Slot>,
    /// Where each extent lies, those that are leaving included.
    pub(super) extents: BTreeMap<ExtentId, u32>,
    /// Copies that a fill began in this run: by which epoch, and which of its copies. A deletion that was sent before cannot
    /// outlive the run, as its connection does not.
    pub(super) filled: BTreeMap<ExtentId, (Epoch, u64)>,
    pub(super) free: VecDeque<u32>,
    pub(super) damaged_slots: u32,
    pub(super) fences: FenceTable,
    pub(super) commits: Commits,
    pub(super) reads: Reads,
    pub(super) failed: Option<DiskError>,
    /// Fences that need not wait for this disk any more; without proof when it has failed.
    pub(super) settled: Vec<(Ticket, Option<Durable<Epoch>>)>,
    pub(super) stats: MemberStats,
}

impl DiskCore {
    /// Whose disk it is.
    #[must_use]
    pub fn ids(&self) -> DiskIds {
        self.ids
    }

    /// The run that is about to serve, or serves, from it. An agent that finds another run of the same or a higher
    /// number for this disk id in the metadata store has a cloned disk, or one restored from a copy.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// How it is laid out.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What recovery found: for the log, and for a human when something is damaged.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Why it has failed, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<&DiskError> {
        self.failed.as_ref()
    }

    /// Its slots.
    #[must_use]
    pub fn free_space(&self) -> FreeSpace {
        FreeSpace { free: self.free.len() as u32, total: self.geometry.slots() - self.damaged_slots }
    }

    /// What it holds, in the order of extents.
    pub fn held(&self) -> impl Iterator<Item = Held> + '_ {
        self.extents.iter().filter_map(|(extent, slot)| {
            let (name, sealed) = match &self.slots[*slot as usize].content {
                Content::Open(copy) => (copy.name, None),
                Content::Found(name, seal) => (*name, Some(*seal)),
                Content::Sealed(name, seal) => (*name, Some(*seal.get())),
                Content::Free | Content::Leaving(..) | Content::Damaged => return None,
            };
            let sealed = sealed.map(|seal| (seal.length, seal.digest));
            Some(Held { extent: *extent, stream: name.stream, epoch: name.epoch, sealed })
        })
    }

    /// Whether nothing of it is lost: what it does not hold, it never held.
    pub(super) fn is_whole(&self) -> bool {
        self.failed.is_none() && self.damaged_slots == 0
    }

    /// Whether its start is recorded, or never will be.
    pub(super) fn is_started(&self) -> bool {
        self.failed.is_some() || self.commits.landed().is_some()
    }

    /// What a new owner is told of `extent`; `None` when it is not here.
    pub(super) fn report(&self, extent: ExtentId) -> Option<Copy> {
        let slot = self.extents.get(&extent)?;
        Some(match &self.slots[*slot as usize].content {
            _ if self.failed.is_some() => Copy::Unknown,
            Content::Open(copy) => copy.report(),
            Content::Sealed(_, seal) => Copy::Sealed { length: seal.get().length, digest: seal.get().digest },
            Content::Found(..) | Content::Leaving(..) | Content::Free | Content::Damaged => Copy::Unknown,
        })
    }

    /// How good its copy of `extent` is, to compare with other disks' copies of the same one.
    pub(super) fn rank(&self, extent: ExtentId) -> (bool, Blocks) {
        match self.extents.get(&extent).map(|slot| &self.slots[*slot as usize].content) {
            Some(Content::Found(_, seal)) => (true, seal.length),
            Some(Content::Open(copy)) => (false, copy.length()),
            _ => (false, 0),
        }
    }

    /// Gives up a copy of which another disk has a better one.
    pub(super) fn disown(&mut self, extent: ExtentId) {
        if let Some(slot) = self.extents.remove(&extent) {
            self.slots[slot as usize].content = Content::Damaged;
            self.damaged_slots += 1;
        }
    }

    /// Slots that only the reserve class may take.
    pub(super) fn reserve(&self) -> usize {
        reserve_slots(self.geometry.slots()) as usize
    }

    /// Makes the fence durable; [`DiskCore::settled`] tells when.
    pub(super) fn fence(&mut self, volume: VolumeId, epoch: Epoch, ticket: Ticket) {
        if self.failed.is_some() {
            self.settled.push((ticket, None));
            return;
        }
        if let Some(block) = self.fences.raise(volume, epoch)
            && !active(Mutation::FenceNotPersisted)
        {
            self.commits.pending().fence_blocks.insert(block);
        }
        if let Some(landed) = self.commits.wait(ticket, epoch) {
            self.settled.push((ticket, Some(landed.proves(epoch))));
        }
    }

    /// The rejection of everything that needs the disk to work.
    pub(super) fn check_works(&self) -> Result<(), Rejection> {
        match &self.failed {
            Some(error) => Err(Rejection::DiskFailed(error.text.clone())),
            None => Ok(()),
        }
    }

    /// The disk answers.
    pub(super) fn on_disk(&mut self, event: DiskEvent, out: &mut MemberEffects) {
        match event {
            DiskEvent::Committed { id, result } => match self.commits.report(id, result) {
                Ok((landed, batch)) => self.land(landed, batch, out),
                Err(abandoned) => self.fail(abandoned.error, abandoned.fences, out),
            },
            DiskEvent::Read { id, result } => self.on_read(id, result, out),
        }
    }

    /// Sends what is pending, if nothing is in flight.
    pub(super) fn flush(&mut self, out: &mut MemberEffects) {
        if self.failed.is_some() {
            return;
        }
        let Some((id, batch)) = self.commits.begin() else { return };
        let mut writes = Vec::with_capacity(2 + batch.headers.len() + batch.reaches.len() + batch.footers.len());
        let mut write = |offset, bytes| writes.push(DiskWrite { offset, pieces: smallvec::smallvec![bytes] });
        if let Some(superblock) = &batch.superblock {
            write(Geometry::superblock_at(superblock.generation), superblock.encode());
        }
        for index in &batch.fence_blocks {
            let block = self.fences.block(*index);
            write(Geometry::fence_at(0, *index), block.clone());
            write(Geometry::fence_at(1, *index), block);
        }
        for (number, state) in &batch.headers {
            let slot = &mut self.slots[*number as usize];
            let twins: &[bool] = if matches!(state, SlotState::Open(_)) { &[false, true] } else { &[false] };
            for &twin in twins {
                slot.generation += 1;
                let header = SlotHeader { generation: slot.generation, twin, state: *state };
                write(self.geometry.header_at(*number, slot.generation), header.encode(self.ids.disk, *number));
            }
        }
        for (slot, blocks) in &mut batch.footers {
            let pieces = std::mem::take(blocks).into();
            writes.push(DiskWrite { offset: self.geometry.footer_at(*slot, 0), pieces });
        }
        // Frames of one extent follow each other: one write for each run of them.
        let mut runs: BTreeMap<u32, (usize, Blocks)> = BTreeMap::new();
        for frame in batch.frames.drain(..) {
            let blocks =
                1 + (frame.payload.iter().map(bytes::Bytes::len).sum::<usize>() / crate::ids::BLOCK_SIZE) as u32;
            let run = match runs.get(&frame.slot) {
                Some((index, end)) if *end == frame.offset => *index,
                _ => {
                    let offset = self.geometry.data_at(frame.slot, frame.offset);
                    writes.push(DiskWrite { offset, pieces: smallvec::SmallVec::new() });
                    writes.len() - 1
                }
            };
            writes[run].pieces.push(frame.header);
            writes[run].pieces.extend(frame.payload);
            runs.insert(frame.slot, (run, frame.offset + blocks));
        }
        self.stats.commits += 1;
        self.stats.commit_writes += writes.len() as u64;
        out.ops.push((self.no, DiskOp::Commit { id, writes }));
    }

    /// Everything in `batch` is durable.
    fn land(&mut self, landed: Landed, batch: super::commit::Batch, out: &mut MemberEffects) {
        if batch.superblock.is_some() {
            for slot in &mut self.slots {
                if let Content::Found(name, seal) = slot.content {
                    slot.content = Content::Sealed(name, landed.proves(seal));
                }
            }
        }
        for (slot, reach) in batch.reaches {
            let Content::Open(copy) = &mut self.slots[slot as usize].content else { continue };
            copy.durable = landed.proves(reach);
            copy.appends.retain(|(end, req)| {
                let done = *end <= reach.length;
                if done {
                    out.replies.appended(*req, copy.durable.prefix(*end));
                }
                !done
            });
            let mut ready = Vec::new();
            copy.reads.retain(|(end, ask)| {
                let done = *end <= reach.length;
                if done {
                    ready.push(*ask);
                }
                !done
            });
            ready.into_iter().for_each(|ask| self.read(ask, out));
        }
        for (slot, _) in batch.footers {
            if let Content::Open(copy) = &self.slots[slot as usize].content
                && let Some(Sealing { name, .. }) = &copy.sealing
            {
                let sealed = SlotState::Sealed(copy.name, name.length, name.digest);
                self.commits.pending().headers.insert(slot, sealed);
            }
        }
        for (number, state) in batch.headers {
            match state {
                SlotState::Free => self.freed(number, landed, out),
                SlotState::Sealed(..) => self.sealed(number, landed, out),
                SlotState::Open(_) => {}
            }
        }
        for (ticket, epoch) in batch.fences {
            self.settled.push((ticket, Some(landed.proves(epoch))));
        }
    }

    fn freed(&mut self, number: u32, landed: Landed, out: &mut MemberEffects) {
        let slot = &mut self.slots[number as usize];
        if let Content::Leaving(extent, waiters) = &mut slot.content {
            let extent = *extent;
            waiters.drain(..).for_each(|req| out.replies.deleted(req, landed.proves(Absent)));
            slot.content = Content::Free;
            self.forget(extent);
            self.give_back(number);
        }
    }

    /// Its copy of `extent` is gone.
    pub(super) fn forget(&mut self, extent: ExtentId) {
        self.extents.remove(&extent);
        self.filled.remove(&extent);
    }

    /// Puts a slot that holds nothing back among the free ones, once nobody reads it any more.
    pub(super) fn give_back(&mut self, number: u32) {
        let slot = &self.slots[number as usize];
        if matches!(slot.content, Content::Free) && slot.readers == 0 {
            self.free.push_back(number);
        }
    }

    fn sealed(&mut self, number: u32, landed: Landed, out: &mut MemberEffects) {
        let content = &mut self.slots[number as usize].content;
        if let Content::Open(copy) = content
            && let Some(Sealing { name, waiters }) = copy.sealing.take()
        {
            assert!(copy.appends.is_empty(), "appends wait for {name:?}, which is sealed");
            let seal = landed.proves(name);
            waiters.into_iter().for_each(|req| out.replies.sealed(req, &seal));
            *content = Content::Sealed(copy.name, seal);
        }
    }

    /// A commit failed. What it carried may be durable or not, and nobody will ever know: the disk takes nothing more.
    fn fail(&mut self, error: DiskError, fences: Vec<(Ticket, Epoch)>, out: &mut MemberEffects) {
        let why = Rejection::DiskFailed(error.text.clone());
        for slot in &mut self.slots {
            match &mut slot.content {
                Content::Open(copy) => {
                    let sealing = copy.sealing.as_mut().map(|sealing| std::mem::take(&mut sealing.waiters));
                    let appends = std::mem::take(&mut copy.appends).into_iter().map(|(_, req)| req);
                    let reads = std::mem::take(&mut copy.reads).into_iter().map(|(_, ask)| ask.req);
                    let waiters = appends.chain(reads).chain(sealing.into_iter().flatten());
                    waiters.for_each(|req| out.replies.refuse(req, why.clone()));
                }
                Content::Leaving(_, waiters) => {
                    waiters.drain(..).for_each(|req| out.replies.refuse(req, why.clone()));
                }
                Content::Free | Content::Found(..) | Content::Sealed(..) | Content::Damaged => {}
            }
        }
        self.settled.extend(fences.into_iter().map(|(ticket, _)| (ticket, None)));
        self.failed = Some(error.clone());
        out.failed.push((self.no, error));
    }
}
