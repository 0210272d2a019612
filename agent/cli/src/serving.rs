//! What commands that serve a volume in this process share.

use crate::failure::{self, Failure, Kind};
use tokio::runtime::{Builder, Runtime};
use torus_agent::nbd::ListenError;
use torus_agent::owner::OwnerError;
use torus_agent::serving::ServeError;
use torus_core::log::recover::OpenError;

/// A runtime for everything that has to do with the metadata store; on threads of its own.
pub fn control_runtime() -> Result<Runtime, Failure> {
    let built = Builder::new_multi_thread().worker_threads(1).thread_name("torus-control").enable_all().build();
    built.map_err(|error| Failure::because("cannot start", &error))
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Owner(error) => error.into(),
            ServeError::Listen(error) => error.into(),
            ServeError::Export(error) => Self::of(Kind::Failed, &error),
        }
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        Self::of(Kind::Failed, &error)
    }
}

impl From<OwnerError> for Failure {
    fn from(error: OwnerError) -> Self {
        let kind = match &error {
            OwnerError::Fenced { .. } => Kind::Refused,
            OwnerError::Open(
                OpenError::Held { .. }
                | OpenError::Overtaken { .. }
                | OpenError::Deleting(_)
                | OpenError::Missing { .. }
                | OpenError::Inconsistent(_),
            ) => Kind::Refused,
            _ => Kind::Failed,
        };
        Self::failed_as(kind, failure::told(&error))
    }
}
