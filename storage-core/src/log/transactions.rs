//! The log's transactions with the metadata store: what they hold under, and what becomes of one whose outcome is unknown.
//!
//! Each is repeated until its outcome is known. A conflict is looked into: the store's own keys tell an earlier attempt that
//! took effect from another owner.

use super::{Effects, Log, MetaCall, Note, witness};
use crate::ids::ExtentSeq;
use crate::limits::RETRY_PAUSE;
use crate::meta::{Compare, Entry, MetaError, MetaOp, MetaReply, Revision, Txn, Write, keys};
use crate::time::Instant;
use std::collections::BTreeMap;

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

impl Log {
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
    pub(super) fn registration(&mut self, puts: Vec<Write>, extents: &[ExtentSeq]) -> Txn {
        let mut txn = self.guarded(puts, extents);
        txn.then.extend(self.witness.registering(self.config.volume));
        let key = keys::volume_head(self.config.volume);
        txn.when.push(match self.head {
            Some(revision) => Compare::Unchanged(key, revision),
            None => Compare::Absent(key),
        });
        txn
    }

    pub(super) fn transact(&mut self, what: LogTxn, txn: Txn, out: &mut Effects) {
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
}
