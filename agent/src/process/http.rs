//! `/metrics`, `/healthz`, `/readyz`, and `/` for people, of any process that has something to tell.

use super::status::Readiness;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use std::fmt;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The media type of Prometheus's text form, in the dialect that is written here.
pub const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A process that can be looked at.
pub trait Watched: Send + Sync + 'static {
    /// What `/` calls it, and says of it.
    fn about(&self) -> (String, String);
    /// All metrics, in Prometheus's text form.
    fn metrics(&self) -> impl Future<Output = Result<String, fmt::Error>> + Send;
    /// Whether it lives; if not, why not.
    fn health(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// Whether it can do its work.
    fn readiness(&self) -> impl Future<Output = Readiness> + Send;
}

/// Serves until `stop`.
pub async fn serve<W: Watched>(listener: TcpListener, watched: Arc<W>, stop: CancellationToken) {
    let router = Router::new()
        .route("/", get(index::<W>))
        .route("/metrics", get(all_metrics::<W>))
        .route("/healthz", get(health::<W>))
        .route("/readyz", get(readiness::<W>))
        .with_state(watched);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!("HTTP is not served any more: {error}");
    }
}

async fn index<W: Watched>(State(watched): State<Arc<W>>) -> Html<String> {
    let (name, text) = watched.about();
    Html(format!(
        "<!doctype html><title>{name}</title><h1>{name}</h1><p>{text}\
         <p><a href=metrics>metrics</a> <a href=healthz>healthz</a> <a href=readyz>readyz</a>\n"
    ))
}

async fn all_metrics<W: Watched>(State(watched): State<Arc<W>>) -> impl IntoResponse {
    match watched.metrics().await {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, METRICS_TYPE)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}

async fn health<W: Watched>(State(watched): State<Arc<W>>) -> (StatusCode, String) {
    match watched.health().await {
        Ok(()) => (StatusCode::OK, "healthy\n".into()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not healthy:\n- {why}\n")),
    }
}

async fn readiness<W: Watched>(State(watched): State<Arc<W>>) -> (StatusCode, String) {
    let Readiness { reasons, notes } = watched.readiness().await;
    let (code, first) = match reasons.is_empty() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready:"),
    };
    let lines =
        reasons.iter().map(|reason| format!("- {reason}\n")).chain(notes.iter().map(|n| format!("note: {n}\n")));
    (code, format!("{first}\n{}", lines.collect::<String>()))
}
