//! Drives [`torus_core::log::remove::Removal`]: has the agents give back what they hold of a volume that is being deleted.

use crate::clock::Clock;
use crate::metadata::AgentInfo;
use crate::tdp::{Aligned, PeerEvent, Peers};
use std::time::Duration;
use tokio::time::sleep;
use torus_core::ids::{AgentId, ClusterId, Epoch, VolumeId};
use torus_core::log::Effects;
use torus_core::log::remove::{Removal, Standing};
use torus_core::tdp::Role;
use torus_store::BufferPool;

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
pub async fn remove_copies(
    cluster: ClusterId,
    volume: VolumeId,
    epoch: Epoch,
    agents: &[AgentInfo],
    patience: Duration,
) -> Vec<Removed> {
    let clock = Clock::start();
    let peers = Peers::new(cluster, Role::Owner, format!("deleting volume {volume}"), Aligned(BufferPool::new(0)));
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
            peers.send(send.to, send.rpc, &send.request);
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
