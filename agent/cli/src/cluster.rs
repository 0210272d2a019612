//! The connection that commands share.

use crate::args::Global;
use crate::failure::{Failure, Kind};
use crate::profile;
use std::sync::Arc;
use torus_agent::metadata::{
    self, AgentError, AgentInfo, ClusterError, OpenError, RingsError, VolumeError, list_agents,
};
use torus_core::ids::AgentId;
use torus_core::meta::MetadataStore;

/// Connects to the metadata store that the flags, the environment and the profile mean.
pub async fn connect(global: &Global) -> Result<Arc<dyn MetadataStore>, Failure> {
    let config = profile::metadata(global)?;
    Ok(metadata::connect(&config).await?)
}

/// The store, once it is sure that it holds a cluster this program knows.
pub async fn open(global: &Global) -> Result<Arc<dyn MetadataStore>, Failure> {
    let store = connect(global).await?;
    metadata::load_cluster(store.as_ref()).await?;
    Ok(store)
}

/// The agents of the cluster, to be found by what people call them.
pub struct Agents(Vec<AgentInfo>);

impl Agents {
    /// All agents.
    pub async fn load(store: &dyn MetadataStore) -> Result<Self, Failure> {
        Ok(Self(list_agents(store).await?))
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &AgentInfo> {
        self.0.iter()
    }

    /// The agent of this name or, if none has it, of this id.
    pub fn find(&self, name_or_id: &str) -> Result<&AgentInfo, Failure> {
        let named = self.0.iter().find(|agent| agent.doc.doc.name == name_or_id);
        let id = name_or_id.parse::<AgentId>().ok();
        named.or_else(|| self.0.iter().find(|agent| Some(agent.id) == id)).ok_or_else(|| {
            let error = RingsError::NoAgent(name_or_id.chars().take(100).collect());
            Failure::of(Kind::Failed, &error)
        })
    }

    /// What people call an agent; its id, where it is not known any more.
    pub fn name(&self, id: AgentId) -> String {
        let known = self.0.iter().find(|agent| agent.id == id);
        known.map_or_else(|| id.to_string(), |agent| agent.doc.doc.name.clone())
    }
}

impl From<RingsError> for Failure {
    fn from(error: RingsError) -> Self {
        let kind = match error {
            RingsError::Unsound(_) => Kind::Usage,
            RingsError::Closed { .. } => Kind::Refused,
            _ => Kind::Failed,
        };
        Self::of(kind, &error)
    }
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
