//! Taking a volume over: raise the epoch, fence, find where the log ends, seal it there.
//!
//! ```text
//! List ──▶ Claim (CAS epoch+1) ──▶ Relist ──▶ Fence ──▶ Index ──▶ Fill ──▶ Wait out leases ──▶ Seal (CAS) ──▶ done
//! ```
//!
//! Every step is idempotent, and a second opener wins by a higher epoch. Nothing is served before the seals are committed.
//!
//! 1. Every extent that any older owner could have written to is in the listing taken *after* the epoch was raised, because
//!    registering one is conditional on the epoch.
//! 2. An open extent ends at the longest valid prefix among the members that answered, of which one must be sound, or all
//!    must have answered: what was acknowledged is on all members, so it is on that one. A damaged or forgetful member never shortens it (I17),
//!    nor does the silence of a moment: a member that held more and does not answer is waited for as for its first word. One that
//!    says later that it has less after all has said so from the first: nothing is kept that nobody has.
//! 3. The log ends before the first missing `vseq`: records after a gap were never acknowledged, as acknowledgements go in
//!    order. `vseq` increases along an extent, so each is cut at its first record beyond the end.
//!    A frame carries the highest record that was durable on all members when it was sent (LAC), and a sealed extent holds
//!    acknowledged records alone: if the first missing record is not beyond these, a member has forgotten something without
//!    knowing, and more answers are waited for.
//! 4. What is kept is made durable on every member that answers before the seals are committed, and sealed before anything is
//!    served, so an unacknowledged record that recovery shows never vanishes again (I3).
//! 5. A lease that a member granted to an older owner has run out before the seals are committed (I4). Not merely before
//!    anything is served: an opener that dies in between leaves nothing open, and the next one would fence nobody, hear of
//!    no lease and serve at once. The witness that an owner without any extent leaves is waited out likewise, and stays until
//!    something is registered.

mod claim;
mod extent;
mod progress;
mod tail;
mod types;

pub use progress::{Patience, Progress};
pub(crate) use types::remedy;
pub use types::{Claim, FrameInfo, OpenError, Recovered, RecoveredExtent};

use extent::Extent;

use super::calls::{Call as Sent, Calls, MetaId};
use super::peers::Peers;
use super::{AgentView, Effects};
use crate::ids::{AgentId, Blocks, Epoch, ExtentSeq, RpcId, Vseq};
use crate::limits::{EXTENT_KEYS_PER_TXN, PEER_WAIT, READ_LEASE, RETRY_PAUSE};
use crate::meta::docs::{EpochDoc, HeadDoc, VolumeDoc, encode};
use crate::meta::{Compare, Entry, MetaError, MetaOp, MetaReply, Revision, Txn, Write, keys};
use crate::mutation::{self, Mutation};
use crate::peer::{Rejection, Request, Response, Unanswered};
use crate::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    List,
    Claim,
    Relist,
    Fence,
    Index,
    Fill,
    Wait,
    Seal,
    SealCheck,
    Sealed,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    Fence,
    /// From which block on.
    Frames(ExtentSeq, Blocks),
    FillRead(ExtentSeq, AgentId),
    Fill(ExtentSeq, AgentId, Blocks),
}

/// The takeover of one volume.
#[derive(Debug)]
pub struct Recovery {
    claim: Claim,
    phase: Phase,
    patience: Patience<4>,
    fencing_since: Instant,
    calls: Calls<What, ()>,
    asking_meta: bool,
    meta_retry: Instant,
    last_meta_error: Option<MetaError>,
    peers: Peers,
    fence_retry: BTreeMap<AgentId, Instant>,
    fence_asked: BTreeSet<AgentId>,
    meta: Option<VolumeDoc>,
    found: Option<(EpochDoc, Revision)>,
    epoch: Epoch,
    epoch_doc: Vec<u8>,
    head: Option<(HeadDoc, Revision)>,
    extents: BTreeMap<ExtentSeq, Extent>,
    lease_until: Instant,
    witness: bool,
    next: Vseq,
    /// Answers to fences when the log last turned out to lack something that was acknowledged.
    short_at: Option<usize>,
}

/// How long a fence waits for the rest of an ensemble once enough of it has answered.
const FENCE_GRACE: Duration = Duration::from_millis(500);
/// The same where fewer have answered than must hold what is acknowledged: what recovery keeps would be on those alone. Not
/// more than a lease that is likely to be waited out as well.
const FENCE_GRACE_THIN: Duration = READ_LEASE;

impl Recovery {
    /// A takeover about to begin.
    #[must_use]
    pub fn new(claim: Claim) -> Recovery {
        Recovery {
            claim,
            phase: Phase::List,
            patience: Patience::default(),
            fencing_since: Instant::default(),
            calls: Calls::default(),
            asking_meta: false,
            meta_retry: Instant::default(),
            last_meta_error: None,
            peers: Peers::default(),
            fence_retry: BTreeMap::new(),
            fence_asked: BTreeSet::new(),
            meta: None,
            found: None,
            epoch: Epoch(0),
            epoch_doc: Vec::new(),
            head: None,
            extents: BTreeMap::new(),
            lease_until: Instant::default(),
            witness: false,
            next: Vseq(1),
            short_at: None,
        }
    }

    /// The agents.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The number that the next request would get.
    #[must_use]
    pub fn next_call(&self) -> u64 {
        self.calls.next()
    }

    /// Hands the agents on to the log.
    pub fn take_peers(&mut self) -> Peers {
        std::mem::take(&mut self.peers)
    }

    /// Agents of open extents that refuse older owners by now, and all of them.
    #[must_use]
    pub fn fenced(&self) -> (usize, usize) {
        let open = || self.extents.values().filter(|x| x.is_open());
        let asked: BTreeSet<AgentId> = open().flat_map(|x| x.doc.members.iter().copied()).collect();
        let answered: BTreeSet<AgentId> = open().flat_map(|x| x.answers.keys().copied()).collect();
        (answered.len(), asked.len())
    }

    /// The cluster's view has changed.
    pub fn on_agents(&mut self, now: Instant, views: &[AgentView]) {
        self.peers.update(now, views);
    }

    /// A connection to `agent` stands.
    pub fn on_peer_up(&mut self, now: Instant, agent: AgentId) {
        self.peers.heard(now, agent);
        self.fence_retry.remove(&agent);
    }

    /// Does what is next. `Some` when the takeover has ended, one way or the other.
    pub fn turn(&mut self, now: Instant, out: &mut Effects) -> Option<Result<Recovered, OpenError>> {
        let counts = self.counts();
        if self.patience.is_over(now, counts, self.claim.patience) {
            return Some(Err(self.give_up()));
        }
        loop {
            let before = self.phase;
            let step = match self.phase {
                Phase::List | Phase::Relist | Phase::SealCheck => {
                    self.ask(now, MetaOp::List(keys::volume(self.claim.volume)), out);
                    Ok(())
                }
                Phase::Claim => {
                    let txn = self.claim_txn();
                    self.ask(now, MetaOp::Txn(txn), out);
                    Ok(())
                }
                Phase::Fence => {
                    self.fence(now, out);
                    Ok(())
                }
                Phase::Index => self.index(now, out),
                Phase::Fill => {
                    self.fill(now, out);
                    Ok(())
                }
                Phase::Wait if now >= self.lease_until || mutation::active(Mutation::LeaseNotWaitedOut) => {
                    self.phase = Phase::Seal;
                    Ok(())
                }
                Phase::Wait => Ok(()),
                Phase::Seal => {
                    let txn = self.seal_txn();
                    if txn.then.is_empty() {
                        self.phase = Phase::Sealed;
                    } else {
                        self.ask(now, MetaOp::Txn(txn), out);
                    }
                    Ok(())
                }
                Phase::Sealed => return Some(Ok(self.finish())),
            };
            if let Err(error) = step {
                return Some(Err(error));
            }
            if self.phase == before {
                return None;
            }
        }
    }

    /// When [`Recovery::turn`] wants to be called even if nothing happens.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let soon = now + RETRY_PAUSE;
        Some(if self.phase == Phase::Wait { self.lease_until.max(now) } else { soon })
    }

    fn ask(&mut self, now: Instant, op: MetaOp, out: &mut Effects) {
        if !self.asking_meta && now >= self.meta_retry {
            self.asking_meta = true;
            self.calls.ask(op, (), out);
        }
    }

    fn give_up(&self) -> OpenError {
        let incomplete = |x: &&Extent| x.is_open() && x.doc.members.len() > x.answers.len();
        let all = || self.extents.values();
        let name = |agent| self.peers.name(agent);
        let stuck = match self.phase {
            Phase::Fence => all().find(|x| !x.settled()).or_else(|| all().find(incomplete)).map(|x| (x, x.answered())),
            Phase::Index => all().find(|x| !x.indexed).map(|x| (x, x.lacking.clone())),
            _ => None,
        };
        if let Some((x, told)) = stuck {
            return OpenError::Missing { extent: x.seq, remedy: remedy(&x.doc.members, &told, name) };
        }
        let silent = MetaError::Unknown("no answer within the time allowed".into());
        OpenError::Metadata(self.last_meta_error.clone().unwrap_or(silent))
    }

    /// The metadata store's answer.
    pub fn on_meta(&mut self, now: Instant, id: MetaId, result: Result<MetaReply, MetaError>) -> Result<(), OpenError> {
        if self.calls.meta_answered(id).is_none() {
            return Ok(());
        }
        self.asking_meta = false;
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => {
                self.last_meta_error = Some(error);
                self.meta_retry = now + RETRY_PAUSE;
                // An unknown outcome of the claim shows in the next listing, by the nonce.
                if self.phase == Phase::Claim {
                    self.phase = Phase::List;
                }
                return Ok(());
            }
        };
        match (self.phase, reply) {
            (Phase::List, MetaReply::Listed(entries, _)) => self.on_first_list(&entries),
            (Phase::Claim, MetaReply::Committed(_)) => {
                self.phase = Phase::Relist;
                Ok(())
            }
            (Phase::Claim, _) => {
                self.phase = Phase::List;
                Ok(())
            }
            (Phase::Relist, MetaReply::Listed(entries, _)) => self.on_second_list(now, &entries),
            (Phase::Seal, MetaReply::Committed(revision)) => {
                for x in self.extents.values_mut().filter(|x| x.doc.sealed.is_none()) {
                    x.revision = revision;
                }
                self.phase = Phase::Sealed;
                Ok(())
            }
            // Another opener, or an earlier attempt of this very transaction.
            (Phase::Seal, _) => {
                self.phase = Phase::SealCheck;
                Ok(())
            }
            (Phase::SealCheck, MetaReply::Listed(entries, _)) => self.on_seal_list(&entries),
            _ => Ok(()),
        }
    }

    fn overtaken(&self, epoch: Epoch) -> OpenError {
        OpenError::Overtaken { name: self.meta.as_ref().map(|m| m.name.clone()).unwrap_or_default(), epoch }
    }

    /// Answers of members of open extents.
    fn answered(&self) -> usize {
        self.extents.values().filter(|x| x.is_open()).map(|x| x.answers.len()).sum()
    }

    /// Fences every member of every open extent.
    fn fence(&mut self, now: Instant, out: &mut Effects) {
        let mut wanted: BTreeMap<AgentId, Vec<ExtentSeq>> = BTreeMap::new();
        for x in self.extents.values().filter(|x| x.is_open()) {
            for &agent in x.doc.members.iter().filter(|a| !x.answers.contains_key(a)) {
                wanted.entry(agent).or_default().push(x.seq);
            }
        }
        let open = || self.extents.values().filter(|x| x.is_open());
        let complete = open().all(|x| x.doc.members.iter().all(|a| x.answers.contains_key(a)));
        let enough = open().all(Extent::settled);
        let more = self.short_at.is_none_or(|answers| self.answered() > answers);
        let least = self.meta.as_ref().map_or(1, |meta| usize::from(meta.min_replicas));
        let thin = open().any(|x| x.answers.len() < least);
        let grace = if thin { FENCE_GRACE_THIN } else { FENCE_GRACE };
        let over = now.since(self.fencing_since) >= grace && !mutation::active(Mutation::SilenceWaitedOut);
        if enough && more && (complete || over) {
            for x in self.extents.values_mut() {
                x.length = x.end();
            }
            self.phase = Phase::Index;
            return;
        }
        for (agent, extents) in wanted {
            let due = self.fence_retry.get(&agent).is_none_or(|&at| at <= now);
            if due && self.fence_asked.insert(agent) {
                let request = Request::Fence { volume: self.claim.volume, epoch: self.epoch, extents };
                self.calls.send(now, agent, request, PEER_WAIT, What::Fence, out);
            }
        }
    }

    /// An agent's answer.
    pub fn on_answer(
        &mut self,
        now: Instant,
        rpc: RpcId,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
    ) -> Result<(), OpenError> {
        match self.calls.answered(rpc) {
            Some(call) => self.answer(now, call, result, out),
            None => Ok(()),
        }
    }

    /// Gives up on requests whose time is over.
    pub fn expire(&mut self, now: Instant, out: &mut Effects) -> Result<(), OpenError> {
        while let Some(call) = self.calls.expired(now) {
            self.answer(now, call, Err(Unanswered), out)?;
        }
        Ok(())
    }

    fn answer(
        &mut self,
        now: Instant,
        call: Sent<What>,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
    ) -> Result<(), OpenError> {
        match &result {
            Ok(Response::Rejected(Rejection::Fenced { epoch })) => return Err(self.overtaken(*epoch)),
            Ok(_) => self.peers.heard(now, call.to),
            Err(Unanswered) => self.peers.suspect(now, call.to),
        }
        match call.what {
            What::Fence => {
                self.fence_asked.remove(&call.to);
                match result {
                    Ok(Response::Fenced { lease, extents }) => {
                        self.lease_until = self.lease_until.max(now + lease);
                        for (seq, copy) in extents {
                            if let Some(x) = self.extents.get_mut(&seq) {
                                x.answers.insert(call.to, copy);
                            }
                        }
                    }
                    _ => {
                        self.fence_retry.insert(call.to, now + RETRY_PAUSE);
                    }
                }
            }
            What::Frames(seq, at) => self.on_frames(now, seq, call.to, at, result),
            What::FillRead(seq, target) => self.on_fill_read(now, seq, target, call.to, result, out),
            What::Fill(seq, target, end) => self.on_filled(now, seq, target, end, &result),
        }
        Ok(())
    }

    fn seal_txn(&self) -> Txn {
        let id = self.claim.volume;
        let open: Vec<&Extent> = self.extents.values().filter(|x| x.doc.sealed.is_none()).collect();
        assert!(open.len() <= EXTENT_KEYS_PER_TXN, "an owner has fewer extents open than fit one transaction");
        let mut when = vec![Compare::Holds(keys::volume_epoch(id), self.epoch_doc.clone())];
        when.extend(open.iter().map(|x| Compare::Unchanged(keys::extent(id, x.seq), x.revision)));
        let then = open
            .into_iter()
            .map(|x| Write::Put { key: keys::extent(id, x.seq), value: encode(&x.sealed()), lease: None })
            .collect();
        Txn { when, then }
    }

    /// What the store holds after the seals met a conflict.
    fn on_seal_list(&mut self, entries: &[Entry]) -> Result<(), OpenError> {
        let id = self.claim.volume;
        let find = |key: String| entries.iter().find(move |e| e.key == key);
        if find(keys::volume_epoch(id)).is_none_or(|e| e.value != self.epoch_doc) {
            return Err(self.overtaken(self.epoch.next()));
        }
        for x in self.extents.values_mut().filter(|x| x.doc.sealed.is_none()) {
            let stored = find(keys::extent(id, x.seq)).filter(|e| e.value == encode(&x.sealed()));
            let Some(entry) = stored else {
                let what = format!("extent {} was changed while it was being sealed", x.seq);
                return Err(OpenError::Inconsistent(what));
            };
            x.revision = entry.modified;
        }
        self.phase = Phase::Sealed;
        Ok(())
    }

    fn finish(&mut self) -> Recovered {
        let extents = std::mem::take(&mut self.extents)
            .into_values()
            .map(|x| RecoveredExtent { seq: x.seq, doc: x.sealed(), revision: x.revision, frames: x.frames })
            .collect();
        Recovered {
            meta: self.meta.clone().expect("a claimed volume has a document"),
            epoch: self.epoch,
            epoch_doc: self.epoch_doc.clone(),
            head: self.head.take(),
            extents,
            next: self.next,
            witness: self.witness,
        }
    }
}
