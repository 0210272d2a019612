//! What is attached on this host: volumes as block devices, and filesystems mounted from them.
//!
//! ```text
//!   Attachments ── records, one for each volume (`/var/lib/torus/attached`)
//!        │
//!        ├── Keeper: owns one volume in this process and shows it as a device    … torusctl attach, agents, the demo
//!        │      └── HostDevice: kernel NBD, or a FUSE file and a loop device
//!        │             └── Held: a FUSE connection that the holder of this host keeps too, for the next keeper
//!        └── filesystem: made, checked, mounted, grown, unmounted, by child processes
//! ```
//!
//! Whoever attaches a volume holds its lock, sees to what an earlier process has left ([`Attachments::settle`]), and starts a
//! [`Keeper`], in this process or in one of its own. Everything can be repeated: after a crash at any point the next
//! attach or detach puts things in order, and says what it did.
//!
//! # Invariants
//! 1. A volume has at most one keeper on a host: it holds a lock that ends with its process.
//! 2. What is on a host is in a record before it is there.
//! 3. A device is taken away only from a dead process, or by its own in order and when nobody uses it.
//! 4. No process does I/O on a device that it serves itself (see [`tool`]).
//!
//! What is *not* here: who may have a volume. That is decided by its epoch alone; two hosts with records of one volume
//! are an old one and a new one, and the old one's device answers with errors.

pub mod filesystem;
mod held;
mod host;
mod keeper;
mod loopdev;
pub mod mounts;
pub mod places;
mod process;
mod record;
pub mod service;
pub mod tool;

pub use filesystem::Filesystem;
pub use host::{HostError, Kind, choose};
pub use keeper::{Keeper, Wish};
pub use process::{end, prepare};
pub use record::{KeeperProcess, Locked, MountPoint, Record, RecordError, Records, Role, Target};

use crate::owner::OwnerError;
use filesystem::Found;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tool::ToolError;
use torus_core::ids::VolumeId;

/// Where records are kept unless somebody wants otherwise.
pub const DIRECTORY: &str = "/var/lib/torus/attached";
/// Where a node service is, unless somebody wants otherwise.
pub const SOCKET: &str = "/run/torus/node.sock";
/// How long another may take to attach or detach a volume that we want to attach or detach.
const LOCKED: Duration = Duration::from_secs(60);
/// How long a process that was killed may take to let go of what it had.
const DYING: Duration = Duration::from_secs(10);
/// How long a process that has ended may seem to hold a lock: one that it was starting has it until it is another program.
const LETTING_GO: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// Why something is not attached, mounted or detached.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The volume.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The device.
    #[error("cannot make volume {volume:?} a block device")]
    Device {
        /// The volume.
        volume: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// The lock.
    #[error("another process is attaching or detaching volume {0} on this host right now: try again when it is done")]
    Locked(VolumeId),
    /// The lock of the living.
    #[error("volume {0:?} is attached on this host already, by a process that lives")]
    Served(String),
    /// A keeper's thread.
    #[error("cannot start a thread for a volume")]
    Thread(#[source] io::Error),
    /// A keeper's thread is gone.
    #[error("the volume is not served any more")]
    Ended,
    /// No such directory.
    #[error("cannot mount on {0}: make that directory first")]
    NoDirectory(PathBuf, #[source] io::Error),
    /// Something else.
    #[error("cannot mount on {0}: it is not a directory")]
    NotADirectory(PathBuf),
    /// Somebody has changed the path meanwhile.
    #[error("{0} was moved while a volume was mounted there, and nothing is mounted: try again when nobody moves it")]
    Moved(PathBuf),
    /// It is taken.
    #[error("cannot mount on {directory}: a filesystem ({kind}) is mounted there already. Choose another directory")]
    MountedOn {
        /// The directory.
        directory: PathBuf,
        /// What is there.
        kind: String,
    },
    /// Another filesystem.
    #[error(
        "volume {volume:?} holds {found}{}, and nothing was changed on it. {}", wanted.map_or(String::new(), |wanted| format!(", not {wanted}")),
        if wanted.is_some() { "Mount what it holds (leave --fs out), or use another volume" } else { "Mount it by hand, or use another volume" }
    )]
    HoldsOther {
        /// The volume.
        volume: String,
        /// What is on it.
        found: String,
        /// What was asked for.
        wanted: Option<Filesystem>,
    },
    /// Bytes.
    #[error(
        "volume {volume:?} holds data that is no filesystem known here, and nothing was changed on it. \
         Use another volume, or clear this one's first MiB yourself if you are sure"
    )]
    HoldsUnknown {
        /// The volume.
        volume: String,
    },
    /// No room for that filesystem.
    #[error(
        "volume {0:?} is too small for XFS, which has at least 300 MiB: grow it (torusctl volume resize), or take ext4"
    )]
    TooSmall(String),
    /// Read-only and empty.
    #[error("volume {volume:?} is empty and attached read-only: there is nothing to mount")]
    NothingToRead {
        /// The volume.
        volume: String,
    },
    /// A filesystem that wants a person.
    #[error(
        "the filesystem on volume {volume:?} is damaged and was not mounted: attach it without --mount and run `e2fsck {device}`"
    )]
    Damaged {
        /// The volume.
        volume: String,
        /// Its device, while it is attached.
        device: PathBuf,
        /// What e2fsck said.
        #[source]
        source: ToolError,
    },
    /// Mounting.
    #[error("cannot mount volume {volume:?} on {directory}")]
    Mount {
        /// The volume.
        volume: String,
        /// Where.
        directory: PathBuf,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// Unmounting.
    #[error("cannot unmount volume {volume:?} from {directory}")]
    Unmount {
        /// The volume.
        volume: String,
        /// Where.
        directory: PathBuf,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// Somebody uses it.
    #[error("volume {volume:?} is in use at {device}, by {users}: end that first")]
    Busy {
        /// The volume.
        volume: String,
        /// The device.
        device: PathBuf,
        /// Who.
        users: String,
    },
    /// Attached by a program that has other volumes as well.
    #[error(
        "volume {volume:?} was attached by an agent (process {pid}), which detaches it when its pod or its user lets go of it"
    )]
    OfAnAgent {
        /// The volume.
        volume: String,
        /// The agent's process.
        pid: u32,
    },
    /// A process that cannot be signalled.
    #[error("cannot ask process {pid}, which serves volume {volume:?}, to let it go")]
    Signal {
        /// The volume.
        volume: String,
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process that takes its time.
    #[error(
        "process {pid} has not let volume {volume:?} go within {limit:?}. It is told to and goes on with it; {log} says how far it is"
    )]
    Slow {
        /// The volume.
        volume: String,
        /// The process.
        pid: u32,
        /// How long was waited.
        limit: Duration,
        /// Its log.
        log: PathBuf,
    },
}

/// One volume that is attached, and whether anybody serves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// What is known of it.
    pub record: Record,
    /// Its process lives.
    pub served: bool,
}

/// What was found of a volume that is to be attached or detached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Settled {
    /// Nothing.
    Free,
    /// Remains of a process that is gone. They were removed; here is what they were.
    Cleared(Record),
    /// A device of a process that is gone: its requests wait for the next [`Keeper`], which takes it over.
    Orphaned(Record),
    /// It is attached, and served.
    Attached(Record),
}

/// The right to attach or detach one volume on this host.
#[derive(Debug)]
pub struct Right {
    records: Records,
    volume: VolumeId,
    _lock: Locked,
}

/// Where nothing is attached in the end, nothing is left.
impl Drop for Right {
    fn drop(&mut self) {
        if matches!(self.records.load(self.volume), Ok(None))
            && let Err(error) = self.records.remove(self.volume)
        {
            tracing::warn!("{}", crate::process::told(&error));
        }
    }
}

/// The volumes attached on this host.
#[derive(Clone, Debug)]
pub struct Attachments {
    records: Records,
}

impl Attachments {
    /// Those whose records are in `directory`.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self { records: Records::at(directory) }
    }

    /// Their records.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// When records cannot be read.
    pub fn list(&self) -> Result<Vec<Attachment>, RecordError> {
        let records = self.records.all()?.into_iter();
        Ok(records.map(|record| Attachment { served: self.records.is_served(record.volume), record }).collect())
    }

    /// The one with this volume's name or id, this device, or this directory as its mount point.
    ///
    /// # Errors
    /// When records cannot be read.
    pub fn find(&self, what: &str) -> Result<Option<Attachment>, RecordError> {
        let path = std::path::absolute(what).ok();
        let real = std::fs::canonicalize(what).ok();
        let is = |found: &Path| [&path, &real].into_iter().flatten().any(|path| path == found);
        let all = self.list()?;
        let named = all.iter().find(|found| found.record.name == what);
        let found = named.or_else(|| {
            all.iter().find(|Attachment { record, .. }| {
                what.parse() == Ok(record.volume)
                    || record.device.as_deref().is_some_and(is)
                    || record.mount.as_ref().is_some_and(|mount| is(&mount.directory))
            })
        });
        Ok(found.cloned())
    }

    /// The right to attach or detach `volume`. Waits for another that has it.
    ///
    /// # Errors
    /// When the other takes too long.
    pub async fn lock(&self, volume: VolumeId) -> Result<Right, NodeError> {
        let deadline = Instant::now() + LOCKED;
        loop {
            if let Some(right) = self.try_lock(volume)? {
                return Ok(right);
            }
            if Instant::now() >= deadline {
                return Err(NodeError::Locked(volume));
            }
            sleep(POLL).await;
        }
    }

    fn try_lock(&self, volume: VolumeId) -> Result<Option<Right>, RecordError> {
        let lock = self.records.lock(volume)?;
        Ok(lock.map(|lock| Right { records: self.records.clone(), volume, _lock: lock }))
    }

    /// Finds out how things stand with `volume`, and removes what a process that is gone has left. The caller holds its
    /// lock.
    ///
    /// # Errors
    /// When records cannot be read or removed.
    pub async fn settle(&self, volume: VolumeId) -> Result<Settled, NodeError> {
        let Some(record) = self.records.load(volume)? else { return Ok(Settled::Free) };
        let deadline = Instant::now() + DYING;
        while self.records.is_served(volume) {
            if !record.keeper.is_dying() || Instant::now() >= deadline {
                return Ok(Settled::Attached(record));
            }
            sleep(POLL).await;
        }
        if host::waits(&record).await {
            return Ok(Settled::Orphaned(record));
        }
        self.clear(&record).await?;
        Ok(Settled::Cleared(record))
    }

    /// Removes what a process that is gone has left of an attached volume. What was not written yet by those who use it is
    /// lost to them. The caller holds the volume's lock.
    ///
    /// # Errors
    /// When its record cannot be removed.
    pub async fn clear(&self, record: &Record) -> Result<(), NodeError> {
        host::clear(record, &self.records.place(record.volume)).await;
        Ok(self.records.remove(record.volume)?)
    }

    /// Removes the places of volumes that were being attached or detached when their process ended, and have no record: nothing of
    /// them is on this host. One that is attached or detached by another process is left to that one.
    ///
    /// # Errors
    /// When records cannot be read.
    pub async fn tidy(&self) -> Result<(), NodeError> {
        for volume in self.records.unrecorded()? {
            let deadline = Instant::now() + LETTING_GO;
            while self.try_lock(volume)?.is_none() && Instant::now() < deadline {
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Mounts an attached volume, and writes down where. The caller holds its lock.
    ///
    /// # Errors
    /// As [`filesystem::look`] and [`filesystem::mount`].
    pub async fn mount(&self, record: &mut Record, wanted: &filesystem::Wanted) -> Result<(), NodeError> {
        let device = record.device_there().ok_or(NodeError::Ended)?.to_owned();
        // What is done to a device by hand, after a command was interrupted, is not known here. An agent's is nobody else's.
        let unfinished = record.making && record.keeper.role == Role::Agent;
        let filesystem = match filesystem::look(&device, &record.name, wanted, unfinished).await? {
            Found::Filesystem(filesystem) => filesystem,
            Found::Nothing(filesystem) => {
                self.note(record, |record| record.making = true)?;
                let made = filesystem::make(&device, filesystem).await;
                self.note(record, |record| record.making = false)?;
                let (volume, directory) = (record.name.clone(), wanted.directory.clone());
                made.map_err(|source| NodeError::Mount { volume, directory, source })?;
                filesystem
            }
        };
        filesystem::mount(&device, &record.name, filesystem, wanted).await?;
        let mount = MountPoint { directory: wanted.directory.clone(), filesystem };
        self.note(record, |record| record.mount = Some(mount))
    }

    /// Changes the record of an attached volume.
    fn note(&self, record: &mut Record, change: impl FnOnce(&mut Record)) -> Result<(), NodeError> {
        *record = self.records.change(record.volume, change)?.ok_or(NodeError::Ended)?;
        Ok(())
    }

    /// Unmounts an attached volume from everywhere. The caller holds its lock. Where it was stays in its record until it is detached,
    /// so that whoever asks for that by its directory is understood also after a crash in between.
    ///
    /// # Errors
    /// When somebody uses it.
    pub async fn unmount(&self, record: &Record) -> Result<(), NodeError> {
        if let Some(device) = record.device_there() {
            filesystem::unmount(device, &record.name).await?;
            host::free(device, &record.name).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn what_an_end_in_the_middle_leaves_is_removed_and_what_others_have_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let attachments = Attachments::at(directory.path().into());
        let records = attachments.records();
        let [attached, detached, begun, underway] = [1, 2, 3, 4].map(VolumeId);
        records.save(&Record::new(attached, "attached".into(), Kind::Fuse, Role::Agent)).unwrap();
        for file in ["alive", "log", "lock"] {
            fs::create_dir_all(records.place(detached).join("fuse")).unwrap();
            fs::write(records.place(detached).join(file), b"").unwrap();
        }
        fs::create_dir_all(records.place(begun)).unwrap();
        fs::write(records.place(begun).join("record.json.7.tmp"), b"{").unwrap();
        let right = attachments.lock(underway).await.unwrap();
        attachments.tidy().await.unwrap();
        let there = |volume| records.place(volume).exists();
        assert_eq!([attached, detached, begun, underway].map(there), [true, false, false, true]);
        assert!(records.load(attached).unwrap().is_some());
        drop(right);
        assert!(!there(underway));
    }
}
