//! What is attached on this host, as files: a directory for each volume, named by its id.
//!
//! | file | what |
//! |---|---|
//! | `record.json` | the [`Record`]; written whole or not at all, and synced |
//! | `alive` | locked by the process that serves the volume, for as long as it lives |
//! | `lock` | locked by whoever attaches or detaches it, for as long as that takes |
//! | `log` | what a process in the background said |
//! | `fuse/` | where its file is mounted, for devices of that kind |
//!
//! Whether a process lives is told by its lock and not by its number: a number means nothing in another container, and
//! may have been given to another process.

use super::filesystem::Filesystem;
use super::{Kind, loopdev};
use crate::metadata::VolumeInfo;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use torus_core::ids::VolumeId;

/// The layout of a record that this program knows.
const VERSION: u32 = 1;
/// The file that holds it.
const RECORD: &str = "record.json";

/// One volume that is attached here, with all that a later process needs to take its device over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The layout of this document.
    pub version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// What people call it.
    pub name: String,
    /// How it is a device.
    pub kind: Kind,
    /// The device; `None` until it is there.
    pub device: Option<PathBuf>,
    /// What tells a loop device from the next one at that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// It takes no writes.
    pub read_only: bool,
    /// In which epoch it is served.
    pub epoch: u64,
    /// Its size when it was attached, or last grew.
    pub size_bytes: u64,
    /// A filesystem is being made on it: what is found there later, if nobody else has had the volume, is its remains.
    #[serde(default, skip_serializing_if = "is_false")]
    pub making: bool,
    /// Where it is mounted, if that was asked for.
    pub mount: Option<MountPoint>,
    /// Where else it is shown: its filesystem, or its device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
    /// Where a holder may have its device for the next process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<PathBuf>,
    /// The process that serves it.
    pub keeper: KeeperProcess,
    /// Why it is served no more, if that is known.
    pub lost: Option<String>,
    /// When it was attached, in seconds since 1970.
    pub since_unix_s: u64,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// One more place at which an attached volume is shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Where.
    pub path: PathBuf,
    /// The device, and not its filesystem.
    pub block: bool,
    /// It takes no writes there.
    pub read_only: bool,
}

/// A filesystem that is mounted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MountPoint {
    /// Where.
    pub directory: PathBuf,
    /// What.
    pub filesystem: Filesystem,
}

/// A process that serves a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeeperProcess {
    /// What kind of program it is.
    pub role: Role,
    /// Its number.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot: with the number, it names one process.
    pub start_ticks: u64,
}

/// What a process that serves a volume is, which says who may end it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It serves this volume and nothing else: whoever detaches the volume ends it.
    Background,
    /// It serves volumes among other things, and detaches them itself.
    Agent,
}

impl KeeperProcess {
    /// This process.
    #[must_use]
    pub fn here(role: Role) -> Self {
        let pid = std::process::id();
        Self { role, pid, start_ticks: start_ticks(pid).unwrap_or(0) }
    }

    /// Whether the process of this number is this one.
    #[must_use]
    pub fn is_this_one(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Whether it was killed, and only its threads have not all been told yet.
    #[must_use]
    pub fn is_dying(&self) -> bool {
        self.is_this_one() && matches!(stat(self.pid, 3).as_deref(), Some("Z" | "X"))
    }
}

/// Field 22 of `/proc/PID/stat`.
fn start_ticks(pid: u32) -> Option<u64> {
    stat(pid, 22)?.parse().ok()
}

/// A field of `/proc/PID/stat`, from the third on: the second is a name, in parentheses, that may hold anything.
fn stat(pid: u32, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(field - 3).map(str::to_owned)
}

impl Record {
    /// Whether the cluster still takes the process of this record for the volume's owner.
    #[must_use]
    pub fn is_of_owner(&self, info: &VolumeInfo) -> bool {
        let owner = info.epoch.as_ref().map(|epoch| &epoch.doc);
        owner.is_some_and(|owner| owner.epoch.0 == self.epoch && owner.holder.pid == self.keeper.pid)
    }

    /// Its device, while that node leads to it: when a loop device ends, its node is given to another file.
    #[must_use]
    pub fn device_there(&self) -> Option<&Path> {
        let is_there = |device: &&Path| self.kind != Kind::Fuse || loopdev::is_attached(device, self.sequence);
        self.device.as_deref().filter(is_there)
    }

    /// A record of a volume whose device is not there yet.
    #[must_use]
    pub fn new(volume: VolumeId, name: String, kind: Kind, role: Role) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            version: VERSION,
            volume,
            name,
            kind,
            device: None,
            sequence: None,
            read_only: false,
            epoch: 0,
            size_bytes: 0,
            making: false,
            mount: None,
            targets: Vec::new(),
            holder: None,
            keeper: KeeperProcess::here(role),
            lost: None,
            since_unix_s: now.map_or(0, |now| now.as_secs()),
        }
    }
}

/// Why records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file or a directory.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A record that is none.
    #[error("{path} is no record of an attached volume. Look at it, and remove it if the volume is not attached")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A record of a later program.
    #[error("{path} was written by a newer version of Torus (layout {version}): use that one")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        version: u32,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Io { doing, path, source }
}

/// A lock on a file. Dropped, it is free.
#[derive(Debug)]
pub struct Locked {
    _file: Flock<File>,
}

/// The records of this host.
#[derive(Clone, Debug)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// Those in `directory`, which need not be there.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where all that belongs to `volume` is.
    #[must_use]
    pub fn place(&self, volume: VolumeId) -> PathBuf {
        self.directory.join(volume.to_string())
    }

    /// All records, by name. What is not a record is passed over.
    ///
    /// # Errors
    /// When the directory or a record cannot be read.
    pub fn all(&self) -> Result<Vec<Record>, RecordError> {
        let mut records = Vec::new();
        for volume in self.volumes()? {
            records.extend(self.load(volume)?);
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// The volumes with a place but no record: one of them is attached or detached right now, or was when its process ended.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn unrecorded(&self) -> Result<Vec<VolumeId>, RecordError> {
        let is_recorded = |volume: &VolumeId| self.place(*volume).join(RECORD).exists();
        Ok(self.volumes()?.into_iter().filter(|volume| !is_recorded(volume)).collect())
    }

    /// The volumes that have a place.
    fn volumes(&self) -> Result<Vec<VolumeId>, RecordError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &self.directory)(error)),
        };
        let named = |entry: io::Result<fs::DirEntry>| match entry {
            Ok(entry) => entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Ok),
            Err(error) => Some(Err(failed("read", &self.directory)(error))),
        };
        entries.filter_map(named).collect()
    }

    /// The record of `volume`, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(&self, volume: VolumeId) -> Result<Option<Record>, RecordError> {
        let path = self.place(volume).join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        #[derive(Deserialize)]
        struct Layout {
            version: u32,
        }
        let json = |source| RecordError::Json { path: path.clone(), source };
        match serde_json::from_slice::<Layout>(&text).map_err(json)?.version {
            VERSION => serde_json::from_slice(&text).map(Some).map_err(json),
            version => Err(RecordError::Newer { path: path.clone(), version }),
        }
    }

    /// Writes `record`: whole and on stable storage, or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, record: &Record) -> Result<(), RecordError> {
        let place = self.make_place(record.volume)?;
        let path = place.join(RECORD);
        let temporary = place.join(format!("{RECORD}.{}.tmp", std::process::id()));
        let text = serde_json::to_string_pretty(record);
        let text = text.map_err(|source| RecordError::Json { path: path.clone(), source })? + "\n";
        let written = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&place)?.sync_all()
        };
        written().map_err(failed("write", &path))
    }

    /// Changes the record of `volume` as it is now, and gives what it is then; `None`: there is none. One at a time: who serves a
    /// volume writes down how it grew, while who mounts it writes down where.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn change(&self, volume: VolumeId, change: impl FnOnce(&mut Record)) -> Result<Option<Record>, RecordError> {
        let place = self.place(volume);
        let lock = match File::open(&place) {
            Ok(directory) => Flock::lock(directory, FlockArg::LockExclusive),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &place)(error)),
        };
        let _lock = lock.map_err(|(_, error)| failed("lock", &place)(error.into()))?;
        let Some(mut record) = self.load(volume)? else { return Ok(None) };
        change(&mut record);
        self.save(&record)?;
        Ok(Some(record))
    }

    /// Forgets `volume`, with everything that belongs to it.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self, volume: VolumeId) -> Result<(), RecordError> {
        let place = self.place(volume);
        let remove = |path: &Path, removed: io::Result<()>| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
            _ => Ok(()),
        };
        // The record first: without it, nothing is attached.
        for name in [RECORD, "alive", "log"] {
            let path = place.join(name);
            remove(&path, fs::remove_file(&path))?;
        }
        let fuse = place.join("fuse");
        remove(&fuse, fs::remove_dir(&fuse))?;
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(".tmp") {
                remove(&entry.path(), fs::remove_file(entry.path()))?;
            }
        }
        let lock = place.join("lock");
        remove(&lock, fs::remove_file(&lock))?;
        remove(&place, fs::remove_dir(&place))
    }

    /// The lock for attaching and detaching `volume`; `None`: another has it.
    ///
    /// # Errors
    /// When there can be no such lock.
    pub fn lock(&self, volume: VolumeId) -> Result<Option<Locked>, RecordError> {
        self.take(volume, "lock")
    }

    /// The lock of the process that serves `volume`; `None`: another has it.
    ///
    /// # Errors
    /// When there can be no such lock.
    pub fn take_over(&self, volume: VolumeId) -> Result<Option<Locked>, RecordError> {
        self.take(volume, "alive")
    }

    /// Whether a process serves `volume` here.
    #[must_use]
    pub fn is_served(&self, volume: VolumeId) -> bool {
        let Ok(file) = File::open(self.place(volume).join("alive")) else { return false };
        matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
    }

    fn take(&self, volume: VolumeId, name: &str) -> Result<Option<Locked>, RecordError> {
        use std::os::unix::fs::MetadataExt;
        loop {
            let path = self.make_place(volume)?.join(name);
            let opened = File::options().create(true).append(true).open(&path);
            let file = match opened {
                // Removed in this moment, by who let it go.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(failed("open", &path))?,
            };
            let locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => locked,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, error)) => return Err(failed("lock", &path)(error.into())),
            };
            // What was locked may have been removed before, and stand for nothing.
            let ours = locked.metadata().map_err(failed("read", &path))?.ino();
            if fs::metadata(&path).is_ok_and(|found| found.ino() == ours) {
                return Ok(Some(Locked { _file: locked }));
            }
        }
    }

    fn make_place(&self, volume: VolumeId) -> Result<PathBuf, RecordError> {
        use std::os::unix::fs::DirBuilderExt;
        let place = self.place(volume);
        // Logs and devices are root's business.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&place);
        made.map_err(failed("make the directory", &place))?;
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, volume: u64) -> Record {
        Record {
            device: Some("/dev/loop7".into()),
            ..Record::new(VolumeId(volume), name.into(), Kind::Fuse, Role::Agent)
        }
    }

    #[test]
    fn changes_that_meet_are_all_made() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::at(directory.path().into());
        assert_eq!(records.change(VolumeId(1), |_| panic!("there is none")).unwrap(), None);
        records.save(&record("a", 1)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let records = &records;
                scope.spawn(move || {
                    for number in 0..20 {
                        let path = PathBuf::from(format!("/{thread}/{number}"));
                        let target = Target { path, block: false, read_only: false };
                        records.change(VolumeId(1), |record| record.targets.push(target)).unwrap();
                    }
                });
            }
        });
        assert_eq!(records.load(VolumeId(1)).unwrap().unwrap().targets.len(), 80);
    }

    #[test]
    fn a_record_reads_as_it_was_written_and_goes_without_a_trace() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::at(directory.path().join("attached"));
        assert_eq!(records.all().unwrap(), []);
        let (b, a) = (record("b", 1), record("a", 2));
        records.save(&b).unwrap();
        records.save(&a).unwrap();
        assert_eq!(records.all().unwrap(), [a.clone(), b.clone()]);
        records.remove(b.volume).unwrap();
        records.remove(b.volume).unwrap();
        assert_eq!(records.load(b.volume).unwrap(), None);
        assert!(!records.place(b.volume).exists());
        assert_eq!(records.all().unwrap(), [a]);
    }

    #[test]
    fn what_is_no_record_and_what_is_newer_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::at(directory.path().into());
        records.save(&record("a", 1)).unwrap();
        let path = records.place(VolumeId(1)).join(RECORD);
        fs::write(&path, b"{\"version\": 2}").unwrap();
        assert!(matches!(records.all(), Err(RecordError::Newer { version: 2, .. })));
        fs::write(&path, b"{\"version\": 1, \"volu").unwrap();
        assert!(matches!(records.all(), Err(RecordError::Json { .. })));
    }

    #[test]
    fn a_lock_is_held_by_one_and_tells_who_lives() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::at(directory.path().into());
        let volume = VolumeId(1);
        assert!(!records.is_served(volume));
        let held = records.take_over(volume).unwrap().unwrap();
        assert!(records.is_served(volume));
        assert!(records.take_over(volume).unwrap().is_none());
        drop(held);
        assert!(!records.is_served(volume));
        let lock = records.lock(volume).unwrap().unwrap();
        records.remove(volume).unwrap();
        assert!(records.lock(volume).unwrap().is_some());
        drop(lock);
    }

    #[test]
    fn a_process_is_told_from_another_of_its_number() {
        let here = KeeperProcess::here(Role::Background);
        assert!(here.is_this_one());
        assert!(!KeeperProcess { start_ticks: here.start_ticks + 1, ..here }.is_this_one());
    }
}
