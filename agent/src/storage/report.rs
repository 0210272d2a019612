//! What a data plane says of itself.

use crate::tdp::ServerStats;
use std::path::PathBuf;
use std::sync::Arc;
use torus_core::ids::DiskId;
use torus_core::member::MemberStats;
use torus_core::peer::FreeSpace;

/// One disk, now.
#[derive(Clone, Debug)]
pub struct DiskReport {
    /// Which disk.
    pub id: DiskId,
    /// Where it is.
    pub path: PathBuf,
    /// Its slots.
    pub space: FreeSpace,
    /// Why it does not work any more.
    pub failure: Option<String>,
}

/// The whole plane, now.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether requests are answered: the start is recorded on all disks.
    pub started: bool,
    /// All disks that work.
    pub space: FreeSpace,
    /// Each disk.
    pub disks: Vec<DiskReport>,
    /// What the member has done.
    pub member: MemberStats,
    /// What the server has done.
    pub server: Arc<ServerStats>,
    /// Bytes of buffers in use.
    pub buffers_bytes: u64,
}
