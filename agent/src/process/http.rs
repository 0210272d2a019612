//! `/metrics`, `/healthz`, `/readyz`, and `/` for people.

use super::metrics;
use super::status::{Readiness, Status};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The media type of Prometheus's text form, in the dialect that is written here.
pub const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, status: Arc<Status>, stop: CancellationToken) {
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(all_metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .with_state(status);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!("HTTP is not served any more: {error}");
    }
}

async fn index(State(status): State<Arc<Status>>) -> Html<String> {
    let who = &status.who;
    Html(format!(
        "<!doctype html><title>torus-agent {name}</title><h1>torus-agent {name}</h1>\
         <p>agent {agent} of cluster {cluster}, run {run}, version {version}, up {up} s\
         <p><a href=metrics>metrics</a> <a href=healthz>healthz</a> <a href=readyz>readyz</a>\n",
        name = who.name,
        agent = who.agent,
        cluster = who.cluster,
        run = who.incarnation,
        version = env!("CARGO_PKG_VERSION"),
        up = status.since.elapsed().as_secs(),
    ))
}

async fn all_metrics(State(status): State<Arc<Status>>) -> impl IntoResponse {
    let report = status.report().await;
    match metrics::text(&status, report.as_ref()) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, METRICS_TYPE)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}

async fn health(State(status): State<Arc<Status>>) -> (StatusCode, &'static str) {
    match status.report().await {
        Some(_) => (StatusCode::OK, "healthy\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not healthy:\n- the data plane does not answer\n"),
    }
}

async fn readiness(State(status): State<Arc<Status>>) -> (StatusCode, String) {
    let (Readiness { reasons, notes }, _) = status.readiness().await;
    let (code, first) = match reasons.is_empty() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready:"),
    };
    let lines =
        reasons.iter().map(|reason| format!("- {reason}\n")).chain(notes.iter().map(|n| format!("note: {n}\n")));
    (code, format!("{first}\n{}", lines.collect::<String>()))
}
