//! An agent's way into the ring: by itself, or by a person's word.

use super::failure::{StartError, told};
use super::status::Status;
use crate::metadata::{RingsError, Wish, join_ring, load_ring};
use torus_core::ids::AgentId;
use torus_core::meta::MetadataStore;
use torus_core::meta::docs::{AgentDoc, ClusterDoc};
use torus_core::ring::RingAgent;

/// Enters the ring, so that it gets data. A ring that a person keeps closed is left alone: the agent is up all the same.
///
/// # Errors
/// When the ring cannot be changed.
pub async fn join(
    cluster: &ClusterDoc,
    store: &dyn MetadataStore,
    agent: AgentId,
    doc: &AgentDoc,
) -> Result<(), StartError> {
    let part = RingAgent { id: agent, domain: doc.domain.clone(), weight: doc.weight };
    match join_ring(store, &[part], cluster.replicas, Wish::Agent).await {
        Ok(ring) => tracing::info!(%agent, version = %ring.version, agents = ring.now.agents.len(), "in the ring"),
        Err(error @ (RingsError::Closed { .. } | RingsError::Unsound(_))) => tracing::warn!("{}", told(&error)),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Looks whether the agent is in the ring, and notes it where it is not. True: it is, and need not be asked again.
pub async fn look(store: &dyn MetadataStore, status: &Status) -> bool {
    let Ok(ring) = load_ring(store).await else { return false };
    let in_ring = ring.is_some_and(|ring| ring.doc.now.agents.iter().any(|agent| agent.id == status.who.agent));
    let note = || {
        format!(
            "agent {:?} is not in the ring and gets no data: run `torusctl peer add {}`, or start it with --auto-join",
            status.who.name, status.who.agent
        )
    };
    status.note((!in_ring).then(note));
    in_ring
}
