//! The embedded store: the metadata of a cluster that lives in one process, in a file or in memory.
//!
//! For the demo, for tests, and for one machine without an etcd. It has etcd's semantics (the conformance suite runs the
//! same cases against both), not etcd's availability: the cluster's metadata is where this file is.
//!
//! One thread owns the state and the file ([`State`] decides, [`File`] keeps); the store is a bounded queue to that thread. What
//! waits in the queue shares one durable commit.
//!
//! Invariants:
//! 1. No answer and no watch event leaves the thread before the commit that made it true.
//! 2. After a failed commit nothing is answered but [`MetaError::Unknown`], for good: whether it is on the disk is known
//!    only to the next open.
//! 3. A reader too slow for its bounded queue of events gets [`WatchEvent::Lost`], never a gap.
//! 4. Dropping the store ends the thread and closes the file before it returns.

mod file;
mod state;

pub use file::OpenError;

use file::File;
use state::{Changes, State};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use torus_core::limits::{META_REQUESTS_MAX, META_WATCH_EVENTS_MAX};
use torus_core::meta::{
    BoxFuture, Change, LeaseId, MetaError, MetaOp, MetaReply, MetadataStore, Revision, Watch, WatchEvent,
};

/// How long one request may wait for its answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An embedded metadata store. See the module.
pub struct Embedded {
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    path: Option<PathBuf>,
}

enum Request {
    Execute(MetaOp, oneshot::Sender<Result<MetaReply, MetaError>>),
    Watch(String, Revision, oneshot::Sender<Result<EmbeddedWatch, MetaError>>),
    Grant(Duration, oneshot::Sender<Result<LeaseId, MetaError>>),
    KeepAlive(LeaseId, oneshot::Sender<Result<bool, MetaError>>),
    Revoke(LeaseId, oneshot::Sender<Result<(), MetaError>>),
}

impl Embedded {
    /// Opens the store in a file, making the file if there is none. Blocks while it reads.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (file, state) = File::open(path)?;
        Ok(Self::start(Some(file), state, Some(path.into())))
    }

    /// An empty store that lives as long as this process.
    #[must_use]
    pub fn in_memory() -> Self {
        let state = State::new(Revision(1), BTreeMap::new(), BTreeMap::new(), Instant::now());
        Self::start(None, state, None)
    }

    fn start(file: Option<File>, state: State, path: Option<PathBuf>) -> Self {
        let (requests, queue) = mpsc::channel(META_REQUESTS_MAX);
        let actor = Actor { state, file, watchers: Vec::new(), failed: None, path: path.clone() };
        let thread = std::thread::Builder::new()
            .name("torus-metadata".into())
            .spawn(move || actor.run(queue))
            .expect("a process that cannot start a thread cannot serve either");
        Self { requests: Some(requests), thread: Some(thread), path }
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, MetaError>>) -> Request,
    ) -> Result<T, MetaError> {
        let gone = || MetaError::Unknown(format!("{} has stopped: start this process again", self.describe()));
        let asked = async {
            let requests = self.requests.as_ref().ok_or_else(gone)?;
            let (answer, answered) = oneshot::channel();
            requests.send(request(answer)).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        };
        let late =
            |_| MetaError::Unknown(format!("{} took longer than {TIMEOUT:?}: is its disk stuck?", self.describe()));
        tokio::time::timeout(TIMEOUT, asked).await.map_err(late)?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported by the panic hook, and everyone who waited was answered `Unknown`.
            let _ = thread.join();
        }
    }
}

impl MetadataStore for Embedded {
    fn execute(&self, op: MetaOp) -> BoxFuture<'_, Result<MetaReply, MetaError>> {
        Box::pin(self.ask(|answer| Request::Execute(op, answer)))
    }

    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, MetaError>> {
        Box::pin(async move {
            let watch = self.ask(|answer| Request::Watch(prefix, from, answer)).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>> {
        Box::pin(self.ask(move |answer| Request::Grant(super::whole_seconds(ttl), answer)))
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, MetaError>> {
        Box::pin(self.ask(move |answer| Request::KeepAlive(lease, answer)))
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        Box::pin(self.ask(move |answer| Request::Revoke(lease, answer)))
    }

    fn describe(&self) -> String {
        describe(self.path.as_deref())
    }
}

fn describe(path: Option<&Path>) -> String {
    match path {
        Some(path) => format!("embedded metadata in {}", path.display()),
        None => "embedded metadata in memory".into(),
    }
}

/// The thread's side.
struct Actor {
    state: State,
    file: Option<File>,
    watchers: Vec<Watcher>,
    /// Why nothing can be answered any more.
    failed: Option<String>,
    path: Option<PathBuf>,
}

struct Watcher {
    prefix: String,
    /// Everything below was sent, or is not wanted.
    next: Revision,
    events: mpsc::Sender<WatchEvent>,
    lost: Arc<AtomicBool>,
}

impl Actor {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime without I/O needs nothing that can be lacking");
        let mut batch = Vec::with_capacity(META_REQUESTS_MAX);
        loop {
            let expiry = self.state.next_expiry();
            let received = runtime.block_on(async {
                let expired = async {
                    match expiry {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    count = queue.recv_many(&mut batch, META_REQUESTS_MAX) => Some(count),
                    () = expired => None,
                }
            });
            if received == Some(0) {
                return;
            }
            self.carry_out(&mut batch);
        }
    }

    /// One batch: change the state, make it durable, answer, tell the watchers.
    fn carry_out(&mut self, batch: &mut Vec<Request>) {
        let now = Instant::now();
        let mut changes = Changes::default();
        let mut answers: Vec<Later> = Vec::with_capacity(batch.len());
        let mut watches = Vec::new();
        let mut granted = Vec::new();
        if self.failed.is_none() {
            self.state.expire(now, &mut changes);
        }
        for request in batch.drain(..) {
            match request {
                Request::Execute(op, to) => answers.push(later(to, self.state.execute(op, &mut changes))),
                Request::Grant(ttl, to) => {
                    // 62 random bits: no lease of this file ever had it, so a late keep-alive finds nothing.
                    let id = LeaseId(rand::random_range(1..i64::MAX));
                    self.state.grant(id, ttl, now, &mut changes);
                    granted.push(id);
                    answers.push(later(to, Ok(id)));
                }
                Request::KeepAlive(id, to) => answers.push(later(to, Ok(self.state.keep_alive(id, now)))),
                Request::Revoke(id, to) => {
                    self.state.revoke(id, &mut changes);
                    answers.push(later(to, Ok(())));
                }
                Request::Watch(prefix, from, to) => watches.push((prefix, from, to)),
            }
        }
        self.commit(&changes);
        // Their terms begin when their holders hear of them, however long that took.
        let now = Instant::now();
        for id in granted {
            self.state.keep_alive(id, now);
        }
        let failure = self.failed.clone().map(MetaError::Unknown);
        for answer in answers {
            answer(failure.as_ref());
        }
        for (prefix, from, to) in watches {
            let watch = match &failure {
                Some(error) => Err(error.clone()),
                None => Ok(self.watch(prefix, from)),
            };
            // Nobody waits any more: the watcher goes away when it is next sent to.
            let _ = to.send(watch);
        }
        self.watchers.retain_mut(|watcher| watcher.catch_up(&self.state));
        self.state.trim();
    }

    fn commit(&mut self, changes: &Changes) {
        let (Some(file), None, false) = (&self.file, &self.failed, changes.is_empty()) else { return };
        if let Err(error) = file.commit(changes, self.state.revision()) {
            let what = describe(self.path.as_deref());
            tracing::error!(%error, "{what} failed to commit and takes no more requests");
            self.failed = Some(format!("{what} failed ({error}): mend its disk, then start this process again"));
            self.file = None;
            self.watchers.clear();
        }
    }

    fn watch(&mut self, prefix: String, from: Revision) -> EmbeddedWatch {
        let (events, queue) = mpsc::channel(META_WATCH_EVENTS_MAX);
        let next = if from == Revision(0) { Revision(self.state.revision().0 + 1) } else { from };
        let lost = Arc::new(AtomicBool::new(false));
        self.watchers.push(Watcher { prefix, next, events, lost: lost.clone() });
        EmbeddedWatch { queue, lost }
    }
}

impl Watcher {
    /// Sends what is new; false when the watch is over.
    fn catch_up(&mut self, state: &State) -> bool {
        if self.next.0 == state.revision().0 + 1 {
            return !self.events.is_closed();
        }
        // A revision that is yet to come was read from another store, or from this one before it was put back.
        let future = self.next.0 > state.revision().0 + 1;
        let Some(news) = state.since(self.next).filter(|_| !future) else {
            self.lost.store(true, Ordering::Release);
            return false;
        };
        for (revision, changes) in news {
            let ours = |change: &&Change| match change {
                Change::Put(entry) => entry.key.starts_with(&self.prefix),
                Change::Deleted(key) => key.starts_with(&self.prefix),
            };
            let changes: Vec<_> = changes.iter().filter(ours).cloned().collect();
            if changes.is_empty() {
                continue;
            }
            match self.events.try_send(WatchEvent::Changes(changes, *revision)) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    self.lost.store(true, Ordering::Release);
                    return false;
                }
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        self.next = Revision(state.revision().0 + 1);
        true
    }
}

/// An answer that is held back until its batch is durable, or has failed.
type Later = Box<dyn FnOnce(Option<&MetaError>)>;

fn later<T: 'static>(to: oneshot::Sender<Result<T, MetaError>>, answer: Result<T, MetaError>) -> Later {
    Box::new(move |failure| {
        // Whoever asked may have stopped waiting; that is its own affair.
        let _ = to.send(failure.map_or(answer, |error| Err(error.clone())));
    })
}

/// A watch on an embedded store.
struct EmbeddedWatch {
    queue: mpsc::Receiver<WatchEvent>,
    lost: Arc<AtomicBool>,
}

impl Watch for EmbeddedWatch {
    fn next(&mut self) -> BoxFuture<'_, Option<WatchEvent>> {
        Box::pin(async move {
            match self.queue.recv().await {
                Some(event) => Some(event),
                None => self.lost.swap(false, Ordering::AcqRel).then_some(WatchEvent::Lost),
            }
        })
    }
}

#[cfg(test)]
mod tests;
