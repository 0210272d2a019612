//! The Container Storage Interface on Torus: decode, one call, encode.
//!
//! ```text
//!   provisioner, attacher, resizer ──▶ Controller ──▶ metadata store, agents
//!   kubelet ──▶ Registration, Node ──▶ the node service of the agent on this host
//! ```
//!
//! Both speak CSI on a unix socket only. Nothing is kept here: a process that is killed and started again has forgotten
//! nothing. Whatever holds a volume on a host is the agent (`torus_agent::node`), so that this program can be replaced at
//! any time without a device noticing.
//!
//! 1. Every call may come twice, late, or after another process has carried it out: what is asked for is compared with
//!    what is there.
//! 2. While a call for a volume is under way, others for it get `ABORTED`. A call that its caller gives up goes on.
//! 3. What is not advertised is refused, with a sentence.
//!
//! What is *not* here: snapshots, clones, access from several nodes. fsGroup is left to the kubelet (`fsGroupPolicy: File`):
//! neither ext4 nor XFS can be mounted for a group, so `VOLUME_MOUNT_GROUP` would be an untruth.

pub mod capability;
pub mod controller;
pub mod identity;
mod name;
pub mod node;
pub mod parameters;
pub mod registration;

use std::io;
use std::path::Path;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use torus_agent::listen::{self, ListenError};

/// What Kubernetes calls this driver.
pub const DRIVER: &str = "csi.torus.storage";
/// The topology key: a volume can be reached from every node that has a node plugin of its cluster.
pub const TOPOLOGY_CLUSTER: &str = "csi.torus.storage/cluster";
/// The largest request taken.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket's directory.
    #[error("cannot make the directory of socket {0}")]
    Directory(std::path::PathBuf, #[source] io::Error),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The server.
    #[error("gRPC is not served any more")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves `router` on the unix socket `path`, for root alone, until `stop`.
///
/// # Errors
/// When somebody else serves there, or the system refuses.
pub async fn serve(path: &Path, router: Router, stop: CancellationToken) -> Result<(), ServeError> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| ServeError::Directory(path.into(), error))?;
    }
    let (listener, _file) = listen::unix(path, 0o600)?;
    tracing::info!(socket = %path.display(), "serving");
    router.serve_with_incoming_shutdown(listen::accepted(listener), stop.cancelled_owned()).await?;
    Ok(())
}
