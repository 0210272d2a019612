//! The checkpoint: when one is due, writing it, and moving HEAD to it.
//!
//! HEAD is swapped by a transaction that holds only at this owner's epoch and over the HEAD that it read. Where the outcome is
//! unknown the store is asked until it tells: nothing is deleted before it is certain which checkpoint is in force (I13, I14).

use super::Serving;
use super::room::Survey;
use crate::block::checkpoint::write::{Checkpoint, Progress};
use crate::ids::ExtentSeq;
use crate::limits::{CHECKPOINT_EXTENTS_MIN, RETRY_PAUSE, TIDY_PAUSE};
use crate::log::{Effects, MetaCall, Note};
use crate::meta::docs::{EpochDoc, HeadDoc, decode, encode};
use crate::meta::{Compare, Entry, MetaError, MetaOp, MetaReply, Revision, Write, keys};
use crate::mutation::{self, Mutation};
use crate::time::Instant;

/// Where the swap of HEAD stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Commit {
    Swapping(HeadDoc),
    /// The outcome is unknown: the store is to be asked, at this time.
    Checking(HeadDoc, Instant),
    Listing(HeadDoc),
}

const HEAD_TXN: u64 = 1;
const HEAD_LIST: u64 = 2;

impl Serving {
    /// Whether a checkpoint is due: by what was logged, or because space waits for one to be given back.
    fn checkpoint_due(&self, now: Instant) -> bool {
        let (capacity, size) = (u64::from(self.log.config.capacity), self.map.blocks());
        let Survey { ledger, plan, thin, .. } = &self.survey;
        let long = now.since(self.tidied) >= TIDY_PAUSE;
        self.logged >= (size / 64).max(CHECKPOINT_EXTENTS_MIN * capacity)
            || plan.declare
            || (*thin || ledger.undeclared > 0) && long
    }

    pub(super) fn checkpoint(&mut self, now: Instant, out: &mut Effects) {
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

    pub(super) fn on_head_answer(&mut self, now: Instant, result: Result<MetaReply, MetaError>, out: &mut Effects) {
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
}
