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
//! | `transactions` | what is written to the metadata store, and under which conditions |
//! | [`table`], [`peers`], [`calls`] | what is known of extents, agents and requests |
//!
//! The log knows nothing of block addresses. Records are opaque to it; the layer above gets them back in order.

pub mod calls;
mod effects;
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
mod transactions;
mod witness;
pub mod writer;

pub use calls::{Calls, MetaId};
pub use effects::{Call, Effects, MetaCall, Note, Send};
pub use peers::{AgentView, Peers};
pub use room::Room;
pub use table::Table;
pub use transactions::LogTxn;
pub use writer::{Item, Lane, LogEvent, Writer, WriterConfig};

use crate::ids::{AgentId, Blocks, Epoch, ExtentSeq, VolumeId};
use crate::meta::docs::AckMode;
use crate::meta::{Revision, Txn};
use crate::peer::{Class, FreeSpace};
use crate::ring::Ring;
use crate::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use witness::Witness;

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
    /// Frames that are not full wait for company while more than twice their records are unacknowledged.
    pub gather: bool,
    /// How long an agent may be away before its copies are made anew elsewhere.
    pub grace: Duration,
    /// The agent of the owner's own process, if it has one: read from first, and a member of new extents where the ring allows.
    pub near: Option<AgentId>,
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
