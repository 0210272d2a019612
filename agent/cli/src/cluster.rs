//! The connection that commands share.

use crate::args::Global;
use crate::failure::{Failure, Kind};
use crate::profile;
use std::sync::Arc;
use torus_agent::metadata::{self, AgentError, ClusterError, OpenError, VolumeError};
use torus_core::meta::MetadataStore;

/// Connects to the metadata store that the flags, the environment and the profile mean.
pub async fn connect(global: &Global) -> Result<Arc<dyn MetadataStore>, Failure> {
    let config = profile::metadata(global)?;
    Ok(metadata::connect(&config).await?)
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let kind = if matches!(error, OpenError::Config(_)) { Kind::Usage } else { Kind::Failed };
        Self::of(kind, &error)
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        let kind = match error {
            ClusterError::Parameter(_) => Kind::Usage,
            ClusterError::Exists { .. } | ClusterError::Newer { .. } => Kind::Refused,
            ClusterError::None { .. } | ClusterError::Access { .. } => Kind::Failed,
        };
        Self::of(kind, &error)
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        let kind = match error {
            VolumeError::Name(_) | VolumeError::Size(_) | VolumeError::Replicas { .. } => Kind::Usage,
            VolumeError::Held { .. } | VolumeError::Deleting(_) | VolumeError::Shrink { .. } => Kind::Refused,
            _ => Kind::Failed,
        };
        Self::of(kind, &error)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::of(Kind::Failed, &error)
    }
}
