//! Deletes volumes: marks one, drives [`torus_core::log::remove::Removal`] to have the agents give back what they hold of it,
//! forgets it. Until every agent has shown that it holds nothing, the volume stays as one that is being deleted.

use super::OwnerConfig;
use crate::clock::Clock;
use crate::metadata::{
    AgentError, AgentInfo, ClusterError, VolumeError, VolumeInfo, list_agents, load_cluster, mark_deleting,
    remove_volume_keys,
};
use crate::tdp::{Aligned, PeerEvent, Peers};
use std::io;
use std::time::Duration;
use tokio::task::{LocalSet, spawn_blocking};
use tokio::time::sleep;
use torus_core::ids::{AgentId, ClusterId, Epoch, VolumeId};
use torus_core::log::Effects;
use torus_core::log::remove::{Removal, Standing};
use torus_core::meta::MetadataStore;
use torus_core::tdp::Role;
use torus_store::BufferPool;

/// How long an agent may be silent before it is left for a later run.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a volume is not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The agents cannot be listed.
    #[error(transparent)]
    Agents(#[from] AgentError),
    /// The cluster cannot be read.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// No thread to speak to agents on.
    #[error("cannot speak to the agents")]
    Thread(#[source] io::Error),
}

/// Deletes `volume`; `force` takes it from an owner. What it came to at each agent: where something is left anywhere, the
/// volume is marked, and still there. May be repeated at any point. Agents in `without` will never come back, and are not
/// waited for.
///
/// # Errors
/// When it is not marked, or not forgotten.
pub async fn delete_volume(
    store: &dyn MetadataStore,
    volume: &VolumeInfo,
    without: &[AgentId],
    force: bool,
) -> Result<Vec<Removed>, DeleteError> {
    let id = volume.id;
    let cluster = load_cluster(store).await?.id;
    let epoch = mark_deleting(store, id, &OwnerConfig::new().holder, force).await?;
    // Whoever has run since then may hold something; a volume that nobody ever opened is nowhere.
    let opened = epoch > Epoch(0).next();
    let mut asked = if opened { list_agents(store).await? } else { Vec::new() };
    asked.retain(|agent| !without.contains(&agent.id));
    let removing = spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(LocalSet::new().block_on(&runtime, remove_copies(cluster, id, epoch, &asked, PATIENCE)))
    });
    let removed = removing.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(DeleteError::Thread)?;
    if removed.iter().all(|agent| agent.left.is_none()) {
        remove_volume_keys(store, id).await?;
    }
    Ok(removed)
}

/// What it came to at one agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removed {
    /// Which agent.
    pub agent: AgentId,
    /// What people call it.
    pub name: String,
    /// Copies deleted there.
    pub copies: u64,
    /// Why it may hold something still; `None` when it holds nothing.
    pub left: Option<String>,
}

/// Removes `volume`, which was marked as being deleted in `epoch`, from `agents`. One that does not answer for `patience` is
/// given up, one that does not run is not asked. Call it inside a `LocalSet`.
async fn remove_copies(
    cluster: ClusterId,
    volume: VolumeId,
    epoch: Epoch,
    agents: &[AgentInfo],
    patience: Duration,
) -> Vec<Removed> {
    let clock = Clock::start();
    let peers =
        Peers::new(cluster, Role::Owner, format!("deleting volume {volume}"), Aligned(BufferPool::new(0)), None);
    let running = agents.iter().filter_map(|agent| Some((agent.id, agent.alive.as_ref()?.data.clone())));
    let mut removal = Removal::new(clock.now(), volume, epoch, running.clone().map(|(id, _)| id), patience);
    for (id, address) in running {
        peers.set_address(id, Some(address));
    }
    let mut effects = Effects::default();
    let mut heard = Vec::new();
    while !removal.is_over() {
        removal.turn(clock.now(), &mut effects);
        for send in effects.sends.drain(..) {
            peers.send(send.to, send.rpc, send.request);
        }
        peers.flush();
        let pause = removal.deadline().map_or(patience, |deadline| clock.until(deadline));
        tokio::select! {
            () = peers.arrival() => {}
            () = sleep(pause) => {}
        }
        peers.take(&mut heard);
        for event in heard.drain(..) {
            if let PeerEvent::Answer { rpc, result, .. } = event {
                removal.answer(clock.now(), rpc, result);
            }
        }
    }
    let removed = agents.iter().map(|agent| {
        let (copies, left) = match removal.standings().find(|(id, ..)| *id == agent.id) {
            None => (0, Some("does not run".to_owned())),
            Some((_, standing, copies)) => (copies, why(standing, patience)),
        };
        Removed { agent: agent.id, name: agent.doc.doc.name.clone(), copies, left }
    });
    removed.collect()
}

fn why(standing: &Standing, patience: Duration) -> Option<String> {
    match standing {
        Standing::Clean => None,
        Standing::Working | Standing::Silent => Some(format!("does not answer for {} s", patience.as_secs())),
        Standing::Hidden => Some("has lost a disk or a part of one, and cannot tell whether it holds more".into()),
        Standing::Refused(why) => Some(format!("refuses: {why}")),
    }
}
