//! Takes a volume from an owner that is thought dead, without opening it: drives [`Recovery`], which every opener begins with, to its
//! end, and lets the volume lie. The epoch is raised, the agents of all open extents refuse older ones, the log is sealed. Whoever
//! opens it next finds that done.

use super::control::Control;
use super::view::{News, View};
use super::{OwnerConfig, OwnerError};
use crate::clock::Clock;
use crate::metadata::{VolumeInfo, load_cluster};
use crate::tdp::{Aligned, PeerEvent, Peers};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_blocking};
use tokio::time::sleep;
use torus_core::ids::{ClusterId, Epoch, VolumeId};
use torus_core::limits::OWNER_BUFFERS_IDLE_BYTES;
use torus_core::log::Effects;
use torus_core::log::recover::{Claim, OpenError, Recovery};
use torus_core::meta::MetadataStore;
use torus_core::meta::docs::Holder;
use torus_core::tdp::Role;
use torus_store::BufferPool;

/// How far it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fenced {
    /// The epoch from which on nobody older is served.
    pub epoch: Epoch,
    /// Agents of open extents that refuse older epochs.
    pub acknowledged: usize,
    /// Agents of open extents.
    pub asked: usize,
}

/// Takes `volume` from whoever has it, in the name of `holder`. Several may try: the highest epoch wins. It takes half a second
/// where all agents answer, and goes on for `patience` at most without getting ahead.
///
/// # Errors
/// [`OpenError::Missing`]: the epoch is raised, but too few agents answered to seal the log; they refuse the older owner as soon as
/// somebody opens the volume. Others: it may not have happened.
pub async fn fence_volume(
    store: Arc<dyn MetadataStore>,
    volume: &VolumeInfo,
    holder: Holder,
    patience: Duration,
) -> Result<Fenced, OwnerError> {
    let cluster = load_cluster(&*store).await?.id;
    let claim = Claim { volume: volume.id, holder, nonce: rand::random(), lease: None, force: true, patience };
    let control = Control::new(Handle::current(), store);
    let (id, name) = (volume.id, volume.meta.doc.name.clone());
    let running = spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(LocalSet::new().block_on(&runtime, recover(cluster, id, claim, control)))
    });
    let ended = running.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let no_thread = |error| OwnerError::Cluster(format!("no thread to take volume {name:?} on: {error}"));
    Ok(ended.map_err(no_thread)??)
}

async fn recover(cluster: ClusterId, volume: VolumeId, claim: Claim, control: Control) -> Result<Fenced, OpenError> {
    let clock = Clock::start();
    let who = format!("fencing volume {volume}");
    let peers = Peers::new(cluster, Role::Owner, who, Aligned(BufferPool::new(OWNER_BUFFERS_IDLE_BYTES)), None);
    let mut view = View::begin(&control.runtime, &control.store, volume);
    let (answers, mut answered) = mpsc::unbounded_channel();
    let mut recovery = Recovery::new(claim);
    let mut effects = Effects::default();
    let mut heard = Vec::new();
    let mut standing = (0, 0);
    loop {
        recovery.expire(clock.now(), &mut effects)?;
        // Once it has ended it knows of no extents any more.
        let last = recovery.fenced();
        if last.1 > 0 {
            standing = last;
        }
        if let Some(ended) = recovery.turn(clock.now(), &mut effects) {
            let (acknowledged, asked) = standing;
            return ended.map(|recovered| Fenced { epoch: recovered.epoch, acknowledged, asked });
        }
        for send in effects.sends.drain(..) {
            peers.send(send.to, send.rpc, send.request);
        }
        peers.flush();
        for (id, op) in effects.meta.drain(..) {
            control.carry_out(id, op, &answers);
        }
        effects.notes.clear();
        let pause = recovery.deadline(clock.now()).map_or(OwnerConfig::new().patience, |at| clock.until(at));
        tokio::select! {
            () = peers.arrival() => {}
            () = sleep(pause) => {}
            Some((id, result)) = answered.recv() => recovery.on_meta(clock.now(), id, result)?,
            news = view.news() => if let News::Agents(agents) = news {
                for (agent, address) in &agents {
                    peers.set_address(agent.id, address.clone());
                }
                let agents: Vec<_> = agents.into_iter().map(|(agent, _)| agent).collect();
                recovery.on_agents(clock.now(), &agents);
            },
        }
        peers.take(&mut heard);
        for event in heard.drain(..) {
            match event {
                PeerEvent::Answer { rpc, result, .. } => {
                    recovery.on_answer(clock.now(), rpc, result, &mut effects)?;
                }
                PeerEvent::Up { agent, .. } => recovery.on_peer_up(clock.now(), agent),
                PeerEvent::Down { .. } => {}
            }
        }
    }
}
