//! The sign of life: kept on the control side, so that no load on the data plane delays it.

use super::backup;
use super::failure::{RunError, told};
use super::join;
use super::status::Status;
use crate::metadata::{AgentError, Heartbeat};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use torus_core::meta::MetadataStore;

/// After this long without a heartbeat an agent counts as down.
pub const LEASE_TIME: Duration = Duration::from_secs(6);

/// Beats until `stop`, then takes the sign of life away.
///
/// # Errors
/// When another process runs as this agent, or the store has been put back to an earlier state.
pub async fn keep(
    mut heartbeat: Heartbeat,
    store: Arc<dyn MetadataStore>,
    status: Arc<Status>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut beats = interval(LEASE_TIME / 3);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats.tick().await;
    let mut in_ring = join::look(&*store, &status).await;
    loop {
        tokio::select! {
            _ = beats.tick() => {}
            () = stop.cancelled() => break,
        }
        // A data plane that does not answer now may well do its work: what was said last stays said.
        let beaten = match status.alive().await {
            Some(doc) => heartbeat.update(&*store, doc).await,
            None => heartbeat.beat(&*store).await,
        };
        match beaten {
            Ok(()) => {
                if status.metadata_lost().is_some() {
                    backup::check(&*store, &status).await.map_err(|error| RunError::Displaced(error.to_string()))?;
                }
                status.metadata(Ok(()));
            }
            Err(
                error @ (AgentError::Superseded { .. } | AgentError::Earlier { .. } | AgentError::NotRegistered(_)),
            ) => return Err(RunError::Displaced(told(&error))),
            Err(error) => status.metadata(Err(told(&error))),
        }
        if !in_ring {
            in_ring = join::look(&*store, &status).await;
        }
    }
    if let Err(error) = heartbeat.end(&*store).await {
        tracing::warn!("{}; it runs out within {} s", told(&error), LEASE_TIME.as_secs());
    }
    Ok(())
}
