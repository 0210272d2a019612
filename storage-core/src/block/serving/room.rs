//! Room: which extents are emptied, how fast clients may write meanwhile, and when a write is refused because there is none.
//!
//! What is to be done is decided in [`space`](crate::block::space), from a look over all extents; here it is done.

use super::{Done, Serving};
use crate::block::io::{IoError, IoId};
use crate::block::space::{Effort, Ledger, Plan};
use crate::ids::BLOCK_SIZE;
use crate::limits::{FRAME_PAYLOAD_BLOCKS_MAX, FULL_PAUSE, PACE_PATIENCE, SURVEY_PAUSE};
use crate::log::{Blocked, Effects, Log};
use crate::time::Instant;

/// What a look over all extents said: taken every [`SURVEY_PAUSE`], as it costs time in proportion to their number.
#[derive(Default, Debug)]
pub(super) struct Survey {
    pub(super) due: Instant,
    pub(super) ledger: Ledger,
    pub(super) plan: Plan,
    /// How far collection was, and since when.
    progress: (u64, Instant),
    /// Clients' writes keep pace with it.
    pub(super) paced: bool,
    /// The checkpoint in force has fewer copies than it should.
    pub(super) thin: bool,
}

impl Serving {
    /// Empties extents, one after the other, as long as the plan says so.
    pub(super) fn collect(&mut self, now: Instant, out: &mut Effects) {
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
    pub(super) fn refuse_when_full(&mut self, now: Instant, done: &mut Done) {
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
}
