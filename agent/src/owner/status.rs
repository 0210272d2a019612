//! What an owner tells of itself: `/metrics`, `/healthz` and `/readyz` of `torusctl serve --http`.

use super::driver::{OwnerStats, Question};
use super::waits::sentence;
use crate::process::Readiness;
use crate::process::http::Watched;
use crate::process::metrics::{Count, Fraction, Labels, counter, gauge, process};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use torus_core::block::{IoOp, VolumeState};
use torus_core::ids::BLOCK_BYTES;
use torus_core::log::Blocked;

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

/// How long requests took. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Latencies([(&'static str, Histogram); 3]);

impl Latencies {
    /// None yet. 50 µs to 26 s.
    pub fn new() -> Latencies {
        Latencies(["read", "write", "flush"].map(|kind| (kind, Histogram::new(exponential_buckets(50e-6, 2.0, 20)))))
    }

    pub fn observe(&self, kind: IoKind, took: Duration) {
        let at = match kind {
            IoKind::Read => 0,
            IoKind::Write => 1,
            IoKind::Flush => 2,
            IoKind::Status => return,
        };
        self.0[at].1.observe(took.as_secs_f64());
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

    async fn stats(&self) -> Option<OwnerStats> {
        let (asker, answer) = oneshot::channel();
        self.questions.send(Question::Stats(asker)).ok()?;
        timeout(ANSWER_TIME, answer).await.ok()?.ok()
    }

    fn text(&self, stats: Option<&OwnerStats>) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("torus");
        let about = Info::new(vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("name", self.name.clone())]);
        registry.register("volume", "Which volume this process owns", about);
        let state = self.state.borrow().clone();
        let epoch = match &state {
            VolumeState::Serving(epoch) | VolumeState::Fenced(epoch) => epoch.0,
            _ => 0,
        };
        gauge(
            &mut registry,
            "volume_serving",
            "1 while it is served here",
            is(matches!(state, VolumeState::Serving(_))),
        );
        gauge(&mut registry, "volume_epoch_count", "Its epoch: how often it was opened", epoch);
        process(&mut registry);
        if let Some(stats) = stats {
            data(&mut registry, stats);
            pool(&mut registry, stats);
            waits(&mut registry, stats);
        }
        for (kind, histogram) in &self.latencies.0 {
            let name = format!("volume_{kind}");
            registry.register_with_unit(name, "Time from a request to its answer", Unit::Seconds, histogram.clone());
        }
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

fn is(truth: bool) -> u64 {
    u64::from(truth)
}

fn bytes(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Count::default();
    gauge.set(value);
    registry.register_with_unit(name, help, Unit::Bytes, gauge);
}

fn data(registry: &mut Registry, stats: &OwnerStats) {
    let counters = &stats.counters;
    for (name, help, blocks) in [
        ("volume_user_bytes", "Bytes that clients wrote", counters.user_blocks),
        ("volume_log_bytes", "Bytes of the log, for one copy: headers and moved blocks included", counters.log_blocks),
        ("volume_moved_bytes", "Bytes that garbage collection moved, for one copy", counters.moved_blocks),
        ("volume_checkpoint_bytes", "Bytes of checkpoints, for one copy", counters.checkpoint_blocks),
    ] {
        counter(registry, name, help, blocks * BLOCK_BYTES);
    }
    counter(registry, "volume_checkpoints", "Checkpoints committed", counters.checkpoints);
    let ratio = Fraction::default();
    ratio.set(counters.write_amplification());
    let help = "Bytes written to each copy for each byte that a client wrote, since it was opened";
    registry.register("volume_write_amplification_ratio", help, ratio);
    bytes(registry, "volume_mapped", "Bytes of the volume that hold data", stats.mapped_blocks * BLOCK_BYTES);
    bytes(registry, "volume_map_memory", "Memory of the address map", stats.map_bytes);
    let usage = &stats.usage;
    bytes(registry, "volume_sealed", "Bytes in sealed extents, for one copy", usage.sealed * BLOCK_BYTES);
    let garbage = usage.garbage() * BLOCK_BYTES;
    bytes(registry, "volume_garbage", "Bytes in them that nothing refers to", garbage);
    gauge(registry, "volume_gc_running", "1 while garbage is collected", is(stats.collecting));
}

fn pool(registry: &mut Registry, stats: &OwnerStats) {
    let help = "Extents with fewer sound copies than asked for";
    gauge(registry, "volume_extents_degraded_count", help, stats.under_replicated);
    let help = "Slots of the agents that it reaches";
    gauge(registry, "volume_pool_slots_count", help, stats.space.total.into());
    let help = "Slots of them that hold nothing";
    gauge(registry, "volume_pool_slots_free_count", help, stats.space.free.into());
}

fn waits(registry: &mut Registry, stats: &OwnerStats) {
    gauge(registry, "volume_requests_underway_count", "Requests that are not answered", stats.underway);
    let oldest = Fraction::default();
    oldest.set(stats.oldest.unwrap_or_default().as_secs_f64());
    let help = "For how long the oldest request is not answered";
    registry.register_with_unit("volume_oldest_request", help, Unit::Seconds, oldest);
    let family = Family::<Labels, Count>::default();
    for reason in [Blocked::NoSpace, Blocked::TooFewAgents, Blocked::Metadata] {
        let labels = vec![("reason".to_owned(), word(reason).to_owned())];
        family.get_or_create(&labels).set(is(stats.blocked == Some(reason)));
    }
    registry.register("volume_waits", "1 while I/O waits for this reason", family);
}

fn word(reason: Blocked) -> &'static str {
    match reason {
        Blocked::NoSpace => "no-space",
        Blocked::TooFewAgents => "too-few-agents",
        Blocked::Metadata => "metadata",
    }
}

impl Watched for OwnerStatus {
    fn about(&self) -> (String, String) {
        let up = self.since.elapsed().as_secs();
        let text = format!("version {}, {:?}, open for {up} s", env!("CARGO_PKG_VERSION"), *self.state.borrow());
        (format!("volume {}", self.name), text)
    }

    async fn metrics(&self) -> Result<String, fmt::Error> {
        self.text(self.stats().await.as_ref())
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
