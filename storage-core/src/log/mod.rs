//! The owner's half of a volume: a replicated, single-writer, append-only log over extents.
//!
//! | part | what it decides |
//! |---|---|
//! | [`writer`] | frames, their order, their acknowledgement |
//! | [`open`] | one extent while it is written |
//! | `extents` | registering, creating and sealing extents in time; losing members |
//! | `room` | how many extents more there is room for |
//! | `repair` | bringing copies of sealed extents back to the number asked for |
//! | `reclaim` | deleting what a checkpoint has declared dead |
//! | `lease` | until when this owner may serve reads |
//! | [`recover`] | taking a volume over: fence, find the end, seal |
//! | [`remove`] | deleting a whole volume |
//! | [`table`], [`peers`], [`calls`] | what is known of extents, agents and requests |
//!
//! The log knows nothing of block addresses. Records are opaque to it; the layer above gets them back in order.

#![allow(missing_docs, reason = "the fields of a variant are described by its own line")]

pub mod calls;
mod extents;
mod lease;
pub mod open;
pub mod peers;
mod reclaim;
pub mod recover;
pub mod remove;
mod repair;
mod room;
pub mod table;
mod witness;
pub mod writer;

pub use calls::{Calls, MetaId};
pub use peers::{AgentView, Peers};
pub use room::Room;
pub use table::Table;
pub use writer::{Item, Lane, LogEvent, Writer, WriterConfig};

use crate::ids::{AgentId, Blocks, Epoch, ExtentSeq, RpcId, VolumeId};
use crate::limits::RETRY_PAUSE;
use crate::meta::docs::AckMode;
use crate::meta::{Compare, Entry, MetaError, MetaOp, MetaReply, Revision, Txn, Write, keys};
use crate::peer::{Class, FreeSpace, Request};
use crate::ring::Ring;
use crate::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use witness::Witness;

/// A request on its way to an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Send {
    /// To whom.
    pub to: AgentId,
    /// Its number: comes back with the answer.
    pub rpc: RpcId,
    /// What is asked.
    pub request: Request,
}

/// Something that a person should be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// An agent stopped answering; writing goes on elsewhere.
    AgentLost { agent: AgentId },
    /// An extent was given fewer copies, or less spread, than asked for.
    Degraded { extent: ExtentSeq },
    /// A copy of an extent is whole again, or a new one was made.
    Repaired { extent: ExtentSeq, agent: AgentId },
    /// A copy's bytes are not what they should be; another copy served.
    DamagedCopy { extent: ExtentSeq, agent: AgentId },
    /// No copy of some blocks can be read: their range answers EIO.
    Unreadable { extent: ExtentSeq, block: Blocks },
    /// The metadata store refused something.
    MetadataRefused { reason: String },
    /// A newer epoch owns the volume: this owner is done.
    Fenced { epoch: Epoch },
}

/// What an owner wants done.
#[derive(Default, Debug)]
pub struct Effects {
    /// Requests to agents, to be sent in this order.
    pub sends: Vec<Send>,
    /// Requests to the metadata store.
    pub meta: Vec<(MetaId, MetaOp)>,
    /// News.
    pub notes: Vec<Note>,
}

/// What an agent's answer is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// A slot in an extent.
    Create { seq: ExtentSeq },
    /// Frames up to `end`.
    Append { seq: ExtentSeq, end: Blocks },
    /// The end of an extent's copy.
    Seal { seq: ExtentSeq },
    /// A read lease.
    Lease,
    /// A step of repair job `job`.
    Repair { job: u64 },
    /// An extent's deletion.
    Delete { seq: ExtentSeq },
    /// Something of the layer above, by its own number.
    Upper(u64),
}

/// What a metadata answer is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaCall {
    /// A transaction of the log's, to be repeated until its outcome is known.
    Log(LogTxn, Txn),
    /// Something of the layer above, by its own number.
    Upper(u64),
}

/// The log's transactions. All are conditional on the epoch and on the keys they replace, so that one which is repeated, or
/// comes late, takes effect once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogTxn {
    /// Extents enter the log.
    Register(Vec<ExtentSeq>),
    /// Extents end.
    Seal(Vec<ExtentSeq>),
    /// A repaired extent gets its new ensemble.
    Members(u64),
    /// Extents that a checkpoint contains lose their keys.
    Forget(Vec<ExtentSeq>),
    /// The store is to vouch for reads.
    Witness(witness::Asked),
}

impl LogTxn {
    fn extents(&self, log: &Log) -> Vec<ExtentSeq> {
        match self {
            LogTxn::Register(extents) | LogTxn::Seal(extents) | LogTxn::Forget(extents) => extents.clone(),
            LogTxn::Members(job) => log.jobs.get(job).map(|job| job.seq).into_iter().collect(),
            LogTxn::Witness(_) => Vec::new(),
        }
    }
}

/// How a log is set up.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The volume.
    pub volume: VolumeId,
    /// Copies.
    pub replicas: usize,
    /// Copies without which nothing is acknowledged.
    pub min_replicas: usize,
    /// When records are acknowledged.
    pub mode: AckMode,
    /// Blocks of an extent's data area.
    pub capacity: Blocks,
    /// Most hot extents written at the same time.
    pub open_max: usize,
    /// Frames under way beyond which records wait to be packed together.
    pub frames_max: usize,
    /// How long an agent may be away before its copies are made anew elsewhere.
    pub grace: Duration,
}

/// Before when no extent of a class is asked for again: what is refused to one class may be granted to the other.
#[derive(Clone, Copy, Default, Debug)]
struct Pauses {
    data: Instant,
    reserve: Instant,
}

impl Pauses {
    fn get(&self, class: Class) -> Instant {
        match class {
            Class::Data => self.data,
            Class::Reserve => self.reserve,
        }
    }

    fn put_off(&mut self, class: Class, at: Instant) {
        match class {
            Class::Data => self.data = self.data.max(at),
            Class::Reserve => self.reserve = self.reserve.max(at),
        }
    }
}

/// Why the log cannot go on for now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blocked {
    /// No agent that could take an extent has a slot for it.
    NoSpace,
    /// Fewer agents than the volume needs can be reached.
    TooFewAgents,
    /// The metadata store does not answer, and the registered extents are used up.
    Metadata,
}

/// An owner's log, from the moment its volume is open.
#[derive(Debug)]
pub struct Log {
    /// How it is set up.
    pub config: LogConfig,
    /// Frames and acknowledgements.
    pub writer: Writer,
    /// Extents.
    pub table: Table,
    /// Agents.
    pub peers: Peers,
    /// Requests under way.
    pub calls: Calls<Call, MetaCall>,
    ring: Arc<Ring>,
    epoch_doc: Vec<u8>,
    /// When the HEAD in force was written.
    head: Option<Revision>,
    drawn: u64,
    cold_wanted: bool,
    /// Extents that a checkpoint takes: nothing else takes the last ones.
    checkpoint: u32,
    /// Full agents are done without.
    degrade: bool,
    blocked: Option<Blocked>,
    /// Why the last extent that was wanted could not be had.
    refusal: Option<Blocked>,
    register_after: Pauses,
    retries: Vec<(Instant, LogTxn, Txn)>,
    unsynced: BTreeMap<ExtentSeq, Instant>,
    jobs: BTreeMap<u64, repair::Job>,
    /// Numbers the copies that this owner makes. A deletion names the newest, so that it hits none made later.
    jobs_drawn: u64,
    scan_after: Instant,
    probe_after: Instant,
    dead: BTreeMap<ExtentSeq, Instant>,
    /// Extents that ended empty, whose slots are to be given back.
    empty: BTreeMap<ExtentSeq, Instant>,
    extra: BTreeMap<ExtentSeq, Instant>,
    damaged: BTreeSet<(ExtentSeq, AgentId)>,
    leasing: BTreeSet<AgentId>,
    witness: Witness,
    /// Reads have found no lease since the last turn, and when that turn came.
    unvouched: (bool, bool),
    fenced: Option<Epoch>,
    closing: bool,
}

impl Log {
    /// A log that continues at `writer`'s place with the extents in `table`, and numbers its requests from `next_call` on.
    /// `witness`: an earlier owner left one.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "what recovery found, part by part")]
    pub fn new(
        config: LogConfig,
        writer: Writer,
        table: Table,
        peers: Peers,
        ring: Arc<Ring>,
        epoch_doc: Vec<u8>,
        witness: bool,
        next_call: u64,
    ) -> Log {
        let unsynced = table.iter().filter(|(_, e)| e.seal().is_some() && e.members.iter().any(|m| !m.synced));
        let (empty, unsynced): (Vec<_>, Vec<_>) = unsynced.partition(|(_, e)| e.is_empty());
        let due = |entries: Vec<(_, &table::Entry)>| entries.iter().map(|(_, e)| (e.seq, Instant::default())).collect();
        let (empty, unsynced) = (due(empty), due(unsynced));
        // HEAD, which no older owner can change any more, lists them.
        let dead = table.iter().filter(|(_, e)| e.dead).map(|(_, e)| (e.seq, Instant::default())).collect();
        let extra =
            table.iter().filter(|(_, e)| !e.former.is_empty()).map(|(_, e)| (e.seq, Instant::default())).collect();
        Log {
            config,
            writer,
            table,
            peers,
            calls: Calls::from(next_call),
            ring,
            epoch_doc,
            head: None,
            drawn: 0,
            cold_wanted: false,
            checkpoint: 1,
            degrade: false,
            blocked: None,
            refusal: None,
            register_after: Pauses::default(),
            retries: Vec::new(),
            unsynced,
            jobs: BTreeMap::new(),
            jobs_drawn: 0,
            scan_after: Instant::default(),
            probe_after: Instant::default(),
            dead,
            empty,
            extra,
            damaged: BTreeSet::new(),
            leasing: BTreeSet::new(),
            witness: Witness::found(witness),
            unvouched: (false, false),
            fenced: None,
            closing: false,
        }
    }

    /// The epoch that has taken over, if this owner has learnt of one.
    #[must_use]
    pub fn fenced(&self) -> Option<Epoch> {
        self.fenced
    }

    /// Why records wait, if they do for another reason than load.
    #[must_use]
    pub fn blocked(&self) -> Option<Blocked> {
        self.blocked
    }

    /// Whether garbage collection has, or will have, records to move.
    pub fn want_cold(&mut self, wanted: bool) {
        self.cold_wanted = wanted;
    }

    /// Registers no more extents, and seals those that are drained: the volume is being closed.
    pub fn close(&mut self) {
        self.closing = true;
        for seq in self.writer.open.keys().copied().collect::<Vec<_>>() {
            if let Some(x) = self.writer.open.get_mut(&seq) {
                x.close(false);
            }
        }
    }

    /// Every extent is sealed and nothing is under way.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closing && self.writer.open.is_empty() && self.retries.is_empty()
    }

    /// [`Log::close`] was called.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// The last extent that was wanted found no room.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.refusal == Some(Blocked::NoSpace)
    }

    /// A transaction is under way, or waits to be tried again.
    #[must_use]
    pub fn is_transacting(&self) -> bool {
        !self.retries.is_empty() || self.calls.is_transacting()
    }

    /// The cluster's view has changed.
    pub fn on_agents(&mut self, now: Instant, views: &[AgentView]) {
        self.peers.update(now, views);
        self.register_after = Pauses::default();
    }

    /// The HEAD in force was written at this revision.
    pub fn set_head(&mut self, revision: Revision) {
        self.head = Some(revision);
    }

    /// A new ring is in force.
    pub fn on_ring(&mut self, ring: Arc<Ring>) {
        self.ring = ring;
    }

    /// A connection to `agent` stands.
    pub fn on_peer_up(&mut self, now: Instant, agent: AgentId) {
        self.peers.heard(now, agent);
        self.register_after = Pauses::default();
        let Log { unsynced, dead, empty, extra, .. } = self;
        for at in [unsynced, dead, empty, extra].into_iter().flat_map(BTreeMap::values_mut) {
            *at = now;
        }
    }

    /// A copy's bytes failed their checksum: it is replaced, if another agent can take one.
    pub fn on_damage(&mut self, now: Instant, seq: ExtentSeq, agent: AgentId, out: &mut Effects) {
        if self.damaged.insert((seq, agent)) {
            out.notes.push(Note::DamagedCopy { extent: seq, agent });
            self.unsynced.insert(seq, now);
        }
    }

    /// A newer epoch was met: nothing of this owner is acknowledged from here on.
    pub fn fence(&mut self, epoch: Epoch, out: &mut Effects) {
        if self.fenced.is_none() {
            self.fenced = Some(epoch);
            out.notes.push(Note::Fenced { epoch });
        }
    }

    /// Space, all agents together that can be reached, in slots.
    #[must_use]
    pub fn space(&self) -> FreeSpace {
        self.peers.iter().filter(|(id, _)| self.peers.usable(*id)).map(|(_, peer)| peer.space).sum()
    }

    /// Extents that have fewer sound copies than the volume asks for.
    #[must_use]
    pub fn under_replicated(&self) -> usize {
        let short = |e: &table::Entry| {
            !e.dead
                && (e.degraded
                    || e.members.iter().filter(|m| self.peers.usable(m.agent)).count() < self.config.replicas)
        };
        let unsynced = |e: &table::Entry| e.seal().is_some() && e.members.iter().any(|m| !m.synced);
        self.table.iter().filter(|(_, e)| e.live > 0 && (short(e) || unsynced(e))).count()
    }

    /// A transaction that holds only while this owner's epoch stands, and the keys of `extents` are as this owner left
    /// them: one that arrives late, after its repetition was committed, changes nothing.
    #[must_use]
    pub fn guarded(&self, then: Vec<Write>, extents: &[ExtentSeq]) -> Txn {
        let epoch = keys::volume_epoch(self.config.volume);
        let mut when = vec![Compare::Holds(epoch, self.epoch_doc.clone())];
        when.extend(extents.iter().map(|&seq| {
            let key = keys::extent(self.config.volume, seq);
            match self.table.get(seq).and_then(|entry| entry.key) {
                Some(revision) => Compare::Unchanged(key, revision),
                None => Compare::Absent(key),
            }
        }));
        Txn { when, then }
    }

    /// The transaction that registers `extents`. It holds only under the HEAD in force: a key is deleted no earlier than
    /// under the next one, so a registration that comes late brings none back.
    fn registration(&mut self, puts: Vec<Write>, extents: &[ExtentSeq]) -> Txn {
        let mut txn = self.guarded(puts, extents);
        txn.then.extend(self.witness.registering(self.config.volume));
        let key = keys::volume_head(self.config.volume);
        txn.when.push(match self.head {
            Some(revision) => Compare::Unchanged(key, revision),
            None => Compare::Absent(key),
        });
        txn
    }

    fn transact(&mut self, what: LogTxn, txn: Txn, out: &mut Effects) {
        self.calls.ask(MetaOp::Txn(txn.clone()), MetaCall::Log(what, txn), out);
    }

    /// A transaction of the log's is answered, or the listing that tells what became of it.
    pub fn on_meta(
        &mut self,
        now: Instant,
        what: LogTxn,
        txn: Txn,
        result: Result<MetaReply, MetaError>,
        out: &mut Effects,
    ) {
        match result {
            Ok(MetaReply::Committed(revision)) => self.on_committed(now, what, &|_| revision, out),
            Ok(MetaReply::Listed(entries, _)) => self.on_listed(now, what, &txn, &entries, out),
            Ok(_) => {
                // Another owner, or an earlier attempt of this very transaction.
                let op = MetaOp::List(keys::volume(self.config.volume));
                self.calls.ask(op, MetaCall::Log(what, txn), out);
            }
            Err(error) => {
                if let MetaError::Refused(reason) = error {
                    out.notes.push(Note::MetadataRefused { reason });
                }
                self.retries.push((now + RETRY_PAUSE, what, txn));
            }
        }
    }

    /// What the store holds after a transaction met a conflict.
    fn on_listed(&mut self, now: Instant, what: LogTxn, txn: &Txn, entries: &[Entry], out: &mut Effects) {
        let find = |key: &str| entries.iter().find(|e| e.key == key);
        let epoch = find(&keys::volume_epoch(self.config.volume));
        if epoch.is_none_or(|e| e.value != self.epoch_doc) {
            return self.fence(self.writer.epoch().next(), out);
        }
        let stands = |write: &Write| match write {
            Write::Put { key, value, .. } => find(key).is_some_and(|e| e.value == *value),
            // A witness that was asked for before came later.
            Write::Delete(key) => find(key).is_none() || *key == keys::volume_witness(self.config.volume),
        };
        if txn.then.iter().all(stands) {
            let revision = |seq| find(&keys::extent(self.config.volume, seq)).map_or(Revision(0), |e| e.modified);
            let found: BTreeMap<ExtentSeq, Revision> =
                what.extents(self).into_iter().map(|s| (s, revision(s))).collect();
            return self.on_committed(now, what, &|seq| found.get(&seq).copied().unwrap_or_default(), out);
        }
        let put = |write: &Write| match write {
            Write::Put { key, .. } => Some(key.clone()),
            Write::Delete(_) => None,
        };
        match what {
            // A key was deleted, or written, between: what was planned on it is planned again.
            LogTxn::Members(job) => self.abandon(job),
            LogTxn::Forget(_) => {}
            LogTxn::Witness(_) => self.ask_witness(now, out),
            // HEAD has moved on: the same again, under the new one. The old attempt can no longer succeed.
            LogTxn::Register(extents) if txn.then.iter().filter_map(put).all(|key| find(&key).is_none()) => {
                let puts = txn.then.iter().filter(|write| put(write).is_some()).cloned().collect();
                let txn = self.registration(puts, &extents);
                let held = find(&keys::volume_head(self.config.volume)).map(|e| e.modified);
                if held == self.head {
                    self.transact(LogTxn::Register(extents), txn, out);
                } else {
                    // The swap's own answer is on its way.
                    self.retries.push((now + RETRY_PAUSE, LogTxn::Register(extents), txn));
                }
            }
            LogTxn::Register(_) | LogTxn::Seal(_) => {
                let reason = "keys of this volume's extents were changed by somebody else".into();
                out.notes.push(Note::MetadataRefused { reason });
                self.fence(self.writer.epoch().next(), out);
            }
        }
    }

    fn on_committed(&mut self, now: Instant, what: LogTxn, at: &dyn Fn(ExtentSeq) -> Revision, out: &mut Effects) {
        match what {
            LogTxn::Register(extents) => {
                for seq in extents {
                    self.on_registered(now, &[seq], at(seq), out);
                }
            }
            LogTxn::Seal(extents) => {
                for seq in extents {
                    self.on_sealed(now, &[seq], at(seq), out);
                }
            }
            LogTxn::Witness(asked) => self.on_witnessed(asked),
            LogTxn::Members(job) => {
                let revision = self.jobs.get(&job).map_or(Revision(0), |job| at(job.seq));
                self.on_new_members(now, job, revision, out);
            }
            LogTxn::Forget(extents) => {
                for seq in extents {
                    if let Some(entry) = self.table.get_mut(seq) {
                        entry.key = None;
                    }
                    if let Some(due) = self.dead.get_mut(&seq) {
                        *due = now;
                    }
                }
            }
        }
    }

    /// An agent's answer to one of the log's own requests; answers of the layer above never come here.
    pub fn on_answer(
        &mut self,
        now: Instant,
        call: calls::Call<Call>,
        result: Result<crate::peer::Response, crate::peer::Unanswered>,
        out: &mut Effects,
    ) {
        match call.what {
            Call::Create { seq } => self.on_create(now, call.to, seq, result, out),
            Call::Append { seq, end } => self.on_append(now, &call, seq, end, result, out),
            Call::Seal { seq } => self.on_seal(now, call.to, seq, result, out),
            Call::Lease => self.on_lease(now, &call, result, out),
            Call::Repair { job } => self.on_repair(now, job, result, out),
            Call::Delete { seq } => self.on_delete(now, call.to, seq, result, out),
            Call::Upper(_) => unreachable!("the layer above takes its own answers"),
        }
    }

    /// Does what is due: call after every batch of events.
    pub fn turn(&mut self, now: Instant, out: &mut Effects) {
        if self.fenced.is_some() {
            return;
        }
        let due: Vec<_> = self.retries.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, what, txn) in due {
            match what {
                // Good from when it is asked for: asked anew.
                LogTxn::Witness(_) => self.ask_witness(now, out),
                what => self.transact(what, txn, out),
            }
        }
        self.unvouched = (false, self.unvouched.0);
        self.probe(now, out);
        self.writer.commit();
        self.maintain(now, out);
        let Log { writer, peers, calls, .. } = self;
        writer.pump(&mut writer::Cx { now, peers, calls, out });
        self.maintain(now, out);
        self.repair(now, out);
        self.reclaim(now, out);
    }

    /// When [`Log::turn`] wants to be called even if nothing happens.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.fenced.is_some() {
            return None;
        }
        let waiting = self.blocked.is_some().then(|| self.register_after.get(Class::Data)).filter(|&at| at > now);
        let retry = self.retries.iter().map(|(at, ..)| *at).min();
        let repair =
            if self.jobs.len() < crate::limits::REPAIRS_MAX { self.unsynced.values().copied().min() } else { None };
        let scan = self.peers.iter().any(|(_, p)| p.away_since.is_some()).then_some(self.scan_after);
        let dead = self.dead.values().chain(self.empty.values()).chain(self.extra.values()).copied().min();
        let probe = self.peers.iter().any(|(_, p)| p.up && p.suspect).then_some(self.probe_after);
        [waiting, retry, repair, scan, probe, dead].into_iter().flatten().min()
    }
}
