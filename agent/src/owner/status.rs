//! What an owner tells of itself, wherever it is: the figures for `/metrics`, and all of `torusctl serve --http`.

use super::driver::{OwnerStats, Question};
use super::metrics::VolumeMetrics;
use super::waits::sentence;
use crate::process::Readiness;
use crate::process::http::Watched;
use crate::process::metrics;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::fmt;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use torus_core::block::{IoOp, VolumeState};

/// An owner that has not answered by then is stuck.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// A request that is under way for longer is worth a word.
const SLOW: Duration = Duration::from_secs(1);

/// What kind of request it is, as far as its duration matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum IoKind {
    Read,
    Write,
    Flush,
    Status,
}

impl IoKind {
    pub fn of(op: &IoOp) -> IoKind {
        match op {
            IoOp::Read { .. } => IoKind::Read,
            IoOp::Write { .. } | IoOp::Trim { .. } | IoOp::Zero { .. } => IoKind::Write,
            IoOp::Flush => IoKind::Flush,
            IoOp::Status { .. } => IoKind::Status,
        }
    }
}

/// How long requests took: reads, writes, flushes. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Latencies(pub(super) [Histogram; 3]);

impl Latencies {
    /// None yet. 50 µs to 26 s.
    pub fn new() -> Latencies {
        Latencies([(); 3].map(|()| Histogram::new(exponential_buckets(50e-6, 2.0, 20))))
    }

    pub fn observe(&self, kind: IoKind, took: Duration) {
        let at = match kind {
            IoKind::Read => 0,
            IoKind::Write => 1,
            IoKind::Flush => 2,
            IoKind::Status => return,
        };
        self.0[at].observe(took.as_secs_f64());
    }
}

/// Asked from any thread.
#[derive(Clone)]
pub struct OwnerStatus {
    name: String,
    since: Instant,
    questions: mpsc::UnboundedSender<Question>,
    state: watch::Receiver<VolumeState>,
    latencies: Latencies,
}

impl OwnerStatus {
    pub(super) fn new(
        name: String,
        questions: mpsc::UnboundedSender<Question>,
        state: watch::Receiver<VolumeState>,
        latencies: Latencies,
    ) -> OwnerStatus {
        OwnerStatus { name, since: Instant::now(), questions, state, latencies }
    }

    /// Which volume.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether both tell of the same owner, and not only of the same volume.
    pub(super) fn is_same(&self, other: &OwnerStatus) -> bool {
        self.questions.same_channel(&other.questions)
    }

    async fn stats(&self) -> Option<OwnerStats> {
        let (asker, answer) = oneshot::channel();
        self.questions.send(Question::Stats(asker)).ok()?;
        timeout(ANSWER_TIME, answer).await.ok()?.ok()
    }

    /// What it is now.
    pub(super) async fn figures(&self) -> Figures {
        let (name, stats, latencies) = (self.name.clone(), self.stats().await, self.latencies.clone());
        Figures { name, state: self.state.borrow().clone(), stats, latencies }
    }
}

/// Of one volume, at one time.
#[derive(Debug)]
pub(super) struct Figures {
    pub name: String,
    pub state: VolumeState,
    /// None: its owner does not answer.
    pub stats: Option<OwnerStats>,
    pub latencies: Latencies,
}

impl Watched for OwnerStatus {
    fn about(&self) -> (String, String) {
        let up = self.since.elapsed().as_secs();
        let text = format!("version {}, {:?}, open for {up} s", env!("CARGO_PKG_VERSION"), *self.state.borrow());
        (format!("volume {}", self.name), text)
    }

    async fn metrics(&self) -> Result<String, fmt::Error> {
        metrics::owner_text(VolumeMetrics(vec![self.figures().await]))
    }

    async fn health(&self) -> Result<(), String> {
        self.stats().await.map(drop).ok_or_else(|| "the owner does not answer".into())
    }

    async fn readiness(&self) -> Readiness {
        let mut ready = Readiness::default();
        match &*self.state.borrow() {
            VolumeState::Serving(_) => {}
            other => ready.reasons.push(format!("the volume is not served: {other:?}")),
        }
        let Some(stats) = self.stats().await else {
            ready.reasons.push(format!("the owner did not answer within {} s", ANSWER_TIME.as_secs()));
            return ready;
        };
        ready.reasons.extend(stats.blocked.map(|reason| sentence(reason).to_owned()));
        if let Some(oldest) = stats.oldest.filter(|oldest| *oldest >= SLOW) {
            ready.notes.push(format!("a request is under way for {:.1} s", oldest.as_secs_f64()));
        }
        if stats.under_replicated > 0 {
            ready.notes.push(format!("{} extents have fewer sound copies than asked for", stats.under_replicated));
        }
        ready
    }
}
