//! The owner of a volume: drives `torus_core::block::Volume` on agents and a metadata store, and is a block device.
//!
//! ```text
//!   control side (a runtime of its own)            data thread (a LocalSet)
//!   metadata operations ──┐                     ┌── VolumeDevice ◀── NBD, FUSE, …
//!   watches ──────────────┼── channels ──▶ Driver: Volume
//!   the owner's lease ────┘                     └── Peers ──▶ agents
//! ```
//!
//! The driver's task owns the core. It takes everything that has come in (requests of front ends, answers of agents, of
//! the metadata store, news of the cluster), steps the core through it, has the core's turn once, and carries out the
//! effects: one write per agent, then the front ends' futures are woken. Front ends live on the same thread: an I/O
//! changes threads nowhere.
//!
//! 1. The core decides; here nothing is retried, reordered or given up on its behalf.
//! 2. Everything that may take long, or may block, is on the control side. Losing the metadata store stops no I/O here.
//! 3. A request that was taken is answered, by the core or, when the driver ends, with an error.
//! 4. Front ends bound what they have in flight; the core's requests, and so all queues here, are bounded by that.

mod control;
mod device;
mod driver;
mod fence;
mod metrics;
mod opening;
mod owned;
mod remove;
mod status;
mod used;
mod view;
mod waits;

pub use control::Control;
pub use device::VolumeDevice;
pub use driver::{OpenVolume, OwnerStats};
pub use fence::{Fenced, fence_volume};
pub use metrics::VolumeMetrics;
pub use owned::Owned;
pub use remove::{DeleteError, Removed, delete_volume};
pub use status::OwnerStatus;

use crate::metadata::{ClusterError, RingsError};
use std::time::Duration;
use torus_core::limits::OPEN_EXTENTS_DEFAULT;
use torus_core::log::recover::OpenError;
use torus_core::meta::MetaError;
use torus_core::meta::docs::Holder;

/// How a volume is opened.
#[derive(Clone, Debug)]
pub struct OwnerConfig {
    /// Who opens it, for people.
    pub holder: Holder,
    /// Take it over from a holder that seems to be alive.
    pub force: bool,
    /// How long to go on opening it without getting ahead before giving up with a reason.
    pub patience: Duration,
    /// Most hot extents written at the same time.
    pub open_max: usize,
    /// Frames under way beyond which records wait to be packed together.
    pub frames_max: usize,
    /// How long an agent may be away before its copies are made anew elsewhere.
    pub grace: Duration,
}

impl OwnerConfig {
    /// This process, on this machine, with everything else at its default.
    #[must_use]
    pub fn new() -> OwnerConfig {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        OwnerConfig {
            holder: Holder { host: host.unwrap_or_default(), pid: std::process::id(), serves: String::new() },
            force: false,
            patience: Duration::from_secs(30),
            open_max: OPEN_EXTENTS_DEFAULT,
            frames_max: 4,
            grace: Duration::from_secs(30),
        }
    }
}

impl Default for OwnerConfig {
    fn default() -> Self {
        OwnerConfig::new()
    }
}

/// Why a volume is not open, or not any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OwnerError {
    /// The core's reason.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The cluster cannot be read.
    #[error("cannot open the volume: {0}")]
    Cluster(String),
    /// No lease for the owner's sign of life.
    #[error("cannot open the volume: {0}")]
    Lease(#[from] MetaError),
    /// Another owner has taken it over.
    #[error("volume {name:?} was taken over by another owner (epoch {epoch}); nothing more is served here")]
    Fenced {
        /// The volume.
        name: String,
        /// The other's epoch.
        epoch: torus_core::ids::Epoch,
    },
    /// Closed while it was being opened, or the driver ended.
    #[error("volume {0:?} is closed")]
    Closed(String),
}

impl From<ClusterError> for OwnerError {
    fn from(error: ClusterError) -> Self {
        OwnerError::Cluster(crate::process::told(&error))
    }
}

impl From<RingsError> for OwnerError {
    fn from(error: RingsError) -> Self {
        OwnerError::Cluster(crate::process::told(&error))
    }
}
