//! Deleting extents that are needed no more.
//!
//! An extent is garbage when it is sealed and the map refers to none of its blocks. That is not enough to delete it: the
//! checkpoint in force may still refer to it, and a new owner would read it. It is *dead* once a HEAD that lists it as such
//! was committed at this epoch. Only then are its copies deleted, and only when every agent that holds, or may hold, one
//! has confirmed does the extent leave the table. An error or no answer keeps it there (P5).
//!
//! Copies of an extent that ended empty hold nothing, and go as soon as it is sealed: in a small pool they would take the
//! very slots that the next checkpoint needs.

use super::{Call, Effects, Log, LogTxn, Pauses};
use crate::ids::{AgentId, ExtentId, ExtentSeq, Vseq};
use crate::limits::{EXTENT_KEYS_PER_TXN, PEER_WAIT, SLOW_RETRY_PAUSE};
use crate::meta::{Write, keys};
use crate::mutation::{self, Mutation};
use crate::peer::{Rejection, Request, Response, Unanswered};
use crate::time::Instant;

impl Log {
    /// The extents that a checkpoint up to `vseq` may declare dead.
    #[must_use]
    pub fn garbage(&self, vseq: Vseq) -> Vec<ExtentSeq> {
        self.table
            .iter()
            .filter(|(_, e)| e.dead || (e.is_garbage() && e.seal().is_some_and(|s| s.last <= vseq)))
            .map(|(_, e)| e.seq)
            .collect()
    }

    /// Garbage that no HEAD has declared dead yet.
    #[must_use]
    pub fn undeclared(&self) -> usize {
        self.table.iter().filter(|(_, e)| e.is_garbage() && !e.dead).count()
    }

    /// A HEAD was committed whose checkpoint lists the extents in `contained`, sealed, and those in `dead` as such. The dead
    /// may go; the contained need no key of their own any more.
    pub fn on_head(&mut self, now: Instant, contained: &[ExtentSeq], dead: &[ExtentSeq], out: &mut Effects) {
        for &seq in dead {
            if let Some(entry) = self.table.get_mut(seq) {
                assert!(entry.live == 0, "extent {seq} was declared dead while the map refers to it");
                entry.pinned = false;
                entry.dead = true;
                self.dead.insert(seq, now);
                self.unsynced.remove(&seq);
            }
        }
        let keyed = |seq: &ExtentSeq| self.table.get(*seq).is_some_and(|e| e.key.is_some() && !e.dead);
        let keyed: Vec<ExtentSeq> = contained.iter().copied().filter(keyed).collect();
        self.forget(&keyed, out);
    }

    /// Deletes the keys of extents that the checkpoint in force contains.
    fn forget(&mut self, extents: &[ExtentSeq], out: &mut Effects) {
        for chunk in extents.chunks(EXTENT_KEYS_PER_TXN) {
            let deletes = chunk.iter().map(|&seq| Write::Delete(keys::extent(self.config.volume, seq))).collect();
            let txn = self.guarded(deletes, chunk);
            self.transact(LogTxn::Forget(chunk.to_vec()), txn, out);
        }
    }

    /// Asks for deletions that are due, and forgets extents of which nothing is left. An extent's key goes before its
    /// copies do: a new owner looks for the copies of every extent that has a key.
    pub(super) fn reclaim(&mut self, now: Instant, out: &mut Effects) {
        self.reclaim_extra(now, out);
        self.release_empty(now, out);
        if mutation::active(Mutation::DeleteBeforeCheckpoint) {
            for seq in self.garbage(Vseq(u64::MAX)) {
                self.dead.entry(seq).or_insert(now);
            }
        }
        let due: Vec<ExtentSeq> = self.dead.iter().filter(|(_, at)| **at <= now).map(|(&seq, _)| seq).collect();
        let mut keyed = Vec::new();
        for seq in due {
            let Some(index) = self.table.find(seq) else {
                self.dead.remove(&seq);
                continue;
            };
            let entry = self.table.at(index);
            let left: Vec<AgentId> =
                entry.members.iter().map(|m| m.agent).chain(entry.former.iter().copied()).collect();
            let copied = self.jobs.values().any(|job| job.seq == seq);
            if left.is_empty() && entry.key.is_none() && entry.readers == 0 && !copied {
                self.table.remove(index);
                self.dead.remove(&seq);
                continue;
            }
            self.dead.insert(seq, now + SLOW_RETRY_PAUSE);
            if entry.key.is_some() && !mutation::active(Mutation::DeleteBeforeCheckpoint) {
                keyed.push(seq);
                continue;
            }
            if entry.readers > 0 {
                continue;
            }
            self.delete_copies(now, seq, left, out);
        }
        self.forget(&keyed, out);
    }

    /// Deletes copies that are no longer of their extent's ensemble, once all of the ensemble is proven whole (I15).
    fn reclaim_extra(&mut self, now: Instant, out: &mut Effects) {
        let due: Vec<ExtentSeq> = self.extra.iter().filter(|(_, at)| **at <= now).map(|(&seq, _)| seq).collect();
        for seq in due {
            let Some(entry) = self.table.get(seq).filter(|e| !e.dead && !e.former.is_empty()) else {
                self.extra.remove(&seq);
                continue;
            };
            self.extra.insert(seq, now + SLOW_RETRY_PAUSE);
            if entry.members.iter().any(|m| !m.synced) {
                continue;
            }
            let former = entry.former.to_vec();
            self.delete_copies(now, seq, former, out);
        }
    }

    /// Gives back the slots of extents that ended without a record. Their seal is the proof that there is nothing in them,
    /// so they need not wait for a checkpoint; their keys do, lest a registration that comes late brings them back.
    fn release_empty(&mut self, now: Instant, out: &mut Effects) {
        let due: Vec<ExtentSeq> = self.empty.iter().filter(|(_, at)| **at <= now).map(|(&seq, _)| seq).collect();
        for seq in due {
            let held = self.table.get(seq).filter(|e| !e.dead);
            let held = held.into_iter().flat_map(|e| e.members.iter().filter(|m| !m.synced).map(|m| m.agent));
            let held: Vec<AgentId> = held.collect();
            if held.is_empty() {
                self.empty.remove(&seq);
                continue;
            }
            self.empty.insert(seq, now + SLOW_RETRY_PAUSE);
            self.delete_copies(now, seq, held, out);
        }
    }

    /// Asks those of `agents` that can be reached to give up their copies.
    fn delete_copies(&mut self, now: Instant, seq: ExtentSeq, agents: Vec<AgentId>, out: &mut Effects) {
        let extent = ExtentId { volume: self.config.volume, seq };
        for agent in agents.into_iter().filter(|&agent| self.peers.usable(agent)) {
            let request = Request::Delete { extent, epoch: self.writer.epoch(), copy: self.jobs_drawn };
            self.calls.send(now, agent, request, PEER_WAIT, Call::Delete { seq }, out);
        }
    }

    pub(super) fn on_delete(
        &mut self,
        now: Instant,
        agent: AgentId,
        seq: ExtentSeq,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
    ) {
        match result {
            Ok(Response::Deleted { free }) => {
                self.peers.heard(now, agent);
                self.peers.space(agent, free);
                if let Some(entry) = self.table.get_mut(seq) {
                    entry.former.retain(|a| *a != agent);
                    if entry.dead {
                        entry.members.retain(|m| m.agent != agent);
                    } else if entry.is_empty()
                        && let Some(holder) = entry.holder_mut(agent)
                    {
                        holder.synced = true;
                    }
                    if entry.members.is_empty() && entry.former.is_empty() {
                        self.dead.insert(seq, now);
                    }
                }
                // Room was made: what was refused for want of it may be tried again.
                self.register_after = Pauses::default();
            }
            Ok(Response::Rejected(Rejection::Fenced { epoch })) => self.fence(epoch, out),
            Ok(_) => {}
            Err(Unanswered) => self.peers.suspect(now, agent),
        }
    }
}
