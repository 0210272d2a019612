//! What the embedded store holds and how it answers: a plain state machine with no file, no thread and no clock.
//!
//! A batch of requests is carried out here first, each change going into a [`Changes`] that the file then makes durable;
//! only after that are answers and watch events let out. A batch whose commit failed therefore leaves this state ahead
//! of the file: the store stops for good (see the actor), and nobody ever saw what was lost.
//!
//! Invariants:
//! 1. The revision rises by exactly one with every transaction that changed something, and with nothing else.
//! 2. A key belongs to a lease exactly if the lease lists the key.
//! 3. `history` holds every revision after `forgotten`, in order, without a gap.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};
use torus_core::limits::{META_HISTORY_BYTES_MAX, META_HISTORY_REVISIONS_MAX};
use torus_core::meta::{Change, Compare, Entry, LeaseId, MetaError, MetaOp, MetaReply, Revision, Txn, Write};

/// A key's value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub value: Vec<u8>,
    pub modified: Revision,
    pub lease: Option<LeaseId>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    expires: Instant,
    keys: BTreeSet<String>,
}

/// What a batch changed, for the file.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// `None`: the key was deleted.
    pub keys: BTreeMap<String, Option<Item>>,
    /// `None`: the lease ended.
    pub leases: BTreeMap<LeaseId, Option<Duration>>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.leases.is_empty()
    }
}

#[derive(Debug)]
pub(super) struct State {
    revision: Revision,
    keys: BTreeMap<String, Item>,
    leases: BTreeMap<LeaseId, Lease>,
    history: VecDeque<(Revision, Vec<Change>)>,
    history_bytes: usize,
    forgotten: Revision,
}

impl State {
    /// The state that a file holds. Its leases start a new term: their holders had no chance to keep them alive.
    pub fn new(
        revision: Revision,
        keys: BTreeMap<String, Item>,
        leases: BTreeMap<LeaseId, Duration>,
        now: Instant,
    ) -> Self {
        let mut leases: BTreeMap<_, _> = leases
            .into_iter()
            .map(|(id, ttl)| (id, Lease { ttl, expires: now + ttl, keys: BTreeSet::new() }))
            .collect();
        for (key, item) in &keys {
            if let Some(lease) = item.lease.and_then(|id| leases.get_mut(&id)) {
                lease.keys.insert(key.clone());
            }
        }
        Self { revision, keys, leases, history: VecDeque::new(), history_bytes: 0, forgotten: revision }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn execute(&mut self, op: MetaOp, changes: &mut Changes) -> Result<MetaReply, MetaError> {
        match op {
            MetaOp::Get(key) => Ok(MetaReply::Got(self.keys.get(&key).map(|item| entry(&key, item)))),
            MetaOp::List(prefix) => {
                let found = self.keys.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
                Ok(MetaReply::Listed(found.map(|(key, item)| entry(key, item)).collect(), self.revision))
            }
            MetaOp::Txn(txn) => self.transact(txn, changes),
        }
    }

    fn transact(&mut self, txn: Txn, changes: &mut Changes) -> Result<MetaReply, MetaError> {
        txn.check()?;
        if !txn.when.iter().all(|condition| self.holds(condition)) {
            return Ok(MetaReply::Conflict);
        }
        // All leases are looked up before the first write: a refused transaction leaves nothing behind.
        for write in &txn.then {
            if let Write::Put { key, lease: Some(lease), .. } = write
                && !self.leases.contains_key(lease)
            {
                return Err(MetaError::Refused(format!("the lease for the key {key:?} has run out")));
            }
        }
        Ok(MetaReply::Committed(self.write(txn.then, changes)))
    }

    fn holds(&self, condition: &Compare) -> bool {
        let item = self.keys.get(condition.key());
        match condition {
            Compare::Absent(_) => item.is_none(),
            Compare::Present(_) => item.is_some(),
            Compare::Unchanged(_, at) => item.map_or(Revision(0), |item| item.modified) == *at,
            Compare::Holds(_, value) => item.is_some_and(|item| item.value == *value),
        }
    }

    /// Carries out writes whose conditions and leases were checked.
    fn write(&mut self, writes: Vec<Write>, changes: &mut Changes) -> Revision {
        let revision = Revision(self.revision.0 + 1);
        let mut happened = Vec::new();
        for write in writes {
            match write {
                Write::Put { key, value, lease } => {
                    let item = Item { value, modified: revision, lease };
                    happened.push(Change::Put(entry(&key, &item)));
                    self.detach(&key);
                    if let Some(lease) = lease.and_then(|id| self.leases.get_mut(&id)) {
                        lease.keys.insert(key.clone());
                    }
                    self.keys.insert(key.clone(), item.clone());
                    changes.keys.insert(key, Some(item));
                }
                Write::Delete(key) => {
                    self.detach(&key);
                    if self.keys.remove(&key).is_some() {
                        happened.push(Change::Deleted(key.clone()));
                        changes.keys.insert(key, None);
                    }
                }
            }
        }
        if !happened.is_empty() {
            self.revision = revision;
            self.remember(happened);
        }
        self.revision
    }

    fn detach(&mut self, key: &str) {
        let lease = self.keys.get(key).and_then(|item| item.lease);
        if let Some(lease) = lease.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(key);
        }
    }

    fn remember(&mut self, happened: Vec<Change>) {
        self.history_bytes += happened.iter().map(size).sum::<usize>();
        self.history.push_back((self.revision, happened));
    }

    /// Forgets the history beyond its bounds. Called when the watchers have been told.
    pub fn trim(&mut self) {
        while self.history.len() > META_HISTORY_REVISIONS_MAX
            || (self.history_bytes > META_HISTORY_BYTES_MAX && self.history.len() > 1)
        {
            let Some((revision, old)) = self.history.pop_front() else { break };
            self.history_bytes -= old.iter().map(size).sum::<usize>();
            self.forgotten = revision;
        }
    }

    /// All revisions from `from` on that are still remembered; `None` when some of them are not.
    pub fn since(&self, from: Revision) -> Option<impl Iterator<Item = &(Revision, Vec<Change>)>> {
        (from > self.forgotten).then(|| self.history.iter().filter(move |(revision, _)| *revision >= from))
    }

    /// Makes a lease of the id `id`, which no lease ever had.
    pub fn grant(&mut self, id: LeaseId, ttl: Duration, now: Instant, changes: &mut Changes) {
        self.leases.insert(id, Lease { ttl, expires: now + ttl, keys: BTreeSet::new() });
        changes.leases.insert(id, Some(ttl));
    }

    /// Another term; false when the lease is gone.
    pub fn keep_alive(&mut self, id: LeaseId, now: Instant) -> bool {
        match self.leases.get_mut(&id) {
            Some(lease) => {
                lease.expires = now + lease.ttl;
                true
            }
            None => false,
        }
    }

    /// Ends a lease, with its keys.
    pub fn revoke(&mut self, id: LeaseId, changes: &mut Changes) {
        if let Some(lease) = self.leases.remove(&id) {
            changes.leases.insert(id, None);
            self.write(lease.keys.into_iter().map(Write::Delete).collect(), changes);
        }
    }

    /// Ends the leases that have run out.
    pub fn expire(&mut self, now: Instant, changes: &mut Changes) {
        let over: Vec<_> = self.leases.iter().filter(|(_, lease)| lease.expires <= now).map(|(id, _)| *id).collect();
        for id in over {
            self.revoke(id, changes);
        }
    }

    /// When the next lease runs out.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.expires).min()
    }
}

fn entry(key: &str, item: &Item) -> Entry {
    Entry { key: key.into(), value: item.value.clone(), modified: item.modified }
}

fn size(change: &Change) -> usize {
    match change {
        Change::Put(entry) => entry.key.len() + entry.value.len(),
        Change::Deleted(key) => key.len(),
    }
}
