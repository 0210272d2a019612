//! The role `node` of an agent: its node service, on a thread of its own.
//!
//! A thread of its own, so that a record that takes its time to reach a busy disk delays no heartbeat.

use super::StartError;
use super::config::{Config, NodeConfig};
use super::flexvolume;
use crate::node;
use crate::node::service::{self, NodeService, Settings};
use crate::owner::{Control, Owned};
use crate::tdp::LocalDoor;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use torus_core::meta::MetadataStore;

/// A node service that runs. Dropped, it ends as a crash would.
pub struct NodePart {
    stop: CancellationToken,
    ended: oneshot::Receiver<()>,
}

impl NodePart {
    /// Starts one; `door` leads to the storage of this process, if it has any, and `owned` shows the volumes that it owns. The
    /// runtime that this is called on must go on running until it has stopped.
    ///
    /// # Errors
    /// A sentence for a person.
    pub async fn start(
        config: NodeConfig,
        store: Arc<dyn MetadataStore>,
        door: Option<LocalDoor>,
        owned: Owned,
    ) -> Result<Self, StartError> {
        if let Some(directory) = &config.flexvolume_dir {
            flexvolume::install(directory, &config.socket)?;
        }
        node::prepare();
        let control = Control { door, owned, ..Control::new(Handle::current(), store) };
        let stop = CancellationToken::new();
        let (ready, is_ready) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let stopping = stop.clone();
        let thread = std::thread::Builder::new().name("torus-node".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                // Nobody waits any more if the caller has ended.
                Err(error) => return drop(ready.send(Err(StartError::System("start the node service", error)))),
            };
            runtime.block_on(async {
                let settings = Settings {
                    node: config.name,
                    domain: config.domain,
                    attached_dir: config.attached_dir,
                    kubelet_dir: config.kubelet_dir,
                    holder: config.holder,
                };
                let served = async {
                    let service = NodeService::start(settings, control).await?;
                    let server = service::serve(&config.socket, service.clone(), stopping.clone())?;
                    Ok::<_, StartError>((service, server))
                };
                match served.await {
                    Err(error) => drop(ready.send(Err(error))),
                    Ok((service, server)) => {
                        let _ = ready.send(Ok(()));
                        stopping.cancelled().await;
                        // No new calls; those under way are waited for by who makes them.
                        server.abort();
                        service.stop().await;
                    }
                }
            });
            // With the server, its socket: whoever is told of the end can start the next one.
            runtime.shutdown_background();
            drop(end);
        });
        thread.map_err(|error| StartError::System("start the node service's thread", error))?;
        is_ready.await.unwrap_or_else(|_| {
            Err(StartError::System("start the node service", std::io::Error::other("its thread ended")))
        })?;
        Ok(Self { stop, ended })
    }

    /// Waits until it has ended without having been asked to. Cancel safe.
    pub async fn failed(&mut self) {
        let _ = (&mut self.ended).await;
    }

    /// Stops in order: lets go of what nobody uses.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.failed().await;
    }
}

/// The port for HTTP, if it is served.
///
/// # Errors
/// When it is taken.
pub async fn listen(config: &Config) -> Result<Option<TcpListener>, StartError> {
    match config.http_address()? {
        Some((host, port)) => super::listen(&host, port, "HTTP", "--http-address").await.map(Some),
        None => Ok(None),
    }
}

/// Serves `/healthz`, `/readyz` and `/metrics` of an agent that has no storage, until `stop`.
pub async fn http(
    listener: TcpListener,
    name: String,
    attached: node::Attachments,
    owned: Owned,
    stop: CancellationToken,
) {
    let readiness = || async {
        match node::choose(None) {
            Ok(_) => (StatusCode::OK, "ready\n".to_owned()),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready:\n- {error}\n")),
        }
    };
    let metrics = move || {
        let (name, attached, owned) = (name.clone(), attached.clone(), owned.clone());
        async move {
            let volumes = owned.metrics().await;
            let text = super::metrics::node_text(&name, &attached.list().unwrap_or_default(), volumes);
            ([(header::CONTENT_TYPE, super::http::METRICS_TYPE)], text.unwrap_or_default())
        }
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "healthy\n" }))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics));
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!("HTTP is not served any more: {error}");
    }
}
