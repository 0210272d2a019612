//! etcd killed, halted, full, cut off, or not there: every operation ends in time with an answer that is true.

use crate::bed::{
    Bed, PATIENCE, changes, committed, compact, config, delete, event, get, list, own_prefix, put, refusal, with_etcd,
};
use crate::proxy::{Mode, Proxy};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use torus_agent::metadata::{MetaConfig, OpenError, connect};
use torus_core::meta::{Compare, MetaError, MetaOp, MetaReply, MetadataStore, Revision, Txn, WatchEvent, Write};
use torus_e2e::etcd::{Etcd, Options};

/// The timeout of the stores here, and what an operation may take beyond it on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(2);

fn quick(urls: &str) -> MetaConfig {
    own_prefix(MetaConfig { timeout: TIMEOUT, ..config(urls) })
}

/// What a load saw of the keys that it wrote.
#[derive(Default)]
struct Seen {
    committed: Vec<(String, Revision)>,
    unknown: Vec<String>,
    slowest: Duration,
}

/// Four tasks that create keys, each key once, until told to stop.
async fn load(store: Arc<dyn MetadataStore>, stop: Arc<AtomicBool>) -> Seen {
    let tasks = (0..4).map(|task| {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            let mut seen = Seen::default();
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) {
                number += 1;
                let key = format!("load/{task}/{number:06}");
                let txn = Txn { when: vec![Compare::Absent(key.clone())], then: vec![put(&key, "x")] };
                let began = Instant::now();
                match store.execute(MetaOp::Txn(txn)).await {
                    Ok(MetaReply::Committed(revision)) => seen.committed.push((key, revision)),
                    Err(MetaError::Unknown(_)) => seen.unknown.push(key),
                    other => panic!("{key}: {other:?}"),
                }
                seen.slowest = seen.slowest.max(began.elapsed());
            }
            seen
        })
    });
    let mut all = Seen::default();
    for seen in futures::future::join_all(tasks).await {
        let seen = seen.unwrap();
        all.committed.extend(seen.committed);
        all.unknown.extend(seen.unknown);
        all.slowest = all.slowest.max(seen.slowest);
    }
    all
}

/// What was committed is there, as of its revision; what is there was committed or unknown.
async fn check(store: &dyn MetadataStore, seen: &Seen) {
    let there = list(store, "load/").await.0;
    let keys: BTreeSet<_> = there.iter().map(|entry| (entry.key.clone(), entry.modified)).collect();
    for committed in &seen.committed {
        assert!(keys.contains(committed), "{committed:?} was committed and is gone");
    }
    let known: BTreeSet<_> = seen.committed.iter().map(|(key, _)| key).chain(&seen.unknown).collect();
    assert!(there.iter().all(|entry| known.contains(&entry.key)));
}

async fn wait_for_commits(store: &dyn MetadataStore, more_than: usize) {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = store.execute(MetaOp::List("load/".into())).await;
        if matches!(found, Ok(MetaReply::Listed(entries, _)) if entries.len() > more_than) {
            return;
        }
        assert!(Instant::now() < until, "no more than {more_than} keys after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_etcd_loses_nothing_that_was_committed() {
    let etcd = with_etcd(Etcd::start).await;
    let store = connect(&quick(&etcd.url())).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn(load(store.clone(), stop.clone()));
    wait_for_commits(&*store, 50).await;
    let etcd = with_etcd(move || {
        let mut etcd = etcd;
        etcd.kill().map(|()| etcd)
    });
    let etcd = etcd.await;
    let down = Instant::now();
    let text = loop {
        match get(&*store, "load").await {
            Err(MetaError::Unknown(text)) => break text,
            other => assert!(down.elapsed() < PATIENCE, "{other:?} from an etcd that was killed"),
        }
    };
    assert!(text.contains(&etcd.url()), "{text}");
    let etcd = with_etcd(move || {
        let mut etcd = etcd;
        etcd.restart().map(|()| etcd)
    });
    let _etcd = etcd.await;
    let before = list(&*store, "load/").await.0.len();
    wait_for_commits(&*store, before + 50).await;
    stop.store(true, Ordering::SeqCst);
    let seen = loading.await.unwrap();
    assert!(seen.slowest < TIMEOUT + SLACK, "an operation took {:?}", seen.slowest);
    assert!(!seen.unknown.is_empty(), "nobody noticed the kill");
    check(&*store, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_etcd_gives_unknown_in_time_and_recovers() {
    let etcd = with_etcd(Etcd::start).await;
    let store = connect(&quick(&etcd.url())).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn(load(store.clone(), stop.clone()));
    wait_for_commits(&*store, 50).await;
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    etcd.stop().unwrap();
    let began = Instant::now();
    let (got, listed, kept, granted, watched) = tokio::join!(
        get(&*store, "k"),
        store.execute(MetaOp::List("".into())),
        store.keep_alive(lease),
        store.grant(Duration::from_secs(9)),
        store.watch("w".into(), Revision(0)),
    );
    assert!(began.elapsed() < TIMEOUT * 2 + SLACK, "{:?}", began.elapsed());
    for error in [got.err(), listed.err(), kept.err(), granted.err(), watched.err()] {
        assert!(matches!(&error, Some(MetaError::Unknown(text)) if text.contains(&etcd.url())), "{error:?}");
    }
    etcd.cont().unwrap();
    let recovering = Instant::now();
    let before = list(&*store, "load/").await.0.len();
    wait_for_commits(&*store, before + 50).await;
    assert!(recovering.elapsed() < TIMEOUT + SLACK, "recovered only after {:?}", recovering.elapsed());
    assert!(store.keep_alive(lease).await.unwrap());
    stop.store(true, Ordering::SeqCst);
    let seen = loading.await.unwrap();
    assert!(seen.slowest < TIMEOUT + SLACK, "an operation took {:?}", seen.slowest);
    assert!(!seen.unknown.is_empty());
    check(&*store, &seen).await;
}

/// The request arrives, the answer does not: the store must say that it does not know, and must not ask again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_answer_is_lost_is_unknown_and_happens_once() {
    let etcd = with_etcd(Etcd::start).await;
    let proxy = Proxy::before(&etcd.url()).await;
    // Both endpoints are the same etcd: there would be another member to ask.
    let cut = quick(&format!("{},{}", proxy.url(), etcd.url()));
    let straight = connect(&MetaConfig { url: etcd.url().parse().unwrap(), ..cut.clone() }).await.unwrap();
    let store = connect(&cut).await.unwrap();
    for mode in [Mode::Swallow, Mode::Cut] {
        let key = format!("{mode:?}");
        proxy.set(Mode::Pass);
        // Back to the endpoint behind the proxy, if the last round has left it.
        let store = connect(&cut).await.unwrap();
        committed(store.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put(&key, "before")] })).await);
        proxy.set(Mode::Swallow);
        let txn = Txn { when: vec![], then: vec![put(&key, "after")] };
        let asked = tokio::spawn({
            let store = store.clone();
            async move { store.execute(MetaOp::Txn(txn)).await }
        });
        let until = Instant::now() + PATIENCE;
        let written = loop {
            let entry = get(&*straight, &key).await.unwrap().unwrap();
            if entry.value == b"after" {
                break entry.modified;
            }
            assert!(Instant::now() < until);
        };
        proxy.set(mode);
        let answer = asked.await.unwrap();
        assert!(matches!(answer, Err(MetaError::Unknown(_))), "{mode:?}: {answer:?}");
        let now = get(&*straight, &key).await.unwrap().unwrap();
        assert_eq!(now.modified, written, "{mode:?}: it happened twice");
    }
    proxy.set(Mode::Cut);
    assert!(get(&*store, "Cut").await.unwrap().is_some(), "the other member answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_down_or_hangs_is_passed_over() {
    let etcd = with_etcd(Etcd::start).await;
    let closed = torus_e2e::ports::free().unwrap();
    let config = quick(&format!("http://127.0.0.1:{closed},{}", etcd.url()));
    let store = connect(&config).await.unwrap();
    // A transaction too: what was never sent may be sent elsewhere.
    committed(store.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put("k", "v")] })).await);

    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = format!("http://{},{}", hangs.local_addr().unwrap(), etcd.url());
    let timeout = Duration::from_secs(5);
    let store = connect(&MetaConfig { url: urls.parse().unwrap(), timeout, ..config }).await.unwrap();
    let began = Instant::now();
    assert_eq!(get(&*store, "k").await.unwrap().unwrap().value, b"v");
    assert!(began.elapsed() < SLACK, "the member that works is remembered: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_etcds_are_not_taken_for_one() {
    let (one, two) = with_etcd(|| Ok((Etcd::start()?, Etcd::start()?))).await;
    let store = connect(&quick(&format!("{},{}", one.url(), two.url()))).await.unwrap();
    committed(store.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put("k", "v")] })).await);
    drop(one);
    let until = Instant::now() + PATIENCE;
    let text = loop {
        match get(&*store, "k").await {
            Err(MetaError::Unknown(text)) if text.contains("etcd cluster") => break text,
            Ok(found) => panic!("{found:?} from another etcd"),
            Err(_) => assert!(Instant::now() < until),
        }
    };
    assert!(text.contains("restored from a backup"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_a_kill_without_gap_or_repetition() {
    let etcd = with_etcd(Etcd::start).await;
    let store = connect(&quick(&etcd.url())).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut watch = store.watch("load/".into(), Revision(0)).await.unwrap();
    let loading = tokio::spawn(load(store.clone(), stop.clone()));
    wait_for_commits(&*store, 20).await;
    let mut etcd = etcd;
    for _ in 0..3 {
        etcd = with_etcd(move || {
            etcd.restart()?;
            Ok(etcd)
        })
        .await;
        let before = list(&*store, "load/").await.0.len();
        wait_for_commits(&*store, before + 20).await;
    }
    stop.store(true, Ordering::SeqCst);
    let seen = loading.await.unwrap();
    // The keys as they are now tell what a watch without gap has brought: each was written once.
    let mut there: Vec<_> =
        list(&*store, "load/").await.0.into_iter().map(|e| (e.modified, vec![format!("{}=x", e.key)])).collect();
    there.sort();
    let mut brought = Vec::new();
    while brought.len() < there.len() {
        let (what, revision) = changes(&mut *watch).await;
        brought.push((revision, what));
    }
    assert_eq!(brought, there);
    assert!(there.len() >= seen.committed.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_missed_a_compaction_is_lost() {
    let etcd = with_etcd(Etcd::start).await;
    let proxy = Proxy::before(&etcd.url()).await;
    let cut = quick(&proxy.url());
    let straight = connect(&MetaConfig { url: etcd.url().parse().unwrap(), ..cut.clone() }).await.unwrap();
    let store = connect(&cut).await.unwrap();
    let write = |value: &'static str| {
        let straight = &straight;
        async move { committed(straight.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put("k", value)] })).await) }
    };
    let mut watch = store.watch("k".into(), Revision(0)).await.unwrap();
    let first = write("1").await;
    assert_eq!(changes(&mut *watch).await, (vec!["k=1".into()], first));
    // A cut alone is bridged ...
    proxy.set(Mode::Cut);
    let second = write("2").await;
    proxy.set(Mode::Pass);
    assert_eq!(changes(&mut *watch).await, (vec!["k=2".into()], second));
    // ... and one with a compaction beyond it is told.
    proxy.set(Mode::Cut);
    write("3").await;
    let newest = write("4").await;
    compact(&etcd, newest).await;
    proxy.set(Mode::Pass);
    assert_eq!(event(&mut *watch).await, WatchEvent::Lost);
    assert_eq!(watch.next().await, None);
}

/// What the watch waits for would come only when the revisions come round again, and be something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_notices_that_etcd_was_put_back() {
    let (etcd, backup) = with_etcd(|| {
        let mut etcd = Etcd::start()?;
        let backup = etcd.back_up()?;
        Ok((etcd, backup))
    })
    .await;
    let store = connect(&quick(&etcd.url())).await.unwrap();
    let mut watch = store.watch("k".into(), Revision(0)).await.unwrap();
    for _ in 0..20 {
        let put = store.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put("k", "v")] })).await;
        assert_eq!(changes(&mut *watch).await.1, committed(put));
    }
    let mut etcd = etcd;
    let _etcd = with_etcd(move || etcd.restore(&backup).map(|()| etcd)).await;
    assert_eq!(event(&mut *watch).await, WatchEvent::Lost);
    assert!(get(&*store, "k").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_refuses_writes_with_the_reason_and_goes_on_reading() {
    let options = Options { quota_bytes: Some(4 << 20), ..Options::default() };
    let etcd = with_etcd(move || Etcd::start_with(options)).await;
    let config = quick(&etcd.url());
    let store = connect(&config).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let value = "x".repeat(200 << 10);
    let mut written = 0;
    let text = loop {
        let key = format!("fill/{written}");
        let txn = Txn { when: vec![Compare::Absent(key.clone())], then: vec![put(&key, &value)] };
        match store.execute(MetaOp::Txn(txn)).await {
            Ok(MetaReply::Committed(_)) => written += 1,
            refused => break refusal(refused),
        }
        assert!(written < 100, "a quota of 4 MiB does not hold");
    };
    assert!(text.contains("no space") && text.contains(&etcd.url()) && text.contains("alarm disarm"), "{text}");
    assert_eq!(list(&*store, "fill/").await.0.len(), written);
    assert!(store.keep_alive(lease).await.unwrap());
    // A process that starts now can read, is told the same, and can delete.
    let fresh = connect(&config).await.unwrap();
    let small = Txn { when: vec![], then: vec![put("small", &value)] };
    assert!(refusal(fresh.execute(MetaOp::Txn(small)).await).contains("no space"));
    committed(fresh.execute(MetaOp::Txn(Txn { when: vec![], then: vec![delete("fill/0")] })).await);
    assert_eq!(list(&*store, "fill/").await.0.len(), written - 1);
}

/// What else goes on must not cost a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn heavy_use_starves_no_lease() {
    let bed = Arc::new(Bed::etcd_alone().await);
    let stop = Arc::new(AtomicBool::new(false));
    let value = "x".repeat(300 << 10);
    let tasks: Vec<_> = (0..32)
        .map(|task| {
            let (bed, stop, value) = (bed.clone(), stop.clone(), value.clone());
            tokio::spawn(async move {
                let key = format!("heavy/{task}");
                let mut done = 0;
                while !stop.load(Ordering::SeqCst) {
                    let put = bed.txn(vec![], vec![put(&key, &value)]).await;
                    let list = bed.store.execute(MetaOp::List("heavy/".into())).await;
                    done += usize::from(put.is_ok()) + usize::from(list.is_ok());
                }
                done
            })
        })
        .collect();
    let lease = bed.store.grant(Duration::from_secs(5)).await.unwrap();
    let leased = Write::Put { key: "alive".into(), value: vec![], lease: Some(lease) };
    let until = Instant::now() + PATIENCE;
    while bed.txn(vec![], vec![leased.clone()]).await.is_err() {
        assert!(Instant::now() < until);
        assert!(bed.store.keep_alive(lease).await.unwrap());
    }
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(11) {
        let asked = Instant::now();
        assert!(bed.store.keep_alive(lease).await.unwrap(), "lost after {:?}", began.elapsed());
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(asked.elapsed())).await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    println!("slowest keep-alive {slowest:?} beside {done} operations");
    assert!(done > 0);
    assert!(bed.get("alive").await.is_some());
}

async fn refused_to_open(config: &MetaConfig) -> (OpenError, Duration) {
    let began = Instant::now();
    match connect(config).await {
        Ok(store) => panic!("{} was opened", store.describe()),
        Err(error) => (error, began.elapsed()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_down_or_hangs_is_named_with_what_to_do() {
    let port = torus_e2e::ports::free().unwrap();
    let (error, took) = refused_to_open(&quick(&format!("http://127.0.0.1:{port}"))).await;
    let text = error.to_string();
    assert!(error.is_transient() && took < SLACK, "{took:?}: {text}");
    assert!(text.contains(&format!("http://127.0.0.1:{port}")) && text.contains("onnection refused"), "{text}");
    assert!(text.contains("--etcd"), "{text}");

    let etcd = with_etcd(Etcd::start).await;
    etcd.stop().unwrap();
    let (error, took) = refused_to_open(&quick(&etcd.url())).await;
    assert!(error.is_transient() && took < TIMEOUT + SLACK, "{took:?}: {error}");
    assert!(error.to_string().contains("no answer within 2s"), "{error}");

    let (error, took) = refused_to_open(&quick("http://no-such-host.invalid:2379")).await;
    assert!(error.is_transient() && took < TIMEOUT + SLACK, "{took:?}: {error}");
    assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_an_etcd_is_said_to_be_none() {
    // Something that greets in its own language, and something that hangs up.
    for (greeting, known) in [(Some(&b"SSH-2.0-OpenSSH_9.2\r\n"[..]), true), (None, false)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            // What greets waits for an answer: hung up on with bytes that nobody read, the other end might never see the greeting.
            let mut greeted = Vec::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                if let Some(greeting) = greeting {
                    tokio::io::AsyncWriteExt::write_all(&mut client, greeting).await.unwrap();
                    greeted.push(client);
                }
            }
        });
        let (error, took) = refused_to_open(&quick(&url)).await;
        assert_eq!(matches!(error, OpenError::NotEtcd { .. }), known, "{error}");
        assert!(error.to_string().contains(&url) && took < TIMEOUT + SLACK, "{took:?}: {error}");
        server.abort();
    }
    // A web server of Go's.
    let etcd = with_etcd(Etcd::start).await;
    let (error, _) = refused_to_open(&quick(&etcd.metrics_url())).await;
    assert!(matches!(error, OpenError::NotEtcd { .. }), "{error}");
}
