//! What an earlier process of this host had attached, attached again.
//!
//! A kernel NBD device lives on, and is taken over. With FUSE + loop, a device dies with the process that served it: whoever has it open gets errors, and what was not synced
//! is lost as in a power cut. What can be done is done here: dead devices are removed, the volumes are attached again, and
//! mounted again at all their places. A pod's containers see the new mount when they are started again, which a program
//! that gets I/O errors brings about by ending. Until then, the volume's condition says what happened.

use super::{Inner, NodeService};
use crate::grpc::Failure;
use crate::metadata::load_volume;
use crate::node::filesystem::Wanted;
use crate::node::{NodeError, Record, Role, Settled};
use crate::process::told;
use tonic::Code;

impl NodeService {
    /// Sees to every record of an agent that is gone. What fails is logged, and told as the volume's condition.
    pub(super) async fn restore_all(&self) {
        let attachments = &self.0.attachments;
        let all = match attachments.list() {
            Ok(all) => all,
            Err(error) => return tracing::error!("cannot tell what was attached here: {}", told(&error)),
        };
        for found in all.into_iter().filter(|found| !found.served && found.record.keeper.role == Role::Agent) {
            let (this, record) = (self.clone(), found.record);
            let (id, name) = (record.volume, record.name.clone());
            let restored = self.alone(id, async move { this.restore(record).await }).await;
            let remark = match restored {
                Ok(Restored::TakenOver) => continue,
                Ok(Restored::Anew) => format!(
                    "the agent of this node was started again, and with it the device of volume {name:?}: containers that \
                     began before get I/O errors, and have to be started again"
                ),
                Err(failure) => format!(
                    "the agent of this node was started again, and volume {name:?} could not be attached again: {}. Delete \
                     the pods that use it: they get it anew",
                    told(&failure)
                ),
            };
            tracing::warn!("{remark}");
            self.remarks().insert(id, remark);
        }
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
            return Ok(Restored::TakenOver);
        }
        let device = record.device.clone().ok_or(NodeError::Ended)?;
        if let Some(mount) = &before.mount {
            let (directory, filesystem) = (mount.directory.clone(), Some(mount.filesystem));
            places.directory(&directory)?;
            let options = Vec::new();
            let mut wanted = Wanted { directory, filesystem, read_only: before.read_only, options };
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
