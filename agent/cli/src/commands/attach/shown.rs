//! What is told of a volume that is attached.

use crate::output::{Record as Listed, Style};
use serde::Serialize;
use std::path::PathBuf;
use torus_agent::node::{Attachment, Filesystem, Kind};
use torus_core::ids::VolumeId;

/// A volume that is attached, for people and programs.
#[derive(Serialize)]
pub struct Shown {
    name: String,
    volume: VolumeId,
    device: Option<PathBuf>,
    kind: Kind,
    size_bytes: u64,
    read_only: bool,
    mounted_on: Option<PathBuf>,
    filesystem: Option<Filesystem>,
    epoch: u64,
    pid: u32,
    served: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
}

impl From<Attachment> for Shown {
    fn from(Attachment { record, served }: Attachment) -> Self {
        let (mounted_on, filesystem) = record.mount.map(|mount| (mount.directory, mount.filesystem)).unzip();
        Self {
            name: record.name,
            volume: record.volume,
            device: record.device,
            kind: record.kind,
            size_bytes: record.size_bytes,
            read_only: record.read_only,
            mounted_on,
            filesystem,
            epoch: record.epoch,
            pid: record.keeper.pid,
            served,
            lost: record.lost,
        }
    }
}

impl Listed for Shown {
    const COLUMNS: &'static [&'static str] =
        &["NAME", "DEVICE", "KIND", "SIZE", "MOUNTED ON", "FS", "PROCESS", "STATE"];

    fn cells(&self, style: Style) -> Vec<String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let state = match (&self.lost, self.served) {
            (Some(why), _) => format!("dead: {why}"),
            (None, false) => "dead: its process is gone".into(),
            (None, true) if self.read_only => "read-only".into(),
            (None, true) => "attached".into(),
        };
        vec![
            self.name.clone(),
            path(&self.device),
            self.kind.to_string(),
            style.size(self.size_bytes),
            path(&self.mounted_on),
            self.filesystem.map(|filesystem| filesystem.to_string()).unwrap_or_default(),
            self.pid.to_string(),
            state,
        ]
    }
}
