//! The node service as gRPC, on a unix socket that root alone may use.

use super::show::Show;
use super::status::Usage;
use super::{Attach, NodeService};
use crate::grpc::Failure;
use crate::listen::{self, ListenError};
use crate::node::host;
use crate::process::told;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};
use torus_core::ids::VolumeId;
use torus_proto::node::node_server::{Node, NodeServer};
use torus_proto::node::{
    AttachReply, AttachRequest, DetachReply, DetachRequest, GrowReply, GrowRequest, InfoReply, InfoRequest, MountReply,
    MountRequest, StatusReply, StatusRequest, UnmountReply, UnmountRequest, Usage as Used,
};

/// Largest message taken: requests are small.
const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// Why a node service is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket's directory.
    #[error("cannot make the directory of socket {0}")]
    Directory(PathBuf, #[source] std::io::Error),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Serves `service` on the unix socket `path` until `stop`, in the background.
///
/// # Errors
/// When somebody else serves there, or the system refuses.
pub fn serve(
    path: &Path,
    service: NodeService,
    stop: CancellationToken,
) -> Result<tokio::task::JoinHandle<()>, ServeError> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| ServeError::Directory(path.into(), error))?;
    }
    let (listener, file) = listen::unix(path, 0o600)?;
    let service = NodeServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX);
    Ok(tokio::spawn(async move {
        let _file = file;
        let server = Server::builder().add_service(service);
        let served = server.serve_with_incoming_shutdown(listen::accepted(listener), stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!("the node service is not served any more: {}", told(&error));
        }
    }))
}

/// The id in a request.
fn id(text: &str) -> Result<VolumeId, Failure> {
    let shown = || text.chars().take(64).collect::<String>();
    text.parse().map_err(|_| {
        Failure::not_found(format!("there is no volume {:?}: its handle is 16 hexadecimal digits", shown()))
    })
}

/// Empty means absent.
fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

#[async_trait]
impl Node for NodeService {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoReply>, Status> {
        let settings = &self.0.settings;
        let (device_kind, device_failure) = match host::choose(None) {
            Ok((kind, _)) => (kind.to_string(), String::new()),
            Err(error) => (String::new(), told(&error)),
        };
        Ok(Response::new(InfoReply {
            node: settings.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            cluster: self.0.cluster.to_string(),
            domain: settings.domain.clone(),
            device_kind,
            device_failure,
            kubelet_dir: settings.kubelet_dir.display().to_string(),
        }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachReply>, Status> {
        let asked = request.into_inner();
        let filesystem = given(&asked.filesystem).map(str::parse).transpose().map_err(Failure::invalid)?;
        let attach = Attach {
            volume: asked.volume,
            read_only: asked.read_only,
            must_be_published: asked.must_be_published,
            directory: given(&asked.directory).map(str::to_owned),
            make_directory: asked.make_directory,
            filesystem,
            options: asked.mount_flags,
        };
        let record = NodeService::attach(self, attach).await?;
        Ok(Response::new(AttachReply {
            volume_id: record.volume.to_string(),
            device: record.device.map(|device| device.display().to_string()).unwrap_or_default(),
            size_bytes: record.size_bytes,
            filesystem: record.mount.map(|mount| mount.filesystem.to_string()).unwrap_or_default(),
        }))
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachReply>, Status> {
        let asked = request.into_inner();
        NodeService::detach(self, &asked.volume, given(&asked.directory)).await?;
        Ok(Response::new(DetachReply {}))
    }

    async fn mount(&self, request: Request<MountRequest>) -> Result<Response<MountReply>, Status> {
        let MountRequest { volume_id, staging, target, read_only, alone } = request.into_inner();
        let staging = given(&staging).map(str::to_owned);
        self.show(id(&volume_id)?, Show { staging, target, read_only, alone }).await?;
        Ok(Response::new(MountReply {}))
    }

    async fn unmount(&self, request: Request<UnmountRequest>) -> Result<Response<UnmountReply>, Status> {
        let asked = request.into_inner();
        self.hide(id(&asked.volume_id)?, &asked.target).await?;
        Ok(Response::new(UnmountReply {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let asked = request.into_inner();
        let standing = self.standing(&asked.volume, given(&asked.path)).await?;
        let record = standing.record;
        Ok(Response::new(StatusReply {
            volume_id: record.volume.to_string(),
            device: record.device.map(|device| device.display().to_string()).unwrap_or_default(),
            size_bytes: record.size_bytes,
            usage: standing.usage.map(|usage| {
                let Usage { bytes_total, bytes_available, bytes_used, inodes_total, inodes_free } = usage;
                Used { bytes_total, bytes_available, bytes_used, inodes_total, inodes_free }
            }),
            abnormal: standing.abnormal.unwrap_or_default(),
        }))
    }

    async fn grow(&self, request: Request<GrowRequest>) -> Result<Response<GrowReply>, Status> {
        let asked = request.into_inner();
        let size_bytes = NodeService::grow(self, id(&asked.volume_id)?, given(&asked.path)).await?;
        Ok(Response::new(GrowReply { size_bytes }))
    }
}
