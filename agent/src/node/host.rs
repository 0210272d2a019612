//! Devices of the kernel that lead to a volume in this process.

use super::tool::ToolError;
use super::{NodeError, filesystem, loopdev, mounts};
use crate::device::{ReadOnly, Unaligned};
use crate::fuse::{FuseError, Mounted};
use crate::owner::VolumeDevice;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::task::spawn_blocking;

/// What is shown: any range of a volume, and perhaps no writes.
pub(super) type Shown = Unaligned<ReadOnly<VolumeDevice>>;

/// The file in the FUSE filesystem.
const FILE: &str = "volume";

/// How a volume becomes a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A FUSE file with a loop device on it. Its end is the end of the process that serves it.
    Fuse,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fuse => "FUSE + loop",
        })
    }
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No FUSE file.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// No loop device.
    #[error("a loop device is needed")]
    Loop(#[source] ToolError),
    /// A directory cannot be made.
    #[error("cannot make the directory {0}")]
    Directory(PathBuf, #[source] std::io::Error),
    /// The kernel has no FUSE.
    #[error("there is no /dev/fuse: this kernel, or this container, has no FUSE (`modprobe fuse` may help)")]
    NoFuse,
    /// The kernel has no loop devices.
    #[error(
        "there is no /dev/loop-control: this kernel, or this container, has no loop devices (`modprobe loop` may help)"
    )]
    NoLoop,
}

/// The kind that `wanted` comes to on this host, and why that one.
///
/// # Errors
/// When the host has not what it takes.
pub fn choose(wanted: Option<Kind>) -> Result<(Kind, &'static str), HostError> {
    let Kind::Fuse = wanted.unwrap_or(Kind::Fuse);
    match [("/dev/fuse", HostError::NoFuse), ("/dev/loop-control", HostError::NoLoop)]
        .into_iter()
        .find(|(path, _)| !Path::new(path).exists())
    {
        Some((_, error)) => Err(error),
        None => Ok((Kind::Fuse, "")),
    }
}

/// A device that is there.
pub(super) enum HostDevice {
    Fuse {
        /// `None` once it is unmounted.
        mounted: Option<Mounted>,
        device: PathBuf,
    },
}

impl HostDevice {
    /// Shows `volume` as a device of `kind`; what that needs of files is in `place`.
    pub(super) async fn show(kind: Kind, volume: Rc<Shown>, read_only: bool, place: &Path) -> Result<Self, HostError> {
        let Kind::Fuse = kind;
        let directory = place.join("fuse");
        std::fs::create_dir_all(&directory).map_err(|source| HostError::Directory(directory.clone(), source))?;
        let mounted = Mounted::mount(volume, &directory, FILE).await?;
        match loopdev::attach(mounted.file(), read_only).await {
            Ok(device) => Ok(Self::Fuse { mounted: Some(mounted), device }),
            Err(error) => {
                // Why there is no device matters more than how its file went.
                let _ = mounted.unmount().await;
                Err(HostError::Loop(error))
            }
        }
    }

    /// Its node.
    pub(super) fn path(&self) -> &Path {
        let Self::Fuse { device, .. } = self;
        device
    }

    /// Has the kernel find out that the volume has grown.
    pub(super) async fn grow(&self) -> Result<(), HostError> {
        let Self::Fuse { mounted, device } = self;
        match mounted {
            Some(mounted) => loopdev::grow(device, mounted.file()).await.map_err(HostError::Loop),
            None => Ok(()),
        }
    }

    /// Takes the device away, if nobody uses it.
    ///
    /// # Errors
    /// When somebody does: it is served as before.
    pub(super) async fn withdraw(&mut self, volume: &str) -> Result<(), NodeError> {
        let Self::Fuse { mounted, device } = self;
        free(device, volume).await?;
        let gone = loopdev::detach(device).await.map_err(HostError::Loop);
        if !gone.map_err(|source| NodeError::Device { volume: volume.into(), source })? {
            return Err(busy(volume, device, "somebody whom this process cannot see"));
        }
        if let Some(mounted) = mounted.take()
            && let Err(error) = mounted.unmount().await
        {
            tracing::warn!("{}", crate::process::told(&error));
        }
        Ok(())
    }
}

/// Fails, and says who, when somebody uses `device`.
pub(super) async fn free(device: &Path, volume: &str) -> Result<(), NodeError> {
    let path = device.to_owned();
    // All of /proc is looked through, which takes its time.
    let users = spawn_blocking(move || mounts::users(&path)).await.unwrap_or_default();
    if users.is_empty() { Ok(()) } else { Err(busy(volume, device, &users.join(", "))) }
}

fn busy(volume: &str, device: &Path, users: &str) -> NodeError {
    NodeError::Busy { volume: volume.into(), device: device.into(), users: users.into() }
}

/// Removes what a process that is gone has left of its device: every request of those who still use it fails, and none
/// of them is waited for.
pub(super) async fn clear(kind: Kind, device: Option<&Path>, place: &Path) {
    let Kind::Fuse = kind;
    let directory = place.join("fuse");
    let mut left = loopdev::find(&directory.join(FILE));
    // Unmounted by somebody: the loop device is known by its record alone.
    left.extend(device.filter(|_| left.is_empty()).filter(|device| is_of(device, &directory)).map(Path::to_owned));
    for device in left {
        filesystem::abandon(&device).await;
        match loopdev::detach(&device).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!("{} is still open somewhere; it goes when it is closed", device.display()),
            Err(error) => tracing::warn!("{}", crate::process::told(&error)),
        }
    }
    if mounts::on(&directory).is_some()
        && let Err(error) = nix::mount::umount2(&directory, nix::mount::MntFlags::MNT_DETACH)
    {
        tracing::warn!("cannot unmount {}: {error}", directory.display());
    }
}

/// Whether the loop device still is on a file that was in `directory`.
fn is_of(device: &Path, directory: &Path) -> bool {
    let name = device.file_name().unwrap_or_default();
    let backing = std::fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file"));
    backing.is_ok_and(|path| path.starts_with(&*directory.to_string_lossy()) || path.trim_end() == format!("/{FILE}"))
}
