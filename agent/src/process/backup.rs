//! Whether the metadata store is older than this agent.
//!
//! A fence is raised only after its epoch was written to the store. A fence above the store's epoch therefore shows that
//! the store has forgotten an owner: it was restored from a backup. Serving on would let two owners have one epoch.
//! Looked at when an agent starts, and whenever the store answers again after it did not: nobody restores one that runs.

use super::failure::told;
use super::status::Status;
use torus_core::ids::{Epoch, VolumeId};
use torus_core::meta::docs::{EpochDoc, decode};
use torus_core::meta::{MetaError, MetaOp, MetaReply, MetadataStore, keys};

/// The store has gone back in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{store} is older than this agent: volume {volume} has been opened with epoch {fence}, and the store knows {epoch}. \
     It was restored from a backup. Restore a newer one; this agent keeps its data and does not serve until then"
)]
pub struct OlderStore {
    store: String,
    volume: VolumeId,
    fence: Epoch,
    epoch: Epoch,
}

/// Compares this agent's fences with the store's epochs.
///
/// # Errors
/// The first volume of which the store knows less. What cannot be read proves nothing, and is left.
pub async fn check(store: &dyn MetadataStore, status: &Status) -> Result<(), OlderStore> {
    for (volume, fence) in status.fences().await.unwrap_or_default() {
        match epoch_of(store, volume).await {
            // No such volume: deleted, most likely. What it holds here, nobody can open.
            Ok(None) => {}
            Ok(Some(epoch)) if epoch >= fence => {}
            Ok(Some(epoch)) => return Err(OlderStore { store: store.describe(), volume, fence, epoch }),
            Err(error) => {
                tracing::warn!(%volume, "cannot compare a fence with the metadata store: {}", told(&error));
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn epoch_of(store: &dyn MetadataStore, volume: VolumeId) -> Result<Option<Epoch>, MetaError> {
    let key = keys::volume_epoch(volume);
    match store.execute(MetaOp::Get(key.clone())).await? {
        MetaReply::Got(Some(entry)) => match decode::<EpochDoc>(&key, &entry.value) {
            Ok(doc) => Ok(Some(doc.epoch)),
            Err(error) => Err(MetaError::Refused(error.to_string())),
        },
        _ => Ok(None),
    }
}
