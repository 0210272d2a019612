//! How an attached volume is: its size, what is used of it, and whether it works.

use super::{Inner, NodeService, POLL};
use crate::grpc::Failure;
use crate::metadata::load_volume;
use crate::node::{Keeper, Record, filesystem, mounts};
use crate::process::told;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use torus_core::ids::{BLOCK_BYTES, VolumeId};

/// How long a filesystem may take to say how full it is.
const ASKED: Duration = Duration::from_secs(5);
/// How long a device may take to grow after its volume has.
const GROWN: Duration = Duration::from_secs(30);

/// How a volume is.
#[derive(Clone, Debug)]
pub struct Standing {
    /// What is known of it.
    pub record: Record,
    /// How full its filesystem is, where one is mounted and answers.
    pub usage: Option<Usage>,
    /// Why it does not work as it should.
    pub abnormal: Option<String>,
}

/// How full a filesystem is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// All bytes.
    pub bytes_total: u64,
    /// Those that anybody may use.
    pub bytes_available: u64,
    /// Those in use.
    pub bytes_used: u64,
    /// All inodes.
    pub inodes_total: u64,
    /// Those not in use.
    pub inodes_free: u64,
}

impl NodeService {
    /// How `volume`, an id or a name, is; at `path`, if that is given.
    ///
    /// # Errors
    /// When it is not attached here, or `path` is none of its places.
    pub async fn standing(&self, volume: &str, path: Option<&str>) -> Result<Standing, Failure> {
        let Inner { attachments, places, .. } = &*self.0;
        // At a path that is nowhere, no volume is.
        let path = path.map(|path| places.of(path)).transpose().map_err(|error| Failure::not_found(told(&error)))?;
        let none = || Failure::not_found(format!("volume {:.64} is not attached on this host", format!("{volume:?}")));
        let found = attachments.find(volume)?.ok_or_else(none)?;
        let record = found.record;
        if let Some(path) = &path {
            self.is_place(&record, path)?;
        }
        let remark = self.remarks().get(&record.volume).cloned();
        let dead = (!found.served).then(|| "the process that served its device is gone".to_owned());
        let mut abnormal = record.lost.clone().or(dead).or(remark);
        let place = path.or_else(|| record.mount.as_ref().map(|mount| mount.directory.clone()));
        let is_block = place
            .as_ref()
            .is_some_and(|place| record.targets.iter().any(|target| target.block && target.path == *place));
        let usage = match place {
            Some(place) if record.mount.is_some() && !is_block => match usage(place).await {
                Ok(usage) => Some(usage),
                Err(why) => {
                    abnormal.get_or_insert(why);
                    None
                }
            },
            _ => None,
        };
        Ok(Standing { record, usage, abnormal })
    }

    /// Fails unless `record`'s volume is mounted at `path`.
    fn is_place(&self, record: &Record, path: &Path) -> Result<(), Failure> {
        let staged = record.mount.as_ref().is_some_and(|mount| mount.directory == path);
        let shown = record.targets.iter().any(|target| target.path == path);
        if (staged || shown) && mounts::on(path).is_some() {
            return Ok(());
        }
        Err(Failure::not_found(format!("volume {:?} is not mounted at {}", record.name, path.display())))
    }

    /// Waits until the device and the filesystem of `volume` have its present size; how much that is.
    ///
    /// # Errors
    /// When it is not attached here, or does not grow.
    pub async fn grow(&self, volume: VolumeId, path: Option<&str>) -> Result<u64, Failure> {
        let path = path.map(|path| self.0.places.of(path)).transpose()?;
        let this = self.clone();
        self.alone(volume, async move { this.grow_alone(volume, path).await }).await
    }

    async fn grow_alone(&self, volume: VolumeId, path: Option<PathBuf>) -> Result<u64, Failure> {
        let Inner { attachments, control, .. } = &*self.0;
        let none = || Failure::not_found(format!("volume {volume} is not attached on this host"));
        let record = attachments.records().load(volume)?.ok_or_else(none)?;
        if let Some(path) = &path {
            self.is_place(&record, path)?;
        }
        let info = load_volume(&*control.store, volume).await?.ok_or_else(none)?;
        let wanted = info.meta.doc.size.0 * BLOCK_BYTES;
        let deadline = Instant::now() + GROWN;
        let record = loop {
            let record = self.served(volume)?;
            if record.size_bytes >= wanted {
                break record;
            }
            if Instant::now() >= deadline {
                let text =
                    format!("the device of volume {:?} has not grown to {wanted} bytes yet: try again", record.name);
                return Err(Failure::Refused(Code::Unavailable, text));
            }
            sleep(POLL).await;
        };
        if let (Some(device), Some(mount)) = (record.device_there(), &record.mount)
            && !record.read_only
        {
            let holding = self.keepers().get(&volume).map(Keeper::holding);
            if let Some(holding) = &holding {
                holding.end().await;
            }
            let grown = filesystem::grow(device, mount.filesystem, &mount.directory).await;
            if let Some(holding) = &holding {
                holding.begin().await;
            }
            grown.map_err(|error| {
                Failure::not_now(format!(
                    "the device of volume {:?} has grown, and its filesystem will when it is mounted next: {error}",
                    record.name
                ))
            })?;
        }
        Ok(record.size_bytes)
    }
}

async fn usage(place: PathBuf) -> Result<Usage, String> {
    let shown = place.display().to_string();
    let asked = timeout(ASKED, spawn_blocking(move || rustix::fs::statvfs(&place))).await;
    match asked {
        Ok(Ok(Ok(found))) => Ok(Usage {
            bytes_total: found.f_blocks * found.f_frsize,
            bytes_available: found.f_bavail * found.f_frsize,
            bytes_used: found.f_blocks.saturating_sub(found.f_bfree) * found.f_frsize,
            inodes_total: found.f_files,
            inodes_free: found.f_ffree,
        }),
        Ok(Ok(Err(error))) => Err(format!("the filesystem at {shown} does not work: {error}")),
        Ok(Err(_)) | Err(_) => Err(format!("the filesystem at {shown} does not answer for {} s", ASKED.as_secs())),
    }
}
