//! A volume that is open: takes requests, moves the log, collects garbage, writes checkpoints.
//!
//! | part | what it decides |
//! |---|---|
//! | `requests` | what front ends ask, and when they are answered |
//! | `room` | which extents are emptied, whom that slows down, whom it refuses |
//! | `head` | when a checkpoint is written, and when it is in force |
//!
//! Here: what a volume is made of, who gets which answer, the order of a turn, and its end.

mod head;
mod requests;
mod room;

use super::checkpoint::write::Checkpoint;
use super::gc::Gc;
use super::io::{IoDone, IoError, IoId};
use super::map::Map;
use super::reads::{Ask, Asks, Reads};
use super::space::Usage;
use super::volume::VolumeState;
use crate::ids::{Lba, RpcId, Vseq};
use crate::limits::{FULL_PAUSE, RETRY_PAUSE, TIDY_PAUSE};
use crate::log::{Call, Effects, Log, MetaCall, MetaId};
use crate::meta::docs::HeadDoc;
use crate::meta::{MetaError, MetaReply, Revision};
use crate::peer::{Response, Unanswered};
use crate::time::Instant;
use head::Commit;
use requests::WriteOp;
use room::Survey;
use std::collections::{BTreeMap, VecDeque};

type Done = Vec<(IoId, Result<IoDone, IoError>)>;

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
