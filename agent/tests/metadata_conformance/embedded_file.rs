//! The file of the embedded store: kept over restarts, held by one process, refused when it is not ours.

use crate::bed::{committed, event, get, list, put, refusal};
use redb::{Database, TableDefinition};
use std::sync::Arc;
use std::time::Duration;
use torus_agent::metadata::{Embedded, EmbeddedError, OpenError, connect};
use torus_core::limits::META_WATCH_EVENTS_MAX;
use torus_core::meta::{MetaOp, MetadataStore, Revision, Txn, WatchEvent, Write};

async fn write(store: &dyn MetadataStore, then: Vec<Write>) -> Revision {
    committed(store.execute(MetaOp::Txn(Txn { when: vec![], then })).await)
}

#[tokio::test]
async fn keys_revisions_and_leases_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let store = Embedded::open(&path).unwrap();
    write(&store, vec![put("gone", "")]).await;
    write(&store, vec![Write::Delete("gone".into()), put("a", "1")]).await;
    // Longer than a slow disk takes over a few commits.
    let lease = store.grant(Duration::from_secs(10)).await.unwrap();
    let leased = Write::Put { key: "leased".into(), value: vec![], lease: Some(lease) };
    let last = write(&store, vec![leased]).await;
    let before = list(&store, "").await;
    drop(store);

    let store = Embedded::open(&path).unwrap();
    // The first thing: the end of the lease must not come before it.
    let mut ending = store.watch("leased".into(), Revision(0)).await.unwrap();
    assert_eq!(list(&store, "").await, before);
    assert!(store.keep_alive(lease).await.unwrap());
    assert_eq!(write(&store, vec![put("b", "")]).await, Revision(last.0 + 1));
    // What is remembered for watches is not.
    let mut watch = store.watch("".into(), last).await.unwrap();
    assert_eq!(event(&mut *watch).await, WatchEvent::Lost);
    assert!(matches!(event(&mut *ending).await, WatchEvent::Changes(..)), "the lease runs out in its new term");
    assert!(get(&store, "leased").await.unwrap().is_none());
    drop(store);

    let store = Embedded::open(&path).unwrap();
    assert!(get(&store, "leased").await.unwrap().is_none());
    assert!(!store.keep_alive(lease).await.unwrap());
    let leased = Write::Put { key: "leased".into(), value: vec![], lease: Some(lease) };
    assert!(refusal(store.execute(MetaOp::Txn(Txn { when: vec![], then: vec![leased] })).await).contains("lease"));
}

#[tokio::test]
async fn a_file_has_one_holder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let config = crate::bed::config(&format!("embedded:{}", path.display()));
    let first = connect(&config).await.unwrap();
    let error = connect(&config).await.err().unwrap();
    assert!(matches!(error, OpenError::Embedded(EmbeddedError::InUse { .. })), "{error}");
    assert!(error.to_string().contains("meta.redb") && error.to_string().contains("etcd"), "{error}");
    assert!(!error.is_transient());
    drop(first);
    connect(&config).await.unwrap();
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    write(&Embedded::open(&path).unwrap(), vec![put("k", "v")]).await;
    let table: TableDefinition<&str, u64> = TableDefinition::new("torus");
    let set = |format: u64| {
        let db = Database::open(&path).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(table).unwrap().insert("format", format).unwrap();
        txn.commit().unwrap();
    };
    set(2);
    let error = Embedded::open(&path).err().unwrap();
    assert!(matches!(error, EmbeddedError::Newer { found: 2, .. }), "{error}");
    set(1);
    let store = Embedded::open(&path).unwrap();
    assert_eq!(get(&store, "k").await.unwrap().unwrap().value, b"v");
}

#[tokio::test]
async fn what_is_not_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "dear diary\n".repeat(1000)).unwrap();
    let before = std::fs::read(&text).unwrap();
    let error = Embedded::open(&text).err().unwrap();
    assert!(matches!(error, EmbeddedError::Foreign { .. }), "{error:?}");
    assert_eq!(std::fs::read(&text).unwrap(), before);

    let other = dir.path().join("other.redb");
    let table: TableDefinition<u64, u64> = TableDefinition::new("bookkeeping");
    let db = Database::create(&other).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(table).unwrap().insert(1, 1).unwrap();
    txn.commit().unwrap();
    drop(db);
    let error = Embedded::open(&other).err().unwrap();
    assert!(matches!(error, EmbeddedError::Foreign { .. }), "{error:?}");

    for path in [dir.path().to_path_buf(), dir.path().join("missing/meta.redb")] {
        let error = Embedded::open(&path).err().unwrap();
        assert!(matches!(error, EmbeddedError::Unusable { .. }), "{error:?}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}

/// A reader that does not read costs a bounded queue, and is told what it missed.
#[tokio::test]
async fn a_slow_watch_is_lost_after_what_it_was_sent() {
    let store = Arc::new(Embedded::in_memory());
    let mut watch = store.watch("".into(), Revision(0)).await.unwrap();
    for n in 0..META_WATCH_EVENTS_MAX + 10 {
        write(&*store, vec![put("k", &n.to_string())]).await;
    }
    for _ in 0..META_WATCH_EVENTS_MAX {
        assert!(matches!(event(&mut *watch).await, WatchEvent::Changes(..)));
    }
    assert_eq!(event(&mut *watch).await, WatchEvent::Lost);
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_watch_ends_with_its_store() {
    let store = Embedded::in_memory();
    let mut watch = store.watch("".into(), Revision(0)).await.unwrap();
    drop(store);
    assert_eq!(watch.next().await, None);
}
