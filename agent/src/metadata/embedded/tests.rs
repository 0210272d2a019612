//! A disk that fails under the store. All else is in `tests/metadata_conformance`.

use super::*;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use torus_core::meta::{Txn, Write};

/// A disk that fails its syncs once it is told to.
#[derive(Debug)]
struct Disk {
    memory: InMemoryBackend,
    fails: Arc<AtomicBool>,
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.memory.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("no more flash"));
        }
        self.memory.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.memory.write(offset, data)
    }
}

fn put(key: &str) -> MetaOp {
    let write = Write::Put { key: key.into(), value: vec![], lease: None };
    MetaOp::Txn(Txn { when: vec![], then: vec![write] })
}

/// A failed sync is never retried and then called a success.
#[tokio::test]
async fn after_a_failed_commit_nothing_is_known_any_more() {
    let fails = Arc::new(AtomicBool::new(false));
    let disk = Disk { memory: InMemoryBackend::new(), fails: fails.clone() };
    let path = PathBuf::from("/meta.redb");
    let database = redb::Database::builder().create_with_backend(disk).unwrap();
    let (file, state) = File::from_database(database, &path).unwrap();
    let store = Embedded::start(Some(file), state, Some(path));
    let mut watch = store.watch(String::new(), Revision(0)).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    store.execute(put("before")).await.unwrap();
    assert!(matches!(watch.next().await, Some(WatchEvent::Changes(..))));

    fails.store(true, Ordering::SeqCst);
    let failed = store.execute(put("after")).await.unwrap_err();
    assert!(
        matches!(&failed, MetaError::Unknown(text) if text.contains("/meta.redb") && text.contains("disk")),
        "{failed}"
    );
    fails.store(false, Ordering::SeqCst);
    assert_eq!(watch.next().await, None, "nobody is told of what may not be");
    for op in [put("later"), MetaOp::Get("before".into()), MetaOp::List(String::new())] {
        assert!(matches!(store.execute(op).await, Err(MetaError::Unknown(_))));
    }
    assert!(store.keep_alive(lease).await.is_err());
    assert!(store.watch(String::new(), Revision(0)).await.is_err());
}
