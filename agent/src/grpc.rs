//! What a failure is to a gRPC client: the one place where errors become status codes.
//!
//! | code | what the caller should do |
//! |---|---|
//! | `INVALID_ARGUMENT`, `OUT_OF_RANGE` | ask for something else |
//! | `NOT_FOUND`, `ALREADY_EXISTS` | look at what there is |
//! | `FAILED_PRECONDITION` | do what the message says, and try again |
//! | `ABORTED`, `UNAVAILABLE` | try again |
//! | `INTERNAL` | have a person look |

use crate::metadata::{AccessError, AgentError, ClusterError, NodesError, RingsError, VolumeError};
use crate::node::places::PlaceError;
use crate::node::{NodeError, RecordError};
use crate::owner::{DeleteError, OwnerError};
use crate::process::told;
use std::error::Error;
use tonic::{Code, Status};
use torus_core::log::recover::OpenError;
use torus_core::meta::MetaError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Hosts, and what is published to them.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// A volume on this host. Boxed, as it is several times as large as the others.
    #[error(transparent)]
    Node(Box<NodeError>),
    /// A path on this host.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The deletion of a volume.
    #[error(transparent)]
    Delete(#[from] DeleteError),
    /// The agents.
    #[error(transparent)]
    Agents(#[from] AgentError),
    /// The ring.
    #[error(transparent)]
    Rings(#[from] RingsError),
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// What a service has to say itself.
    #[error("{1}")]
    Refused(Code, String),
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        Self::Node(Box::new(error))
    }
}

impl Failure {
    /// The request makes no sense.
    pub fn invalid(sentence: impl Into<String>) -> Self {
        Self::Refused(Code::InvalidArgument, sentence.into())
    }

    /// There is no such thing.
    pub fn not_found(sentence: impl Into<String>) -> Self {
        Self::Refused(Code::NotFound, sentence.into())
    }

    /// Something else comes first.
    pub fn not_now(sentence: impl Into<String>) -> Self {
        Self::Refused(Code::FailedPrecondition, sentence.into())
    }

    /// Another call for the same object is under way.
    pub fn underway(what: impl std::fmt::Display) -> Self {
        Self::Refused(Code::Aborted, format!("an earlier call for {what} is still being carried out: try again later"))
    }

    /// Its code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(code, _) => *code,
            Self::Volume(error) => volume(error),
            Self::Nodes(error) => match error {
                NodesError::Volume(error) => volume(error),
                // Nobody can be of that name.
                NodesError::Name(_) | NodesError::NotFound(_) => Code::NotFound,
                NodesError::Otherwise { .. } => Code::AlreadyExists,
                NodesError::Elsewhere { .. } => Code::FailedPrecondition,
                NodesError::Access { source, .. } => access(source),
            },
            Self::Node(error) => node(error),
            Self::Place(PlaceError::Io { .. }) => Code::Internal,
            Self::Place(_) => Code::InvalidArgument,
            Self::Delete(error) => match error {
                DeleteError::Volume(error) => volume(error),
                DeleteError::Agents(_) | DeleteError::Thread(_) => Code::Unavailable,
                DeleteError::Cluster(error) => cluster(error),
            },
            Self::Agents(_) => Code::Unavailable,
            Self::Rings(RingsError::Access { source, .. }) => access(source),
            Self::Rings(_) => Code::FailedPrecondition,
            Self::Cluster(error) => cluster(error),
        }
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        NodeError::from(error).into()
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let (code, sentence) = (failure.code(), told(&failure as &dyn Error));
        tracing::debug!(?code, "{sentence}");
        Status::new(code, sentence)
    }
}

fn access(error: &AccessError) -> Code {
    match error {
        AccessError::Store(MetaError::Unknown(_)) => Code::Unavailable,
        AccessError::Store(MetaError::Refused(_)) => Code::FailedPrecondition,
        AccessError::Document(_) | AccessError::Confused { .. } => Code::Internal,
    }
}

fn cluster(error: &ClusterError) -> Code {
    match error {
        ClusterError::Access { source, .. } => access(source),
        _ => Code::FailedPrecondition,
    }
}

fn volume(error: &VolumeError) -> Code {
    match error {
        VolumeError::Name(_) | VolumeError::Replicas { .. } => Code::InvalidArgument,
        VolumeError::Size(_) | VolumeError::Shrink { .. } => Code::OutOfRange,
        VolumeError::Exists { .. } => Code::AlreadyExists,
        VolumeError::NotFound(_) => Code::NotFound,
        VolumeError::Deleting(_) | VolumeError::NotDeleting(_) | VolumeError::Held { .. } => Code::FailedPrecondition,
        VolumeError::NoCluster(_) => Code::FailedPrecondition,
        VolumeError::Busy(_) => Code::Aborted,
        VolumeError::Access { source, .. } => access(source),
    }
}

fn node(error: &NodeError) -> Code {
    match error {
        NodeError::Owner(OwnerError::Open(error)) => match error {
            OpenError::NotFound(_) => Code::NotFound,
            OpenError::Deleting(_) | OpenError::Held { .. } => Code::FailedPrecondition,
            OpenError::BadDoc(_) | OpenError::Inconsistent(_) => Code::DataLoss,
            _ => Code::Unavailable,
        },
        NodeError::Owner(_) | NodeError::Slow { .. } | NodeError::Ended => Code::Unavailable,
        NodeError::Locked(_) | NodeError::Moved(_) => Code::Aborted,
        NodeError::NoDirectory(..) | NodeError::NotADirectory(_) => Code::InvalidArgument,
        NodeError::Served(_)
        | NodeError::MountedOn { .. }
        | NodeError::HoldsOther { .. }
        | NodeError::HoldsUnknown { .. }
        | NodeError::NothingToRead { .. }
        | NodeError::TooSmall(_)
        | NodeError::Damaged { .. }
        | NodeError::Busy { .. }
        | NodeError::OfAnAgent { .. } => Code::FailedPrecondition,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use torus_core::ids::VolumeId;

    #[test]
    fn a_caller_learns_what_to_do() {
        let status = Status::from(Failure::from(VolumeError::NotFound("v".into())));
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("torusctl volume list"));
        let lost = AccessError::Store(MetaError::Unknown("no answer".into()));
        let status =
            Status::from(Failure::from(VolumeError::Access { doing: "read", volume: "v".into(), source: lost }));
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("no answer"), "causes are told: {}", status.message());
        assert_eq!(Failure::from(NodeError::Locked(VolumeId(1))).code(), Code::Aborted);
        assert_eq!(Failure::underway("volume v").code(), Code::Aborted);
    }
}
