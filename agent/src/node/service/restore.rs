//! What an earlier process of this host had attached, attached again.
//!
//! A kernel NBD device lives on and is taken over, and so is a FUSE file whose connection a holder has: those who use it see a
//! pause, and no error. Until that has worked it is tried again, as long as the device waits.
//!
//! Without a holder, the device of a FUSE file dies with the process that served it: whoever has it open gets errors, and what
//! was not synced is lost as in a power cut. What can be done is done here: dead devices are removed, the volumes are attached
//! again, and mounted again at all their places. A pod's containers see the new mount when they are started again, which a
//! program that gets I/O errors brings about by ending. Until then, the volume's condition says what happened.

use super::{AT_ONCE, Inner, NodeService, POLL};
use crate::grpc::Failure;
use crate::metadata::load_volume;
use crate::node::filesystem::Wanted;
use crate::node::host::waits;
use crate::node::{Keeper, LETTING_GO, NodeError, Record, Role, Settled};
use crate::process::told;
use futures::stream::{self, StreamExt};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::Code;
use torus_core::ids::VolumeId;

/// How long is waited before a device is taken over that could not be.
const RETRY: Duration = Duration::from_secs(2);

impl NodeService {
    /// Sees to every record of an agent that is gone. What fails is logged, told as the volume's condition, and tried again if its
    /// device waits.
    pub(super) async fn restore_all(&self) {
        let all = match self.0.attachments.list() {
            Ok(all) => all,
            Err(error) => return tracing::error!("cannot tell what was attached here: {}", told(&error)),
        };
        let of_agents = all.into_iter().map(|found| found.record).filter(|record| record.keeper.role == Role::Agent);
        let restore = async |record: Record| match self.is_let_go(record.volume).await {
            true => self.restore_one(record).await,
            false => tracing::warn!(volume = record.name, "another process of this host serves it: left to that one"),
        };
        stream::iter(of_agents).for_each_concurrent(AT_ONCE, restore).await;
        // Last: nobody's I/O waits for it.
        if let Err(error) = self.0.attachments.tidy().await {
            tracing::warn!("what calls that were cut off have left stays: {}", told(&error));
        }
    }

    /// Whether nobody serves `volume` any more. A service that was stopped takes a moment to let go, and a process that ends while
    /// it starts another leaves its locks to that one for as long.
    async fn is_let_go(&self, volume: VolumeId) -> bool {
        let deadline = Instant::now() + LETTING_GO;
        while self.0.attachments.records().is_served(volume) {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    async fn restore_one(&self, record: Record) {
        let (id, name) = (record.volume, record.name.clone());
        let remark = match self.try_restore(record.clone()).await {
            Ok(Restored::TakenOver) => return,
            Ok(Restored::Anew) => format!(
                "the agent of this node was started again, and with it the device of volume {name:?}: containers that \
                 began before get I/O errors, and have to be started again"
            ),
            Err(failure) if waits(&record).await => {
                let this = self.clone();
                tokio::spawn(async move { this.restore_later(record).await });
                format!(
                    "the agent of this node was started again, and volume {name:?} waits for it, as it could not be opened \
                     yet: {}",
                    told(&failure)
                )
            }
            Err(failure) => format!(
                "the agent of this node was started again, and volume {name:?} could not be attached again: {}. Delete \
                 the pods that use it: they get it anew",
                told(&failure)
            ),
        };
        tracing::warn!("{remark}");
        self.remarks().insert(id, remark);
    }

    /// Tries again to take a device over that waits, until it has been, or does not wait any more.
    async fn restore_later(&self, record: Record) {
        let id = record.volume;
        loop {
            sleep(RETRY).await;
            let still = self.0.attachments.records().load(id).ok().flatten();
            let served = self.keepers().contains_key(&id);
            if served || still.is_none() || !waits(&record).await {
                break;
            }
            match self.try_restore(record.clone()).await {
                Ok(_) => break,
                Err(failure) => tracing::debug!(volume = record.name, "not taken over yet: {}", told(&failure)),
            }
        }
        self.remarks().remove(&id);
    }

    async fn try_restore(&self, record: Record) -> Result<Restored, Failure> {
        let this = self.clone();
        self.alone(record.volume, async move { this.restore(record).await }).await
    }

    async fn restore(&self, before: Record) -> Result<Restored, Failure> {
        let Inner { attachments, control, places, .. } = &*self.0;
        let id = before.volume;
        let _right = attachments.lock(id).await?;
        let gone = || Failure::not_found("it was deleted meanwhile");
        let looked_up = async {
            let info = load_volume(&*control.store, id).await?.ok_or_else(gone)?;
            self.published(&info, false)?;
            Ok::<_, Failure>(info)
        };
        let info = match looked_up.await {
            Ok(info) => info,
            Err(failure) => {
                // What is left of it must not come back to life.
                if failure.code() != Code::Unavailable {
                    attachments.clear(&before).await?;
                }
                return Err(failure);
            }
        };
        let orphaned = matches!(attachments.settle(id).await?, Settled::Orphaned(_));
        let (mut record, _) = self.device(&info, before.read_only, before.is_of_owner(&info)).await?;
        if orphaned {
            tracing::info!(volume = record.name, "taken over: those who use it have seen a pause");
            return Ok(Restored::TakenOver);
        }
        self.go_on_making(&before, &mut record)?;
        let device = record.device_there().ok_or(NodeError::Ended)?.to_owned();
        if let Some(mount) = &before.mount {
            let (directory, filesystem) = (mount.directory.clone(), Some(mount.filesystem));
            places.directory(&directory)?;
            let options = Vec::new();
            let mut wanted = Wanted { directory, filesystem, read_only: before.read_only, options, pinned: None };
            self.mount_staged(&mut record, &mut wanted).await?;
        }
        for target in before.targets {
            let source = match (&record.mount, target.block) {
                (_, true) => device.clone(),
                (Some(mount), false) => mount.directory.clone(),
                (None, false) => continue,
            };
            // A pod that has gone meanwhile has taken its directory along.
            if places.look(&target.path)?.is_some() {
                self.bind(&mut record, source, target).await?;
            }
        }
        let holding = self.keepers().get(&id).map(Keeper::holding);
        if let Some(holding) = holding {
            holding.begin().await;
        }
        Ok(Restored::Anew)
    }
}

/// What became of a volume.
enum Restored {
    /// Its device lived on.
    TakenOver,
    /// Its device was dead; it has a new one.
    Anew,
}
