//! The metadata store as its users see it.

use crate::limits::{META_TXN_BYTES_MAX, META_TXN_OPS_MAX};
use core::future::Future;
use core::pin::Pin;
use std::collections::BTreeSet;
use std::time::Duration;

/// A future that can be held behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The store's version counter: raised by every transaction that writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Revision(pub i64);

/// A lease of the store. Keys put under it vanish when it runs out: a hint about who is alive, never a fence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct LeaseId(pub i64);

/// A key as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its full name.
    pub key: String,
    /// Its bytes; JSON documents in all of Torus's keys.
    pub value: Vec<u8>,
    /// The transaction that last wrote it.
    pub modified: Revision,
}

/// One condition of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Present(String),
    /// The key was last written at exactly this revision; with `Revision(0)`, it does not exist.
    Unchanged(String, Revision),
    /// The key exists and holds exactly these bytes.
    Holds(String, Vec<u8>),
}

/// One effect of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Set a key, optionally for as long as a lease lives.
    Put {
        /// Its full name.
        key: String,
        /// Its new bytes.
        value: Vec<u8>,
        /// The lease it goes away with.
        lease: Option<LeaseId>,
    },
    /// Remove a key; removing what is not there is no error.
    Delete(String),
}

/// All of `then`, at once, if all of `when` holds. Bounded as [`Txn::check`] says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// The conditions.
    pub when: Vec<Compare>,
    /// The writes.
    pub then: Vec<Write>,
}

impl Compare {
    /// The key that the condition is about.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::Present(key) | Self::Unchanged(key, _) | Self::Holds(key, _) => key,
        }
    }
}

impl Write {
    /// The key that is written.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete(key) => key,
        }
    }
}

impl Txn {
    /// Refuses what no store takes, so that all of them refuse the same: more than [`META_TXN_OPS_MAX`] conditions or
    /// writes, more than [`META_TXN_BYTES_MAX`] of keys and values, one key written twice, an empty key. Every store
    /// calls this first.
    ///
    /// # Errors
    /// [`MetaError::Refused`], saying which of these it is.
    pub fn check(&self) -> Result<(), MetaError> {
        for (what, count) in [("conditions", self.when.len()), ("writes", self.then.len())] {
            if count > META_TXN_OPS_MAX {
                let text = format!("a transaction of {count} {what} is too large: at most {META_TXN_OPS_MAX}");
                return Err(MetaError::Refused(text));
            }
        }
        let mut bytes = 0;
        for condition in &self.when {
            bytes += condition.key().len();
            if let Compare::Holds(_, value) = condition {
                bytes += value.len();
            }
        }
        let mut written = BTreeSet::new();
        for write in &self.then {
            bytes += write.key().len();
            if let Write::Put { value, .. } = write {
                bytes += value.len();
            }
            if !written.insert(write.key()) {
                return Err(MetaError::Refused(format!("a transaction writes the key {:?} twice", write.key())));
            }
        }
        if bytes > META_TXN_BYTES_MAX {
            let text = format!("a transaction of {bytes} bytes is too large: at most {META_TXN_BYTES_MAX}");
            return Err(MetaError::Refused(text));
        }
        if self.when.iter().map(Compare::key).chain(self.then.iter().map(Write::key)).any(str::is_empty) {
            return Err(MetaError::Refused("a transaction names an empty key".into()));
        }
        Ok(())
    }
}

/// One request to the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaOp {
    /// Read one key, linearizably. → [`MetaReply::Got`].
    Get(String),
    /// Read all keys that begin with a prefix, linearizably and as of one revision, in key order. → [`MetaReply::Listed`].
    List(String),
    /// → [`MetaReply::Committed`] or [`MetaReply::Conflict`].
    Txn(Txn),
}

/// The store's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaReply {
    /// The key, if there is one.
    Got(Option<Entry>),
    /// All keys with the prefix, and the revision at which this was so (watch from the one after it).
    Listed(Vec<Entry>, Revision),
    /// The transaction's conditions held and it was written at this revision.
    Committed(Revision),
    /// At least one condition did not hold; nothing was written.
    Conflict,
}

/// Why there is no answer. The text names the store and, where a person can help, says how.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    /// No answer in time, or the connection broke: a write may have happened, or may yet.
    #[error("the metadata store does not answer: {0}")]
    Unknown(String),
    /// Positively not carried out: no space, no permission, a malformed request.
    #[error("the metadata store refused: {0}")]
    Refused(String),
}

/// A key that changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// It was written.
    Put(Entry),
    /// It was removed, or its lease ran out.
    Deleted(String),
}

/// What a watch brings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchEvent {
    /// All changes of one revision under the prefix. Each revision comes once, in order, with none left out.
    Changes(Vec<Change>, Revision),
    /// Changes were lost (compaction, or a reader too slow): list again, then watch from there. The last event of its
    /// watch.
    Lost,
}

/// A running watch.
pub trait Watch: Send {
    /// The next event; `None` when the store was closed, or after [`WatchEvent::Lost`]. Cancel safe. Bridges broken
    /// connections by itself for as long as it takes.
    fn next(&mut self) -> BoxFuture<'_, Option<WatchEvent>>;
}

/// The port: written for its users, implemented by `etcd` and `embedded` in `torus-agent`.
pub trait MetadataStore: Send + Sync {
    /// Carries out one operation. Bounded in time by the implementation (some seconds); never retries a transaction
    /// whose outcome is unknown.
    fn execute(&self, op: MetaOp) -> BoxFuture<'_, Result<MetaReply, MetaError>>;

    /// Watches all keys with `prefix`: every change at `from` or later, those of the past included. From
    /// `Revision(0)`: what changes from now on. From beyond the next revision: [`WatchEvent::Lost`], as the store must
    /// have been put back to an earlier state.
    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, MetaError>>;

    /// A new lease that runs out `ttl` after the last [`MetadataStore::keep_alive`]. Rounded up to whole seconds, at
    /// least 1; etcd may make a short one longer (2 s with its default election timeout).
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>>;

    /// Keeps a lease for another term; `Ok(false)`: it is gone, with its keys.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, MetaError>>;

    /// Ends a lease now, with its keys. Ending one that is gone is no error.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>>;

    /// What this is, for messages: `etcd at http://…`, `embedded metadata in …`.
    fn describe(&self) -> String;
}
