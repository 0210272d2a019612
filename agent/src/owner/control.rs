//! The control side of an owner: metadata operations and the lease that its sign of life stands under.

use super::Owned;
use crate::tdp::LocalDoor;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use torus_core::ids::{Epoch, VolumeId};
use torus_core::log::MetaId;
use torus_core::meta::docs::{EpochDoc, Holder, OwnerDoc, encode};
use torus_core::meta::{Compare, LeaseId, MetaError, MetaOp, MetaReply, MetadataStore, Txn, Write, keys};

/// After this long without a sign of life, an owner's volume may be opened elsewhere without force.
const LEASE_TIME: Duration = Duration::from_secs(10);

/// Where the metadata store is, and the runtime on which it is spoken to. That runtime must be driven by another thread
/// than the owner's.
#[derive(Clone)]
pub struct Control {
    /// The runtime.
    pub runtime: Handle,
    /// The store.
    pub store: Arc<dyn MetadataStore>,
    /// The way to the agent of this process, if there is one.
    pub door: Option<LocalDoor>,
    /// Where the owners are that were opened with it.
    pub owned: Owned,
}

/// The answer to a metadata operation of the core.
pub type Answer = (MetaId, Result<MetaReply, MetaError>);

impl Control {
    /// A control side in a process without an agent.
    #[must_use]
    pub fn new(runtime: Handle, store: Arc<dyn MetadataStore>) -> Control {
        Control { runtime, store, door: None, owned: Owned::default() }
    }

    /// Runs `work` on the control side and waits for it here.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, MetaError> {
        let gone = |_| MetaError::Unknown("the control side of this process has ended".into());
        self.runtime.spawn(work).await.map_err(gone)
    }

    /// Carries out an operation of the core; the answer comes by `answers`.
    pub(super) fn carry_out(&self, id: MetaId, op: MetaOp, answers: &mpsc::UnboundedSender<Answer>) {
        let (store, answers) = (Arc::clone(&self.store), answers.clone());
        self.runtime.spawn(async move {
            let result = store.execute(op).await;
            // The owner may have ended meanwhile.
            let _ = answers.send((id, result));
        });
    }

    /// A lease for the owner's sign of life.
    pub(super) async fn lease(&self) -> Result<LeaseId, MetaError> {
        let store = Arc::clone(&self.store);
        self.ask(async move { store.grant(LEASE_TIME).await }).await?
    }

    /// Keeps `lease` for as long as `life` has a sender, and the owner's key under it; then ends it. The task is over when
    /// the key is gone, or cannot be taken back.
    pub(super) fn keep(&self, lease: LeaseId, sign: Sign, life: watch::Receiver<Option<Epoch>>) -> JoinHandle<()> {
        self.runtime.spawn(keep(Arc::clone(&self.store), lease, sign, life))
    }
}

/// What stands in the metadata store while a volume is open.
pub(super) struct Sign {
    pub volume: VolumeId,
    pub holder: Holder,
    pub nonce: u64,
}

async fn keep(store: Arc<dyn MetadataStore>, mut lease: LeaseId, sign: Sign, mut life: watch::Receiver<Option<Epoch>>) {
    let mut beats = interval(LEASE_TIME / 3);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beats.tick() => {}
            changed = life.changed() => match changed {
                Ok(()) => continue,
                Err(_) => break,
            },
        }
        let epoch = *life.borrow();
        let kept = match store.keep_alive(lease).await {
            Ok(true) => Ok(()),
            // Gone with its key. Before the claim there is no key; the claim itself will fail for want of the lease.
            Ok(false) => match epoch {
                Some(epoch) => renew(&*store, &sign, epoch).await.map(|new| lease = new),
                None => Ok(()),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(volume = %sign.volume, "the owner's sign of life may run out: {error}. I/O goes on");
        }
    }
    if let Err(error) = store.revoke(lease).await {
        tracing::debug!(volume = %sign.volume, "the owner's lease runs out by itself: {error}");
    }
}

/// A new lease, and the owner's key under it, if nobody else has opened the volume.
async fn renew(store: &dyn MetadataStore, sign: &Sign, epoch: Epoch) -> Result<LeaseId, MetaError> {
    let lease = store.grant(LEASE_TIME).await?;
    let claim = EpochDoc { epoch, holder: sign.holder.clone(), nonce: sign.nonce };
    let owner = OwnerDoc { epoch, holder: sign.holder.clone() };
    let txn = Txn {
        when: vec![Compare::Holds(keys::volume_epoch(sign.volume), encode(&claim))],
        then: vec![Write::Put { key: keys::volume_owner(sign.volume), value: encode(&owner), lease: Some(lease) }],
    };
    store.execute(MetaOp::Txn(txn)).await?;
    Ok(lease)
}
