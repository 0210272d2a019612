//! etcd killed, halted, full, cut off, or not there: every operation ends in time with an answer that is true.

use crate::bed::{
    Bed, PATIENCE, answered, changes, committed, compact, config, delete, event, get, list, open, own_prefix, put,
    refusal, with_etcd, with_patience,
};
use crate::proxy::{Mode, Proxy};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use torus_agent::metadata::{MetaConfig, OpenError, connect};
use torus_core::meta::{Compare, MetaError, MetaOp, MetaReply, MetadataStore, Revision, Txn, WatchEvent, Write};
use torus_e2e::etcd::{Etcd, Options};

/// The timeout of the stores that must not be late, and what an operation may take beyond it on a loaded machine. What
/// must succeed is asked of a store with patience: a sound etcd may take longer than this over a write to a slow disk.
const TIMEOUT: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(2);
/// How long a store waits for one member before it asks another.
const ATTEMPT: Duration = Duration::from_secs(2);
/// A bare client's pace.
const BEAT: Duration = Duration::from_millis(50);

fn quick(urls: &str) -> MetaConfig {
    own_prefix(MetaConfig { timeout: TIMEOUT, ..config(urls) })
}

/// Does `what`, and tells how long after `due` it ended. One task waits for both, so that what holds up the task makes
/// nothing late.
async fn lateness<T>(due: Duration, what: impl Future<Output = T>) -> (T, Duration) {
    let mut what = std::pin::pin!(what);
    tokio::select! {
        biased;
        done = &mut what => return (done, Duration::ZERO),
        () = tokio::time::sleep(due) => {}
    }
    let was_due = Instant::now();
    (what.await, was_due.elapsed())
}

/// Does `what` while a bare client of the same etcd puts a key with every beat, and tells how many it put. Beats are a
/// clock that stands still with the machine, its disk and etcd itself: what is left is what the store does with its time.
async fn beats(url: &str, what: impl Future<Output = ()>) -> u32 {
    let count = AtomicU32::new(0);
    let beating = async {
        let mut client = etcd_client::Client::connect([url], None).await.unwrap();
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            if client.put("/beat", "", None).await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    tokio::select! {
        () = what => {}
        () = beating => {}
    }
    count.into_inner()
}

/// What a load saw of the keys that it wrote.
#[derive(Default)]
struct Seen {
    committed: Vec<(String, Revision)>,
    unknown: Vec<String>,
    /// By how much the latest operation missed its timeout.
    late: Duration,
}

/// Four tasks that create keys, each key once, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    unknown: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Seen>>,
}

impl Load {
    fn start(store: &Arc<dyn MetadataStore>) -> Self {
        let (stop, unknown) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..4).map(|task| tokio::spawn(create(task, store.clone(), stop.clone(), unknown.clone())));
        Self { tasks: tasks.collect(), stop, unknown }
    }

    /// Waits until one more operation is unknown.
    async fn notices(&self) {
        let before = self.unknown.load(Ordering::SeqCst);
        let until = Instant::now() + PATIENCE;
        while self.unknown.load(Ordering::SeqCst) == before {
            assert!(Instant::now() < until, "nobody noticed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Seen::default();
        for task in self.tasks {
            let seen = task.await.unwrap();
            all.committed.extend(seen.committed);
            all.unknown.extend(seen.unknown);
            all.late = all.late.max(seen.late);
        }
        all
    }
}

async fn create(task: u32, store: Arc<dyn MetadataStore>, stop: Arc<AtomicBool>, unknown: Arc<AtomicUsize>) -> Seen {
    let mut seen = Seen::default();
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let key = format!("load/{task}/{number:06}");
        let txn = Txn { when: vec![Compare::Absent(key.clone())], then: vec![put(&key, "x")] };
        let (result, late) = lateness(TIMEOUT, store.execute(MetaOp::Txn(txn))).await;
        match result {
            Ok(MetaReply::Committed(revision)) => seen.committed.push((key, revision)),
            Err(MetaError::Unknown(_)) => {
                seen.unknown.push(key);
                unknown.fetch_add(1, Ordering::SeqCst);
            }
            other => panic!("{key}: {other:?}"),
        }
        seen.late = seen.late.max(late);
    }
    seen
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

/// Waits until there are `more` keys than now.
async fn wait_for_commits(store: &dyn MetadataStore, more: usize) {
    let count = async || match answered(|| store.execute(MetaOp::List("load/".into()))).await {
        MetaReply::Listed(entries, _) => entries.len(),
        other => panic!("{other:?}"),
    };
    let before = count().await;
    let until = Instant::now() + PATIENCE;
    while count().await <= before + more {
        assert!(Instant::now() < until, "no {more} keys more after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_etcd_loses_nothing_that_was_committed() {
    let etcd = with_etcd(Etcd::start).await;
    let config = quick(&etcd.url());
    let (store, patient) = (open(&config).await, open(&with_patience(&config)).await);
    let load = Load::start(&store);
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
    load.notices().await;
    let etcd = with_etcd(move || {
        let mut etcd = etcd;
        etcd.restart().map(|()| etcd)
    });
    let _etcd = etcd.await;
    wait_for_commits(&*store, 50).await;
    let seen = load.end().await;
    assert!(seen.late < SLACK, "an operation ended {:?} after its time", seen.late);
    check(&*patient, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_etcd_gives_unknown_in_time_and_recovers() {
    let etcd = with_etcd(Etcd::start).await;
    let config = quick(&etcd.url());
    let (store, patient) = (open(&config).await, open(&with_patience(&config)).await);
    let load = Load::start(&store);
    wait_for_commits(&*store, 50).await;
    let lease = answered(|| store.grant(Duration::from_secs(600))).await;
    etcd.stop().unwrap();
    let all = async {
        tokio::join!(
            get(&*store, "k"),
            store.execute(MetaOp::List("".into())),
            store.keep_alive(lease),
            store.grant(Duration::from_secs(9)),
            store.watch("w".into(), Revision(0)),
        )
    };
    let ((got, listed, kept, granted, watched), late) = lateness(TIMEOUT * 2, all).await;
    assert!(late < SLACK, "{late:?} after their time");
    for error in [got.err(), listed.err(), kept.err(), granted.err(), watched.err()] {
        assert!(matches!(&error, Some(MetaError::Unknown(text)) if text.contains(&etcd.url())), "{error:?}");
    }
    load.notices().await;
    etcd.cont().unwrap();
    let beats = beats(&etcd.url(), wait_for_commits(&*store, 50)).await;
    assert!(BEAT * beats < TIMEOUT + SLACK, "recovered only after {beats} beats of {BEAT:?}");
    assert!(answered(|| store.keep_alive(lease)).await);
    let seen = load.end().await;
    assert!(seen.late < SLACK, "an operation ended {:?} after its time", seen.late);
    check(&*patient, &seen).await;
}

/// The request arrives, the answer does not: the store must say that it does not know, and must not ask again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_answer_is_lost_is_unknown_and_happens_once() {
    let etcd = with_etcd(Etcd::start).await;
    let proxy = Proxy::before(&etcd.url()).await;
    // Both endpoints are the same etcd: there would be another member to ask.
    let cut = own_prefix(config(&format!("{},{}", proxy.url(), etcd.url())));
    let straight = open(&MetaConfig { url: etcd.url().parse().unwrap(), ..with_patience(&cut) }).await;
    let store = open(&cut).await;
    for mode in [Mode::Swallow, Mode::Cut] {
        let key = format!("{mode:?}");
        proxy.set(Mode::Pass).await;
        let before = Txn { when: vec![], then: vec![put(&key, "before")] };
        let until = Instant::now() + PATIENCE;
        // One that asks the endpoint behind the proxy: a slow answer there makes a store go to the other.
        let store = loop {
            let store = open(&cut).await;
            let answers = proxy.answers();
            let put = store.execute(MetaOp::Txn(before.clone())).await;
            if put.is_ok() && proxy.answers() > answers {
                break store;
            }
            assert!(Instant::now() < until, "{put:?}");
        };
        proxy.set(Mode::Swallow).await;
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
        proxy.set(mode).await;
        let answer = asked.await.unwrap();
        assert!(matches!(answer, Err(MetaError::Unknown(_))), "{mode:?}: {answer:?}");
        let now = get(&*straight, &key).await.unwrap().unwrap();
        assert_eq!(now.modified, written, "{mode:?}: it happened twice");
    }
    proxy.set(Mode::Cut).await;
    assert!(answered(|| get(&*store, "Cut")).await.is_some(), "the other member answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_down_or_hangs_is_passed_over() {
    let etcd = with_etcd(Etcd::start).await;
    let closed = torus_e2e::ports::free().unwrap();
    let config = with_patience(&quick(&format!("http://127.0.0.1:{closed},{}", etcd.url())));
    let store = connect(&config).await.unwrap();
    // A transaction too: what was never sent may be sent elsewhere.
    committed(store.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put("k", "v")] })).await);

    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    hangs.set_nonblocking(true).unwrap();
    // The kernel makes connections while nobody takes them: what was made until now is there.
    let made = || std::iter::from_fn(|| hangs.accept().ok()).count();
    let urls = format!("http://{},{}", hangs.local_addr().unwrap(), etcd.url());
    let config = MetaConfig { url: urls.parse().unwrap(), timeout: Duration::from_secs(20), ..config };
    let until = Instant::now() + PATIENCE;
    loop {
        let store = connect(&config).await.unwrap();
        assert!(made() > 0, "the first member is asked first");
        let began = Instant::now();
        assert_eq!(get(&*store, "k").await.unwrap().unwrap().value, b"v");
        if began.elapsed() < ATTEMPT {
            assert_eq!(made(), 0, "the member that works is remembered");
            break;
        }
        // Either it was not, or etcd was slow: another store tells.
        assert!(Instant::now() < until, "the member that works is remembered: {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_etcds_are_not_taken_for_one() {
    let (one, two) = with_etcd(|| Ok((Etcd::start()?, Etcd::start()?))).await;
    let config = with_patience(&quick(&format!("{},{}", one.url(), two.url())));
    let store = connect(&config).await.unwrap();
    committed(store.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put("k", "v")] })).await);
    // Had the first been slow to answer, it would be the other that is used.
    let straight = open(&MetaConfig { url: one.url().parse().unwrap(), ..config }).await;
    let (used, _other) = if get(&*straight, "k").await.unwrap().is_some() { (one, two) } else { (two, one) };
    drop(used);
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
    let config = quick(&etcd.url());
    let (store, patient) = (open(&config).await, open(&with_patience(&config)).await);
    let mut watch = answered(|| store.watch("load/".into(), Revision(0))).await;
    let load = Load::start(&store);
    wait_for_commits(&*store, 20).await;
    let mut etcd = etcd;
    for _ in 0..3 {
        etcd = with_etcd(move || {
            etcd.restart()?;
            Ok(etcd)
        })
        .await;
        wait_for_commits(&*store, 20).await;
    }
    let seen = load.end().await;
    // The keys as they are now tell what a watch without gap has brought: each was written once.
    let mut there: Vec<_> =
        list(&*patient, "load/").await.0.into_iter().map(|e| (e.modified, vec![format!("{}=x", e.key)])).collect();
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
    let cut = own_prefix(config(&proxy.url()));
    let straight = open(&MetaConfig { url: etcd.url().parse().unwrap(), ..with_patience(&cut) }).await;
    let store = open(&cut).await;
    let write = |value: &'static str| {
        let straight = &straight;
        async move { committed(straight.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put("k", value)] })).await) }
    };
    let mut watch = store.watch("k".into(), Revision(0)).await.unwrap();
    let first = write("1").await;
    assert_eq!(changes(&mut *watch).await, (vec!["k=1".into()], first));
    // A cut alone is bridged ...
    proxy.set(Mode::Cut).await;
    let second = write("2").await;
    proxy.set(Mode::Pass).await;
    assert_eq!(changes(&mut *watch).await, (vec!["k=2".into()], second));
    // ... and one with a compaction beyond it is told.
    proxy.set(Mode::Cut).await;
    write("3").await;
    let newest = write("4").await;
    compact(&etcd, newest).await;
    proxy.set(Mode::Pass).await;
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
    let config = own_prefix(config(&etcd.url()));
    let (store, patient) = (open(&config).await, open(&with_patience(&config)).await);
    let mut watch = store.watch("k".into(), Revision(0)).await.unwrap();
    for _ in 0..20 {
        let put = patient.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put("k", "v")] })).await;
        assert_eq!(changes(&mut *watch).await.1, committed(put));
    }
    let mut etcd = etcd;
    let _etcd = with_etcd(move || etcd.restore(&backup).map(|()| etcd)).await;
    assert_eq!(event(&mut *watch).await, WatchEvent::Lost);
    assert!(get(&*patient, "k").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_refuses_writes_with_the_reason_and_goes_on_reading() {
    let options = Options { quota_bytes: Some(4 << 20), ..Options::default() };
    let etcd = with_etcd(move || Etcd::start_with(options)).await;
    let config = with_patience(&quick(&etcd.url()));
    let store = connect(&config).await.unwrap();
    let lease = store.grant(Duration::from_secs(600)).await.unwrap();
    let value = "x".repeat(200 << 10);
    let mut written = 0;
    let text = loop {
        let key = format!("fill/{written}");
        let txn = Txn { when: vec![Compare::Absent(key.clone())], then: vec![put(&key, &value)] };
        match store.execute(MetaOp::Txn(txn)).await {
            Ok(MetaReply::Committed(_)) => written += 1,
            // It was done, and etcd found then that this was more than fits. Nothing more is.
            Err(MetaError::Unknown(text)) if text.contains("no space") => written += 1,
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
    let over = Arc::new(AtomicBool::new(false));
    // From the grant until the last look: the heavy use takes its time to begin and to end.
    let keeper = tokio::spawn({
        let (bed, over) = (bed.clone(), over.clone());
        async move {
            let (began, mut slowest) = (Instant::now(), Duration::ZERO);
            while !over.load(Ordering::SeqCst) {
                let asked = Instant::now();
                assert!(bed.store.keep_alive(lease).await.unwrap(), "lost after {:?}", began.elapsed());
                slowest = slowest.max(asked.elapsed());
                tokio::time::sleep(Duration::from_secs(1).saturating_sub(asked.elapsed())).await;
            }
            slowest
        }
    });
    let leased = Write::Put { key: "alive".into(), value: vec![], lease: Some(lease) };
    let until = Instant::now() + PATIENCE;
    while let Err(error) = bed.txn(vec![], vec![leased.clone()]).await {
        assert!(Instant::now() < until && !keeper.is_finished(), "{error}");
    }
    // More than two of the lease's terms.
    tokio::time::sleep(Duration::from_secs(11)).await;
    stop.store(true, Ordering::SeqCst);
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    let alive = bed.get("alive").await.is_some();
    over.store(true, Ordering::SeqCst);
    let slowest = keeper.await.unwrap();
    println!("slowest keep-alive {slowest:?} beside {done} operations");
    assert!(done > 0);
    assert!(alive);
}

/// Why a store was not opened, and how long after its timeout that was said.
async fn refused_to_open(config: &MetaConfig) -> (OpenError, Duration) {
    let (opened, late) = lateness(config.timeout, connect(config)).await;
    match opened {
        Ok(store) => panic!("{} was opened", store.describe()),
        Err(error) => (error, late),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_down_or_hangs_is_named_with_what_to_do() {
    let port = torus_e2e::ports::free().unwrap();
    let began = Instant::now();
    let (error, _) = refused_to_open(&with_patience(&quick(&format!("http://127.0.0.1:{port}")))).await;
    let (text, took) = (error.to_string(), began.elapsed());
    assert!(error.is_transient() && took < PATIENCE / 2, "it is not asked until its time is over: {took:?}: {text}");
    assert!(text.contains(&format!("http://127.0.0.1:{port}")) && text.contains("onnection refused"), "{text}");
    assert!(text.contains("--etcd"), "{text}");

    let etcd = with_etcd(Etcd::start).await;
    etcd.stop().unwrap();
    let (error, late) = refused_to_open(&quick(&etcd.url())).await;
    assert!(error.is_transient() && late < SLACK, "{late:?}: {error}");
    assert!(error.to_string().contains("no answer within 2s"), "{error}");

    let (error, late) = refused_to_open(&quick("http://no-such-host.invalid:2379")).await;
    assert!(error.is_transient() && late < SLACK, "{late:?}: {error}");
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
        // The greeting must be heard, however long that takes here; a hang-up is told when the time is over.
        let config = if known { with_patience(&quick(&url)) } else { quick(&url) };
        let (error, late) = refused_to_open(&config).await;
        assert_eq!(matches!(error, OpenError::NotEtcd { .. }), known, "{error}");
        assert!(error.to_string().contains(&url) && late < SLACK, "{late:?}: {error}");
        server.abort();
    }
    // A web server of Go's.
    let etcd = with_etcd(Etcd::start).await;
    let (error, _) = refused_to_open(&with_patience(&quick(&etcd.metrics_url()))).await;
    assert!(matches!(error, OpenError::NotEtcd { .. }), "{error}");
}
