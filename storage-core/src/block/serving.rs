//! A volume that is open: takes requests, moves the log, collects garbage, writes checkpoints.

use super::checkpoint::write::{Checkpoint, Progress};
use super::gc::{GC_COOKIE, Gc};
use super::io::{IoDone, IoError, IoId, IoOp};
use super::map::Map;
use super::reads::{Ask, Asks, Reads};
use super::record::BlockRecord;
use super::space::{Effort, Ledger, Plan, Usage};
use super::state::{apply, relocate};
use super::volume::VolumeState;
use crate::block::map::Loc;
use crate::format::{Pieces, Record};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentSeq, Lba, RpcId, Vseq};
use crate::limits::{
    CHECKPOINT_EXTENTS_MIN, FRAME_PAYLOAD_BLOCKS_MAX, FULL_PAUSE, PACE_PATIENCE, RETRY_PAUSE, SURVEY_PAUSE, TIDY_PAUSE,
};
use crate::log::{Blocked, Call, Effects, Item, Lane, Log, LogEvent, MetaCall, MetaId, Note};
use crate::meta::docs::{AckMode, EpochDoc, HeadDoc, decode, encode};
use crate::meta::{Compare, Entry, MetaError, MetaOp, MetaReply, Revision, Write, keys};
use crate::mutation::{self, Mutation};
use crate::peer::{Response, Unanswered};
use crate::time::Instant;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

type Done = Vec<(IoId, Result<IoDone, IoError>)>;

#[derive(Debug)]
struct WriteOp {
    left: usize,
    fua: bool,
    failed: Option<IoError>,
}

/// Where the swap of HEAD stands.
#[derive(Debug, PartialEq, Eq)]
enum Commit {
    Swapping(HeadDoc),
    /// The outcome is unknown: the store is to be asked, at this time.
    Checking(HeadDoc, Instant),
    Listing(HeadDoc),
}

const HEAD_TXN: u64 = 1;
const HEAD_LIST: u64 = 2;

/// Counts since the volume was opened.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Blocks that clients wrote.
    pub user_blocks: u64,
    /// Blocks of log frames that were sent to each copy: headers, moved blocks, and frames that had to be sent again included.
    pub log_blocks: u64,
    /// Blocks that garbage collection moved.
    pub moved_blocks: u64,
    /// Blocks of checkpoints, those included that were given up.
    pub checkpoint_blocks: u64,
    /// Checkpoints committed.
    pub checkpoints: u64,
}

impl Counters {
    /// Blocks written to each copy for each block that a client wrote: all of [`Counters::log_blocks`] and
    /// [`Counters::checkpoint_blocks`]. What an agent writes beside that (slot headers, footers) is not in it, nor are copies that
    /// are made anew.
    #[must_use]
    pub fn write_amplification(&self) -> f64 {
        (self.log_blocks + self.checkpoint_blocks) as f64 / self.user_blocks.max(1) as f64
    }
}

/// A volume that is open.
#[derive(Debug)]
pub struct Serving {
    /// Its log.
    pub log: Log,
    /// Its address map.
    pub map: Map,
    reads: Reads,
    statuses: VecDeque<(IoId, Lba, u64)>,
    asks: Asks,
    gc: Gc,
    writes: BTreeMap<u64, WriteOp>,
    flushes: VecDeque<(Vseq, IoId)>,
    checkpoint: Option<Checkpoint>,
    commit: Option<Commit>,
    head: Option<(HeadDoc, Revision)>,
    /// Blocks logged since the last checkpoint.
    logged: u64,
    tidied: Instant,
    /// An attempt has failed: not before.
    checkpoint_after: Instant,
    full_since: Option<Instant>,
    survey: Survey,
    /// [`Serving::logged`] at that time.
    surveyed: u64,
    closing: bool,
    closed: bool,
    counters: Counters,
}

/// What a look over all extents said: taken every [`SURVEY_PAUSE`], as it costs time in proportion to their number.
#[derive(Default, Debug)]
struct Survey {
    due: Instant,
    ledger: Ledger,
    plan: Plan,
    /// How far collection was, and since when.
    progress: (u64, Instant),
    /// Clients' writes keep pace with it.
    paced: bool,
    /// The checkpoint in force has fewer copies than it should.
    thin: bool,
}

impl Serving {
    /// A volume as recovery left it; `logged` blocks were logged since its checkpoint.
    #[must_use]
    pub fn new(mut log: Log, map: Map, head: Option<(HeadDoc, Revision)>, logged: u64) -> Serving {
        if let Some((_, revision)) = &head {
            log.set_head(*revision);
        }
        Serving {
            log,
            map,
            reads: Reads::default(),
            statuses: VecDeque::new(),
            asks: Asks::default(),
            gc: Gc::default(),
            writes: BTreeMap::new(),
            flushes: VecDeque::new(),
            checkpoint: None,
            commit: None,
            head,
            logged,
            tidied: Instant::default(),
            checkpoint_after: Instant::default(),
            full_since: None,
            survey: Survey::default(),
            surveyed: logged,
            closing: false,
            closed: false,
            counters: Counters::default(),
        }
    }

    /// Counts since the volume was opened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let underway = self.checkpoint.as_ref().map_or(0, Checkpoint::blocks);
        Counters {
            log_blocks: self.log.writer.written(),
            moved_blocks: self.gc.moved,
            checkpoint_blocks: self.counters.checkpoint_blocks + underway,
            ..self.counters
        }
    }

    /// The checkpoint in force.
    #[must_use]
    pub fn head(&self) -> Option<&HeadDoc> {
        self.head.as_ref().map(|(head, _)| head)
    }

    /// What its sealed extents hold.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage::of(&self.log)
    }

    /// Whether garbage collection is at work.
    #[must_use]
    pub fn is_collecting(&self) -> bool {
        self.gc.is_busy()
    }

    /// Requests of front ends that are not answered yet.
    #[must_use]
    pub fn underway(&self) -> usize {
        self.writes.len() + self.flushes.len() + usize::from(!self.reads.is_idle())
    }

    /// Whether, and how, it has ended.
    #[must_use]
    pub fn ended(&self) -> Option<VolumeState> {
        match self.log.fenced() {
            Some(epoch) => Some(VolumeState::Fenced(epoch)),
            None => self.closed.then_some(VolumeState::Closed),
        }
    }

    /// The volume has grown.
    pub fn resize(&mut self, blocks: u64) {
        if blocks > self.map.blocks() {
            self.map.resize(blocks);
        }
    }

    /// Takes no more requests; the rest follows in [`Serving::turn`].
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Everything that is not answered fails with `error`.
    pub fn fail_all(&mut self, error: &IoError, done: &mut Done) {
        let writes = std::mem::take(&mut self.writes).into_keys().map(IoId);
        let flushes = std::mem::take(&mut self.flushes).into_iter().map(|(_, io)| io);
        let statuses = std::mem::take(&mut self.statuses).into_iter().map(|(io, ..)| io);
        done.extend(writes.chain(flushes).chain(statuses).map(|io| (io, Err(error.clone()))));
        self.reads.fail_all(error, done);
    }

    /// Takes a request in.
    pub fn on_io(&mut self, id: IoId, op: IoOp, done: &mut Done) {
        if self.closing {
            return done.push((id, Err(IoError::Closed)));
        }
        let (lba, blocks) = match &op {
            IoOp::Read { lba, blocks }
            | IoOp::Trim { lba, blocks, .. }
            | IoOp::Zero { lba, blocks, .. }
            | IoOp::Status { lba, blocks } => (*lba, *blocks),
            IoOp::Write { lba, payload, .. } => {
                (*lba, (payload.iter().map(Bytes::len).sum::<usize>() / BLOCK_SIZE) as u64)
            }
            IoOp::Flush => return self.on_flush(id, done),
        };
        let end = lba.0.saturating_add(blocks);
        if blocks == 0 || end > self.map.blocks() {
            return done.push((id, Err(IoError::OutOfRange { lba, end, size: self.map.blocks() })));
        }
        match op {
            IoOp::Read { .. } => self.reads.push(id, lba, blocks),
            IoOp::Status { .. } => self.statuses.push_back((id, lba, blocks)),
            IoOp::Write { payload, fua, .. } => self.on_write(id, lba, payload, fua),
            IoOp::Trim { fua, .. } => self.on_clear(id, BlockRecord::Trim { lba, blocks }, fua),
            IoOp::Zero { fua, .. } => self.on_clear(id, BlockRecord::Zero { lba, blocks }, fua),
            IoOp::Flush => {}
        }
    }

    /// In `durable` mode everything acknowledged is on stable storage already.
    fn on_flush(&mut self, id: IoId, done: &mut Done) {
        let acked = self.log.writer.acked();
        if self.log.writer.lac() >= acked || mutation::active(Mutation::FlushDoesNotWait) {
            done.push((id, Ok(IoDone::Done)));
        } else {
            self.flushes.push_back((acked, id));
        }
    }

    fn on_clear(&mut self, id: IoId, record: BlockRecord, fua: bool) {
        self.writes.insert(id.0, WriteOp { left: 1, fua, failed: None });
        let item = Item { record: record.encode(), payload: Pieces::new(), cookie: id.0 };
        self.log.writer.append(Lane::Hot, item);
    }

    /// Cuts a write into records of at most one frame each.
    fn on_write(&mut self, id: IoId, mut lba: Lba, payload: Pieces, fua: bool) {
        let mut left = 0;
        let mut taken = Pieces::new();
        let mut blocks: Blocks = 0;
        let mut emit = |lba: &mut Lba, taken: &mut Pieces, blocks: &mut Blocks| {
            let record = BlockRecord::Write { lba: *lba, blocks: *blocks }.encode();
            self.log.writer.append(Lane::Hot, Item { record, payload: std::mem::take(taken), cookie: id.0 });
            self.counters.user_blocks += u64::from(*blocks);
            *lba = Lba(lba.0 + u64::from(*blocks));
            *blocks = 0;
            left += 1;
        };
        for mut piece in payload {
            while !piece.is_empty() {
                let room = (FRAME_PAYLOAD_BLOCKS_MAX - blocks) as usize * BLOCK_SIZE;
                let part = piece.split_to(room.min(piece.len()));
                blocks += (part.len() / BLOCK_SIZE) as Blocks;
                taken.push(part);
                if blocks == FRAME_PAYLOAD_BLOCKS_MAX {
                    emit(&mut lba, &mut taken, &mut blocks);
                }
            }
        }
        if blocks > 0 {
            emit(&mut lba, &mut taken, &mut blocks);
        }
        self.writes.insert(id.0, WriteOp { left, fua, failed: None });
    }

    /// An agent's answer.
    pub fn on_answer(
        &mut self,
        now: Instant,
        rpc: RpcId,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
        done: &mut Done,
    ) {
        if let Ok(Response::Received { .. }) = result {
            if let Some(call) = self.log.calls.peek(rpc)
                && let Call::Append { seq, end } = call.what
            {
                let agent = call.to;
                self.log.on_received(agent, seq, end);
            }
            return;
        }
        let Some(call) = self.log.calls.answered(rpc) else { return };
        let Call::Upper(number) = call.what else { return self.log.on_answer(now, call, result, out) };
        let Serving { log, map, reads, asks, gc, .. } = self;
        match asks.take(number) {
            Some(Ask::Read(at)) => reads.on_answer(now, at, call.to, result, log, asks, out, done),
            Some(Ask::GcFrames) => gc.on_frames(now, map, log, result),
            Some(Ask::GcBlocks(read)) => gc.on_blocks(now, read, map, log, result),
            None => {}
        }
    }

    /// The metadata store's answer.
    pub fn on_meta(&mut self, now: Instant, id: MetaId, result: Result<MetaReply, MetaError>, out: &mut Effects) {
        match self.log.calls.meta_answered(id) {
            Some(MetaCall::Log(what, txn)) => self.log.on_meta(now, what, txn, result, out),
            Some(MetaCall::Upper(_)) => self.on_head_answer(now, result, out),
            None => {}
        }
    }

    /// Does what has become possible.
    pub fn turn(&mut self, now: Instant, out: &mut Effects, done: &mut Done) {
        while let Some(call) = self.log.calls.expired(now) {
            self.on_expired(now, call, out, done);
        }
        self.settle(done);
        if self.log.fenced().is_some() {
            return;
        }
        let Serving { log, map, reads, asks, .. } = self;
        reads.turn(now, map, log, asks, out, done);
        self.answer_statuses(now, out, done);
        self.collect(now, out);
        self.log.turn(now, out);
        self.settle(done);
        self.refuse_when_full(now, done);
        self.checkpoint(now, out);
        self.finish_closing();
    }

    fn on_expired(&mut self, now: Instant, call: crate::log::calls::Call<Call>, out: &mut Effects, done: &mut Done) {
        let Call::Upper(number) = call.what else { return self.log.on_answer(now, call, Err(Unanswered), out) };
        let Serving { log, map, reads, asks, gc, .. } = self;
        match asks.take(number) {
            Some(Ask::Read(at)) => reads.on_answer(now, at, call.to, Err(Unanswered), log, asks, out, done),
            Some(Ask::GcFrames) => gc.on_frames(now, map, log, Err(Unanswered)),
            Some(Ask::GcBlocks(read)) => gc.on_blocks(now, read, map, log, Err(Unanswered)),
            None => {}
        }
    }

    /// Takes in what the log has acknowledged.
    fn settle(&mut self, done: &mut Done) {
        if self.log.fenced().is_some() {
            return;
        }
        for event in self.log.writer.take_events() {
            match event {
                LogEvent::Acked { base, records, cookies, extent, offset } => {
                    let blocks = 1 + records.iter().map(|r| u64::from(r.payload_blocks)).sum::<u64>();
                    self.logged += blocks;
                    let sound = apply(&mut self.map, &mut self.log.table, extent, offset, &records);
                    assert!(sound, "an owner's own record at vseq {base} cannot be applied");
                    self.answer_acked(base, &records, &cookies, done);
                }
                LogEvent::Moved { records, from, to } => self.on_moved(&records, from, to),
            }
        }
        let lac = self.log.writer.lac();
        while self.flushes.front().is_some_and(|(vseq, _)| *vseq <= lac) {
            let (_, io) = self.flushes.pop_front().expect("the queue has a front");
            done.push((io, Ok(IoDone::Done)));
        }
    }

    fn answer_acked(&mut self, base: Vseq, records: &[Record], cookies: &[u64], done: &mut Done) {
        let durable = self.log.config.mode == AckMode::Durable;
        for (i, (record, &cookie)) in records.iter().zip(cookies).enumerate() {
            if cookie == GC_COOKIE {
                let room = self.gc.on_acked(Blocks::from(record.payload_blocks));
                self.log.writer.allow(room);
                continue;
            }
            let Some(op) = self.writes.get_mut(&cookie) else { continue };
            op.left -= 1;
            if op.left > 0 {
                continue;
            }
            let op = self.writes.remove(&cookie).expect("the write is under way");
            let io = IoId(cookie);
            match op.failed {
                Some(error) => done.push((io, Err(error))),
                None if op.fua && !durable => {
                    let vseq = Vseq(base.0 + i as u64);
                    let at = self.flushes.partition_point(|(v, _)| *v <= vseq);
                    self.flushes.insert(at, (vseq, io));
                }
                None => done.push((io, Ok(IoDone::Done))),
            }
        }
    }

    /// Records that were acknowledged on receipt have a new place: the map follows, where it still points to the old one.
    fn on_moved(&mut self, records: &[Record], from: (ExtentSeq, Blocks), to: (ExtentSeq, Blocks)) {
        let (Some(old), Some(new)) = (self.log.table.find(from.0), self.log.table.find(to.0)) else { return };
        let mut skip = 1;
        for record in records {
            let blocks = Blocks::from(record.payload_blocks);
            if let Some(BlockRecord::Write { lba, .. } | BlockRecord::Reloc { lba, .. }) = BlockRecord::decode(record) {
                let from = Loc { extent: old, block: from.1 + skip };
                let to = Loc { extent: new, block: to.1 + skip };
                relocate(&mut self.map, &mut self.log.table, lba, blocks, from, to);
            }
            skip += blocks;
        }
    }

    /// Which blocks hold data is as good as a read: clients skip what does not.
    fn answer_statuses(&mut self, now: Instant, out: &mut Effects, done: &mut Done) {
        if self.statuses.is_empty() {
            return;
        }
        self.log.want_lease(now, out);
        while self.log.may_read(now)
            && let Some((io, lba, blocks)) = self.statuses.pop_front()
        {
            let mut runs: Vec<(u64, bool)> = Vec::new();
            for run in self.map.get(lba, blocks) {
                match runs.last_mut() {
                    Some((count, data)) if *data == run.at.is_some() => *count += run.blocks,
                    _ => runs.push((run.blocks, run.at.is_some())),
                }
            }
            done.push((io, Ok(IoDone::Status(runs))));
        }
    }

    /// Empties extents, one after the other, as long as the plan says so.
    fn collect(&mut self, now: Instant, out: &mut Effects) {
        if now >= self.survey.due || self.log.writer.starved(false) && !self.survey.ledger.starved {
            self.look(now);
        }
        // One that turns out to be empty is followed by another one at once, within reason.
        for _ in 0..4 {
            if self.gc.is_free() && !self.closing {
                let Survey { ledger, plan, .. } = &self.survey;
                let chosen = plan.collect.and_then(|effort| ledger.choose(effort));
                if let Some(victim) = chosen.filter(|c| self.log.table.find(c.seq) == Some(c.index))
                    && let Some(seal) = self.log.table.at(victim.index).seal()
                {
                    self.gc.begin(&victim, seal.length, self.log.config.capacity);
                }
            }
            let busy = !self.gc.is_free();
            let Serving { log, map, asks, gc, .. } = self;
            gc.turn(now, map, log, asks, out);
            if !busy || !self.gc.is_free() {
                return;
            }
            self.look(now);
        }
    }

    /// Looks over all extents, and decides what is to be done about room.
    fn look(&mut self, now: Instant) {
        let extents = self.checkpoint_extents();
        let Serving { log, gc, checkpoint, .. } = self;
        log.keep_for_checkpoint(extents);
        let writing = checkpoint.as_ref().map(|checkpoint| checkpoint.extents().len() as u32);
        let look = |log: &Log| Ledger::of(log, extents, writing, |seq| !gc.skips(now, seq));
        log.degrade(false);
        let mut ledger = look(log);
        let mut plan = ledger.plan();
        if ledger.refused && !plan.hope {
            log.degrade(true);
            ledger = look(log);
            plan = ledger.plan();
        }
        log.writer.limit_width(plan.width as usize);
        let progress = match (gc.progress(), self.survey.progress) {
            (at, (before, since)) if at == before => (at, since),
            (at, _) => (at, now),
        };
        // Where collection does not get ahead there is nothing to keep pace with.
        let paced = plan.collect == Some(Effort::Full) && now.since(progress.1) < PACE_PATIENCE;
        log.writer.pace(paced);
        let thin = self.checkpoint.is_none() && self.log.thin(now);
        self.survey = Survey { due: now + SURVEY_PAUSE, ledger, plan, progress, paced, thin };
        self.surveyed = self.logged;
    }

    /// Extents that a checkpoint takes, at most.
    fn checkpoint_extents(&self) -> u32 {
        let leaves = self.map.blocks() / 1024 + 1;
        let entries = self.log.table.len() as u64;
        let bytes = self.map.memory_bytes() as u64 + leaves * 16 + entries * (32 + 8 * self.log.config.replicas as u64);
        let payload = u64::from(FRAME_PAYLOAD_BLOCKS_MAX);
        let blocks = bytes.div_ceil(BLOCK_SIZE as u64);
        let blocks = blocks + blocks / payload + 4;
        blocks.div_ceil(u64::from(self.log.config.capacity) - payload) as u32
    }

    /// Writes that find no room, and for which none can be made, are refused: before they are acknowledged, with the reason.
    fn refuse_when_full(&mut self, now: Instant, done: &mut Done) {
        if self.log.blocked() != Some(Blocked::NoSpace) || !self.log.writer.starved(false) {
            self.full_since = None;
            return;
        }
        let since = *self.full_since.get_or_insert(now);
        if self.survey.plan.hope {
            self.full_since = Some(now);
        } else if now.since(since) >= FULL_PAUSE {
            for item in self.log.writer.take_queued() {
                let Some(op) = self.writes.get_mut(&item.cookie) else { continue };
                op.left -= 1;
                op.failed = Some(IoError::NoSpace);
                if op.left == 0 {
                    self.writes.remove(&item.cookie);
                    done.push((IoId(item.cookie), Err(IoError::NoSpace)));
                }
            }
        }
    }

    /// Whether a checkpoint is due: by what was logged, or because space waits for one to be given back.
    fn checkpoint_due(&self, now: Instant) -> bool {
        let (capacity, size) = (u64::from(self.log.config.capacity), self.map.blocks());
        let Survey { ledger, plan, thin, .. } = &self.survey;
        let long = now.since(self.tidied) >= TIDY_PAUSE;
        self.logged >= (size / 64).max(CHECKPOINT_EXTENTS_MIN * capacity)
            || plan.declare
            || (*thin || ledger.undeclared > 0) && long
    }

    fn checkpoint(&mut self, now: Instant, out: &mut Effects) {
        if let Some(Commit::Checking(head, at)) = &self.commit {
            if *at <= now {
                let head = head.clone();
                let op = MetaOp::List(keys::volume(self.log.config.volume));
                self.log.calls.ask(op, MetaCall::Upper(HEAD_LIST), out);
                self.commit = Some(Commit::Listing(head));
            }
            return;
        }
        if self.commit.is_some() {
            return;
        }
        if self.checkpoint.is_none() {
            let last = self.closing && self.log.is_closed() && !self.closed && self.logged > 0;
            if now < self.checkpoint_after || (!last && (self.closing || !self.checkpoint_due(now))) {
                return;
            }
            // Take the picture when everything acknowledged is durable.
            self.log.writer.hold(true);
            if self.log.writer.lac() != self.log.writer.acked() {
                return;
            }
            self.log.writer.hold(false);
            self.checkpoint = Some(Checkpoint::begin(&self.log, self.map.snapshot()));
            self.logged = 0;
            self.tidied = now;
            self.survey.due = now;
        }
        let Some(checkpoint) = &mut self.checkpoint else { return };
        match checkpoint.turn(now, &mut self.log, out) {
            Progress::Underway => {}
            Progress::Abandoned => self.abandon_checkpoint(now),
            Progress::Written(head) => self.swap_head(head, out),
        }
    }

    fn abandon_checkpoint(&mut self, now: Instant) {
        let Some(checkpoint) = self.checkpoint.take() else { return };
        self.counters.checkpoint_blocks += checkpoint.blocks();
        for &seq in checkpoint.extents() {
            if let Some(entry) = self.log.table.get_mut(seq) {
                entry.pinned = false;
            }
            self.log.writer.lose_extent(seq);
        }
        // Due again, after a pause.
        self.logged = u64::MAX / 2;
        self.checkpoint_after = now + RETRY_PAUSE;
    }

    fn swap_head(&mut self, head: HeadDoc, out: &mut Effects) {
        let key = keys::volume_head(self.log.config.volume);
        let mut txn = self.log.guarded(vec![Write::Put { key: key.clone(), value: encode(&head), lease: None }], &[]);
        txn.when.push(match &self.head {
            Some((_, revision)) => Compare::Unchanged(key, *revision),
            None => Compare::Absent(key),
        });
        self.log.calls.ask(MetaOp::Txn(txn), MetaCall::Upper(HEAD_TXN), out);
        self.commit = Some(Commit::Swapping(head));
    }

    fn on_head_answer(&mut self, now: Instant, result: Result<MetaReply, MetaError>, out: &mut Effects) {
        match (self.commit.take(), result) {
            (Some(Commit::Swapping(head)), Ok(MetaReply::Committed(revision))) => {
                self.on_head(now, head, revision, out)
            }
            (Some(Commit::Swapping(head)), Err(_)) if mutation::active(Mutation::DeleteOnMetaError) => {
                self.on_head(now, head, Revision(0), out);
            }
            (Some(Commit::Swapping(head)), result) => {
                if let Err(MetaError::Refused(reason)) = result {
                    out.notes.push(Note::MetadataRefused { reason });
                }
                self.commit = Some(Commit::Checking(head, now + RETRY_PAUSE));
            }
            (Some(Commit::Listing(head)), Ok(MetaReply::Listed(entries, _))) => {
                self.on_head_listed(now, head, &entries, out)
            }
            (Some(Commit::Listing(head) | Commit::Checking(head, _)), _) => {
                self.commit = Some(Commit::Checking(head, now + RETRY_PAUSE));
            }
            (None, _) => {}
        }
    }

    /// What the store holds after a swap whose outcome was unknown.
    fn on_head_listed(&mut self, now: Instant, head: HeadDoc, entries: &[Entry], out: &mut Effects) {
        let volume = self.log.config.volume;
        let epoch = self.log.writer.epoch();
        let find = |key: String| entries.iter().find(move |e| e.key == key);
        let holder = find(keys::volume_epoch(volume)).and_then(|e| decode::<EpochDoc>(&e.key, &e.value).ok());
        match holder {
            Some(doc) if doc.epoch > epoch => return self.log.fence(doc.epoch, out),
            Some(_) => {}
            // The volume was deleted under its owner.
            None => return self.log.fence(epoch.next(), out),
        }
        let stored = find(keys::volume_head(volume));
        match stored {
            Some(entry) if entry.value == encode(&head) => self.on_head(now, head, entry.modified, out),
            _ => self.swap_head(head, out),
        }
    }

    fn on_head(&mut self, now: Instant, head: HeadDoc, revision: Revision, out: &mut Effects) {
        let checkpoint = self.checkpoint.take().expect("a HEAD is swapped for a checkpoint");
        self.head = Some((head, revision));
        self.log.set_head(revision);
        self.counters.checkpoints += 1;
        self.survey.due = now;
        self.counters.checkpoint_blocks += checkpoint.blocks();
        let contained: Vec<ExtentSeq> = checkpoint.contained.iter().chain(checkpoint.extents()).copied().collect();
        self.log.on_head(now, &contained, &checkpoint.dead, out);
    }

    /// Closing: finish, seal, checkpoint, let go; one after the other.
    fn finish_closing(&mut self) {
        if !self.closing || self.closed {
            return;
        }
        let idle = self.log.writer.is_idle() && self.reads.is_idle() && self.flushes.is_empty() && !self.gc.is_busy();
        if !self.log.is_closing() {
            if idle && self.checkpoint.is_none() {
                self.log.close();
            }
            return;
        }
        if self.log.is_closed() && self.checkpoint.is_none() && self.logged == 0 && !self.log.is_transacting() {
            self.closed = true;
        }
    }

    /// When [`Serving::turn`] wants to be called even if nothing happens.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let commit = match &self.commit {
            Some(Commit::Checking(_, at)) => Some(*at),
            _ => None,
        };
        let tidy = (self.survey.ledger.undeclared > 0 && self.checkpoint.is_none()).then(|| self.tidied + TIDY_PAUSE);
        let full = self.full_since.map(|at| at + FULL_PAUSE);
        let survey = (self.logged != self.surveyed || self.survey.paced).then_some(self.survey.due);
        let retry = (self.logged >= u64::MAX / 2).then_some(self.checkpoint_after);
        let soon =
            (self.checkpoint.is_some() || self.closing || self.log.blocked().is_some()).then(|| now + RETRY_PAUSE);
        [
            self.log.deadline(now),
            self.log.calls.deadline(),
            self.reads.deadline(),
            self.gc.deadline(),
            commit,
            tidy,
            full,
            survey,
            retry,
            soon,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
