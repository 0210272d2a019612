//! The node service: what an agent of role `node` does for the CSI node plugin and the FlexVolume driver of its host.
//!
//! ```text
//!   rpc: decode ──▶ NodeService ──▶ encode
//!                     ├── attach, detach: keepers in this process, filesystems made, checked, mounted
//!                     ├── show:           bind mounts, one for each pod
//!                     └── restore:        what an earlier process of this host had attached
//! ```
//!
//! # Invariants
//! 1. One call at a time for each volume; a second one is told so. What a call has begun goes on if its caller gives up:
//!    half a mkfs is nothing that the next call could go on from.
//! 2. What is asked for is compared with what is there: every call can be repeated, also by another process.
//! 3. Nothing is made, mounted or removed outside [`Places`].
//! 4. A volume that is published to another host is not attached here. Whether that is so is asked of the metadata store
//!    at each attach; who may write is decided by the epoch all the same.

mod restore;
mod rpc;
mod show;
mod status;

pub use rpc::{ServeError, serve};
pub use status::Standing;

use super::filesystem::{self, Wanted, check_option};
use super::places::{PlaceError, Places};
use super::{Attachments, Filesystem, Keeper, NodeError, Record, Role, Settled, Wish, mounts};
use crate::busy::Busy;
use crate::grpc::Failure;
use crate::metadata::{NodesError, VolumeError, VolumeInfo, find_volume, load_cluster, register_node};
use crate::owner::{Control, OwnerConfig};
use crate::process::told;
use futures::stream::{self, StreamExt};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tonic::Code;
use torus_core::ids::{ClusterId, VolumeId};
use torus_core::meta::docs::NodeDoc;

/// Volumes that are seen to at once when the service starts or stops.
const AT_ONCE: usize = 8;
/// Pause between two looks at something that is about to change.
const POLL: Duration = Duration::from_millis(50);

/// What a node service is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the cluster's control plane calls this host.
    pub node: String,
    /// Its failure domain.
    pub domain: String,
    /// Where it is written down what is attached.
    pub attached_dir: PathBuf,
    /// The only directory below which anything is mounted.
    pub kubelet_dir: PathBuf,
    /// Where there may be a holder, which keeps devices for the next agent.
    pub holder: Option<PathBuf>,
}

/// Why there is no node service.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No cluster.
    #[error(transparent)]
    Cluster(#[from] crate::metadata::ClusterError),
    /// The host cannot be made known.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// The directory for mounts.
    #[error("{0}. Make it, or name the kubelet's directory with --kubelet-dir")]
    Place(#[from] PlaceError),
}

/// How a volume is to be attached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attach {
    /// Its id, or its name.
    pub volume: String,
    /// It takes no writes.
    pub read_only: bool,
    /// Only if it is published to this host.
    pub must_be_published: bool,
    /// Where to mount its filesystem.
    pub directory: Option<String>,
    /// Make that directory.
    pub make_directory: bool,
    /// What it must hold, or is to be made on it.
    pub filesystem: Option<Filesystem>,
    /// Options of the mount.
    pub options: Vec<String>,
}

/// The node service of one host.
#[derive(Clone)]
pub struct NodeService(Arc<Inner>);

struct Inner {
    settings: Settings,
    places: Places,
    attachments: Attachments,
    control: Control,
    cluster: ClusterId,
    busy: Busy<VolumeId>,
    keepers: Mutex<BTreeMap<VolumeId, Keeper>>,
    /// What is to be known of volumes whose devices went with an earlier process.
    remarks: Mutex<BTreeMap<VolumeId, String>>,
}

impl NodeService {
    /// Makes the host known, and attaches again what an earlier process of this host had attached. `control` must be driven
    /// by another thread than those of keepers.
    ///
    /// # Errors
    /// When there is no cluster, or no directory to mount below.
    pub async fn start(settings: Settings, control: Control) -> Result<Self, StartError> {
        let store = &*control.store;
        let cluster = load_cluster(store).await?.id;
        let places = Places::below(&settings.kubelet_dir)?;
        let doc = NodeDoc { domain: settings.domain.clone(), version: env!("CARGO_PKG_VERSION").into() };
        register_node(store, &settings.node, &doc).await?;
        let service = Self(Arc::new(Inner {
            attachments: Attachments::at(settings.attached_dir.clone()),
            places,
            control,
            cluster,
            settings,
            busy: Busy::default(),
            keepers: Mutex::default(),
            remarks: Mutex::default(),
        }));
        service.restore_all().await;
        Ok(service)
    }

    /// Carries `call` out, alone for `volume`, and to its end.
    async fn alone<T: Send + 'static>(
        &self,
        volume: VolumeId,
        call: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let Some(underway) = self.0.busy.begin(&volume) else {
            return Err(Failure::underway(format_args!("volume {volume} on this host")));
        };
        let task = tokio::spawn(async move {
            let _underway = underway;
            call.await
        });
        let ended = task.await;
        ended.map_err(|error| Failure::Refused(Code::Internal, format!("the call ended by a defect: {error}")))?
    }

    /// Makes a volume a device, and mounts its filesystem where that is asked for.
    ///
    /// # Errors
    /// See [`Failure::code`].
    pub async fn attach(&self, asked: Attach) -> Result<Record, Failure> {
        let info = self.find(&asked.volume).await?;
        let this = self.clone();
        self.alone(info.id, async move { this.attach_alone(&info, asked).await }).await
    }

    async fn attach_alone(&self, info: &VolumeInfo, asked: Attach) -> Result<Record, Failure> {
        let Inner { attachments, places, .. } = &*self.0;
        let name = info.meta.doc.name.clone();
        if let Some(bad) = asked.options.iter().find(|option| !check_option(option)) {
            return Err(Failure::invalid(format!(
                "volume {name:?} is not mounted with the option {bad:?}: leave it out"
            )));
        }
        let read_only = asked.read_only || self.published(info, asked.must_be_published)?;
        let mut wanted = match &asked.directory {
            None => None,
            Some(directory) => {
                let directory = places.of(directory)?;
                if asked.make_directory {
                    places.make_directory(&directory)?;
                }
                places.directory(&directory)?;
                let Attach { filesystem, options, .. } = asked;
                Some(Wanted { directory, filesystem, read_only, options, pinned: None })
            }
        };
        let _right = attachments.lock(info.id).await?;
        let (mut record, is_new) = self.device(info, read_only, false).await?;
        let holding = self.keepers().get(&info.id).map(Keeper::holding);
        let mounted = match (&mut wanted, &holding) {
            (Some(wanted), Some(holding)) => {
                holding.end().await;
                self.mount_staged(&mut record, wanted).await
            }
            _ => Ok(()),
        };
        if let Err(failure) = mounted {
            let begun = if is_new { self.keepers().remove(&info.id) } else { None };
            if let Some(mut keeper) = begun {
                // Nothing is left of a call that failed; why it did matters more than how that went.
                let _ = keeper.close().await;
            } else if let Some(holding) = &holding {
                holding.begin().await;
            }
            return Err(failure);
        }
        if let Some(holding) = &holding {
            holding.begin().await;
        }
        Ok(record)
    }

    /// The attached volume, and whether it is so since this moment. `gone`: its owner is known to be gone. The caller holds its
    /// lock.
    async fn device(&self, info: &VolumeInfo, read_only: bool, gone: bool) -> Result<(Record, bool), Failure> {
        let Inner { attachments, control, settings, .. } = &*self.0;
        let name = &info.meta.doc.name;
        let mut is_new = true;
        let before = match attachments.settle(info.id).await? {
            Settled::Attached(record) if !self.keepers().contains_key(&info.id) => {
                return Err(match record.keeper.role {
                    Role::Background => Failure::not_now(format!(
                        "volume {name:?} is attached on this host by process {}: `torusctl detach {name}` comes first",
                        record.keeper.pid
                    )),
                    Role::Agent => NodeError::OfAnAgent { volume: name.clone(), pid: record.keeper.pid }.into(),
                });
            }
            Settled::Attached(record) if record.read_only != read_only => {
                let text = if record.read_only { "reading only" } else { "writing" };
                return Err(Failure::Refused(
                    Code::AlreadyExists,
                    format!("volume {name:?} is attached on this host for {text}: detach it first"),
                ));
            }
            Settled::Attached(record) => return Ok((record, false)),
            Settled::Cleared(record) => {
                tracing::warn!(volume = name, "its device was dead, and was removed");
                drop(self.keepers().remove(&info.id));
                Some(record)
            }
            // Taken over: it is attached as it was, and mounted where it was.
            Settled::Orphaned(record) => {
                is_new = false;
                drop(self.keepers().remove(&info.id));
                Some(record)
            }
            Settled::Free => None,
        };
        // The control plane has taken it from whoever had it before; or that was a process of this host which is gone.
        let force = gone || info.published.is_some() || before.as_ref().is_some_and(|record| record.is_of_owner(info));
        let mut owner = OwnerConfig { force, ..OwnerConfig::new() };
        owner.holder.host.clone_from(&settings.node);
        let holder = settings.holder.clone();
        let wish = Wish { kind: None, dead_time: None, read_only, owner, role: Role::Agent, holder };
        let keeper = match Keeper::start(attachments.records().clone(), control.clone(), info.clone(), wish).await {
            Ok(keeper) => keeper,
            Err(NodeError::Device { volume, source }) if source.is_end_of_device() => {
                // It waits for nobody any more. What is left of it is removed, and the next call begins anew.
                if let Some(record) = attachments.records().load(info.id)? {
                    attachments.clear(&record).await?;
                }
                return Err(Failure::Refused(
                    Code::Unavailable,
                    format!(
                        "the device of volume {volume:?} could not be taken over, and was removed ({}): try again",
                        told(&source)
                    ),
                ));
            }
            Err(error) => return Err(error.into()),
        };
        let mut record = keeper.record().clone();
        self.keepers().insert(info.id, keeper);
        if let Some(before) = before {
            self.go_on_making(&before, &mut record)?;
        }
        Ok((record, is_new))
    }

    /// A filesystem was being made when the process of `before` ended: where nobody has had the volume since, it is made anew. Epochs
    /// have no gaps.
    fn go_on_making(&self, before: &Record, record: &mut Record) -> Result<(), Failure> {
        if before.making && before.epoch + 1 == record.epoch {
            self.0.attachments.note(record, |record| record.making = true)?;
        }
        Ok(())
    }

    /// Mounts an attached volume where it is staged. The caller holds its lock.
    async fn mount_staged(&self, record: &mut Record, wanted: &mut Wanted) -> Result<(), Failure> {
        let device = record.device_there().ok_or(NodeError::Ended)?.to_owned();
        if let Some(mount) = record.mount.as_ref().filter(|mount| mount.directory != wanted.directory)
            && mounts::of(&device).contains(&mount.directory)
        {
            return Err(Failure::not_now(format!(
                "volume {:?} is mounted on {} already: unmount it there first",
                record.name,
                mount.directory.display()
            )));
        }
        wanted.pinned = Some(self.0.places.pin(&wanted.directory)?);
        wanted.check(Some(&device))?;
        self.0.attachments.mount(record, wanted).await?;
        Ok(())
    }

    /// Takes a volume from this host: its id, its name, its device, or where it is mounted.
    ///
    /// # Errors
    /// When somebody uses it, or something else is mounted in `directory`.
    pub async fn detach(&self, volume: &str, directory: Option<&str>) -> Result<(), Failure> {
        let directory = directory.map(|directory| self.0.places.of(directory)).transpose()?;
        let found = self.0.attachments.find(volume)?.map(|found| found.record.volume);
        match found.or_else(|| volume.parse().ok()) {
            Some(id) => {
                let this = self.clone();
                self.alone(id, async move { this.detach_alone(id, directory.as_deref()).await }).await
            }
            None => self.nothing_on(volume, directory.as_deref()),
        }
    }

    async fn detach_alone(&self, id: VolumeId, directory: Option<&Path>) -> Result<(), Failure> {
        let attachments = &self.0.attachments;
        let _right = attachments.lock(id).await?;
        let settled = attachments.settle(id).await?;
        self.remarks().remove(&id);
        let mut record = match settled {
            Settled::Attached(record) => record,
            // Those who use it still wait for what they wrote.
            Settled::Orphaned(record) => {
                let info = self.find(&id.to_string()).await?;
                self.device(&info, record.read_only, false).await?.0
            }
            Settled::Cleared(_) | Settled::Free => {
                drop(self.keepers().remove(&id));
                return self.nothing_on(&id.to_string(), directory);
            }
        };
        if let Some(directory) = directory
            && record.mount.as_ref().is_some_and(|mount| mount.directory != *directory)
        {
            return self.nothing_on(&record.name, Some(directory));
        }
        show::prune(&mut record);
        if let Some(target) = record.targets.first() {
            return Err(Failure::not_now(format!(
                "volume {:?} is still mounted at {}: unmount it there first",
                record.name,
                target.path.display()
            )));
        }
        let keeper = self.keepers().remove(&id);
        let Some(mut keeper) = keeper else {
            return Err(NodeError::OfAnAgent { volume: record.name, pid: record.keeper.pid }.into());
        };
        let holding = keeper.holding();
        holding.end().await;
        let closed = match attachments.unmount(&record).await {
            Ok(()) => keeper.close().await,
            Err(error) => Err(error),
        };
        match closed {
            // Another owner has it, and all that was acknowledged here: nothing is left to be done on this host.
            Err(NodeError::Owner(error)) => tracing::warn!(volume = record.name, "let go: {error}"),
            Err(error) => {
                self.keepers().insert(id, keeper);
                holding.begin().await;
                return Err(error.into());
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Fails when something is mounted in `directory`, which is not `volume`'s to unmount.
    fn nothing_on(&self, volume: &str, directory: Option<&Path>) -> Result<(), Failure> {
        let Some(directory) = directory else { return Ok(()) };
        self.0.places.look(directory)?;
        match mounts::on(directory) {
            Some(mount) => Err(Failure::not_now(format!(
                "what is mounted on {} ({}) is not volume {volume:?}: unmount it by hand if nobody needs it",
                directory.display(),
                mount.kind
            ))),
            None => Ok(()),
        }
    }

    /// Whether `info` may only be read here.
    fn published(&self, info: &VolumeInfo, must_be: bool) -> Result<bool, Failure> {
        let (name, here) = (&info.meta.doc.name, &self.0.settings.node);
        match &info.published {
            Some(published) if published.node == *here => Ok(published.read_only),
            Some(published) => Err(Failure::not_now(format!(
                "volume {name:?} is published to node {:?}, not to {here:?}: it can be on one at a time",
                published.node
            ))),
            None if must_be => Err(Failure::not_now(format!(
                "volume {name:?} is not published to node {here:?}: the CSI controller has to do that first"
            ))),
            None => Ok(false),
        }
    }

    async fn find(&self, volume: &str) -> Result<VolumeInfo, Failure> {
        let info = find_volume(&*self.0.control.store, volume).await?;
        if info.meta.doc.deleting {
            return Err(VolumeError::Deleting(info.meta.doc.name).into());
        }
        Ok(info)
    }

    /// The record of a volume that is served by this process.
    fn served(&self, id: VolumeId) -> Result<Record, Failure> {
        let record = self.0.attachments.records().load(id)?;
        let served = record.filter(|record| self.keepers().contains_key(&id) && record.lost.is_none());
        served.filter(|_| self.0.attachments.records().is_served(id)).ok_or_else(|| {
            Failure::not_now(format!(
                "volume {id} is not attached on this host, or its device is dead: attach it first"
            ))
        })
    }

    /// Leaves what pods use to the next agent, where a holder keeps it. Of the rest, lets everything go that nobody uses, and has
    /// the kernel write back what it holds of what is used: those devices end with this process.
    pub async fn stop(&self) {
        let records = self.0.attachments.records().all().unwrap_or_default();
        stream::iter(records).for_each_concurrent(AT_ONCE, |record| self.stop_one(record)).await;
    }

    async fn stop_one(&self, record: Record) {
        let keeper = self.keepers().remove(&record.volume);
        let Some(mut keeper) = keeper else { return };
        let is_used = record.mount.is_some() || !record.targets.is_empty();
        if is_used && keeper.leave().await {
            return tracing::info!(volume = record.name, "left to the next agent of this host");
        }
        if let Some(mount) = &record.mount
            && let Err(error) = filesystem::sync(&mount.directory).await
        {
            tracing::error!(volume = record.name, "{}", told(&error));
        }
        match keeper.close().await {
            Ok(()) => tracing::info!(volume = record.name, "let go"),
            Err(error) => tracing::warn!(volume = record.name, "not let go: {}", told(&error)),
        }
    }

    fn keepers(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Keeper>> {
        // A panic elsewhere leaves a map of handles as sound as it was.
        self.0.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remarks(&self) -> MutexGuard<'_, BTreeMap<VolumeId, String>> {
        self.0.remarks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
