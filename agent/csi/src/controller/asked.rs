//! What a volume is asked to be: how large, where; and whether one that is there already is that volume.

use super::bytes;
use crate::TOPOLOGY_CLUSTER;
use tonic::Code;
use torus_agent::grpc::Failure;
use torus_agent::metadata::NewVolume;
use torus_agent::node::filesystem::XFS_BYTES_MIN;
use torus_core::ids::{BLOCK_BYTES, Lba};
use torus_core::meta::docs::{ClusterDoc, VolumeDoc};
use torus_proto::csi::{CapacityRange, Topology, TopologyRequirement};

/// A volume whose size nobody said.
const SIZE_DEFAULT: u64 = 1 << 30;

/// How large a volume is to be, in blocks.
#[derive(Debug)]
pub(super) struct Size {
    pub(super) blocks: u64,
    pub(super) blocks_max: Option<u64>,
}

impl Size {
    pub(super) fn read(range: Option<&CapacityRange>) -> Result<Self, Failure> {
        let range = range.copied().unwrap_or_default();
        let read = |what: &str, bytes: i64| {
            u64::try_from(bytes).map_err(|_| Failure::invalid(format!("a {what} of {bytes} bytes makes no sense")))
        };
        let (least, most) = (read("size", range.required_bytes)?, read("limit", range.limit_bytes)?);
        let blocks_max = (most > 0).then_some(most / BLOCK_BYTES);
        let blocks = match least {
            0 => (SIZE_DEFAULT / BLOCK_BYTES).min(blocks_max.unwrap_or(u64::MAX)),
            _ => least.div_ceil(BLOCK_BYTES),
        };
        if blocks == 0 || blocks_max.is_some_and(|max| blocks > max) {
            let text = format!("no volume has from {least} to {most} bytes: sizes are whole blocks of {BLOCK_BYTES}");
            return Err(Failure::Refused(Code::OutOfRange, text));
        }
        Ok(Self { blocks, blocks_max })
    }

    /// Makes it as large as an XFS has to be, if it may be.
    pub(super) fn for_xfs(&mut self) -> Result<(), Failure> {
        let least = XFS_BYTES_MIN / BLOCK_BYTES;
        if self.blocks_max.is_some_and(|max| max < least) {
            let text = format!(
                "an XFS has at least {XFS_BYTES_MIN} bytes, which is above the limit: ask for more, or for ext4"
            );
            return Err(Failure::Refused(Code::OutOfRange, text));
        }
        self.blocks = self.blocks.max(least);
        Ok(())
    }
}

/// Fails when a volume that is there is not the one that is asked for.
pub(super) fn same(found: &VolumeDoc, asked: &NewVolume, size: &Size) -> Result<(), Failure> {
    let differs = |what: &str, has: String, wanted: String| {
        let name = &found.name;
        let text = format!("volume {name:?} is there already, with {what} {has}, not {wanted}: choose another name");
        Err(Failure::Refused(Code::AlreadyExists, text))
    };
    let fits = found.size.0 >= size.blocks && size.blocks_max.is_none_or(|max| found.size.0 <= max);
    if !fits {
        return differs("a size of", bytes(found.size).to_string(), bytes(Lba(size.blocks)).to_string());
    }
    if found.replicas != asked.replicas {
        return differs("replicas", found.replicas.to_string(), asked.replicas.to_string());
    }
    if found.min_replicas != asked.min_replicas {
        return differs("minReplicas", found.min_replicas.to_string(), asked.min_replicas.to_string());
    }
    if found.ack_mode != asked.ack_mode {
        return differs("ackMode", format!("{:?}", found.ack_mode), format!("{:?}", asked.ack_mode));
    }
    Ok(())
}

/// Fails when a volume is wanted only where its cluster is not.
pub(super) fn reachable(cluster: &ClusterDoc, wanted: Option<&TopologyRequirement>) -> Result<(), Failure> {
    match wanted {
        Some(wanted) if !wanted.requisite.is_empty() && !wanted.requisite.iter().any(|one| is_here(cluster, one)) => {
            let text = format!("no node that is asked for reaches cluster {}: start its node plugin there", cluster.id);
            Err(Failure::Refused(Code::ResourceExhausted, text))
        }
        _ => Ok(()),
    }
}

pub(super) fn is_here(cluster: &ClusterDoc, topology: &Topology) -> bool {
    topology.segments.get(TOPOLOGY_CLUSTER).is_none_or(|id| *id == cluster.id.to_string())
}
