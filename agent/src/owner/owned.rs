//! The volumes that a process owns, for those who look at the process.

use super::metrics::VolumeMetrics;
use super::status::OwnerStatus;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Volumes by their names. Cloning shares it.
#[derive(Clone, Default)]
pub struct Owned(Arc<Mutex<BTreeMap<String, OwnerStatus>>>);

/// A volume is among them, until this is dropped.
pub(super) struct Entry {
    owned: Owned,
    status: OwnerStatus,
}

impl Owned {
    pub(super) fn enter(&self, status: OwnerStatus) -> Entry {
        self.volumes().insert(status.name().to_owned(), status.clone());
        Entry { owned: self.clone(), status }
    }

    /// What is to be told of all of them. One that does not answer in time has no figures.
    pub async fn metrics(&self) -> VolumeMetrics {
        let volumes: Vec<OwnerStatus> = self.volumes().values().cloned().collect();
        VolumeMetrics(join_all(volumes.iter().map(OwnerStatus::figures)).await)
    }

    // A panic elsewhere leaves the map as sound as it was.
    fn volumes(&self) -> MutexGuard<'_, BTreeMap<String, OwnerStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names alone: the rest is told by [`Owned::metrics`].
impl std::fmt::Debug for Owned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.volumes().keys()).finish()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut volumes = self.owned.volumes();
        // An owner that came after this one, and has the name, stays.
        if volumes.get(self.status.name()).is_some_and(|there| there.is_same(&self.status)) {
            volumes.remove(self.status.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::Latencies;
    use super::*;
    use tokio::sync::{mpsc, watch};
    use torus_core::block::VolumeState;

    fn owner(name: &str) -> OwnerStatus {
        let (questions, _) = mpsc::unbounded_channel();
        OwnerStatus::new(name.into(), questions, watch::channel(VolumeState::Closed).1, Latencies::new())
    }

    #[test]
    fn a_volume_is_there_for_as_long_as_its_newest_owner() {
        let owned = Owned::default();
        let first = owned.enter(owner("db"));
        let other = owned.enter(owner("logs"));
        let second = owned.enter(owner("db"));
        drop(first);
        assert_eq!(format!("{owned:?}"), r#"{"db", "logs"}"#);
        drop(second);
        drop(other);
        assert_eq!(format!("{owned:?}"), "{}");
    }
}
