//! `/healthz`, `/readyz` and `/metrics`.

use crate::pass::Tally;
use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A leader whose last pass ended longer ago is stuck.
const PASS_TIME_MAX: Duration = Duration::from_secs(300);

/// How the operator is.
pub struct Health {
    registry: Registry,
    passes: Counter,
    actions: Counter,
    failures: Counter,
    statuses: Counter,
    leader: Gauge,
    longest_pass: Gauge<f64, AtomicU64>,
    is_watching: AtomicBool,
    last_pass: Mutex<Option<Instant>>,
}

impl Default for Health {
    fn default() -> Health {
        let mut registry = Registry::with_prefix("torus_operator");
        let health = (Counter::default(), Counter::default(), Counter::default(), Counter::default(), Gauge::default());
        let (passes, actions, failures, statuses, leader) = health;
        let longest_pass = Gauge::default();
        registry.register_with_unit(
            "longest_pass",
            "Time that the longest look at everything took",
            Unit::Seconds,
            longest_pass.clone(),
        );
        registry.register("passes", "Looks at everything", passes.clone());
        registry.register("actions", "Things done that a plan said", actions.clone());
        registry.register("failures", "Things that failed, and are tried again", failures.clone());
        registry.register("statuses_written", "Statuses written because they said something new", statuses.clone());
        registry.register("leader", "Whether this one leads: 1 or 0", leader.clone());
        let (is_watching, last_pass) = (AtomicBool::new(false), Mutex::new(None));
        Health { registry, passes, actions, failures, statuses, leader, longest_pass, is_watching, last_pass }
    }
}

impl Health {
    /// Everything was listed once.
    pub fn watches_are_ready(&self) {
        self.is_watching.store(true, Ordering::Relaxed);
    }

    /// Whether this one leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            *self.last() = None;
        }
    }

    /// A pass ended.
    pub fn passed(&self, tally: Tally, took: Duration) {
        self.longest_pass.set(self.longest_pass.get().max(took.as_secs_f64()));
        self.passes.inc();
        self.actions.inc_by(tally.actions);
        self.failures.inc_by(tally.failures);
        self.statuses.inc_by(tally.statuses);
        *self.last() = Some(Instant::now());
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.last_pass.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves in the background.
pub async fn serve(address: SocketAddr, health: Arc<Health>) -> anyhow::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    let listener = tokio::net::TcpListener::bind(address).await;
    let listener =
        listener.with_context(|| format!("cannot serve metrics on {address}: choose another --http-address"))?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!("metrics and health are served no more: {error}");
        }
    });
    Ok(())
}

async fn healthz(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    match *health.last() {
        Some(last) if last.elapsed() > PASS_TIME_MAX => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the last pass ended {} s ago\n", last.elapsed().as_secs()))
        }
        _ => (StatusCode::OK, "ok\n".into()),
    }
}

async fn readyz(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.is_watching.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not everything was listed yet: look at the log\n")
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &health.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], "cannot encode\n".into()),
    }
}
