use super::*;
use crate::metadata::{Embedded, init_cluster};
use torus_core::ids::ExtentSeq;
use torus_core::meta::docs::encode;
use torus_core::meta::{MetaOp, MetaReply, Txn};

async fn store() -> Embedded {
    let store = Embedded::in_memory();
    init_cluster(&store, 16_384, 2).await.unwrap();
    store
}

fn new(name: &str) -> NewVolume {
    NewVolume { name: name.into(), size: Lba(256), replicas: 2, min_replicas: 1, ack_mode: AckMode::Durable }
}

async fn write(store: &Embedded, then: Vec<Write>) {
    let reply = store.execute(MetaOp::Txn(Txn { when: vec![], then })).await.unwrap();
    assert!(matches!(reply, MetaReply::Committed(_)));
}

fn holder(host: &str) -> Holder {
    Holder { host: host.into(), pid: 7, serves: String::new() }
}

/// What an owner writes when it opens a volume.
async fn open(store: &Embedded, id: VolumeId, epoch: Epoch) {
    let holder = holder("n2");
    let claim = EpochDoc { epoch, holder: holder.clone(), nonce: 1 };
    let owner = OwnerDoc { epoch, holder };
    write(store, vec![put(keys::volume_epoch(id), &claim), put(keys::volume_owner(id), &owner)]).await;
}

#[test]
fn names_follow_the_rules() {
    for good in ["a", "0", "db-0", "a.b_c-d", &"x".repeat(63)] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    for bad in ["", "-a", ".a", "_a", "A", "a/b", "../a", "a b", "ä", "a\0", "a\n", &"x".repeat(64)] {
        assert!(matches!(check_name(bad), Err(VolumeError::Name(_))), "{bad}");
    }
}

#[tokio::test]
async fn a_new_volume_is_found_by_name_and_by_id() {
    let store = store().await;
    let id = create_volume(&store, new("db-0")).await.unwrap();
    let info = find_volume(&store, "db-0").await.unwrap();
    assert_eq!((info.id, info.meta.doc.size, info.epoch, info.owner), (id, Lba(256), None, None));
    assert_eq!(find_volume(&store, &id.to_string()).await.unwrap().id, id);
    for missing in ["db-1", "00000000000000aa", "../x", ""] {
        let error = find_volume(&store, missing).await.unwrap_err();
        assert!(matches!(&error, VolumeError::NotFound(name) if name == missing), "{error}");
    }
}

#[tokio::test]
async fn a_name_is_given_once_even_to_many_at_the_same_time() {
    let store = store().await;
    let made = futures::future::join_all((0..20).map(|_| create_volume(&store, new("v")))).await;
    let (ids, errors): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    assert_eq!((ids.len(), errors.len()), (1, 19));
    let id = ids.into_iter().next().unwrap().unwrap();
    for error in errors {
        assert!(matches!(error, Err(VolumeError::Exists { id: other, .. }) if other == id));
    }
    assert_eq!(list_volumes(&store).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn bad_parameters_are_refused() {
    let store = store().await;
    for size in [0, VOLUME_BLOCKS_MAX + 1] {
        let bad = NewVolume { size: Lba(size), ..new("v") };
        assert!(matches!(create_volume(&store, bad).await, Err(VolumeError::Size(_))));
    }
    for (replicas, min_replicas) in [(0, 0), (2, 0), (2, 3), (8, 1)] {
        let bad = NewVolume { replicas, min_replicas, ..new("v") };
        assert!(matches!(create_volume(&store, bad).await, Err(VolumeError::Replicas { .. })));
    }
    assert_eq!(list_volumes(&store).await.unwrap().0, []);
    let empty = Embedded::in_memory();
    assert!(matches!(create_volume(&empty, new("v")).await, Err(VolumeError::NoCluster(_))));
}

#[tokio::test]
async fn a_list_shows_owner_epoch_and_checkpoint() {
    let store = store().await;
    let b = create_volume(&store, new("b")).await.unwrap();
    let a = create_volume(&store, new("a")).await.unwrap();
    open(&store, b, Epoch(3)).await;
    let seq = ExtentSeq::new(Epoch(3), 0).unwrap();
    let head = HeadDoc { epoch: Epoch(3), vseq: torus_core::ids::Vseq(9), extents: vec![], bytes: 0 };
    let extent = Write::Put { key: keys::extent(b, seq), value: b"{}".to_vec(), lease: None };
    write(&store, vec![put(keys::volume_head(b), &head), extent]).await;
    let (volumes, _) = list_volumes(&store).await.unwrap();
    assert_eq!(volumes.iter().map(|v| v.id).collect::<Vec<_>>(), [a, b]);
    let shown = &volumes[1];
    assert_eq!(shown.owner.as_ref().unwrap().holder.host, "n2");
    assert_eq!(shown.epoch.as_ref().unwrap().doc.epoch, Epoch(3));
    assert_eq!((shown.head.as_ref(), shown.extents), (Some(&head), 1));
    assert_eq!(*shown, find_volume(&store, "b").await.unwrap());
}

#[tokio::test]
async fn a_size_only_grows() {
    let store = store().await;
    let id = create_volume(&store, new("v")).await.unwrap();
    assert_eq!(resize_volume(&store, id, Lba(512)).await.unwrap().size, Lba(512));
    assert_eq!(resize_volume(&store, id, Lba(512)).await.unwrap().size, Lba(512));
    let error = resize_volume(&store, id, Lba(511)).await.unwrap_err();
    assert!(matches!(error, VolumeError::Shrink { now: Lba(512), asked: Lba(511), .. }), "{error}");
    assert!(matches!(resize_volume(&store, id, Lba(u64::MAX)).await, Err(VolumeError::Size(_))));
    assert!(matches!(resize_volume(&store, VolumeId(1), Lba(9)).await, Err(VolumeError::NotFound(_))));
    // Ten at once: all of them succeed or find a larger one there, and the largest stands.
    let sizes = (513..523).map(|size| resize_volume(&store, id, Lba(size)));
    for grown in futures::future::join_all(sizes).await {
        assert!(matches!(grown, Ok(_) | Err(VolumeError::Shrink { .. })), "{grown:?}");
    }
    assert_eq!(find_volume(&store, "v").await.unwrap().meta.doc.size, Lba(522));
}

#[tokio::test]
async fn deletion_fences_and_then_forgets() {
    let store = store().await;
    let id = create_volume(&store, new("v")).await.unwrap();
    open(&store, id, Epoch(4)).await;
    let held = mark_deleting(&store, id, &holder("me"), false).await.unwrap_err();
    assert!(held.to_string().contains("n2") && held.to_string().contains("epoch 4"), "{held}");
    assert!(matches!(remove_volume_keys(&store, id).await, Err(VolumeError::NotDeleting(_))));

    assert_eq!(mark_deleting(&store, id, &holder("me"), true).await.unwrap(), Epoch(5));
    assert_eq!(mark_deleting(&store, id, &holder("me"), true).await.unwrap(), Epoch(5), "again is no error");
    let info = find_volume(&store, "v").await.unwrap();
    assert!(info.meta.doc.deleting && info.owner.is_none());
    assert_eq!(info.epoch.unwrap().doc.epoch, Epoch(5));
    assert!(matches!(resize_volume(&store, id, Lba(512)).await, Err(VolumeError::Deleting(_))));

    let extents = (0..250).map(|n| keys::extent(id, ExtentSeq::new(Epoch(4), n).unwrap()));
    for chunk in extents.collect::<Vec<_>>().chunks(100) {
        write(&store, chunk.iter().map(|key| put(key.clone(), &())).collect()).await;
    }
    remove_volume_keys(&store, id).await.unwrap();
    remove_volume_keys(&store, id).await.unwrap();
    let left = list_raw(&store, "").await.unwrap().0.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
    assert_eq!(left, [keys::CLUSTER]);
    create_volume(&store, new("v")).await.unwrap();
}

/// The claim of an opener that listed the volume before it was marked: it compares the epoch, which the mark raised.
#[tokio::test]
async fn no_opener_slips_past_a_deletion() {
    let store = store().await;
    let id = create_volume(&store, new("v")).await.unwrap();
    mark_deleting(&store, id, &holder("me"), false).await.unwrap();
    let claim = EpochDoc { epoch: Epoch(1), holder: holder("n2"), nonce: 2 };
    let when = vec![Compare::Present(keys::volume_meta(id)), Compare::Absent(keys::volume_epoch(id))];
    let txn = Txn { when, then: vec![put(keys::volume_epoch(id), &claim)] };
    assert_eq!(store.execute(MetaOp::Txn(txn)).await.unwrap(), MetaReply::Conflict);
}

#[tokio::test]
async fn a_damaged_document_is_an_error_with_its_key() {
    let store = store().await;
    let id = create_volume(&store, new("v")).await.unwrap();
    let doc = VolumeDoc {
        name: "v".into(),
        size: Lba(1),
        replicas: 1,
        min_replicas: 1,
        ack_mode: AckMode::Durable,
        deleting: false,
    };
    for bad in [b"{".to_vec(), b"{}".to_vec(), vec![0xff], encode(&doc)[1..].to_vec()] {
        write(&store, vec![Write::Put { key: keys::volume_meta(id), value: bad, lease: None }]).await;
        let error = list_volumes(&store).await.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(&keys::volume_meta(id)), "{source}");
    }
}
