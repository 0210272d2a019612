//! How a volume is to be used: what of it Torus can do, and what it cannot.

use std::str::FromStr;
use torus_agent::grpc::Failure;
use torus_agent::node::Filesystem;
use torus_proto::csi::VolumeCapability;
use torus_proto::csi::volume_capability::AccessType;
use torus_proto::csi::volume_capability::access_mode::Mode;

/// A use of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Access {
    /// As what.
    pub shape: Shape,
    /// Nobody writes.
    pub read_only: bool,
    /// By one pod only.
    pub alone: bool,
}

/// As what a volume is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shape {
    /// A block device.
    Block,
    /// A mounted filesystem.
    Mount {
        /// Which; empty: what there is, or the default.
        filesystem: String,
        /// Options of the mount.
        flags: Vec<String>,
    },
}

impl Access {
    /// Reads one capability.
    ///
    /// # Errors
    /// When something is missing, or not for Torus to give.
    pub fn read(given: Option<&VolumeCapability>) -> Result<Self, Failure> {
        let given = given.ok_or_else(|| Failure::invalid("the volume's capability is missing"))?;
        let mode = given.access_mode.ok_or_else(|| Failure::invalid("the volume's access mode is missing"))?;
        let (read_only, alone) = match Mode::try_from(mode.mode) {
            Ok(Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter) => (false, false),
            Ok(Mode::SingleNodeSingleWriter) => (false, true),
            Ok(Mode::SingleNodeReaderOnly) => (true, false),
            Ok(Mode::Unknown) | Err(_) => return Err(Failure::invalid("the volume's access mode is unknown")),
            Ok(mode) => {
                return Err(Failure::invalid(format!(
                    "access mode {} is not offered: a Torus volume is used on one node at a time \
                     (ReadWriteOnce or ReadWriteOncePod)",
                    mode.as_str_name()
                )));
            }
        };
        let shape = match &given.access_type {
            Some(AccessType::Block(_)) => Shape::Block,
            Some(AccessType::Mount(mount)) => {
                if !mount.fs_type.is_empty() {
                    Filesystem::from_str(&mount.fs_type).map_err(Failure::invalid)?;
                }
                if !mount.volume_mount_group.is_empty() {
                    return Err(Failure::invalid(
                        "a filesystem cannot be mounted for a group: leave fsGroup to the kubelet (fsGroupPolicy: File)",
                    ));
                }
                Shape::Mount { filesystem: mount.fs_type.clone(), flags: mount.mount_flags.clone() }
            }
            None => return Err(Failure::invalid("the volume's access type is missing: block or mount")),
        };
        Ok(Self { shape, read_only, alone })
    }

    /// Reads all of several.
    ///
    /// # Errors
    /// As [`read`](Self::read), and when there is none.
    pub fn read_all(given: &[VolumeCapability]) -> Result<Vec<Self>, Failure> {
        if given.is_empty() {
            return Err(Failure::invalid("the volume's capabilities are missing"));
        }
        given.iter().map(|one| Self::read(Some(one))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use torus_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn capability(mode: Mode, access_type: Option<AccessType>) -> VolumeCapability {
        VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type }
    }

    fn mount(fs_type: &str) -> Option<AccessType> {
        Some(AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..MountVolume::default() }))
    }

    #[test]
    fn one_node_at_a_time() {
        let block = Some(AccessType::Block(BlockVolume {}));
        let read = |mode| Access::read(Some(&capability(mode, block.clone())));
        let plain = Access { shape: Shape::Block, read_only: false, alone: false };
        assert_eq!(read(Mode::SingleNodeWriter).unwrap(), plain);
        assert_eq!(read(Mode::SingleNodeMultiWriter).unwrap(), plain);
        assert!(read(Mode::SingleNodeSingleWriter).unwrap().alone);
        assert!(read(Mode::SingleNodeReaderOnly).unwrap().read_only);
        for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter] {
            let error = read(mode).unwrap_err().to_string();
            assert!(error.contains("one node at a time") && error.contains("MULTI_NODE"), "{error}");
        }
        assert!(read(Mode::Unknown).is_err());
    }

    #[test]
    fn what_is_missing_or_unknown_is_refused() {
        assert!(Access::read(None).is_err());
        assert!(Access::read_all(&[]).is_err());
        assert!(Access::read(Some(&capability(Mode::SingleNodeWriter, None))).is_err());
        for bad in ["ntfs", "-o", "ext4 ", "../ext4"] {
            assert!(Access::read(Some(&capability(Mode::SingleNodeWriter, mount(bad)))).is_err(), "{bad}");
        }
        for good in ["", "ext4", "xfs"] {
            assert!(Access::read(Some(&capability(Mode::SingleNodeWriter, mount(good)))).is_ok(), "{good}");
        }
    }
}
