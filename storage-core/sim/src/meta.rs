//! The metadata store: keys with revisions, transactions that are carried out at one instant.
//!
//! Linearizable, as etcd is: an operation takes effect at one moment between its sending and its answer, or never. What
//! may go wrong is chosen by the world: no answer although it was carried out, no answer and not carried out, a refusal.

use std::collections::BTreeMap;
use torus_core::meta::{Compare, Entry, MetaOp, MetaReply, Revision, Txn, Write};

/// The store.
#[derive(Debug, Default)]
pub struct SimMeta {
    keys: BTreeMap<String, Entry>,
    revision: Revision,
    /// Mutation: comparisons of volume epochs always hold.
    pub ignores_epochs: bool,
}

impl SimMeta {
    /// Carries out one operation, now.
    pub fn execute(&mut self, op: &MetaOp) -> MetaReply {
        match op {
            MetaOp::Get(key) => MetaReply::Got(self.keys.get(key).cloned()),
            MetaOp::List(prefix) => MetaReply::Listed(self.list(prefix).cloned().collect(), self.revision),
            MetaOp::Txn(txn) => self.transact(txn),
        }
    }

    /// A key, for the checkers.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.keys.get(key)
    }

    /// All keys with a prefix, in order.
    pub fn list<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.keys.range(prefix.to_owned()..).map(|(_, entry)| entry).take_while(move |e| e.key.starts_with(prefix))
    }

    fn transact(&mut self, txn: &Txn) -> MetaReply {
        assert!(txn.when.len() <= 100 && txn.then.len() <= 100, "a transaction larger than etcd takes: {txn:?}");
        if !txn.when.iter().all(|condition| self.holds(condition)) {
            return MetaReply::Conflict;
        }
        self.revision.0 += 1;
        for write in &txn.then {
            match write {
                Write::Put { key, value, lease: _ } => {
                    let entry = Entry { key: key.clone(), value: value.clone(), modified: self.revision };
                    self.keys.insert(key.clone(), entry);
                }
                Write::Delete(key) => {
                    self.keys.remove(key);
                }
            }
        }
        MetaReply::Committed(self.revision)
    }

    fn holds(&self, condition: &Compare) -> bool {
        let key = match condition {
            Compare::Absent(key) | Compare::Present(key) => key,
            Compare::Unchanged(key, _) | Compare::Holds(key, _) => key,
        };
        if self.ignores_epochs && key.ends_with("/epoch") {
            return true;
        }
        let entry = self.keys.get(key);
        match condition {
            Compare::Absent(_) => entry.is_none(),
            Compare::Present(_) => entry.is_some(),
            Compare::Unchanged(_, revision) => entry.is_some_and(|e| e.modified == *revision),
            Compare::Holds(_, value) => entry.is_some_and(|e| e.value == *value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Write {
        Write::Put { key: key.into(), value: value.into(), lease: None }
    }

    #[test]
    fn a_transaction_is_all_or_nothing() {
        let mut meta = SimMeta::default();
        let first = Txn { when: vec![Compare::Absent("a".into())], then: vec![put("a", "1"), put("ab", "2")] };
        let MetaReply::Committed(revision) = meta.execute(&MetaOp::Txn(first.clone())) else { panic!() };
        assert_eq!(meta.execute(&MetaOp::Txn(first)), MetaReply::Conflict);
        let stale =
            Txn { when: vec![Compare::Unchanged("a".into(), Revision(0))], then: vec![Write::Delete("a".into())] };
        assert_eq!(meta.execute(&MetaOp::Txn(stale)), MetaReply::Conflict);
        let good = Txn {
            when: vec![Compare::Unchanged("a".into(), revision), Compare::Holds("ab".into(), b"2".to_vec())],
            then: vec![Write::Delete("a".into())],
        };
        assert!(matches!(meta.execute(&MetaOp::Txn(good)), MetaReply::Committed(_)));
        let MetaReply::Listed(entries, _) = meta.execute(&MetaOp::List("a".into())) else { panic!() };
        assert_eq!(entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["ab"]);
    }
}
