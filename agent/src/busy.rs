//! Objects that something is being done to: whoever comes second is told so, instead of waiting without a reason.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The objects that are busy.
#[derive(Clone, Debug)]
pub struct Busy<K: Ord>(Arc<Mutex<BTreeSet<K>>>);

/// Something is being done to an object, until this is dropped.
#[derive(Debug)]
pub struct Underway<K: Ord> {
    busy: Busy<K>,
    key: K,
}

impl<K: Ord> Default for Busy<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Ord + Clone> Busy<K> {
    /// Begins to do something to the object `key`; `None`: something is being done to it.
    #[must_use]
    pub fn begin(&self, key: &K) -> Option<Underway<K>> {
        self.keys().insert(key.clone()).then(|| Underway { busy: self.clone(), key: key.clone() })
    }
}

impl<K: Ord> Busy<K> {
    // A panic elsewhere leaves a set of keys as sound as it was.
    fn keys(&self) -> std::sync::MutexGuard<'_, BTreeSet<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord> Drop for Underway<K> {
    fn drop(&mut self) {
        self.busy.keys().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_for_each_object() {
        let busy = Busy::default();
        let first = busy.begin(&1).unwrap();
        assert!(busy.begin(&1).is_none());
        let other = busy.begin(&2).unwrap();
        drop(first);
        assert!(busy.begin(&1).is_some());
        drop(other);
    }
}
