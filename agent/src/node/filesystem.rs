//! Filesystems on attached devices: made where there is nothing, checked, mounted, grown, unmounted.
//!
//! 1. A filesystem is made only where the device is known to hold nothing: no signature that blkid knows, and zeros in
//!    its first MiB. What cannot be read or told counts as something; but bytes without a name do not, where an agent has ended
//!    while it made a filesystem, and nobody has had the volume since.
//! 2. Everything that touches the device is a child process (see [`super::tool`]).

use super::host::{LOOK, LOOK_PAUSE};
use super::places::Pinned;
use super::tool::{self, LONG, SOON, ToolError};
use super::{NodeError, mounts};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tokio::time::{Instant, sleep};

/// What an XFS has at least: mkfs.xfs makes no smaller one.
pub const XFS_BYTES_MIN: u64 = 300 << 20;
/// What an ext4 leaves unused at the end of a device without that being worth a word: part of a group of blocks.
const EXT4_GROW_BYTES_MIN: u64 = 16 << 20;

/// A filesystem that Torus makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl Filesystem {
    /// What mount and blkid call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Filesystem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            _ => Err(format!("{text:?} is not a filesystem that Torus makes: ext4 or xfs")),
        }
    }
}

/// What a device holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nothing.
    Blank,
    /// A filesystem, or something else that has a name.
    Named(String),
    /// Bytes that nobody knows.
    Unknown,
}

/// Looks at what `device` holds.
///
/// # Errors
/// When it cannot be read.
pub async fn probe(device: &Path) -> Result<Content, ToolError> {
    let args = ["--probe", "--output", "export"].map(Path::new);
    let ended = tool::run(SOON, "blkid", &[&args[..], &[device]].concat()).await?;
    match ended.code {
        Some(0) => {
            let text = String::from_utf8_lossy(&ended.stdout).into_owned();
            let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            let named = value("TYPE").map(str::to_owned);
            let table = || value("PTTYPE").map(|kind| format!("{kind} partition table"));
            Ok(named.or_else(table).map_or(Content::Unknown, Content::Named))
        }
        Some(2) => {
            let from = format!("if={}", device.display());
            let first = tool::run(SOON, "dd", &[&from, "bs=64K", "count=16", "iflag=direct", "status=none"]).await?;
            match first.code {
                Some(0) if first.stdout.iter().all(|byte| *byte == 0) => Ok(Content::Blank),
                Some(0) => Ok(Content::Unknown),
                _ => Err(first.failure()),
            }
        }
        // Several signatures that contradict each other.
        Some(8) => Ok(Content::Unknown),
        _ => Err(ended.failure()),
    }
}

/// How a device is to be mounted.
#[derive(Debug)]
pub struct Wanted {
    /// Where: a directory that is there and on which nothing is mounted, or this device.
    pub directory: PathBuf,
    /// What it must hold, or is to be made on it; ext4 where there is nothing and this is open.
    pub filesystem: Option<Filesystem>,
    /// Without writing to it.
    pub read_only: bool,
    /// More options, each checked by [`check_option`].
    pub options: Vec<String>,
    /// The directory itself, where a part of its path may change meanwhile. The path has no links then.
    pub pinned: Option<Pinned>,
}

/// Whether `option` is one that a filesystem may be mounted with: a plain word or setting, that does not change what mount does.
#[must_use]
pub fn check_option(option: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.=:+".contains(&b);
    let name = option.split('=').next().unwrap_or_default();
    let other =
        ["bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "helper", "uhelper", "user", "users"];
    (1..=128).contains(&option.len())
        && option.bytes().all(plain)
        && option.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && !option.starts_with("x-")
        && !other.contains(&name)
}

impl Wanted {
    /// Resolves the directory, and finds out early that it cannot be mounted on. `device`: what may be mounted there.
    ///
    /// # Errors
    /// When it is not there, no directory, or taken.
    pub fn check(&mut self, device: Option<&Path>) -> Result<(), NodeError> {
        let given = self.directory.clone();
        if self.pinned.is_none() {
            self.directory =
                std::fs::canonicalize(&given).map_err(|source| NodeError::NoDirectory(given.clone(), source))?;
        }
        if !self.directory.is_dir() {
            return Err(NodeError::NotADirectory(given));
        }
        match mounts::on(&self.directory) {
            Some(mount) if device.and_then(mounts::number).as_deref() != Some(&mount.device) => {
                Err(NodeError::MountedOn { directory: given, kind: mount.kind })
            }
            _ => Ok(()),
        }
    }
}

/// What there is to be mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// This.
    Filesystem(Filesystem),
    /// Nothing: this is to be made.
    Nothing(Filesystem),
}

/// Finds out what there is to be mounted on `device`, which holds `volume`. `unfinished`: a filesystem was being made there when
/// that ended, and nobody has had the volume since.
///
/// # Errors
/// When it holds anything else than what is wanted, or cannot be read.
pub async fn look(device: &Path, volume: &str, wanted: &Wanted, unfinished: bool) -> Result<Found, NodeError> {
    let failed = |source| NodeError::Mount { volume: volume.into(), directory: wanted.directory.clone(), source };
    let found = match probe(device).await.map_err(failed)? {
        Content::Named(found) => match (found.parse(), wanted.filesystem) {
            (Ok(found), None) => Some(found),
            (Ok(found), Some(wanted)) if found == wanted => Some(found),
            (_, wanted) => return Err(NodeError::HoldsOther { volume: volume.into(), found, wanted }),
        },
        Content::Unknown if !unfinished => return Err(NodeError::HoldsUnknown { volume: volume.into() }),
        Content::Unknown | Content::Blank => None,
    };
    if let Some(found) = found {
        return Ok(Found::Filesystem(found));
    }
    if wanted.read_only {
        return Err(NodeError::NothingToRead { volume: volume.into() });
    }
    let filesystem = wanted.filesystem.unwrap_or(Filesystem::Ext4);
    if filesystem == Filesystem::Xfs && device_bytes(device).await.map_err(failed)? < XFS_BYTES_MIN {
        return Err(NodeError::TooSmall(volume.into()));
    }
    Ok(Found::Nothing(filesystem))
}

/// Makes a filesystem on `device`, whatever is there.
///
/// # Errors
/// When the program fails.
pub async fn make(device: &Path, filesystem: Filesystem) -> Result<(), ToolError> {
    let (program, options) = match filesystem {
        Filesystem::Ext4 => ("mkfs.ext4", ["-q", "-F"]),
        Filesystem::Xfs => ("mkfs.xfs", ["-q", "-f"]),
    };
    let options = options.map(Path::new);
    tool::must(LONG, program, &[&options[..], &[device]].concat()).await.map(drop)
}

/// Mounts `device`, which holds `volume`, after checking its filesystem. What is mounted there already is left as it is.
///
/// # Errors
/// When it is damaged, or the system refuses.
pub async fn mount(device: &Path, volume: &str, filesystem: Filesystem, wanted: &Wanted) -> Result<(), NodeError> {
    let failed = |source| NodeError::Mount { volume: volume.into(), directory: wanted.directory.clone(), source };
    let mounted = mounts::of(device);
    if mounted.contains(&wanted.directory) {
        return Ok(());
    }
    // Mounted somewhere else, it was checked, and must not be looked at behind the kernel's back.
    if filesystem == Filesystem::Ext4 && !wanted.read_only && mounted.is_empty() {
        check_ext4(device, volume, &wanted.directory).await?;
    }
    let first = if wanted.read_only { "ro" } else { "rw" };
    let options = std::iter::once(first).chain(wanted.options.iter().map(String::as_str)).collect::<Vec<_>>().join(",");
    let words = ["-t", filesystem.name(), "-o", &options].map(Path::new);
    // What is pinned has a path that is none for long, and is to be taken as it is. Other programs than util-linux's `mount`
    // do not know that option, nor look paths up first.
    let as_it_is: &[&Path] = if wanted.pinned.is_some() { &[Path::new("--no-canonicalize")] } else { &[] };
    let directory = wanted.pinned.as_ref().map_or(wanted.directory.clone(), Pinned::path);
    tool::must(LONG, "mount", &[as_it_is, &words, &[device, &directory]].concat()).await.map_err(failed)?;
    if wanted.pinned.is_some() && !mounts::of(device).contains(&wanted.directory) {
        unmount(device, volume).await?;
        return Err(NodeError::Moved(wanted.directory.clone()));
    }
    // The device may have grown while it was mounted nowhere. Where it has not, this changes nothing.
    if filesystem == Filesystem::Xfs
        && !wanted.read_only
        && let Err(error) = grow(device, filesystem, &wanted.directory).await
    {
        tracing::warn!(volume, "the filesystem does not use all of its device: {}", crate::process::told(&error));
    }
    Ok(())
}

/// What can be mended without asking is mended; XFS does that by itself when it is mounted. An ext4 that is smaller than
/// its device is let grow: while it is mounted, that takes a privilege (CAP_SYS_RESOURCE) which containers rarely have.
async fn check_ext4(device: &Path, volume: &str, directory: &Path) -> Result<(), NodeError> {
    let damaged = |source| NodeError::Damaged { volume: volume.into(), device: device.into(), source };
    let failed = |source| NodeError::Mount { volume: volume.into(), directory: directory.into(), source };
    let check = async |flags: &str| {
        let ended = tool::run(LONG, "e2fsck", &[Path::new(flags), device]).await.map_err(failed)?;
        if matches!(ended.code, Some(0..=3)) { Ok(()) } else { Err(damaged(ended.failure())) }
    };
    check("-p").await?;
    let size_bytes = device_bytes(device).await.map_err(failed)?;
    let described = tool::must(SOON, "dumpe2fs", &[Path::new("-h"), device]).await.map_err(failed)?;
    let number = |key: &str| described.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    let (Some(blocks), Some(block_bytes)) = (number("Block count:"), number("Block size:")) else { return Ok(()) };
    if size_bytes.saturating_sub(blocks * block_bytes) >= EXT4_GROW_BYTES_MIN {
        check("-fp").await?;
        tool::must(LONG, "resize2fs", &[device]).await.map_err(failed)?;
    }
    Ok(())
}

async fn device_bytes(device: &Path) -> Result<u64, ToolError> {
    let ended = tool::run(SOON, "blockdev", &[Path::new("--getsize64"), device]).await?;
    String::from_utf8_lossy(&ended.stdout).trim().parse().map_err(|_| ended.failure())
}

/// Lets a mounted filesystem use all of a device that has grown.
///
/// # Errors
/// When the system refuses.
pub async fn grow(device: &Path, filesystem: Filesystem, directory: &Path) -> Result<(), ToolError> {
    match filesystem {
        Filesystem::Ext4 => tool::must(LONG, "resize2fs", &[device]).await,
        Filesystem::Xfs => tool::must(LONG, "xfs_growfs", &[directory]).await,
    }
    .map(drop)
}

/// Has the kernel write everything back that it holds of the filesystem at `directory`.
///
/// # Errors
/// When it cannot, or not soon.
pub async fn sync(directory: &Path) -> Result<(), ToolError> {
    tool::must(SOON, "sync", &[Path::new("--file-system"), directory]).await.map(drop)
}

/// Unmounts `device` from everywhere that this process sees.
///
/// # Errors
/// When somebody uses it: who, as far as can be seen.
pub async fn unmount(device: &Path, volume: &str) -> Result<(), NodeError> {
    for directory in mounts::of(device) {
        let failed = |source| NodeError::Unmount { volume: volume.into(), directory: directory.clone(), source };
        if let Some(refused) =
            unmount_from(&directory, || mounts::of(device).contains(&directory)).await.map_err(failed)?
        {
            let users = mounts::users(device);
            return Err(match users.is_empty() {
                false => NodeError::Busy { volume: volume.into(), device: device.into(), users: users.join(", ") },
                true => failed(refused),
            });
        }
    }
    Ok(())
}

/// Unmounts `directory`, in which something is mounted while `is_mounted`. Who has a file open for a moment, as a child between
/// fork and exec has its parent's, is waited for. `Some`: why it stays mounted.
///
/// # Errors
/// When umount cannot be run, or does not end.
pub async fn unmount_from(directory: &Path, is_mounted: impl Fn() -> bool) -> Result<Option<ToolError>, ToolError> {
    let deadline = Instant::now() + LOOK;
    loop {
        let ended = tool::run(LONG, "umount", &[directory]).await?;
        if ended.code == Some(0) || !is_mounted() {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            return Ok(Some(ended.failure()));
        }
        sleep(LOOK_PAUSE).await;
    }
}

/// Unmounts a device that is dead: what has files open keeps getting errors, and nothing waits for it.
pub async fn abandon(device: &Path) {
    for directory in mounts::of(device) {
        for flags in [&[][..], &["--lazy"]] {
            let args = flags.iter().map(Path::new).chain([directory.as_path()]).collect::<Vec<_>>();
            match tool::run(SOON, "umount", &args).await {
                Ok(ended) if ended.code == Some(0) => break,
                Ok(ended) => tracing::debug!("{}", ended.failure()),
                Err(error) => tracing::debug!("{error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_change_what_is_mounted_are_none() {
        for good in ["noatime", "data=ordered", "discard", "logbsize=256k", "errors=remount-ro"] {
            assert!(check_option(good), "{good}");
        }
        for bad in
            ["", "-o", "bind", "loop=/dev/loop0", "remount", "a,b", "a b", "x-mount.mkdir", "helper=sh", "a\0b", "../x"]
        {
            assert!(!check_option(bad), "{bad}");
        }
    }
}
