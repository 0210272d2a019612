//! An agent's disks at start: made, opened, judged, formatted, read back.
//!
//! 1. A disk of any Torus is never formatted: not one of another cluster, another agent, or a newer format.
//! 2. A disk that holds anything else is formatted only when its user said so.
//! 3. An agent is its disks: its id is drawn when the first of them is formatted, and is the same on all of them.

use super::config::Config;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use torus_core::format::disk::{DiskIds, Geometry, GeometryError, Superblock};
use torus_core::ids::{AgentId, BLOCK_BYTES, DiskId};
use torus_core::member::{DiskCore, DiskError, DiskEvent, DiskOp, DiskReader as _, DiskWrite, Expected, RecoverError};
use torus_core::member::{format_disk, inspect};
use torus_core::meta::docs::ClusterDoc;
use torus_store::{BufferPool, Disk, DiskOptions, OpenError};

/// The file that is made in a data directory.
const FILE_NAME: &str = "disk0.torus";
/// How much at either end of a disk must be zero for it to be called empty: partition tables, filesystems, volume
/// managers and swap all say so there.
const BLANK_BYTES: u64 = 1 << 20;
/// How often a long job says how far it is.
const PROGRESS_TIME: Duration = Duration::from_secs(5);

/// Why an agent's disks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// The data directory cannot be made.
    #[error("cannot make the data directory {path:?}. Choose another with --data-dir, or mend its permissions")]
    DataDir {
        /// Where.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A disk cannot be made or opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A disk is another's, or cannot be trusted.
    #[error("cannot use the disk {path:?}: {source}")]
    Recover {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        source: RecoverError,
    },
    /// A disk that holds something, and not Torus's.
    #[error(
        "the disk {path:?} holds data that is not Torus's. Give another disk; or, if that data may be lost, start once \
         with --format-new-disks"
    )]
    NotBlank {
        /// Where.
        path: PathBuf,
    },
    /// Disks of several agents.
    #[error(
        "{path:?} is a disk of agent {found}, and {other:?} is one of agent {expected}. Give each agent its own disks"
    )]
    SeveralAgents {
        /// Where.
        path: PathBuf,
        /// Whose.
        found: AgentId,
        /// Another disk that was given.
        other: PathBuf,
        /// Whose that is.
        expected: AgentId,
    },
    /// The same disk twice, or a copy of it.
    #[error(
        "{path:?} and {other:?} are both disk {disk}: one is a copy. Give the one that was used last, and only that"
    )]
    SameDisk {
        /// One.
        path: PathBuf,
        /// The other.
        other: PathBuf,
        /// Which disk.
        disk: DiskId,
    },
    /// No room for slots.
    #[error("cannot format the disk {path:?}: {source}")]
    Geometry {
        /// Where.
        path: PathBuf,
        /// What is wrong with its size.
        source: GeometryError,
    },
    /// Reading or writing failed.
    #[error("cannot {doing} the disk {path:?}: {source}. Replace it, or look at the kernel's log")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the disk says.
        source: DiskError,
    },
}

impl DisksError {
    /// Whether it was Torus that declined, and not the system that failed.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::DataDir { .. } | Self::Open(_) | Self::Io { .. })
    }
}

/// An agent's disks, ready to serve.
#[derive(Debug)]
pub struct Disks {
    /// Whose they are.
    pub agent: AgentId,
    /// Each with what was read back from it.
    pub disks: Vec<(Disk, DiskCore)>,
}

/// Opens, and where needed makes and formats, all disks of an agent. Blocks, for minutes where a file is filled.
///
/// # Errors
/// See [`DisksError`]. Nothing has been formatted then unless all disks were fit for use.
pub fn prepare(config: &Config, cluster: &ClusterDoc, pool: &BufferPool) -> Result<Disks, DisksError> {
    let mut options = DiskOptions::new(pool.clone());
    options.buffered = config.buffered;
    options.engine = config.engine;
    let mut found = Vec::new();
    for path in paths(config)? {
        let mut disk = Disk::open(&path, &options)?;
        disk.notes().iter().for_each(|note| tracing::warn!("{note}"));
        let superblock = judge(&mut disk, config.format_new_disks)?;
        found.push((disk, superblock));
    }
    let agent = agent_of(&found)?;
    let expected = Expected { cluster: cluster.id, agent, extent_blocks: cluster.extent_blocks };
    // All that can be refused is refused before the first disk is formatted.
    for (disk, superblock) in &found {
        if superblock.is_none() {
            geometry(disk, cluster)?;
        }
    }
    let mut disks = Vec::new();
    for (mut disk, superblock) in found {
        if superblock.is_none() {
            format(&mut disk, cluster, agent)?;
        }
        let began = Instant::now();
        let core = DiskCore::recover(&mut disk.scan(), &expected);
        let core = core.map_err(|source| DisksError::Recover { path: disk.path().into(), source })?;
        told(&disk, &core, began.elapsed());
        disks.push((disk, core));
    }
    Ok(Disks { agent, disks })
}

/// Where the disks are; the data directory's file is made.
fn paths(config: &Config) -> Result<Vec<PathBuf>, DisksError> {
    let mut paths = Vec::new();
    if let Some(dir) = &config.data_dir {
        std::fs::create_dir_all(dir).map_err(|source| DisksError::DataDir { path: dir.clone(), source })?;
        let path = dir.join(FILE_NAME);
        if !path.exists() {
            let mut last = Instant::now();
            let bytes = config.size_bytes;
            tracing::info!(path = %path.display(), bytes, "making a disk file");
            Disk::create(&path, bytes, config.fill, |done| {
                if last.elapsed() >= PROGRESS_TIME {
                    last = Instant::now();
                    tracing::info!(path = %path.display(), "{} % made", done * 100 / bytes.max(1));
                }
            })?;
        }
        paths.push(path);
    }
    paths.extend(config.disks.iter().cloned());
    Ok(paths)
}

/// What the disk says of itself; `None` when it may be formatted.
fn judge(disk: &mut Disk, may_lose: bool) -> Result<Option<Superblock>, DisksError> {
    let says = inspect(&mut disk.scan());
    match says {
        Ok(superblock) => Ok(Some(superblock)),
        Err(RecoverError::NotFormatted) if may_lose || is_blank(disk)? => Ok(None),
        Err(RecoverError::NotFormatted) => Err(DisksError::NotBlank { path: disk.path().into() }),
        Err(source) => Err(DisksError::Recover { path: disk.path().into(), source }),
    }
}

/// Whether both ends of the disk are zero.
fn is_blank(disk: &mut Disk) -> Result<bool, DisksError> {
    let path = disk.path().to_path_buf();
    let bytes = disk.bytes();
    let len = BLANK_BYTES.min(bytes / BLOCK_BYTES * BLOCK_BYTES);
    let mut scan = disk.scan();
    for offset in [0, bytes - len] {
        let read = scan.read(offset, len as usize);
        let read = read.map_err(|source| DisksError::Io { doing: "look at", path: path.clone(), source })?;
        if read.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whose these disks are; a new agent's when all are blank.
fn agent_of(found: &[(Disk, Option<Superblock>)]) -> Result<AgentId, DisksError> {
    let mut known: Vec<(&Path, DiskIds)> = Vec::new();
    for (disk, superblock) in found {
        let Some(ids) = superblock.map(|superblock| superblock.ids) else { continue };
        let path = disk.path();
        if let Some((other, _)) = known.iter().find(|(_, known)| known.disk == ids.disk) {
            return Err(DisksError::SameDisk { path: path.into(), other: other.into(), disk: ids.disk });
        }
        if let Some((other, first)) = known.first().filter(|(_, first)| first.agent != ids.agent) {
            return Err(DisksError::SeveralAgents {
                path: path.into(),
                found: ids.agent,
                other: other.into(),
                expected: first.agent,
            });
        }
        known.push((path, ids));
    }
    Ok(known.first().map_or_else(|| AgentId(rand::random_range(1..=u64::MAX)), |(_, ids)| ids.agent))
}

fn geometry(disk: &Disk, cluster: &ClusterDoc) -> Result<Geometry, DisksError> {
    Geometry::fit(disk.bytes(), cluster.extent_blocks)
        .map_err(|source| DisksError::Geometry { path: disk.path().into(), source })
}

fn format(disk: &mut Disk, cluster: &ClusterDoc, agent: AgentId) -> Result<(), DisksError> {
    let geometry = geometry(disk, cluster)?;
    let ids = DiskIds { cluster: cluster.id, agent, disk: DiskId(rand::random_range(1..=u64::MAX)) };
    // The superblocks last: until they are there, a disk whose formatting was interrupted is not called formatted.
    let superblocks = [0, 1].map(Geometry::superblock_at);
    let (last, first) = format_disk(geometry, ids).into_iter().partition(|write| superblocks.contains(&write.offset));
    commit(disk, first)?;
    commit(disk, last)?;
    tracing::info!(path = %disk.path().display(), disk = %ids.disk, %agent, slots = geometry.slots(), "formatted a disk");
    Ok(())
}

/// Writes, and waits until it is durable.
fn commit(disk: &mut Disk, writes: Vec<DiskWrite>) -> Result<(), DisksError> {
    let failed = |disk: &Disk, source| DisksError::Io { doing: "format", path: disk.path().into(), source };
    disk.submit(DiskOp::Commit { id: 0, writes });
    let mut events = Vec::new();
    while events.is_empty() {
        disk.wait().map_err(|e| failed(disk, waiting(&e)))?;
        disk.completions(&mut events);
    }
    for event in events {
        if let DiskEvent::Committed { result: Err(source), .. } = event {
            return Err(failed(disk, source));
        }
    }
    Ok(())
}

fn waiting(error: &std::io::Error) -> DiskError {
    DiskError { kind: torus_core::member::DiskErrorKind::Io, text: format!("wait for it: {error}") }
}

fn told(disk: &Disk, core: &DiskCore, took: Duration) {
    let (ids, found, space) = (core.ids(), core.findings(), core.free_space());
    tracing::info!(
        path = %disk.path().display(),
        disk = %ids.disk,
        incarnation = %core.incarnation(),
        engine = ?disk.engine(),
        slots = space.total,
        free = space.free,
        open = found.open,
        sealed = found.sealed,
        took_ms = took.as_millis() as u64,
        "opened a disk"
    );
    if found.mended {
        tracing::warn!(disk = %ids.disk, "a superblock or fence sector was damaged in one of its two places, and is mended");
    }
    if !found.slots_damaged.is_empty() {
        tracing::error!(disk = %ids.disk, slots = ?found.slots_damaged, "slots are damaged and not used again");
    }
    if !found.open_damaged.is_empty() {
        tracing::warn!(disk = %ids.disk, extents = ?found.open_damaged, "open extents end in something damaged");
    }
}
