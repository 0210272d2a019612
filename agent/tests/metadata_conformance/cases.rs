//! What every store must do.

use crate::bed::{Bed, PATIENCE, changes, committed, delete, event, put, refusal};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use torus_core::limits::{META_TXN_BYTES_MAX, META_TXN_OPS_MAX};
use torus_core::meta::{Compare, MetaReply, Revision, Txn, WatchEvent, Write};
use torus_core::meta::{LeaseId, MetaOp};

fn absent(key: &str) -> Compare {
    Compare::Absent(key.into())
}
fn present(key: &str) -> Compare {
    Compare::Present(key.into())
}
fn unchanged(key: &str, at: Revision) -> Compare {
    Compare::Unchanged(key.into(), at)
}
fn holds(key: &str, value: &str) -> Compare {
    Compare::Holds(key.into(), value.into())
}

/// Whether a transaction with this one condition is carried out.
async fn passes(bed: &Bed, condition: Compare) -> bool {
    match bed.txn(vec![condition], vec![put("probe", "")]).await.unwrap() {
        MetaReply::Committed(_) => true,
        MetaReply::Conflict => false,
        other => panic!("{other:?}"),
    }
}

pub async fn a_key_reads_back_as_it_was_written(bed: Bed) {
    assert_eq!(bed.get("a/b").await, None);
    let bytes: Vec<u8> = (0..=255).collect();
    let write = Write::Put { key: "a/b".into(), value: bytes.clone(), lease: None };
    let revision = bed.commit(vec![write]).await;
    let entry = bed.get("a/b").await.unwrap();
    assert_eq!((entry.key.as_str(), entry.value, entry.modified), ("a/b", bytes, revision));
    let again = bed.put("a/b", "other").await;
    let entry = bed.get("a/b").await.unwrap();
    assert_eq!((entry.value.as_slice(), entry.modified), (b"other".as_slice(), again));
    assert_eq!(bed.get("a").await, None);
    assert_eq!(bed.get("a/").await, None);
}

pub async fn absent_compares(bed: Bed) {
    assert!(passes(&bed, absent("k")).await);
    bed.put("k", "").await;
    assert!(!passes(&bed, absent("k")).await);
    bed.commit(vec![delete("k")]).await;
    assert!(passes(&bed, absent("k")).await);
}

pub async fn present_compares(bed: Bed) {
    assert!(!passes(&bed, present("k")).await);
    bed.put("k", "").await;
    assert!(passes(&bed, present("k")).await);
    bed.commit(vec![delete("k")]).await;
    assert!(!passes(&bed, present("k")).await);
}

pub async fn unchanged_compares(bed: Bed) {
    assert!(passes(&bed, unchanged("k", Revision(0))).await);
    let first = bed.put("k", "1").await;
    assert!(passes(&bed, unchanged("k", first)).await);
    assert!(!passes(&bed, unchanged("k", Revision(0))).await);
    let second = bed.put("k", "1").await;
    assert!(!passes(&bed, unchanged("k", first)).await);
    assert!(passes(&bed, unchanged("k", second)).await);
    bed.commit(vec![delete("k")]).await;
    assert!(!passes(&bed, unchanged("k", second)).await);
}

pub async fn holds_compares(bed: Bed) {
    assert!(!passes(&bed, holds("k", "")).await, "a key that is absent holds nothing, not even nothing");
    bed.put("k", "one").await;
    assert!(passes(&bed, holds("k", "one")).await);
    assert!(!passes(&bed, holds("k", "on")).await);
    assert!(!passes(&bed, holds("k", "two")).await);
}

pub async fn all_conditions_must_hold(bed: Bed) {
    bed.put("a", "1").await;
    let both = bed.txn(vec![holds("a", "1"), absent("b")], vec![put("b", "")]).await;
    committed(both);
    let one = bed.txn(vec![holds("a", "1"), absent("b")], vec![put("b", "again")]).await;
    assert_eq!(one, Ok(MetaReply::Conflict));
}

pub async fn a_conflict_writes_nothing(bed: Bed) {
    bed.put("a", "1").await;
    let before = bed.list("").await;
    let result = bed.txn(vec![absent("a")], vec![put("a", "2"), put("b", "2"), delete("a")][..2].to_vec()).await;
    assert_eq!(result, Ok(MetaReply::Conflict));
    assert_eq!(bed.list("").await.0, before.0);
}

pub async fn deletes(bed: Bed) {
    bed.put("a", "").await;
    bed.put("b", "").await;
    let mut watch = bed.watch("", Revision(0)).await;
    let revision = bed.commit(vec![delete("a"), delete("nothing")]).await;
    assert_eq!(changes(&mut *watch).await, (vec!["-a".to_string()], revision));
    assert_eq!(bed.get("a").await, None);
    assert_eq!(bed.list("").await.0.len(), 1);
    bed.commit(vec![delete("a")]).await;
}

pub async fn revisions_rise_with_each_writing_transaction(bed: Bed) {
    let mut last = bed.put("k", "").await;
    for _ in 0..5 {
        let next = bed.put("k", "").await;
        assert!(next > last);
        assert_eq!(bed.get("k").await.unwrap().modified, next);
        last = next;
    }
    // Without a write there is nothing to count.
    let checked = committed(bed.txn(vec![present("k")], vec![]).await);
    assert!(checked >= last);
    assert_eq!(bed.get("k").await.unwrap().modified, last);
    assert!(bed.list("k").await.1 >= last);
}

pub async fn a_transaction_of_a_hundred_operations_is_one_revision(bed: Bed) {
    let keys: Vec<_> = (0..META_TXN_OPS_MAX).map(|n| format!("k/{n:03}")).collect();
    let when = keys.iter().map(|key| absent(key)).collect();
    let then: Vec<_> = keys.iter().map(|key| put(key, "v")).collect();
    let revision = committed(bed.txn(when, then.clone()).await);
    let (entries, _) = bed.list("k/").await;
    assert_eq!(entries.len(), META_TXN_OPS_MAX);
    assert!(entries.iter().all(|entry| entry.modified == revision));
    let more = [then, vec![put("one/more", "")]].concat();
    assert!(refusal(bed.txn(vec![], more).await).contains("too large"));
    assert!(bed.get("one/more").await.is_none());
}

pub async fn a_large_value_reads_back(bed: Bed) {
    let value: String = (0..1 << 20).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    for key in ["big/1", "big/2", "big/3", "big/4", "big/5", "big/6"] {
        bed.put(key, &value).await;
    }
    assert_eq!(bed.get("big/1").await.unwrap().value, value.as_bytes());
    let (entries, _) = bed.list("big/").await;
    assert_eq!(entries.len(), 6);
    assert!(entries.iter().all(|entry| entry.value == value.as_bytes()));
    assert!(passes(&bed, holds("big/2", &value)).await);
}

pub async fn what_is_too_large_is_refused(bed: Bed) {
    let value = "x".repeat(META_TXN_BYTES_MAX);
    let text = refusal(bed.txn(vec![], vec![put("big", &value)]).await);
    assert!(text.contains("too large"), "{text}");
    assert!(bed.get("big").await.is_none());
    bed.put("big", &value[3..]).await;
}

pub async fn a_key_written_twice_is_refused(bed: Bed) {
    for then in [vec![put("k", "1"), put("k", "2")], vec![put("k", "1"), delete("k")]] {
        let text = refusal(bed.txn(vec![], then).await);
        assert!(text.contains("\"k\" twice"), "{text}");
    }
    assert!(bed.get("k").await.is_none());
}

pub async fn an_empty_key_is_refused(bed: Bed) {
    assert!(refusal(bed.txn(vec![], vec![put("", "")]).await).contains("empty key"));
    assert!(refusal(bed.txn(vec![absent("")], vec![put("k", "")]).await).contains("empty key"));
}

pub async fn no_update_is_lost_among_concurrent_writers(bed: Bed) {
    const TASKS: u64 = 8;
    const EACH: u64 = 25;
    bed.put("count", "0").await;
    let bed = Arc::new(bed);
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let bed = bed.clone();
            tokio::spawn(async move {
                for _ in 0..EACH {
                    loop {
                        let now = bed.get("count").await.unwrap();
                        let next: u64 = String::from_utf8(now.value).unwrap().parse::<u64>().unwrap() + 1;
                        let when = vec![unchanged("count", now.modified)];
                        match bed.txn(when, vec![put("count", &next.to_string())]).await.unwrap() {
                            MetaReply::Committed(_) => break,
                            MetaReply::Conflict => {}
                            other => panic!("{other:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(bed.get("count").await.unwrap().value, (TASKS * EACH).to_string().as_bytes());
}

pub async fn transactions_are_atomic_to_lists(bed: Bed) {
    let bed = Arc::new(bed);
    let keys: Vec<_> = (0..20).map(|n| format!("a/{n:02}")).collect();
    let write = |value: String| -> Vec<Write> { keys.iter().map(|key| put(key, &value)).collect() };
    bed.commit(write("0".into())).await;
    let writer = {
        let (bed, writes) = (bed.clone(), (1..60).map(|n| write(n.to_string())).collect::<Vec<_>>());
        tokio::spawn(async move {
            for then in writes {
                bed.commit(then).await;
            }
        })
    };
    while !writer.is_finished() {
        let (entries, _) = bed.list("a/").await;
        assert_eq!(entries.len(), keys.len());
        assert!(entries.windows(2).all(|two| two[0].value == two[1].value && two[0].modified == two[1].modified));
    }
    writer.await.unwrap();
}

pub async fn lists_have_their_prefix_only_and_are_in_order(bed: Bed) {
    for key in ["p/b", "p/a/1", "p", "p/\u{7f}", "p0", "o/z", "p/é", "q"] {
        bed.put(key, key).await;
    }
    let (entries, _) = bed.list("p/").await;
    let keys: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["p/a/1", "p/b", "p/\u{7f}", "p/é"]);
    assert!(entries.iter().all(|entry| entry.value == entry.key.as_bytes()));
    assert_eq!(bed.list("p").await.0.len(), 6);
    assert_eq!(bed.list("").await.0.len(), 8);
    assert_eq!(bed.list("nothing/").await.0, []);
}

pub async fn long_lists_are_complete_and_of_one_revision(bed: Bed) {
    const KEYS: usize = 2000;
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(META_TXN_OPS_MAX) {
        bed.commit(chunk.iter().map(|n| put(&format!("long/{n:06}"), "0")).collect()).await;
    }
    let bed = Arc::new(bed);
    // Writes to the first and the last key, always to both at once: pages of different revisions would disagree.
    let last = format!("long/{:06}", KEYS - 1);
    let both = |value: String| vec![put("long/000000", &value), put(&last, &value)];
    let writer = {
        let (bed, writes) = (bed.clone(), (1..40).map(|n| both(n.to_string())).collect::<Vec<_>>());
        tokio::spawn(async move {
            for then in writes {
                bed.commit(then).await;
            }
        })
    };
    let mut lists = 0;
    while !writer.is_finished() || lists < 2 {
        let (entries, revision) = bed.list("long/").await;
        assert_eq!(entries.len(), KEYS);
        assert!(entries.windows(2).all(|two| two[0].key < two[1].key));
        assert_eq!(entries[0].value, entries[KEYS - 1].value);
        assert!(entries.iter().all(|entry| entry.modified <= revision));
        lists += 1;
    }
    writer.await.unwrap();
}

pub async fn a_watch_brings_every_change_once_and_in_order(bed: Bed) {
    const CHANGES: usize = 200;
    let from = Revision(bed.put("before", "").await.0 + 1);
    let bed = Arc::new(bed);
    let mut watch = bed.watch("w/", from).await;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let bed = bed.clone();
            tokio::spawn(async move {
                let mut wrote = BTreeMap::new();
                for n in 0..CHANGES / 4 {
                    let (key, value) = (format!("w/{writer}/{}", n % 5), n.to_string());
                    wrote.insert(bed.put(&key, &value).await, vec![format!("{key}={value}")]);
                }
                wrote
            })
        })
        .collect();
    let mut seen = Vec::new();
    while seen.len() < CHANGES {
        let (what, revision) = changes(&mut *watch).await;
        seen.push((revision, what));
    }
    let mut wrote = BTreeMap::new();
    for writer in writers {
        wrote.extend(writer.await.unwrap());
    }
    assert_eq!(seen, wrote.into_iter().collect::<Vec<_>>());
}

pub async fn a_watch_from_the_past_begins_there(bed: Bed) {
    bed.put("k", "0").await;
    let first = bed.put("k", "1").await;
    let second = bed.put("k", "2").await;
    let third = bed.commit(vec![delete("k")]).await;
    let mut watch = bed.watch("k", first).await;
    assert_eq!(changes(&mut *watch).await, (vec!["k=1".into()], first));
    assert_eq!(changes(&mut *watch).await, (vec!["k=2".into()], second));
    assert_eq!(changes(&mut *watch).await, (vec!["-k".into()], third));
    let fourth = bed.put("k", "4").await;
    assert_eq!(changes(&mut *watch).await, (vec!["k=4".into()], fourth));
}

pub async fn a_watch_brings_a_revision_whole(bed: Bed) {
    bed.put("w/gone", "").await;
    let mut watch = bed.watch("w/", Revision(0)).await;
    let revision = bed.commit(vec![put("w/b", "1"), delete("w/gone"), put("other", ""), put("w/a", "2")]).await;
    let (mut what, at) = changes(&mut *watch).await;
    what.sort();
    assert_eq!((what, at), (vec!["-w/gone".to_string(), "w/a=2".into(), "w/b=1".into()], revision));
}

pub async fn a_watch_sees_its_prefix_only(bed: Bed) {
    let mut watch = bed.watch("w/", Revision(0)).await;
    for key in ["w", "w0", "v/x", "ww/"] {
        bed.put(key, "").await;
    }
    let revision = bed.put("w/x", "1").await;
    assert_eq!(changes(&mut *watch).await, (vec!["w/x=1".into()], revision));
}

/// The way that everybody follows a prefix: list, then watch from the revision after the list's.
pub async fn a_watch_after_a_list_misses_nothing(bed: Bed) {
    const KEYS: usize = 150;
    let bed = Arc::new(bed);
    let writer = {
        let bed = bed.clone();
        tokio::spawn(async move {
            for n in 0..KEYS {
                bed.put(&format!("f/{n:03}"), "").await;
            }
        })
    };
    for _ in 0..5 {
        let (entries, revision) = bed.list("f/").await;
        let mut keys: Vec<_> = entries.into_iter().map(|entry| entry.key).collect();
        let mut watch = bed.watch("f/", Revision(revision.0 + 1)).await;
        while keys.len() < KEYS {
            keys.extend(changes(&mut *watch).await.0.into_iter().map(|change| change.replace('=', "")));
        }
        let all: Vec<_> = (0..KEYS).map(|n| format!("f/{n:03}")).collect();
        assert_eq!(keys, all);
    }
    writer.await.unwrap();
}

pub async fn a_watch_from_now_begins_now(bed: Bed) {
    bed.put("k", "before").await;
    let mut watch = bed.watch("k", Revision(0)).await;
    let revision = bed.put("k", "after").await;
    assert_eq!(changes(&mut *watch).await, (vec!["k=after".into()], revision));
}

pub async fn a_watch_from_forgotten_history_is_lost(bed: Bed) {
    let old = bed.put("k", "old").await;
    bed.put("k", "new").await;
    bed.forget_history().await;
    let mut watch = bed.watch("k", old).await;
    assert_eq!(event(&mut *watch).await, WatchEvent::Lost);
    assert_eq!(watch.next().await, None);
    // And the way on from there.
    let (entries, revision) = bed.list("k").await;
    assert_eq!(entries[0].value, b"new");
    let mut watch = bed.watch("k", Revision(revision.0 + 1)).await;
    let newest = bed.put("k", "newest").await;
    assert_eq!(changes(&mut *watch).await, (vec!["k=newest".into()], newest));
}

pub async fn a_watch_from_the_future_is_lost(bed: Bed) {
    let now = bed.put("k", "").await;
    let mut watch = bed.watch("k", Revision(now.0 + 1_000_000)).await;
    assert_eq!(event(&mut *watch).await, WatchEvent::Lost);
}

pub async fn a_lease_that_is_not_kept_runs_out_with_its_keys(bed: Bed) {
    // Longer than a slow disk takes over the grant and the write.
    const TERM: Duration = Duration::from_secs(10);
    let mut watch = bed.watch("alive/", Revision(0)).await;
    let granted = Instant::now();
    let lease = bed.store.grant(TERM).await.unwrap();
    let leased = |key: &str| Write::Put { key: key.into(), value: b"leased".to_vec(), lease: Some(lease) };
    let written = bed.commit(vec![leased("alive/a"), leased("alive/b")]).await;
    let there = bed.get("alive/a").await.is_some();
    assert!(there || granted.elapsed() >= TERM, "gone after {:?}", granted.elapsed());
    let (mut came, at) = changes(&mut *watch).await;
    came.sort();
    assert_eq!((came, at), (vec!["alive/a=leased".to_string(), "alive/b=leased".into()], written));
    let (mut gone, _) = changes(&mut *watch).await;
    gone.sort();
    assert_eq!(gone, ["-alive/a", "-alive/b"], "both at once");
    assert!(granted.elapsed() >= TERM, "not before its time: {:?}", granted.elapsed());
    assert_eq!(bed.list("alive/").await.0, []);
    assert!(!bed.store.keep_alive(lease).await.unwrap());
}

pub async fn a_lease_that_is_kept_stays(bed: Bed) {
    let until = Instant::now() + PATIENCE;
    while !stays_while_kept(&bed).await {
        assert!(Instant::now() < until, "no lease could be kept without a gap");
    }
}

/// Keeps a lease for more than two of its terms. False: this machine left a gap of a whole term, so that nothing follows
/// from the loss.
async fn stays_while_kept(bed: &Bed) -> bool {
    const TERM: Duration = Duration::from_secs(4);
    let began = Instant::now();
    let lease = bed.store.grant(TERM).await.unwrap();
    let leased = Write::Put { key: "alive/a".into(), value: b"leased".to_vec(), lease: Some(lease) };
    // The lease lives for a term from here at least.
    let mut renewed = began;
    let mut stays = bed.txn(vec![], vec![leased]).await.is_ok();
    while stays && began.elapsed() < Duration::from_secs(9) {
        let asked = Instant::now();
        stays = bed.store.keep_alive(lease).await.unwrap();
        if stays {
            renewed = asked;
            stays = bed.get("alive/a").await.is_some();
        }
        if stays {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    assert!(stays || renewed.elapsed() >= TERM, "gone after {:?}", began.elapsed());
    bed.store.revoke(lease).await.unwrap();
    stays
}

pub async fn a_revoked_lease_takes_its_keys(bed: Bed) {
    let lease = bed.store.grant(Duration::from_secs(60)).await.unwrap();
    let other = bed.store.grant(Duration::from_secs(60)).await.unwrap();
    bed.put_leased("alive/a", lease).await;
    bed.put_leased("alive/b", other).await;
    bed.store.revoke(lease).await.unwrap();
    let keys: Vec<_> = bed.list("alive/").await.0.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, ["alive/b"]);
    assert!(!bed.store.keep_alive(lease).await.unwrap());
    bed.store.revoke(lease).await.unwrap();
    bed.store.revoke(other).await.unwrap();
    assert_eq!(bed.list("alive/").await.0, []);
}

pub async fn a_key_leaves_its_lease_when_it_is_written_without(bed: Bed) {
    let lease = bed.store.grant(Duration::from_secs(60)).await.unwrap();
    bed.put_leased("k", lease).await;
    bed.put("k", "mine").await;
    bed.store.revoke(lease).await.unwrap();
    assert_eq!(bed.get("k").await.unwrap().value, b"mine");
}

pub async fn a_lease_that_is_gone_takes_no_keys(bed: Bed) {
    let lease = bed.store.grant(Duration::from_secs(60)).await.unwrap();
    bed.store.revoke(lease).await.unwrap();
    for lease in [lease, LeaseId(0x1234_5678)] {
        let leased = Write::Put { key: "leased".into(), value: vec![], lease: Some(lease) };
        let text = refusal(bed.txn(vec![], vec![put("first", ""), leased]).await);
        assert!(text.contains("lease"), "{text}");
    }
    assert!(bed.get("first").await.is_none(), "a refused transaction leaves nothing behind");
    let op = MetaOp::Txn(Txn { when: vec![], then: vec![put("after", "")] });
    let after = tokio::time::timeout(PATIENCE, bed.store.execute(op)).await.unwrap();
    committed(after);
}
