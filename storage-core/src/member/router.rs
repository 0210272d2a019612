//! A whole agent: its disks behind one gate.
//!
//! An extent lies on one disk; a new one goes to the disk with most room. A fence is for the agent: it is answered when
//! every disk that works has it durable, and it counts for all of them from the moment it is received.

use super::commit::{Durable, Ticket};
use super::disk::DiskCore;
use super::gate::Gate;
use super::port::{DiskNo, MemberEffects, MemberEvent, ReqId};
use super::write::{Append, Fill};
use super::{Held, MemberStats};
use crate::ids::{Epoch, ExtentId, ExtentSeq, VolumeId};
use crate::limits::{FENCED_VOLUMES_MAX, HELD_AT_START_MAX, LIST_EXTENTS_MAX};
use crate::peer::{Copy, FreeSpace, Rejection, Request};
use crate::time::Instant;
use std::collections::BTreeMap;

/// A fence that waits for disks.
#[derive(Debug)]
struct Fencing {
    req: ReqId,
    volume: VolumeId,
    epoch: Epoch,
    extents: Vec<ExtentSeq>,
    waiting: usize,
    proof: Option<Durable<Epoch>>,
}

/// An agent's half of all extents on its disks. Drive it with [`Member::step`]: pass every event, carry out every
/// effect.
#[derive(Debug)]
pub struct Member {
    disks: Vec<DiskCore>,
    missing: usize,
    gate: Gate,
    /// Requests that came before the disks had recorded the start.
    held: Vec<(ReqId, Request)>,
    fencing: BTreeMap<Ticket, Fencing>,
    next_ticket: Ticket,
}

impl Member {
    /// The agent with these disks, in the order of their [`DiskNo`]. `missing` disks are known to belong to it and are
    /// not there: while there are any, it cannot say that it never held an extent. In `out` come the commits that
    /// record the start; nothing is answered before they are done. `now` must not be earlier than the end of the run
    /// before: leases that it granted are waited out from here.
    ///
    /// # Panics
    /// With more than 65 536 disks.
    #[must_use]
    pub fn new(mut disks: Vec<DiskCore>, missing: usize, now: Instant, out: &mut MemberEffects) -> Member {
        let mut best: BTreeMap<ExtentId, usize> = BTreeMap::new();
        for index in 0..disks.len() {
            let extents: Vec<ExtentId> = disks[index].extents.keys().copied().collect();
            for extent in extents {
                let Some(other) = best.insert(extent, index) else { continue };
                let worse = if disks[other].rank(extent) < disks[index].rank(extent) { other } else { index };
                disks[worse].disown(extent);
                best.insert(extent, other + index - worse);
            }
        }
        let fences: Vec<_> = disks.iter().flat_map(|disk| disk.fences.iter()).collect();
        for (no, disk) in disks.iter_mut().enumerate() {
            disk.no = DiskNo(u16::try_from(no).expect("an agent has fewer than 65 536 disks"));
            disk.flush(out);
        }
        let gate = Gate::new(now, fences.into_iter());
        Member { disks, missing, gate, held: Vec::new(), fencing: BTreeMap::new(), next_ticket: 0 }
    }

    /// Whether the start is recorded on all disks that work, so that requests are answered.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.disks.iter().all(DiskCore::is_started)
    }

    /// Slots of all disks that work.
    #[must_use]
    pub fn free_space(&self) -> FreeSpace {
        self.disks.iter().filter(|disk| disk.failed.is_none()).map(DiskCore::free_space).sum()
    }

    /// Its disks, by number.
    #[must_use]
    pub fn disks(&self) -> &[DiskCore] {
        &self.disks
    }

    /// What it holds on all disks.
    pub fn held(&self) -> impl Iterator<Item = Held> + '_ {
        self.disks.iter().flat_map(DiskCore::held)
    }

    /// The newest epoch of each volume that it is fenced for, or that has asked for something since the start. One above its
    /// volume's epoch in the metadata store shows that the store is older than this agent: it was restored from a backup.
    pub fn fences(&self) -> impl Iterator<Item = (VolumeId, Epoch)> + '_ {
        self.gate.newest()
    }

    /// Counts of all disks together.
    #[must_use]
    pub fn stats(&self) -> MemberStats {
        let mut sum = MemberStats::default();
        self.disks.iter().for_each(|disk| sum += disk.stats);
        sum
    }

    /// One event in, its effects out.
    ///
    /// # Panics
    /// On an event for a disk that is not there, or an answer to an operation that was not asked for.
    pub fn step(&mut self, now: Instant, event: MemberEvent, out: &mut MemberEffects) {
        self.step_all(now, [event], out);
    }

    /// Several events that came at the same time, in order. What they write shares one commit per disk, where
    /// [`Member::step`] would begin one with the first of them and have the others wait for it.
    ///
    /// # Panics
    /// As [`Member::step`].
    pub fn step_all(&mut self, now: Instant, events: impl IntoIterator<Item = MemberEvent>, out: &mut MemberEffects) {
        let first = out.replies.len();
        for event in events {
            self.take(now, event, out);
        }
        self.disks.iter_mut().for_each(|disk| disk.flush(out));
        if !self.fencing.is_empty() {
            self.settle(now, out);
        }
        let space = self.free_space();
        out.replies.fill_in_space(first, space);
    }

    fn take(&mut self, now: Instant, event: MemberEvent, out: &mut MemberEffects) {
        match event {
            MemberEvent::Request { req, request } if !self.is_started() => match self.held.len() {
                0..HELD_AT_START_MAX => self.held.push((req, request)),
                _ => out.replies.refuse(req, Rejection::DiskFailed("the agent is starting: try again".into())),
            },
            MemberEvent::Request { req, request } => self.request(now, req, request, out),
            MemberEvent::Disk { disk, event } => {
                self.disks[usize::from(disk.0)].on_disk(event, out);
                if !self.held.is_empty() && self.is_started() {
                    for (req, request) in std::mem::take(&mut self.held) {
                        self.request(now, req, request, out);
                    }
                }
            }
        }
    }

    fn request(&mut self, now: Instant, req: ReqId, request: Request, out: &mut MemberEffects) {
        let (volume, epoch) = asker(&request);
        if let Err(why) = self.gate.admit(volume, epoch) {
            return out.replies.refuse(req, why);
        }
        let (extent, request) = match request {
            Request::Lease { .. } => {
                self.gate.grant(volume, epoch, now);
                return out.replies.leased(req);
            }
            Request::Fence { extents, .. } => return self.fence(req, volume, epoch, extents, out),
            Request::List { from, .. } => return self.list(req, volume, from, out),
            Request::Create { extent, .. }
            | Request::Append { extent, .. }
            | Request::Read { extent, .. }
            | Request::Frames { extent, .. }
            | Request::Fill { extent, .. }
            | Request::Seal { extent, .. }
            | Request::Delete { extent, .. } => (extent, request),
        };
        if matches!(request, Request::Append { .. }) {
            self.gate.grant(volume, epoch, now);
        }
        let is_whole = self.is_whole();
        let disk = match self.route(extent, &request) {
            Ok(disk) => disk,
            Err(why) => return out.replies.refuse(req, why),
        };
        match request {
            Request::Create { stream, class, .. } => disk.create(req, (extent, epoch, stream), class, out),
            Request::Append { offset, frame, early, .. } => {
                disk.append(req, Append { extent, epoch, offset, frame, early }, out);
            }
            Request::Read { offset, blocks, .. } => disk.read_blocks(req, extent, offset, blocks, out),
            Request::Frames { from, .. } => disk.frames(req, extent, from, out),
            Request::Fill { stream, copy, offset, bytes, .. } => {
                disk.fill(req, Fill { extent, epoch, stream, copy, offset, bytes, partial: !is_whole }, out);
            }
            Request::Seal { length, .. } => disk.seal(req, extent, length, out),
            Request::Delete { copy, .. } => disk.delete(req, extent, (epoch, copy), out),
            Request::Fence { .. } | Request::Lease { .. } | Request::List { .. } => unreachable!("answered above"),
        }
    }

    /// Whether what it does not hold, it never held.
    fn is_whole(&self) -> bool {
        self.missing == 0 && self.disks.iter().all(DiskCore::is_whole)
    }

    /// The disk that holds `extent`, or that a new copy goes to.
    fn route(&mut self, extent: ExtentId, request: &Request) -> Result<&mut DiskCore, Rejection> {
        if let Some(index) = self.disks.iter().position(|disk| disk.extents.contains_key(&extent)) {
            return Ok(&mut self.disks[index]);
        }
        let failure = self.disks.iter().find_map(|disk| disk.failed.as_ref()).map(|error| error.text.clone());
        match request {
            Request::Create { .. } | Request::Fill { .. } => {}
            // A disk that is not to be seen may hold it still.
            Request::Delete { .. } => match (failure, self.missing) {
                (Some(text), _) => return Err(Rejection::DiskFailed(text)),
                (None, 0) => {}
                (None, missing) => {
                    return Err(Rejection::DiskFailed(format!("{missing} disks of the agent are missing")));
                }
            },
            _ => return Err(Rejection::NoSuchExtent),
        }
        let working = self.disks.iter_mut().filter(|disk| disk.failed.is_none());
        let roomiest = working.max_by_key(|disk| (disk.free.len(), std::cmp::Reverse(disk.no)));
        roomiest.ok_or_else(|| Rejection::DiskFailed("no disk of the agent works".into()))
    }

    fn fence(&mut self, req: ReqId, volume: VolumeId, epoch: Epoch, extents: Vec<ExtentSeq>, out: &mut MemberEffects) {
        if self.disks.iter().all(|disk| disk.failed.is_some()) {
            return out.replies.refuse(req, Rejection::DiskFailed("no disk of the agent works".into()));
        }
        if self.disks.iter().any(|disk| disk.failed.is_none() && !disk.fences.has_room(volume)) {
            return out.replies.refuse(req, Rejection::TooManyVolumes(FENCED_VOLUMES_MAX));
        }
        self.gate.raise(volume, epoch);
        self.next_ticket += 1;
        let waiting = self.disks.len();
        self.fencing.insert(self.next_ticket, Fencing { req, volume, epoch, extents, waiting, proof: None });
        for disk in &mut self.disks {
            disk.fence(volume, epoch, self.next_ticket);
        }
    }

    /// Names what there is of a volume, copies that are on their way out included.
    fn list(&self, req: ReqId, volume: VolumeId, from: ExtentSeq, out: &mut MemberEffects) {
        let range = ExtentId { volume, seq: from }..=ExtentId { volume, seq: ExtentSeq(u64::MAX) };
        let mut extents: Vec<ExtentSeq> = self
            .disks
            .iter()
            .flat_map(|disk| disk.extents.range(range.clone()))
            .map(|(extent, _)| extent.seq)
            .collect();
        extents.sort_unstable();
        let end = extents.len() <= LIST_EXTENTS_MAX;
        extents.truncate(LIST_EXTENTS_MAX);
        out.replies.listed(req, extents, end, !self.is_whole());
    }

    /// Answers the fences that no disk holds up any more.
    fn settle(&mut self, now: Instant, out: &mut MemberEffects) {
        let settled: Vec<_> = self.disks.iter_mut().flat_map(|disk| disk.settled.drain(..)).collect();
        for (ticket, proof) in settled {
            let fencing = self.fencing.get_mut(&ticket).expect("a disk settles only fences that wait for it");
            fencing.proof = fencing.proof.or(proof);
            fencing.waiting -= 1;
            if fencing.waiting == 0
                && let Some(done) = self.fencing.remove(&ticket)
            {
                self.answer_fence(done, now, out);
            }
        }
    }

    fn answer_fence(&self, fencing: Fencing, now: Instant, out: &mut MemberEffects) {
        let Fencing { req, volume, epoch, extents, proof, .. } = fencing;
        let Some(proof) = proof else {
            return out.replies.refuse(req, Rejection::DiskFailed("no disk of the agent works".into()));
        };
        let is_whole = self.is_whole();
        let copy = |seq: ExtentSeq| {
            let held = self.disks.iter().find_map(|disk| disk.report(ExtentId { volume, seq }));
            held.unwrap_or(if is_whole { Copy::Never } else { Copy::Unknown })
        };
        let copies = extents.into_iter().map(|seq| (seq, copy(seq))).collect();
        out.replies.fenced(req, proof, self.gate.lease_left(volume, epoch, now), copies);
    }
}

/// On whose behalf a request comes.
fn asker(request: &Request) -> (VolumeId, Epoch) {
    match request {
        Request::Create { extent, epoch, .. }
        | Request::Append { extent, epoch, .. }
        | Request::Read { extent, epoch, .. }
        | Request::Frames { extent, epoch, .. }
        | Request::Fill { extent, epoch, .. }
        | Request::Seal { extent, epoch, .. }
        | Request::Delete { extent, epoch, .. } => (extent.volume, *epoch),
        Request::Fence { volume, epoch, .. }
        | Request::Lease { volume, epoch }
        | Request::List { volume, epoch, .. } => (*volume, *epoch),
    }
}
