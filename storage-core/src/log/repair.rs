//! Bringing copies of sealed extents back to the number asked for.
//!
//! A copy needs work when its member has not confirmed it (it was away at the seal, it restarted, its bytes are damaged),
//! or when its member has been away for longer than the grace time. The owner first asks the member to seal what it has;
//! if that does not do, it reads the extent from a sound copy and fills the member's. A member that stays away is
//! replaced: a new one is filled, sealed, its digest compared, and only then does it enter the ensemble, by transaction.
//! Nothing is taken from an ensemble before its replacement is proven.

use super::room::Use;
use super::table::{Entry, Holder};
use super::{Call, Effects, Log, LogConfig, LogTxn, Note};
use crate::format::{Digest, Pieces, Stream};
use crate::ids::{AgentId, Blocks, ExtentId, ExtentSeq};
use crate::limits::{CHECKPOINT_SLOTS, PEER_WAIT, READ_BLOCKS_MAX, REPAIRS_MAX, SLOW_RETRY_PAUSE};
use crate::meta::docs::encode;
use crate::meta::{Revision, Write, keys};
use crate::peer::{Class, Rejection, Request, Response, Unanswered};
use crate::ring::Ring;
use crate::time::{Duration, Instant};

/// One copy in the making.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) seq: ExtentSeq,
    source: AgentId,
    target: AgentId,
    /// The member whose place the target takes.
    instead_of: Option<AgentId>,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The target is asked to close what it has.
    Seal,
    /// The next piece is read from the source.
    Read { at: Blocks },
    /// Bytes are on their way to the target.
    Fill { at: Blocks, blocks: Blocks },
    /// The target is asked to close the copy that was filled.
    Close,
    /// The new ensemble is being written.
    Members { digest: Digest },
}

const SCAN_PAUSE: Duration = Duration::from_millis(500);

impl Log {
    /// Starts what repair is due and possible.
    pub(super) fn repair(&mut self, now: Instant, out: &mut Effects) {
        if self.closing {
            return;
        }
        self.find_deserted(now);
        while self.jobs.len() < REPAIRS_MAX {
            let busy = |seq: &ExtentSeq| self.jobs.values().any(|j| j.seq == *seq);
            let Some(seq) = self.unsynced.iter().find(|(seq, at)| **at <= now && !busy(seq)).map(|(&seq, _)| seq)
            else {
                return;
            };
            self.unsynced.insert(seq, now + SLOW_RETRY_PAUSE);
            if let Some(job) = self.plan(now, seq) {
                self.jobs_drawn += 1;
                self.jobs.insert(self.jobs_drawn, job);
                self.advance(now, self.jobs_drawn, out);
            }
        }
    }

    /// Notes the extents with a member that has been away for longer than the grace time.
    fn find_deserted(&mut self, now: Instant) {
        if now < self.scan_after {
            return;
        }
        self.scan_after = now + SCAN_PAUSE;
        let grace = self.config.grace;
        let gone = |agent| self.peers.get(agent).and_then(|p| p.away_since).is_some_and(|at| now.since(at) > grace);
        for (_, entry) in self.table.iter() {
            let short = entry.members.len() < self.config.replicas;
            if entry.seal().is_some_and(|s| s.length > 0)
                && entry.live > 0
                && (short || entry.members.iter().any(|m| gone(m.agent)))
            {
                self.unsynced.entry(entry.seq).or_insert(now);
            }
        }
    }

    /// Whether the checkpoint in force has lost a member for longer than the grace time: a new one should be written.
    #[must_use]
    pub fn thin(&self, now: Instant) -> bool {
        let gone = |agent| {
            let away = self.peers.get(agent).and_then(|p| p.away_since);
            away.is_some_and(|at| now.since(at) > self.config.grace)
        };
        self.table.iter().any(|(_, e)| e.pinned && e.seal().is_some() && e.members.iter().any(|m| gone(m.agent)))
    }

    /// What to do for an extent, if anything can be done now.
    fn plan(&mut self, now: Instant, seq: ExtentSeq) -> Option<Job> {
        let Some(entry) = self.table.get(seq) else {
            self.unsynced.remove(&seq);
            return None;
        };
        entry.seal()?;
        if entry.dead || entry.is_garbage() || entry.is_empty() {
            // Nobody will read it again.
            self.unsynced.remove(&seq);
            return None;
        }
        let usable = |m: &&Holder| self.peers.usable(m.agent) && !self.damaged.contains(&(seq, m.agent));
        let source = entry.members.iter().filter(usable).max_by_key(|m| m.synced)?.agent;
        if let Some(target) = entry.members.iter().filter(usable).find(|m| !m.synced) {
            let target = target.agent;
            let source = entry.members.iter().filter(usable).find(|m| m.agent != target).map_or(source, |m| m.agent);
            return Some(Job { seq, source, target, instead_of: None, step: Step::Seal });
        }
        if entry.stream == Stream::Checkpoint {
            // HEAD names its members: what it lacks is made good by the next checkpoint, which `thin` makes due.
            self.unsynced.remove(&seq);
            return None;
        }
        let grace = self.config.grace;
        let gone = |m: &&Holder| {
            self.damaged.contains(&(seq, m.agent))
                || self.peers.get(m.agent).is_none_or(|p| p.away_since.is_some_and(|at| now.since(at) > grace))
        };
        let instead_of = entry.members.iter().find(gone).map(|m| m.agent);
        if instead_of.is_none() && entry.members.len() >= self.config.replicas {
            if entry.members.iter().all(|m| m.synced) {
                self.unsynced.remove(&seq);
            }
            return None;
        }
        // What makes room comes first, or there would never be any for more copies.
        if !self.may_take(Use::Data) {
            return None;
        }
        let held = |agent| entry.members.iter().any(|m| m.agent == agent) || entry.former.contains(&agent);
        let id = ExtentId { volume: self.config.volume, seq };
        let stays = || entry.members.iter().map(|m| m.agent).filter(|a| Some(*a) != instead_of);
        let apart = |agent| stays().all(|other| self.ring.domain(other) != self.ring.domain(agent));
        let candidates = || {
            self.ring
                .order(id)
                .filter(|&agent| self.peers.eligible(agent, Class::Reserve, CHECKPOINT_SLOTS) && !held(agent))
        };
        let target = candidates().find(|&agent| apart(agent)).or_else(|| candidates().next())?;
        Some(Job { seq, source, target, instead_of, step: Step::Read { at: 0 } })
    }

    /// Sends the request of a job's step.
    fn advance(&mut self, now: Instant, id: u64, out: &mut Effects) {
        let job = &self.jobs[&id];
        let (epoch, extent) = (self.writer.epoch(), ExtentId { volume: self.config.volume, seq: job.seq });
        let Some(length) = self.table.get(job.seq).and_then(|e| e.seal()).map(|s| s.length) else {
            self.jobs.remove(&id);
            return;
        };
        let (to, request) = match job.step {
            Step::Seal | Step::Close => (job.target, Request::Seal { extent, epoch, length }),
            Step::Read { at } => {
                let blocks = READ_BLOCKS_MAX.min(length - at);
                (job.source, Request::Read { extent, epoch, offset: at, blocks })
            }
            Step::Fill { .. } | Step::Members { .. } => return,
        };
        self.calls.send(now, to, request, PEER_WAIT, Call::Repair { job: id }, out);
    }

    pub(super) fn on_repair(&mut self, now: Instant, id: u64, result: Result<Response, Unanswered>, out: &mut Effects) {
        let Some(job) = self.jobs.get(&id).cloned() else { return };
        if matches!(job.step, Step::Members { .. }) {
            return;
        }
        let Some(length) = self.table.get(job.seq).filter(|e| !e.dead).and_then(|e| e.seal()).map(|s| s.length) else {
            return self.abandon(id);
        };
        let next = match (job.step, result) {
            (_, Ok(Response::Rejected(Rejection::Fenced { epoch }))) => {
                self.fence(epoch, out);
                None
            }
            (Step::Seal, Ok(Response::Sealed { length, digest })) => {
                self.confirm(job.seq, job.target, length, digest, out);
                None
            }
            (
                Step::Seal,
                Ok(Response::Rejected(Rejection::PastEnd { length: have } | Rejection::Closed { length: have })),
            ) if have < length => Some(Step::Read { at: have }),
            (Step::Seal, Ok(Response::Rejected(Rejection::NoSuchExtent))) => Some(Step::Read { at: 0 }),
            (Step::Read { at }, Ok(Response::Data { bytes, .. })) => {
                self.fill(now, id, &job, at, bytes, out);
                return;
            }
            (Step::Fill { at, blocks }, Ok(Response::Appended { .. })) if at + blocks < length => {
                Some(Step::Read { at: at + blocks })
            }
            (Step::Fill { .. }, Ok(Response::Appended { .. })) => Some(Step::Close),
            (Step::Close, Ok(Response::Sealed { digest, .. })) => {
                match job.instead_of.is_some() || !self.is_member(&job) {
                    true => {
                        self.enlist(id, digest, out);
                        return;
                    }
                    false => {
                        self.confirm(job.seq, job.target, length, digest, out);
                        out.notes.push(Note::Repaired { extent: job.seq, agent: job.target });
                        None
                    }
                }
            }
            (step, Err(Unanswered)) => {
                let who = if matches!(step, Step::Read { .. }) { job.source } else { job.target };
                self.lose_agent(now, who, out);
                None
            }
            _ => None,
        };
        match next {
            Some(step) => {
                self.jobs.get_mut(&id).expect("the job is there").step = step;
                self.advance(now, id, out);
            }
            None => self.abandon(id),
        }
    }

    /// Ends a job that has not led to a new member. What the target may hold by then is an extra copy, to be deleted.
    pub(super) fn abandon(&mut self, id: u64) {
        let Some(job) = self.jobs.remove(&id) else { return };
        if let (Step::Members { .. }, Some(entry)) = (job.step, self.table.get_mut(job.seq)) {
            entry.readers -= 1;
        }
        if let Some(entry) = self.table.get_mut(job.seq)
            && !entry.members.iter().any(|m| m.agent == job.target)
            && !entry.former.contains(&job.target)
        {
            entry.former.push(job.target);
            self.extra.insert(job.seq, Instant::default());
        }
    }

    fn is_member(&self, job: &Job) -> bool {
        self.table.get(job.seq).is_some_and(|e| e.members.iter().any(|m| m.agent == job.target))
    }

    /// Sends on what was read: whole frames only; what is cut off at the end is read again with the next piece.
    fn fill(&mut self, now: Instant, id: u64, job: &Job, at: Blocks, bytes: bytes::Bytes, out: &mut Effects) {
        let extent = ExtentId { volume: self.config.volume, seq: job.seq };
        let blocks = crate::format::frame::whole_frames(&bytes, extent, at);
        if blocks == 0 {
            out.notes.push(Note::DamagedCopy { extent: job.seq, agent: job.source });
            self.abandon(id);
            return;
        }
        let size = blocks as usize * crate::ids::BLOCK_SIZE;
        let stream = self.table.get(job.seq).map_or(crate::format::Stream::Log, |e| e.stream);
        let request = Request::Fill {
            extent,
            epoch: self.writer.epoch(),
            stream,
            copy: id,
            offset: at,
            bytes: Pieces::from_iter([bytes.slice(..size)]),
        };
        self.jobs.get_mut(&id).expect("the job is there").step = Step::Fill { at, blocks };
        self.calls.send(now, job.target, request, PEER_WAIT, Call::Repair { job: id }, out);
    }

    /// Writes the ensemble with the new copy, which is whole and proven.
    fn enlist(&mut self, id: u64, digest: Digest, out: &mut Effects) {
        let job = self.jobs[&id].clone();
        let Some(entry) = self.table.get_mut(job.seq) else { return };
        if entry.digest().is_some_and(|known| known != digest) {
            out.notes.push(Note::DamagedCopy { extent: job.seq, agent: job.target });
            self.abandon(id);
            return;
        }
        // Its copies stay while the transaction is under way: they are to be found under the key that it writes.
        entry.readers += 1;
        self.jobs.get_mut(&id).expect("the job is there").step = Step::Members { digest };
        let mut planned = entry.clone();
        Self::replace(&mut planned, &job);
        planned.degraded = Self::is_degraded(&self.config, &self.ring, &planned);
        let key = keys::extent(self.config.volume, job.seq);
        let puts = vec![Write::Put { key, value: encode(&planned.doc()), lease: None }];
        let txn = self.guarded(puts, &[job.seq]);
        self.transact(LogTxn::Members(id), txn, out);
    }

    fn is_degraded(config: &LogConfig, ring: &Ring, entry: &Entry) -> bool {
        entry.members.len() < config.replicas || !ring.is_spread(entry.members.iter().map(|m| m.agent))
    }

    fn replace(entry: &mut Entry, job: &Job) {
        entry.members.retain(|m| Some(m.agent) != job.instead_of);
        entry.former.extend(job.instead_of);
        entry.members.push(Holder { agent: job.target, synced: true });
    }

    pub(super) fn on_new_members(&mut self, now: Instant, id: u64, revision: Revision, out: &mut Effects) {
        let Some(job) = self.jobs.remove(&id) else { return };
        let Step::Members { digest } = job.step else { return };
        let Some(entry) = self.table.get_mut(job.seq) else { return };
        entry.readers -= 1;
        Self::replace(entry, &job);
        entry.key = Some(revision);
        if let Some(old) = job.instead_of {
            self.damaged.remove(&(job.seq, old));
        }
        entry.degraded = Self::is_degraded(&self.config, &self.ring, entry);
        if !entry.former.is_empty() {
            self.extra.insert(job.seq, now);
        }
        let length = entry.seal().map_or(0, |s| s.length);
        self.confirm(job.seq, job.target, length, digest, out);
        out.notes.push(Note::Repaired { extent: job.seq, agent: job.target });
        if let Some(at) = self.unsynced.get_mut(&job.seq) {
            *at = now;
        }
    }
}
