//! gRPC: control of this agent. Data goes by TDP.

use super::status::Status;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response};
use torus_proto::agent::agent_server::{Agent, AgentServer};
use torus_proto::agent::{Disk, StatusReply, StatusRequest};

/// Largest message taken: requests are small.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

struct Service(Arc<Status>);

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, status: Arc<Status>, stop: CancellationToken) {
    let service = AgentServer::new(Service(status)).max_decoding_message_size(REQUEST_BYTES_MAX);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(service);
    if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
        tracing::error!("control is not served any more: {error}");
    }
}

#[tonic::async_trait]
impl Agent for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, tonic::Status> {
        let (ready, report) = self.0.readiness().await;
        let who = &self.0.who;
        let disks = report.iter().flat_map(|report| &report.disks).map(|disk| Disk {
            id: disk.id.to_string(),
            path: disk.path.display().to_string(),
            slots_total: disk.space.total,
            slots_free: disk.space.free,
            failure: disk.failure.clone().unwrap_or_default(),
        });
        Ok(Response::new(StatusReply {
            cluster: who.cluster.to_string(),
            agent: who.agent.to_string(),
            name: who.name.clone(),
            domain: who.domain.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            incarnation: who.incarnation.0,
            disks: disks.collect(),
            data_address: who.data.clone(),
            http_address: who.http.clone().unwrap_or_default(),
            uptime_seconds: self.0.since.elapsed().as_secs(),
            not_ready: ready.reasons,
            notes: ready.notes,
        }))
    }
}
