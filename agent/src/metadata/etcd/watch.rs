//! A watch on etcd that outlives its connections.
//!
//! A task holds one stream on a connection of its own (a slow reader would otherwise hold up everything else that shares
//! it), turns etcd's batches into one event per revision, and after a break takes up at the revision after the last one it
//! passed on, at the next member. etcd's history makes that gapless; where it was compacted away, the reader is told.
//!
//! Invariants:
//! 1. `next` only grows, and every change below it was passed on: no gap, no repetition.
//! 2. The reader's queue is bounded; while it is full nothing is read from etcd, which keeps the history for us.
//! 3. The task ends when the reader goes away.

use super::endpoints::{Endpoints, Unanswered};
use super::failure::{Failure, classify};
use super::{end_of, entry, is_too_long, key};
use etcd_client::{Client, GetOptions, ResponseHeader, WatchOptions, WatchResponse, WatchStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use torus_core::limits::{META_ANSWER_BYTES_MAX, META_WATCH_EVENTS_MAX};
use torus_core::meta::{BoxFuture, Change, MetaError, Revision, Watch, WatchEvent};

/// The pause between two attempts to take a watch up again.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);

pub(super) struct EtcdWatch {
    events: mpsc::Receiver<WatchEvent>,
}

impl Watch for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Option<WatchEvent>> {
        Box::pin(self.events.recv())
    }
}

/// Begins a watch; returns when etcd has confirmed it.
pub(super) async fn start(
    endpoints: Arc<Endpoints>,
    store_prefix: String,
    prefix: &str,
    from: Revision,
) -> Result<EtcdWatch, MetaError> {
    let (sender, events) = mpsc::channel(META_WATCH_EVENTS_MAX);
    let mut watcher = Watcher { key: format!("{store_prefix}{prefix}"), store_prefix, next: from.0, at: 0, endpoints };
    let deadline = tokio::time::Instant::now() + watcher.endpoints.timeout();
    let stream = loop {
        match watcher.open().await {
            Ok(stream) => break stream,
            Err(Unanswered { failure: Failure::Rewound(_), .. }) => {
                lost(&sender).await;
                return Ok(EtcdWatch { events });
            }
            Err(unanswered) if matches!(unanswered.failure, Failure::Refused(_)) => return Err(unanswered.into_error()),
            Err(unanswered) if tokio::time::Instant::now() + RETRY >= deadline => return Err(unanswered.into_error()),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    tokio::spawn(watcher.run(stream, sender));
    Ok(EtcdWatch { events })
}

struct Watcher {
    endpoints: Arc<Endpoints>,
    store_prefix: String,
    /// The full prefix that is watched.
    key: String,
    /// The first revision not yet passed on; 0 until "now" has a number.
    next: i64,
    /// The member that is asked.
    at: usize,
}

/// What became of a batch.
enum Outcome {
    GoesOn,
    Lost,
    ReaderGone,
    Broken(String),
}

impl Watcher {
    async fn run(mut self, mut stream: WatchStream, events: mpsc::Sender<WatchEvent>) {
        let mut pause = RETRY;
        loop {
            let outcome = tokio::select! {
                message = stream.message() => self.take(message, &events).await,
                () = events.closed() => Outcome::ReaderGone,
            };
            match outcome {
                Outcome::GoesOn => pause = RETRY,
                Outcome::ReaderGone => return,
                Outcome::Lost => return lost(&events).await,
                Outcome::Broken(reason) => {
                    tracing::debug!(reason, prefix = self.key, next = self.next, "a watch broke; taking it up again");
                    drop(stream);
                    let reopened = tokio::select! {
                        reopened = self.reopen(&mut pause) => reopened,
                        () = events.closed() => return,
                    };
                    match reopened {
                        Some(reopened) => stream = reopened,
                        None => return lost(&events).await,
                    }
                }
            }
        }
    }

    /// `None`: what we want to go on from does not exist any more.
    async fn reopen(&mut self, pause: &mut Duration) -> Option<WatchStream> {
        loop {
            tokio::time::sleep(*pause).await;
            *pause = (*pause * 2).min(RETRY_MAX);
            match self.open().await {
                Ok(stream) => return Some(stream),
                Err(Unanswered { failure: Failure::Rewound(_), .. }) => return None,
                Err(Unanswered { endpoint, failure: Failure::Refused(reason) }) => {
                    tracing::warn!(endpoint, reason, prefix = self.key, "etcd refuses a watch that it served before");
                }
                Err(_) => {}
            }
        }
    }

    /// Asks a member for the watch, from `next` on, and waits for its confirmation. The next attempt goes to the next
    /// member.
    async fn open(&mut self) -> Result<WatchStream, Unanswered> {
        let endpoint = self.endpoints.urls()[self.at % self.endpoints.urls().len()].clone();
        self.at += 1;
        let opened = tokio::time::timeout(self.endpoints.timeout(), self.open_at(&endpoint)).await;
        let failure = match opened {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Unknown(format!("no answer within {:?}", self.endpoints.timeout())),
        };
        Err(Unanswered { endpoint, failure })
    }

    async fn open_at(&mut self, endpoint: &str) -> Result<WatchStream, Failure> {
        let client = self.endpoints.connect(endpoint).await?;
        let options =
            WatchOptions::new().with_range(end_of(&self.key)).with_start_revision(self.next).with_progress_notify();
        let mut watches = client.watch_client().max_decoding_message_size(META_ANSWER_BYTES_MAX);
        let mut stream = watches.watch(self.key.as_str(), Some(options)).await.map_err(|error| classify(&error))?;
        let first = stream.message().await.map_err(|error| classify(&error))?;
        let first = first.ok_or_else(|| Failure::Unknown("the stream ended before it began".into()))?;
        self.endpoints.verify(first.header())?;
        if first.canceled() {
            return Err(Failure::Refused(format!("it will not watch {:?}: {}", self.key, first.cancel_reason())));
        }
        let now = revision_of(&first);
        if self.next == 0 {
            self.next = now + 1;
        } else if now + 1 < self.next {
            self.check_history(&client).await?;
        }
        Ok(stream)
    }

    /// The member is behind what we have seen: fine if it only lags, but an etcd that was put back to an earlier state
    /// would leave us waiting for its revisions to come round again.
    async fn check_history(&self, client: &Client) -> Result<(), Failure> {
        let options = GetOptions::new().with_count_only();
        let answer =
            client.kv_client().get(self.key.as_str(), Some(options)).await.map_err(|error| classify(&error))?;
        let now = answer.header().map_or(0, ResponseHeader::revision);
        if now + 1 < self.next { Err(Failure::Rewound(now)) } else { Ok(()) }
    }

    async fn take(
        &mut self,
        message: Result<Option<WatchResponse>, etcd_client::Error>,
        events: &mpsc::Sender<WatchEvent>,
    ) -> Outcome {
        let batch = match message {
            Ok(Some(batch)) => batch,
            Ok(None) => return Outcome::Broken("etcd ended the stream".into()),
            // A batch too big to be taken: listing again goes page by page.
            Err(error) if is_too_long(&error.to_string()) => return Outcome::Lost,
            Err(error) => return Outcome::Broken(error.to_string()),
        };
        if batch.compact_revision() > 0 {
            return Outcome::Lost;
        }
        if batch.canceled() {
            return Outcome::Broken(batch.cancel_reason().into());
        }
        for (revision, changes) in self.by_revision(&batch) {
            if events.send(WatchEvent::Changes(changes, Revision(revision))).await.is_err() {
                return Outcome::ReaderGone;
            }
            self.next = revision + 1;
        }
        if batch.events().is_empty() {
            // A sign of life: everything up to here was passed on.
            self.next = self.next.max(revision_of(&batch) + 1);
        }
        Outcome::GoesOn
    }

    /// The batch's changes, revision by revision, without what was passed on before.
    fn by_revision(&self, batch: &WatchResponse) -> Vec<(i64, Vec<Change>)> {
        let mut revisions: Vec<(i64, Vec<Change>)> = Vec::new();
        for kv in batch.events().iter().filter_map(|event| event.kv()) {
            let revision = kv.mod_revision();
            if revision < self.next {
                continue;
            }
            // A deletion is the event of a key without a version. (`event_type` panics on a kind that it does not know.)
            let change = if kv.version() == 0 {
                Change::Deleted(key(&self.store_prefix, kv))
            } else {
                Change::Put(entry(&self.store_prefix, kv))
            };
            match revisions.last_mut() {
                Some((last, changes)) if *last == revision => changes.push(change),
                _ => revisions.push((revision, vec![change])),
            }
        }
        revisions
    }
}

async fn lost(events: &mpsc::Sender<WatchEvent>) {
    // The reader may be gone: then nobody needs to know.
    let _ = events.send(WatchEvent::Lost).await;
}

fn revision_of(batch: &WatchResponse) -> i64 {
    batch.header().map_or(0, ResponseHeader::revision)
}
