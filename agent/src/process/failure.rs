//! Why an agent does not start, or does not go on, and what its process ends with.

use super::backup::OlderStore;
use super::config::ConfigError;
use super::disks::DisksError;
use crate::metadata::{AgentError, ClusterError, OpenError, RingsError};
use crate::node::service as node;
use std::error::Error;
use std::io;
use std::path::PathBuf;

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The metadata store is not there, or will not serve us.
    #[error(transparent)]
    Metadata(#[from] OpenError),
    /// No cluster, or not ours.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Disks.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// The cluster does not take this agent.
    #[error(transparent)]
    Register(#[from] AgentError),
    /// The ring could not be entered.
    #[error(transparent)]
    Join(#[from] RingsError),
    /// The metadata store was put back to an earlier state.
    #[error(transparent)]
    OlderStore(#[from] OlderStore),
    /// A port is taken, or an address is not this machine's.
    #[error("cannot listen on {address} for {what}: {source}. Choose another with {flag}, or stop what listens there")]
    Listen {
        /// Where.
        address: String,
        /// For what.
        what: &'static str,
        /// The setting.
        flag: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The role `node`.
    #[error(transparent)]
    Node(#[from] node::StartError),
    /// Its socket.
    #[error("{0}. Choose another with --node-socket, or stop the agent that serves there")]
    NodeSocket(#[from] node::ServeError),
    /// No FlexVolume driver to install.
    #[error(
        "cannot read the FlexVolume driver {program}: it belongs beside torus-agent. Leave --flexvolume-dir out if nobody needs it"
    )]
    NoFlexVolume {
        /// Where it should be.
        program: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Nowhere to install it to.
    #[error(
        "cannot install the FlexVolume driver into {directory}. On hosts where that is read-only (Flatcar, Talos, COS), \
         point the kubelet's --volume-plugin-dir and the agent's --flexvolume-dir at one that is not, such as \
         /var/lib/kubelet/volumeplugins"
    )]
    FlexVolume {
        /// Where.
        directory: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The system does not give what a process needs.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

/// Why an agent that ran does not any more, when nobody asked it to stop.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunError {
    /// Its place is taken, or its metadata store is an old one: going on would put data at risk.
    #[error("{0}")]
    Displaced(String),
    /// A defect.
    #[error("the node service ended by itself: see the messages before this one, and report them")]
    Node,
    /// A defect.
    #[error("the data plane ended by itself: see the messages before this one, and report them")]
    DataPlane,
}

/// What scripts can tell apart: 1 for what failed, 2 for settings that make no sense, 3 for what Torus declines.
#[must_use]
pub fn exit_code(error: &StartError) -> u8 {
    match error {
        StartError::Config(_) | StartError::Metadata(OpenError::Config(_)) => 2,
        StartError::Disks(error) if error.is_refusal() => 3,
        StartError::Cluster(ClusterError::Access { .. }) | StartError::Disks(_) | StartError::Metadata(_) => 1,
        StartError::Cluster(ClusterError::Parameter(_)) => 2,
        StartError::Cluster(_) => 3,
        StartError::Register(error) if error.is_transient() => 1,
        StartError::Register(AgentError::Access { .. }) => 1,
        StartError::Register(_) | StartError::OlderStore(_) => 3,
        StartError::Node(node::StartError::Cluster(_) | node::StartError::Place(_)) => 3,
        StartError::Node(_) | StartError::NodeSocket(_) => 1,
        StartError::NoFlexVolume { .. } | StartError::FlexVolume { .. } => 1,
        StartError::Join(_) | StartError::Listen { .. } | StartError::System(..) => 1,
    }
}

/// An error and what caused it, in one line.
#[must_use]
pub fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some variants say what their source says.
        if !text.contains(&more) {
            text = format!("{}: {more}", text.trim_end_matches('.'));
        }
        cause = error.source();
    }
    text
}
