//! Metadata: the two stores behind [`MetadataStore`], and what is done with any of them.
//!
//! [`connect`] opens the store that a [`MetaConfig`] names: [`Etcd`] for every real cluster, [`Embedded`] for one process. Both hold
//! the same promises: `tests/metadata_conformance.rs` runs one suite against each, with a real etcd. The stores know
//! nothing of volumes, agents or rings, and what is done above them knows nothing of the stores.

mod access;
mod agents;
mod cluster;
pub mod config;
mod embedded;
mod etcd;
mod nodes;
mod rings;
mod volumes;

pub use access::{AccessError, Versioned};
pub use agents::{AgentError, AgentInfo, Heartbeat, list_agents, register_agent};
pub use cluster::{ClusterError, init_cluster, load_cluster};
pub use config::{ConfigError, MetaArgs, MetaConfig, MetaUrl, TlsFiles};
pub use embedded::{Embedded, OpenError as EmbeddedError};
pub use etcd::Etcd;
pub use nodes::{NodesError, check_node, load_node, publish_volume, register_node, unpublish_volume};
pub use rings::{KIND_DEFAULT, RingsError, Wish, change_ring, join_ring, load_ring, ring_agent};
pub use volumes::{
    NewVolume, VolumeError, VolumeInfo, check_name, create_volume, find_volume, list_volumes, load_volume,
    mark_deleting, remove_volume_keys, resize_volume,
};

use std::sync::Arc;
use std::time::Duration;
use torus_core::meta::MetadataStore;

/// Why a metadata store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration is no good.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file of an embedded store was not opened.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// No endpoint answers. It may later: an agent tries again, a person should look.
    #[error("{reason}. Start etcd, or name where it is with --etcd or TORUS_ETCD")]
    Unanswered {
        /// The endpoint asked last, and why there was no answer.
        reason: String,
    },
    /// Something else answers.
    #[error(
        "what answers at {endpoint} is not an etcd that speaks {} ({reason}). Check the address and the port",
        if endpoint.starts_with("https") { "https" } else { "http" }
    )]
    NotEtcd {
        /// Where.
        endpoint: String,
        /// What it answered.
        reason: String,
    },
    /// etcd answers, and will not serve us.
    #[error("etcd at {endpoint} refuses: {reason}")]
    Refused {
        /// Where.
        endpoint: String,
        /// Its reason, and what to do.
        reason: String,
    },
}

impl OpenError {
    /// Whether trying again can help without anybody changing the configuration.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unanswered { .. })
    }
}

/// Opens the metadata store that `config` names.
///
/// # Errors
/// See [`OpenError`]; within the configured timeout.
pub async fn connect(config: &MetaConfig) -> Result<Arc<dyn MetadataStore>, OpenError> {
    config.check()?;
    Ok(match &config.url {
        MetaUrl::Etcd(urls) => Arc::new(Etcd::open(urls.clone(), config).await?),
        MetaUrl::Embedded(path) => Arc::new(Embedded::open(path)?),
        MetaUrl::Memory => Arc::new(Embedded::in_memory()),
    })
}

/// A lease's term, rounded up to whole seconds, at least 1.
fn whole_seconds(ttl: Duration) -> Duration {
    Duration::from_secs(ttl.as_millis().div_ceil(1000).clamp(1, 1 << 31) as u64)
}
