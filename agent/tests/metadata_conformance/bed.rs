//! A store to test, and short words for what is done with it.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use torus_agent::metadata::{Embedded, MetaConfig, connect};
use torus_core::limits::{META_HISTORY_REVISIONS_MAX, META_REQUESTS_MAX};
use torus_core::meta::{
    Change, Compare, Entry, LeaseId, MetaError, MetaOp, MetaReply, MetadataStore, Revision, Txn, Watch, WatchEvent,
    Write,
};
use torus_e2e::etcd::Etcd;

/// Longer than anything here takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Bed {
    pub store: Arc<dyn MetadataStore>,
    kind: Kind,
}

enum Kind {
    Embedded { _dir: Option<tempfile::TempDir> },
    Etcd { etcd: Arc<Etcd> },
}

impl Bed {
    pub fn memory() -> Self {
        Self { store: Arc::new(Embedded::in_memory()), kind: Kind::Embedded { _dir: None } }
    }

    pub fn file() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("meta.redb")).unwrap();
        Self { store: Arc::new(store), kind: Kind::Embedded { _dir: Some(dir) } }
    }

    /// An etcd that all tests running at the moment share, each under a prefix of its own.
    pub async fn etcd() -> Self {
        static SHARED: Mutex<Weak<Etcd>> = Mutex::new(Weak::new());
        let etcd = tokio::task::spawn_blocking(|| {
            let mut shared = SHARED.lock().unwrap();
            shared.upgrade().unwrap_or_else(|| {
                let etcd = Arc::new(Etcd::start().unwrap());
                *shared = Arc::downgrade(&etcd);
                etcd
            })
        });
        Self::on(etcd.await.unwrap()).await
    }

    /// An etcd of its own.
    pub async fn etcd_alone() -> Self {
        Self::on(with_etcd(|| Etcd::start().map(Arc::new)).await).await
    }

    async fn on(etcd: Arc<Etcd>) -> Self {
        let store = open(&own_prefix(config(&etcd.url()))).await;
        Self { store, kind: Kind::Etcd { etcd } }
    }

    pub async fn get(&self, key: &str) -> Option<Entry> {
        get(&*self.store, key).await.unwrap()
    }

    pub async fn list(&self, prefix: &str) -> (Vec<Entry>, Revision) {
        list(&*self.store, prefix).await
    }

    pub async fn txn(&self, when: Vec<Compare>, then: Vec<Write>) -> Result<MetaReply, MetaError> {
        self.store.execute(MetaOp::Txn(Txn { when, then })).await
    }

    /// Commits writes; panics if they are not.
    pub async fn commit(&self, then: Vec<Write>) -> Revision {
        committed(self.txn(vec![], then).await)
    }

    pub async fn put(&self, key: &str, value: &str) -> Revision {
        self.commit(vec![put(key, value)]).await
    }

    pub async fn put_leased(&self, key: &str, lease: LeaseId) -> Revision {
        self.commit(vec![Write::Put { key: key.into(), value: b"leased".to_vec(), lease: Some(lease) }]).await
    }

    pub async fn watch(&self, prefix: &str, from: Revision) -> Box<dyn Watch> {
        self.store.watch(prefix.into(), from).await.unwrap()
    }

    /// Makes the store forget its history up to now.
    pub async fn forget_history(&self) {
        match &self.kind {
            Kind::Embedded { .. } => {
                let mut left = META_HISTORY_REVISIONS_MAX + 1;
                while left > 0 {
                    // No more than share a commit: what waits for its turn has its time run out on a slow disk.
                    let some = left.min(META_REQUESTS_MAX);
                    futures::future::join_all((0..some).map(|_| self.put("elsewhere", ""))).await;
                    left -= some;
                }
            }
            Kind::Etcd { etcd } => compact(etcd, self.list("").await.1).await,
        }
    }
}

/// Does something slow to an etcd, away from the runtime's threads.
pub async fn with_etcd<T: Send + 'static>(what: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> T {
    tokio::task::spawn_blocking(what).await.unwrap().unwrap_or_else(|error| panic!("{error:#}"))
}

/// Has etcd forget what was before `revision`.
pub async fn compact(etcd: &Etcd, revision: Revision) {
    let mut client = etcd_client::Client::connect([etcd.url()], None).await.unwrap();
    client.compact(revision.0, None).await.unwrap();
}

pub fn config(url: &str) -> MetaConfig {
    MetaConfig::new(url.parse().unwrap())
}

pub fn own_prefix(config: MetaConfig) -> MetaConfig {
    MetaConfig { prefix: format!("/torus-{:x}/", rand::random::<u64>()), ..config }
}

/// The same, for a store that must answer: a disk may take seconds over one write.
pub fn with_patience(config: &MetaConfig) -> MetaConfig {
    MetaConfig { timeout: PATIENCE, ..config.clone() }
}

/// Opens a store that must open, however short its timeout is.
pub async fn open(config: &MetaConfig) -> Arc<dyn MetadataStore> {
    let until = Instant::now() + PATIENCE;
    loop {
        match connect(config).await {
            Ok(store) => return store,
            Err(error) => assert!(error.is_transient() && Instant::now() < until, "{error}"),
        }
    }
}

/// Asks until there is an answer that is no `Unknown`. For what may happen twice.
pub async fn answered<T, Asked>(mut ask: impl FnMut() -> Asked) -> T
where
    Asked: Future<Output = Result<T, MetaError>>,
{
    let until = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(MetaError::Unknown(text)) => assert!(Instant::now() < until, "{text}"),
            Err(refused) => panic!("{refused}"),
        }
    }
}

pub async fn get(store: &dyn MetadataStore, key: &str) -> Result<Option<Entry>, MetaError> {
    match store.execute(MetaOp::Get(key.into())).await? {
        MetaReply::Got(entry) => Ok(entry),
        other => panic!("{other:?}"),
    }
}

pub async fn list(store: &dyn MetadataStore, prefix: &str) -> (Vec<Entry>, Revision) {
    match store.execute(MetaOp::List(prefix.into())).await.unwrap() {
        MetaReply::Listed(entries, revision) => (entries, revision),
        other => panic!("{other:?}"),
    }
}

pub fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.into(), value: value.into(), lease: None }
}

pub fn delete(key: &str) -> Write {
    Write::Delete(key.into())
}

pub fn committed(result: Result<MetaReply, MetaError>) -> Revision {
    match result {
        Ok(MetaReply::Committed(revision)) => revision,
        other => panic!("not committed: {other:?}"),
    }
}

pub fn refusal(result: Result<MetaReply, MetaError>) -> String {
    match result {
        Err(MetaError::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

/// The next event of a watch that must come.
pub async fn event(watch: &mut dyn Watch) -> WatchEvent {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("an event in time").expect("the watch goes on")
}

/// The next changes of a watch: as `key=value` or `-key`, and their revision.
pub async fn changes(watch: &mut dyn Watch) -> (Vec<String>, Revision) {
    match event(watch).await {
        WatchEvent::Changes(changes, revision) => (changes.iter().map(show).collect(), revision),
        WatchEvent::Lost => panic!("the watch was lost"),
    }
}

fn show(change: &Change) -> String {
    match change {
        Change::Put(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
        Change::Deleted(key) => format!("-{key}"),
    }
}
