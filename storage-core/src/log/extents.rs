//! Extents, in time: registered before they are needed, created on their members, given up when a member is lost,
//! sealed when they are drained.
//!
//! There is always one extent ready beyond those in use, so that a lost member costs no round trip to the metadata
//! store: the frames move to the spare at once.

use super::calls::Call as Sent;
use super::open::{OpenExtent, Phase};
use super::room::Use;
use super::table::{Entry, State};
use super::{Blocked, Call, Effects, Log, LogTxn, Note};
use crate::format::Stream;
use crate::ids::{AgentId, Blocks, ExtentId, ExtentSeq};
use crate::limits::{EXTENT_KEYS_PER_TXN, PEER_WAIT, RETRY_PAUSE, SLOW_RETRY_PAUSE};
use crate::meta::docs::{Seal, encode};
use crate::meta::{Revision, Write, keys};
use crate::mutation::{self, Mutation};
use crate::peer::{Class, Rejection, Request, Response, Unanswered};
use crate::ring::Ensemble;
use crate::time::Instant;

/// Numbers that are tried for an extent that is to lie beside its owner.
const NEAR_DRAWS: usize = 32;

/// What makes room may use the last of it.
fn class(stream: Stream, cold: bool) -> Class {
    match stream {
        Stream::Log if !cold => Class::Data,
        Stream::Log | Stream::Checkpoint => Class::Reserve,
    }
}

impl Log {
    /// Seals what is drained and registers what will be needed.
    pub(super) fn maintain(&mut self, now: Instant, out: &mut Effects) {
        self.seal_drained(out);
        if self.closing {
            return;
        }
        for cold in [false, true] {
            let coming = |x: &&OpenExtent| {
                x.stream == Stream::Log
                    && x.cold == cold
                    && matches!(x.phase, Phase::Registering | Phase::Creating | Phase::Ready)
            };
            let have = self.writer.open.values().filter(coming).count();
            let want = match cold {
                false => (self.writer.width + 1).max(have + usize::from(self.writer.stuck())),
                // Also where data is refused: trims and read leases need an extent that may use the reserve.
                true => usize::from(
                    self.cold_wanted || self.writer.queued().1 > 0 || self.refusal == Some(Blocked::NoSpace),
                ),
            };
            if have < want && self.register_after.get(class(Stream::Log, cold)) <= now {
                self.register(now, want - have, Stream::Log, cold, out);
            }
        }
        let starved = self.writer.starved(false) || self.writer.starved(true);
        let metadata = (!self.retries.is_empty()).then_some(Blocked::Metadata);
        self.blocked = metadata.or(self.refusal).filter(|_| starved || self.unvouched.1);
    }

    /// Registers an extent for a checkpoint, if that can be done now. Never put off: what others were refused for want of
    /// room, a checkpoint gives back.
    pub fn register_checkpoint(&mut self, now: Instant, out: &mut Effects) -> Vec<ExtentSeq> {
        self.register(now, 1, Stream::Checkpoint, false, out)
    }

    /// Registers up to `count` extents; their numbers. Fewer, or none, while too few agents can take one.
    pub(super) fn register(
        &mut self,
        now: Instant,
        count: usize,
        stream: Stream,
        cold: bool,
        out: &mut Effects,
    ) -> Vec<ExtentSeq> {
        let class = class(stream, cold);
        let mut drawn = Vec::new();
        let mut puts = Vec::new();
        for _ in 0..count {
            let (seq, ensemble) = self.draw(class);
            let kept = !self.may_take(Use::of(stream, cold));
            let enough = ensemble.members.len() >= self.members_min();
            if kept || !enough {
                let full = |id| self.peers.usable(id) && !self.peers.eligible(id, class, 0);
                let full = self.peers.iter().any(|(id, _)| full(id));
                // Agents that cannot be reached may have room.
                let full = full || kept && enough;
                if stream == Stream::Log {
                    self.refusal = Some(if full { Blocked::NoSpace } else { Blocked::TooFewAgents });
                    self.register_after.put_off(class, now + RETRY_PAUSE);
                }
                break;
            }
            let degraded = ensemble.degraded || ensemble.members.len() < self.config.replicas;
            if degraded {
                out.notes.push(Note::Degraded { extent: seq });
            }
            let mut x = OpenExtent::new(seq, stream, cold, &ensemble.members, degraded);
            if mutation::active(Mutation::UnregisteredExtent) {
                x.phase = Phase::Creating;
            }
            let doc = Entry::open(seq, stream, &ensemble.members, degraded).doc();
            puts.push(Write::Put { key: keys::extent(self.config.volume, seq), value: encode(&doc), lease: None });
            self.writer.open.insert(seq, x);
            drawn.push(seq);
        }
        if !drawn.is_empty() {
            let txn = self.registration(puts, &drawn);
            self.transact(LogTxn::Register(drawn.clone()), txn, out);
            if mutation::active(Mutation::UnregisteredExtent) {
                self.on_registered(now, &drawn, Revision(0), out);
            }
        }
        drawn
    }

    /// A number for an extent, and where the ring has it. Of the next few, one whose copies lie beside the owner as well, while
    /// there is as much room as elsewhere: reads then need no network, and writes one copy less.
    fn draw(&mut self, class: Class) -> (ExtentSeq, Ensemble) {
        let epoch = match mutation::active(Mutation::ExtentReused) {
            true => crate::ids::Epoch(1),
            false => self.writer.epoch(),
        };
        let place = |count| {
            let seq = ExtentSeq::new(epoch, count).expect("an epoch registers fewer than 4 billion extents");
            let id = ExtentId { volume: self.config.volume, seq };
            (seq, self.ring.place(id, self.config.replicas, |agent| self.peers.eligible(agent, class, 0)))
        };
        let next = self.drawn + 1;
        let first = place(next);
        // Numbers that are passed over are used up: not more than half of them.
        let near = self.config.near.filter(|&near| self.peers.eligible(near, class, 0) && self.peers.is_roomy(near));
        let near = near.filter(|near| !first.1.members.contains(near) && next < ExtentSeq::COUNT_MAX / 2);
        let found = near.and_then(|near| {
            let mut others = (next + 1..).take(NEAR_DRAWS).map(|count| (count, place(count)));
            others.find(|(_, (_, ensemble))| ensemble.members.contains(&near))
        });
        let (count, drawn) = found.unwrap_or((next, first));
        self.drawn = count;
        drawn
    }

    pub(super) fn on_registered(&mut self, now: Instant, extents: &[ExtentSeq], at: Revision, out: &mut Effects) {
        for &seq in extents {
            if let Some(entry) = self.table.get_mut(seq) {
                entry.key = Some(at);
                continue;
            }
            let Some(x) = self.writer.open.get_mut(&seq) else { continue };
            let members: Vec<AgentId> = x.members.iter().map(|m| m.agent).collect();
            let mut entry = Entry::open(seq, x.stream, &members, x.degraded);
            entry.key = Some(at);
            self.table.insert(entry);
            if x.phase == Phase::Closing {
                continue;
            }
            x.phase = Phase::Creating;
            let class = class(x.stream, x.cold);
            let extent = ExtentId { volume: self.config.volume, seq };
            let stream = x.stream;
            for agent in members {
                let request = Request::Create { extent, epoch: self.writer.epoch(), stream, class };
                self.calls.send(now, agent, request, PEER_WAIT, Call::Create { seq }, out);
            }
        }
    }

    pub(super) fn on_create(
        &mut self,
        now: Instant,
        agent: AgentId,
        seq: ExtentSeq,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
    ) {
        let mut refused = false;
        match result {
            Ok(Response::Created { free }) => {
                self.peers.heard(now, agent);
                self.peers.space(agent, free);
                let Some(x) = self.writer.open.get_mut(&seq) else { return };
                if let Some(member) = x.members.iter_mut().find(|m| m.agent == agent) {
                    member.created = true;
                }
                if x.phase == Phase::Creating && x.members.iter().all(|m| m.created) {
                    x.phase = Phase::Ready;
                    if x.stream == Stream::Log && !x.cold {
                        self.refusal = None;
                    }
                }
                return;
            }
            Ok(Response::Rejected(Rejection::Fenced { epoch })) => return self.fence(epoch, out),
            Ok(Response::Rejected(Rejection::NoSpace { free })) => {
                // Others may have some: the next attempt tells.
                self.peers.full(agent, free);
                refused = true;
            }
            Ok(Response::Rejected(Rejection::DiskFailed(_))) => self.peers.full(agent, Default::default()),
            Ok(_) => {}
            Err(Unanswered) => self.lose_agent(now, agent, out),
        }
        if let Some(x) = self.writer.open.get(&seq) {
            if !refused {
                self.refusal = Some(Blocked::TooFewAgents);
            }
            self.register_after.put_off(class(x.stream, x.cold), now + RETRY_PAUSE / 10);
        }
        self.writer.lose_extent(seq);
    }

    pub(super) fn on_append(
        &mut self,
        now: Instant,
        call: &Sent<Call>,
        seq: ExtentSeq,
        end: Blocks,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
    ) {
        match result {
            Ok(Response::Appended { length }) if length >= end => {
                self.peers.heard(now, call.to);
                self.peers.leased(call.to, call.sent);
                self.writer.on_appended(call.to, seq, end, true);
                self.writer.commit();
            }
            Ok(Response::Rejected(Rejection::Fenced { epoch })) => self.fence(epoch, out),
            Ok(_) => self.writer.lose_extent(seq),
            Err(Unanswered) => self.lose_agent(now, call.to, out),
        }
    }

    /// A member has a frame in memory: the first of two answers.
    pub fn on_received(&mut self, agent: AgentId, seq: ExtentSeq, end: Blocks) {
        self.writer.on_appended(agent, seq, end, false);
        self.writer.commit();
    }

    /// An agent does not answer: every extent that it is a member of goes on without it.
    pub fn lose_agent(&mut self, now: Instant, agent: AgentId, out: &mut Effects) {
        let known = self.peers.get(agent).is_some_and(|p| p.suspect);
        self.peers.suspect(now, agent);
        if !known {
            out.notes.push(Note::AgentLost { agent });
        }
        for seq in self.writer.extents_of(agent) {
            self.writer.lose_extent(seq);
        }
    }

    /// Seals every extent that is drained, in one transaction.
    fn seal_drained(&mut self, out: &mut Effects) {
        let drained: Vec<ExtentSeq> = self
            .writer
            .open
            .values()
            .filter(|x| x.is_drained() && self.table.find(x.seq).is_some())
            .map(|x| x.seq)
            .take(EXTENT_KEYS_PER_TXN)
            .collect();
        if drained.is_empty() {
            return;
        }
        let mut puts = Vec::new();
        for &seq in &drained {
            let x = self.writer.open.get_mut(&seq).expect("a drained extent is open");
            x.phase = Phase::Sealing;
            let entry = self.table.get(seq).expect("a drained extent is in the table");
            let mut doc = entry.doc();
            doc.sealed = Some(Seal { length: x.length, last: x.last });
            puts.push(Write::Put { key: keys::extent(self.config.volume, seq), value: encode(&doc), lease: None });
        }
        let txn = self.guarded(puts, &drained);
        self.transact(LogTxn::Seal(drained), txn, out);
    }

    pub(super) fn on_sealed(&mut self, now: Instant, extents: &[ExtentSeq], at: Revision, out: &mut Effects) {
        for &seq in extents {
            let Some(x) = self.writer.open.remove(&seq) else { continue };
            let seal = Seal { length: x.length, last: x.last };
            let entry = self.table.get_mut(seq).expect("a sealed extent is in the table");
            entry.state = State::Sealed { seal, digest: None };
            entry.key = Some(at);
            let members = entry.members.clone();
            if seal.length == 0 {
                self.empty.insert(seq, now);
                continue;
            }
            // The answers confirm the copies; what is not confirmed by then is for `repair`.
            self.unsynced.insert(seq, now + SLOW_RETRY_PAUSE);
            for holder in members {
                if self.peers.usable(holder.agent) {
                    self.send_seal(now, seq, holder.agent, seal.length, out);
                }
            }
        }
    }

    pub(super) fn send_seal(
        &mut self,
        now: Instant,
        seq: ExtentSeq,
        agent: AgentId,
        length: Blocks,
        out: &mut Effects,
    ) {
        let extent = ExtentId { volume: self.config.volume, seq };
        let request = Request::Seal { extent, epoch: self.writer.epoch(), length };
        self.calls.send(now, agent, request, PEER_WAIT, Call::Seal { seq }, out);
    }

    pub(super) fn on_seal(
        &mut self,
        now: Instant,
        agent: AgentId,
        seq: ExtentSeq,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
    ) {
        match result {
            Ok(Response::Sealed { length, digest }) => {
                self.peers.heard(now, agent);
                self.confirm(seq, agent, length, digest, out);
            }
            Ok(Response::Rejected(Rejection::Fenced { epoch })) => self.fence(epoch, out),
            Ok(_) => {
                if let Some(at) = self.unsynced.get_mut(&seq) {
                    *at = now;
                }
            }
            Err(Unanswered) => self.lose_agent(now, agent, out),
        }
    }

    /// A member says that its copy is closed with this content.
    pub(super) fn confirm(
        &mut self,
        seq: ExtentSeq,
        agent: AgentId,
        length: Blocks,
        digest: crate::format::Digest,
        out: &mut Effects,
    ) {
        let Some(entry) = self.table.get_mut(seq) else { return };
        let State::Sealed { seal, digest: known } = &mut entry.state else { return };
        if seal.length != length || known.is_some_and(|d| d != digest) {
            out.notes.push(Note::DamagedCopy { extent: seq, agent });
            return;
        }
        *known = Some(digest);
        if let Some(holder) = entry.holder_mut(agent) {
            holder.synced = true;
        }
        if entry.members.iter().all(|m| m.synced) {
            self.unsynced.remove(&seq);
        }
    }
}
