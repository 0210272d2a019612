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
//!    must have answered: what was acknowledged is on all members, so it is on that one. A damaged or forgetful member never shortens it (I17).
//! 3. The log ends before the first missing `vseq`: records after a gap were never acknowledged, as acknowledgements go in
//!    order. `vseq` increases along an extent, so each is cut at its first record beyond the end.
//! 4. What is kept is made durable on every member that answers before the seals are committed, and sealed before anything is
//!    served, so an unacknowledged record that recovery shows never vanishes again (I3).
//! 5. A lease that a member granted to an older owner has run out before the seals are committed (I4). Not merely before
//!    anything is served: an opener that dies in between leaves nothing open, and the next one would fence nobody, hear of
//!    no lease and serve at once.

#![allow(missing_docs, reason = "the fields of a variant are described by its own line")]

use super::calls::{Call as Sent, Calls, MetaId};
use super::peers::Peers;
use super::{AgentView, Effects};
use crate::format::frame::whole_frames;
use crate::format::{FrameHeader, Pieces, Record, Stream};
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, Epoch, ExtentId, ExtentSeq, RpcId, VolumeId, Vseq};
use crate::limits::{EXTENT_KEYS_PER_TXN, PEER_WAIT, READ_BLOCKS_MAX, RETRY_PAUSE};
use crate::meta::docs::{BadDoc, EpochDoc, ExtentDoc, HeadDoc, Holder, OwnerDoc, Seal, VolumeDoc, decode, encode};
use crate::meta::{Compare, Entry, LeaseId, MetaError, MetaOp, MetaReply, Revision, Txn, Write, keys};
use crate::mutation::{self, Mutation};
use crate::peer::{Copy, Rejection, Request, Response, Unanswered};
use crate::time::{Duration, Instant};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// How a volume is to be opened.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Which.
    pub volume: VolumeId,
    /// Who opens it, for people.
    pub holder: Holder,
    /// Drawn at random by the opener.
    pub nonce: u64,
    /// The lease that the opener's `owner` key lives by.
    pub lease: Option<LeaseId>,
    /// Take it from a holder that seems to be alive.
    pub force: bool,
    /// How long to try before giving up with a reason.
    pub patience: Duration,
}

/// Why a volume cannot be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// No such volume.
    #[error("there is no volume {0}")]
    NotFound(VolumeId),
    /// It is being deleted.
    #[error("volume {0:?} is being deleted")]
    Deleting(String),
    /// Another process holds it, as far as its lease tells.
    #[error("volume {name:?} is held by {} (pid {}, epoch {epoch}): stop it there, or take the volume over with --fence", .holder.host, .holder.pid)]
    Held { name: String, holder: Holder, epoch: Epoch },
    /// Another opener was faster.
    #[error("volume {name:?} was taken by another opener (epoch {epoch})")]
    Overtaken { name: String, epoch: Epoch },
    /// Too few copies of an extent can be reached to know what was acknowledged.
    #[error("extent {extent} has no sound copy that can be reached: start {missing}")]
    Missing { extent: ExtentSeq, missing: String },
    /// The metadata store gave no answer.
    #[error("{0}")]
    Metadata(MetaError),
    /// A document cannot be read.
    #[error(transparent)]
    BadDoc(#[from] BadDoc),
    /// What is there contradicts itself: opening would lose data.
    #[error("the volume's log contradicts itself: {0}; nothing was changed, keep the disks as they are")]
    Inconsistent(String),
}

/// A frame of the log, as replay needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameInfo {
    /// Block of its header.
    pub offset: Blocks,
    /// `vseq` of its first record.
    pub base: Vseq,
    /// Its records.
    pub records: SmallVec<[Record; 2]>,
}

impl FrameInfo {
    fn last(&self) -> Vseq {
        Vseq(self.base.0 + self.records.len() as u64 - 1)
    }
    fn end(&self) -> Blocks {
        self.offset + 1 + self.records.iter().map(|r| Blocks::from(r.payload_blocks)).sum::<Blocks>()
    }
}

/// An extent as it stands after recovery: sealed.
#[derive(Clone, Debug)]
pub struct RecoveredExtent {
    /// Which.
    pub seq: ExtentSeq,
    /// Its document, with its seal.
    pub doc: ExtentDoc,
    /// When that was written.
    pub revision: Revision,
    /// Its frames below the seal; empty for checkpoints.
    pub frames: Vec<FrameInfo>,
}

/// A volume that has been taken over.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// What was asked for.
    pub meta: VolumeDoc,
    /// This owner's epoch.
    pub epoch: Epoch,
    /// The bytes of its document: what every transaction compares with.
    pub epoch_doc: Vec<u8>,
    /// The checkpoint to start from, and its key's revision.
    pub head: Option<(HeadDoc, Revision)>,
    /// Extents registered since that checkpoint.
    pub extents: Vec<RecoveredExtent>,
    /// The first `vseq` that is free.
    pub next: Vseq,
}

#[derive(Debug)]
struct Extent {
    seq: ExtentSeq,
    doc: ExtentDoc,
    revision: Revision,
    answers: BTreeMap<AgentId, Copy>,
    /// Where it ends, as far as is known by now.
    length: Blocks,
    frames: Vec<FrameInfo>,
    indexed: bool,
    /// Its records are in the checkpoint.
    contained: bool,
    asking: bool,
    tried: usize,
    retry: Instant,
    fills: Vec<Filling>,
}

/// Bringing one member's copy up to the extent's end.
#[derive(Debug)]
struct Filling {
    target: AgentId,
    at: Blocks,
    step: FillStep,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FillStep {
    Idle,
    Reading,
    Writing,
    Over,
}

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
    Frames(ExtentSeq),
    FillRead(ExtentSeq, AgentId),
    Fill(ExtentSeq, AgentId, Blocks),
}

/// The takeover of one volume.
#[derive(Debug)]
pub struct Recovery {
    claim: Claim,
    phase: Phase,
    started: Option<Instant>,
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
    next: Vseq,
}

/// How long a fence waits for the rest of an ensemble once enough of it has answered.
const FENCE_GRACE: Duration = Duration::from_millis(500);

impl Recovery {
    /// A takeover about to begin.
    #[must_use]
    pub fn new(claim: Claim) -> Recovery {
        Recovery {
            claim,
            phase: Phase::List,
            started: None,
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
            next: Vseq(1),
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

    /// What it is doing, for people.
    #[must_use]
    pub fn progress(&self) -> &'static str {
        match self.phase {
            Phase::List | Phase::Claim | Phase::Relist => "claiming the volume",
            Phase::Fence => "fencing the previous owner",
            Phase::Index => "reading the log's tail",
            Phase::Fill => "completing copies",
            Phase::Wait => "waiting out the previous owner's read lease",
            Phase::Seal | Phase::SealCheck | Phase::Sealed => "sealing the log",
        }
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
        let started = *self.started.get_or_insert(now);
        if now.since(started) > self.claim.patience {
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
        if let Some(x) = self.extents.values().find(|x| !x.settled()) {
            let silent: Vec<String> = x
                .doc
                .members
                .iter()
                .filter(|a| !matches!(x.answers.get(a), Some(copy) if sound(copy).is_some()))
                .map(|&a| self.peers.name(a))
                .collect();
            return OpenError::Missing { extent: x.seq, missing: silent.join(" or ") };
        }
        if let Some(x) = self.extents.values().find(|x| !x.indexed) {
            let members: Vec<String> = x.doc.members.iter().map(|&a| self.peers.name(a)).collect();
            return OpenError::Missing { extent: x.seq, missing: members.join(" or ") };
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

    fn on_first_list(&mut self, entries: &[Entry]) -> Result<(), OpenError> {
        let id = self.claim.volume;
        let find = |key: String| entries.iter().find(move |e| e.key == key);
        let meta: VolumeDoc = match find(keys::volume_meta(id)) {
            Some(entry) => decode(&entry.key, &entry.value)?,
            None => return Err(OpenError::NotFound(id)),
        };
        if meta.deleting {
            return Err(OpenError::Deleting(meta.name));
        }
        self.found = match find(keys::volume_epoch(id)) {
            Some(entry) => Some((decode::<EpochDoc>(&entry.key, &entry.value)?, entry.modified)),
            None => None,
        };
        if let Some((doc, _)) = &self.found
            && doc.nonce == self.claim.nonce
        {
            // Our own claim, whose answer was lost.
            self.epoch = doc.epoch;
            self.epoch_doc = encode(doc);
            self.meta = Some(meta);
            self.phase = Phase::Relist;
            return Ok(());
        }
        if let Some(entry) = find(keys::volume_owner(id))
            && !self.claim.force
        {
            let owner: OwnerDoc = decode(&entry.key, &entry.value)?;
            return Err(OpenError::Held { name: meta.name, holder: owner.holder, epoch: owner.epoch });
        }
        self.meta = Some(meta);
        self.phase = Phase::Claim;
        Ok(())
    }

    fn claim_txn(&mut self) -> Txn {
        let id = self.claim.volume;
        let key = keys::volume_epoch(id);
        let (epoch, unchanged) = match &self.found {
            Some((doc, revision)) => (doc.epoch.next(), Compare::Unchanged(key.clone(), *revision)),
            None => (Epoch(1), Compare::Absent(key.clone())),
        };
        let doc = EpochDoc { epoch, holder: self.claim.holder.clone(), nonce: self.claim.nonce };
        self.epoch = epoch;
        self.epoch_doc = encode(&doc);
        let mut then = vec![Write::Put { key, value: self.epoch_doc.clone(), lease: None }];
        if self.claim.lease.is_some() {
            let owner = OwnerDoc { epoch, holder: self.claim.holder.clone() };
            then.push(Write::Put { key: keys::volume_owner(id), value: encode(&owner), lease: self.claim.lease });
        }
        Txn { when: vec![Compare::Present(keys::volume_meta(id)), unchanged], then }
    }

    fn on_second_list(&mut self, now: Instant, entries: &[Entry]) -> Result<(), OpenError> {
        let id = self.claim.volume;
        let prefix = keys::extents(id);
        for entry in entries {
            if entry.key == keys::volume_epoch(id) && entry.value != self.epoch_doc {
                let doc: EpochDoc = decode(&entry.key, &entry.value)?;
                return Err(self.overtaken(doc.epoch));
            } else if entry.key == keys::volume_meta(id) {
                self.meta = Some(decode(&entry.key, &entry.value)?);
            } else if entry.key == keys::volume_head(id) {
                self.head = Some((decode(&entry.key, &entry.value)?, entry.modified));
            } else if entry.key.starts_with(&prefix) {
                let doc: ExtentDoc = decode(&entry.key, &entry.value)?;
                let seq = keys::parse_extent(&entry.key)
                    .ok_or_else(|| BadDoc { key: entry.key.clone(), reason: "not an extent's key".into() })?;
                self.extents.insert(seq, Extent::new(seq, doc, entry.modified));
            }
        }
        // What the checkpoint contains needs no replay.
        let done = self.head.as_ref().map_or(Vseq(0), |(head, _)| head.vseq);
        for x in self.extents.values_mut() {
            x.contained = x.doc.sealed.is_some_and(|seal| seal.last <= done);
            x.indexed = x.contained || !x.is_log();
        }
        self.fencing_since = now;
        self.phase = Phase::Fence;
        Ok(())
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
        if enough && (complete || now.since(self.fencing_since) >= FENCE_GRACE) {
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
            What::Frames(seq) => self.on_frames(now, seq, result),
            What::FillRead(seq, target) => self.on_fill_read(now, seq, target, result, out),
            What::Fill(seq, target, end) => {
                if let Some(filling) = self.extents.get_mut(&seq).and_then(|x| x.filling(target)) {
                    match result {
                        Ok(Response::Appended { .. }) => {
                            filling.at = end;
                            filling.step = FillStep::Idle;
                        }
                        _ => filling.step = FillStep::Over,
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the frame headers of every log extent up to its length; when all are there, finds the log's end.
    fn index(&mut self, now: Instant, out: &mut Effects) -> Result<(), OpenError> {
        let volume = self.claim.volume;
        for x in self.extents.values_mut().filter(|x| !x.indexed && !x.asking && x.retry <= now) {
            if x.reached() >= x.length {
                x.indexed = true;
                continue;
            }
            let sources = x.sources(&self.peers);
            let Some(&agent) = sources.get(x.tried % sources.len().max(1)) else {
                x.retry = now + RETRY_PAUSE;
                continue;
            };
            x.asking = true;
            let extent = ExtentId { volume, seq: x.seq };
            let request = Request::Frames { extent, epoch: self.epoch, from: x.reached() };
            self.calls.send(now, agent, request, PEER_WAIT, What::Frames(x.seq), out);
        }
        if self.extents.values().all(|x| x.indexed) {
            self.cut()?;
            self.phase = Phase::Fill;
        }
        Ok(())
    }

    fn on_frames(&mut self, now: Instant, seq: ExtentSeq, result: Result<Response, Unanswered>) {
        let volume = self.claim.volume;
        let Some(x) = self.extents.get_mut(&seq) else { return };
        x.asking = false;
        let before = x.reached();
        if let Ok(Response::Frames { headers, .. }) = result {
            for block in headers {
                let at = x.reached();
                if at >= x.length {
                    break;
                }
                let Ok(header) = FrameHeader::decode(&block, ExtentId { volume, seq }, at) else { break };
                if at + header.blocks() > x.length {
                    break;
                }
                x.frames.push(FrameInfo { offset: at, base: header.base, records: header.records });
            }
        }
        if x.reached() == before {
            // This copy does not have it: ask another.
            x.tried += 1;
            x.retry = now + RETRY_PAUSE / 4;
            // No copy has it: it was not acknowledged if a sound copy ends here, or before.
            let proof = x.answers.values().filter_map(sound).any(|length| length <= before);
            if x.tried > 8 * x.doc.members.len() && proof {
                x.length = before;
            }
        }
    }

    /// Finds the first missing record and ends every open extent before it.
    fn cut(&mut self) -> Result<(), OpenError> {
        let done = self.head.as_ref().map_or(Vseq(0), |(head, _)| head.vseq);
        let mut spans: Vec<(Vseq, Vseq)> = self
            .extents
            .values()
            .flat_map(|x| x.frames.iter().map(|f| (f.base, f.last())))
            .filter(|(_, last)| *last > done)
            .collect();
        spans.sort_unstable();
        let mut next = done.next();
        for (base, last) in spans {
            if base > next {
                break;
            }
            next = next.max(last.next());
        }
        self.next = next;
        for x in self.extents.values_mut() {
            if !x.is_log() || x.contained {
                continue;
            }
            let keep = x.frames.iter().take_while(|f| f.base < next).count();
            match x.doc.sealed {
                Some(seal) if keep < x.frames.len() || x.reached() != seal.length => {
                    return Err(OpenError::Inconsistent(format!(
                        "extent {} is sealed with records past {next}, the first that is missing",
                        x.seq
                    )));
                }
                Some(_) => {}
                None => {
                    x.frames.truncate(keep);
                    x.length = x.reached();
                }
            }
            if !x.frames.is_sorted_by(|a, b| a.last() < b.base) {
                return Err(OpenError::Inconsistent(format!("records in extent {} are out of order", x.seq)));
            }
        }
        for x in self.extents.values_mut().filter(|x| x.doc.sealed.is_none() && x.is_log()) {
            x.plan_fills();
        }
        Ok(())
    }

    /// Makes every open extent whole on every member that answered.
    fn fill(&mut self, now: Instant, out: &mut Effects) {
        let volume = self.claim.volume;
        for x in self.extents.values_mut() {
            let extent = ExtentId { volume, seq: x.seq };
            let (length, seq) = (x.length, x.seq);
            let sources: Vec<AgentId> = x.sources(&self.peers);
            let tried = x.tried;
            for filling in x.fills.iter_mut().filter(|f| f.step == FillStep::Idle) {
                if filling.at >= length {
                    filling.step = FillStep::Over;
                    continue;
                }
                let others: SmallVec<[AgentId; 4]> = sources.iter().copied().filter(|s| *s != filling.target).collect();
                let Some(&source) = others.get(tried % others.len().max(1)) else {
                    filling.step = FillStep::Over;
                    continue;
                };
                filling.step = FillStep::Reading;
                let blocks = READ_BLOCKS_MAX.min(length - filling.at);
                let request = Request::Read { extent, epoch: self.epoch, offset: filling.at, blocks };
                self.calls.send(now, source, request, PEER_WAIT, What::FillRead(seq, filling.target), out);
            }
        }
        if self.extents.values().all(|x| x.fills.iter().all(|f| f.step == FillStep::Over)) {
            self.phase = Phase::Wait;
        }
    }

    fn on_fill_read(
        &mut self,
        now: Instant,
        seq: ExtentSeq,
        target: AgentId,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
    ) {
        let extent = ExtentId { volume: self.claim.volume, seq };
        let Some(x) = self.extents.get_mut(&seq) else { return };
        let Some(filling) = x.filling(target) else { return };
        let at = filling.at;
        let bytes = match result {
            Ok(Response::Data { bytes, .. }) => bytes,
            _ => {
                // Another source, if there is one; the copy stays short otherwise, and repair completes it later.
                filling.step = FillStep::Idle;
                x.tried += 1;
                if x.tried > 4 * x.doc.members.len() {
                    self.shorten(seq, target);
                }
                return;
            }
        };
        let blocks = whole_frames(&bytes, extent, at);
        if blocks == 0 {
            return self.shorten(seq, target);
        }
        filling.step = FillStep::Writing;
        let bytes = Pieces::from_iter([bytes.slice(..blocks as usize * BLOCK_SIZE)]);
        let request = Request::Fill { extent, epoch: self.epoch, stream: Stream::Log, offset: at, bytes };
        self.calls.send(now, target, request, PEER_WAIT, What::Fill(seq, target, at + blocks), out);
    }

    /// Nobody can give `target` what it lacks. If its copy is sound, none of that was ever acknowledged: the extent ends
    /// where the copy does, and the log's end is found anew. Otherwise repair completes the copy later.
    fn shorten(&mut self, seq: ExtentSeq, target: AgentId) {
        let Some(x) = self.extents.get_mut(&seq) else { return };
        let proof = x.answers.get(&target).is_some_and(|copy| sound(copy).is_some());
        let Some(filling) = x.filling(target) else { return };
        let at = filling.at;
        filling.step = FillStep::Over;
        if !proof {
            return;
        }
        x.length = at;
        x.frames.retain(|f| f.end() <= at);
        for x in self.extents.values_mut() {
            x.fills.clear();
            x.tried = 0;
        }
        self.phase = Phase::Index;
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
        }
    }
}

/// The length of a copy that proves there was no more; `None` for one that does not.
fn sound(copy: &Copy) -> Option<Blocks> {
    match *copy {
        Copy::Never => Some(0),
        Copy::Open { length, damaged: false, .. } | Copy::Sealed { length, .. } => Some(length),
        Copy::Open { damaged: true, .. } | Copy::Unknown => None,
    }
}

impl Extent {
    fn new(seq: ExtentSeq, doc: ExtentDoc, revision: Revision) -> Extent {
        let length = doc.sealed.map_or(0, |s| s.length);
        Extent {
            seq,
            doc,
            revision,
            answers: BTreeMap::new(),
            length,
            frames: Vec::new(),
            indexed: false,
            contained: false,
            asking: false,
            tried: 0,
            retry: Instant::default(),
            fills: Vec::new(),
        }
    }

    fn is_log(&self) -> bool {
        self.doc.stream == Stream::Log
    }

    /// Its members must be fenced and asked. Nothing was ever acknowledged, or read, on the word of a checkpoint's extent.
    fn is_open(&self) -> bool {
        self.doc.sealed.is_none() && self.is_log()
    }

    /// Enough members have answered to know that nothing acknowledged is missing: one that is sound, or all of them with
    /// tails that a power cut may have torn. What was acknowledged is on all, so the longest of all has it.
    fn settled(&self) -> bool {
        let told = |copy: &Copy| !matches!(copy, Copy::Unknown);
        !self.is_open()
            || self.answers.values().any(|copy| sound(copy).is_some())
            || self.doc.members.iter().all(|agent| self.answers.get(agent).is_some_and(told))
    }

    /// The longest valid prefix. An unfinished checkpoint is nothing.
    fn end(&self) -> Blocks {
        if let Some(seal) = self.doc.sealed {
            return seal.length;
        }
        if self.doc.stream == Stream::Checkpoint {
            return 0;
        }
        let lengths = self.answers.values().filter_map(|copy| match *copy {
            Copy::Never => Some(0),
            Copy::Open { length, .. } | Copy::Sealed { length, .. } => Some(length),
            Copy::Unknown => None,
        });
        match mutation::active(Mutation::ShortestLengthSeals) {
            true => lengths.min().unwrap_or(0),
            false => lengths.max().unwrap_or(0),
        }
    }

    /// How far its frames are known.
    fn reached(&self) -> Blocks {
        self.frames.last().map_or(0, FrameInfo::end)
    }

    /// Members to read from, the best first.
    fn sources(&self, peers: &Peers) -> Vec<AgentId> {
        let held = |agent: &AgentId| match self.answers.get(agent) {
            Some(Copy::Open { length, .. } | Copy::Sealed { length, .. }) => *length,
            Some(Copy::Never | Copy::Unknown) => 0,
            None if self.doc.sealed.is_some() => self.length,
            None => 0,
        };
        let mut sources: Vec<AgentId> = self.doc.members.iter().copied().filter(|a| held(a) > 0).collect();
        sources.sort_by_key(|a| (!peers.usable(*a), std::cmp::Reverse(held(a))));
        sources
    }

    fn plan_fills(&mut self) {
        for (&agent, copy) in &self.answers {
            let have = match *copy {
                Copy::Never => 0,
                Copy::Open { length, .. } => length,
                Copy::Sealed { .. } | Copy::Unknown => continue,
            };
            if have < self.length {
                // What a member holds beyond the cut of a shorter copy is void; its own frames below are the same bytes.
                self.fills.push(Filling { target: agent, at: have, step: FillStep::Idle });
            }
        }
    }

    fn filling(&mut self, target: AgentId) -> Option<&mut Filling> {
        self.fills.iter_mut().find(|f| f.target == target)
    }

    fn sealed(&self) -> ExtentDoc {
        let seal = match self.doc.sealed {
            Some(seal) => seal,
            None => Seal { length: self.length, last: self.frames.last().map_or(Vseq(0), FrameInfo::last) },
        };
        ExtentDoc { sealed: Some(seal), ..self.doc.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(answers: &[(u64, Copy)]) -> Extent {
        let doc = ExtentDoc {
            stream: Stream::Log,
            members: vec![AgentId(1), AgentId(2)],
            former: Vec::new(),
            degraded: false,
            sealed: None,
        };
        let mut x = Extent::new(ExtentSeq(1 << 24), doc, Revision(1));
        x.answers = answers.iter().map(|&(agent, copy)| (AgentId(agent), copy)).collect();
        x
    }

    fn open(length: Blocks, damaged: bool) -> Copy {
        Copy::Open { length, lac: Vseq(0), damaged }
    }

    #[test]
    fn one_sound_copy_settles_an_extent_and_the_longest_ends_it() {
        let x = extent(&[(1, open(7, false))]);
        assert_eq!((x.settled(), x.end()), (true, 7));
        let x = extent(&[(1, open(7, false)), (2, open(9, true))]);
        assert_eq!((x.settled(), x.end()), (true, 9));
        assert!(extent(&[(1, Copy::Never)]).settled());
    }

    #[test]
    fn a_damaged_or_forgetful_copy_alone_settles_nothing() {
        assert!(!extent(&[]).settled());
        assert!(!extent(&[(1, open(7, true))]).settled());
        assert!(!extent(&[(1, Copy::Unknown)]).settled());
        assert!(!extent(&[(1, open(7, true)), (2, Copy::Unknown)]).settled());
    }

    #[test]
    fn tails_that_a_power_cut_tore_on_all_members_do_not_keep_a_volume_closed() {
        let x = extent(&[(1, open(7, true)), (2, open(5, true))]);
        assert_eq!((x.settled(), x.end()), (true, 7));
    }
}
