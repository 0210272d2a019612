//! Devices of the kernel that lead to a volume in this process.

use super::held::Held;
use super::record::Record;
use super::tool::ToolError;
use super::{NodeError, filesystem, loopdev, mounts};
use crate::device::{BlockDevice, ReadOnly, Unaligned};
use crate::fuse::{FuseError, Mounted};
use crate::holder::HolderError;
use crate::kernel_nbd::{self, Device, KernelDevice, KernelNbdError, Shape};
use crate::nbd::{Export, ExportError, Server};
use crate::owner::VolumeDevice;
use crate::process::told;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use torus_core::ids::VolumeId;

/// What is shown: any range of a volume, and perhaps no writes.
pub(super) type Shown = Unaligned<ReadOnly<VolumeDevice>>;

/// The file in the FUSE filesystem.
const FILE: &str = "volume";
/// How long requests may take to be answered when a device has been taken away: there are none.
const FAREWELL: Duration = Duration::from_secs(1);
/// For how long somebody may have a device open without counting as its user,
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// and how often that is looked at.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// How a volume becomes a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The kernel's nbd driver. The device outlives the process that serves it, and waits for the next one.
    Nbd,
    /// A FUSE file with a loop device on it. Its end is the end of the process that serves it, unless a holder keeps it for the
    /// next one.
    Fuse,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nbd => "kernel NBD",
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
    /// No kernel NBD.
    #[error(transparent)]
    Nbd(#[from] KernelNbdError),
    /// The NBD server does not take it.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// No loop device.
    #[error("a loop device is needed")]
    Loop(#[source] ToolError),
    /// What the holder had is gone.
    #[error("the device that waited for this process is gone: {0}")]
    Gone(&'static str),
    /// The holder does not give it.
    #[error("the device that waits cannot be had from the holder")]
    Holder(#[source] HolderError),
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

/// The kind that `wanted` comes to on this host; for one that is second best, also why it is not the best.
///
/// # Errors
/// When the host has not what it takes.
pub fn choose(wanted: Option<Kind>) -> Result<(Kind, Option<String>), HostError> {
    match wanted {
        Some(Kind::Nbd) => Ok(kernel_nbd::check().map(|()| (Kind::Nbd, None))?),
        Some(Kind::Fuse) => has_fuse().map(|()| (Kind::Fuse, None)),
        None => match kernel_nbd::check() {
            Ok(()) => Ok((Kind::Nbd, None)),
            Err(why) => has_fuse().map(|()| (Kind::Fuse, Some(told(&why)))),
        },
    }
}

fn has_fuse() -> Result<(), HostError> {
    match (Path::new("/dev/fuse").exists(), Path::new("/dev/loop-control").exists()) {
        (false, _) => Err(HostError::NoFuse),
        (true, false) => Err(HostError::NoLoop),
        (true, true) => Ok(()),
    }
}

/// A device that is there.
pub(super) enum HostDevice {
    Nbd(NbdDevice),
    Fuse(FuseDevice),
}

pub(super) struct NbdDevice {
    server: Server<Shown>,
    export: String,
    /// `None` once it is disconnected.
    device: Option<KernelDevice>,
    path: PathBuf,
}

pub(super) struct FuseDevice {
    volume: VolumeId,
    /// `None` once it is unmounted, or left.
    mounted: Option<Box<Mounted>>,
    path: PathBuf,
    /// Of what is at `path`, while it is this.
    sequence: Option<u64>,
    /// Where a holder may be.
    holder: Option<PathBuf>,
    held: Option<Box<Held>>,
}

/// What a device is to be made from.
pub(super) struct Plan<'a> {
    pub kind: Kind,
    pub volume: VolumeId,
    /// Where files may be put that it needs.
    pub place: &'a Path,
    /// What a process that is gone has left, and waits for the next.
    pub orphan: Option<&'a Record>,
    /// How long requests wait for the next process, where the kind lets them; `None`: as long as usual.
    pub dead_time: Option<Duration>,
    /// Where a holder may be.
    pub holder: Option<&'a Path>,
}

impl HostDevice {
    /// Shows `shown` as a device.
    pub(super) async fn show(shown: Rc<Shown>, plan: Plan<'_>) -> Result<Self, HostError> {
        match plan.kind {
            Kind::Nbd => NbdDevice::show(shown, plan).await.map(Self::Nbd),
            Kind::Fuse => match plan.orphan {
                Some(record) => FuseDevice::take_over(shown, &plan, record).await,
                None => FuseDevice::show(shown, &plan).await,
            }
            .map(Self::Fuse),
        }
    }

    /// Its node.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Nbd(nbd) => &nbd.path,
            Self::Fuse(fuse) => &fuse.path,
        }
    }

    /// What tells it from the next one at its node, if it is a loop device.
    pub(super) fn sequence(&self) -> Option<u64> {
        match self {
            Self::Nbd(_) => None,
            Self::Fuse(fuse) => fuse.sequence,
        }
    }

    /// Its node still leads to it.
    fn is_there(&self) -> bool {
        match self {
            Self::Nbd(_) => true,
            Self::Fuse(fuse) => loopdev::is_attached(&fuse.path, fuse.sequence),
        }
    }

    /// Has the kernel find out that the volume has grown.
    pub(super) async fn grow(&mut self, size_bytes: u64) -> Result<(), HostError> {
        match self {
            Self::Nbd(NbdDevice { device: Some(device), .. }) => Ok(device.resize(size_bytes).await?),
            Self::Fuse(FuseDevice { mounted: Some(mounted), path, .. }) => {
                loopdev::grow(path, mounted.file()).await.map_err(HostError::Loop)
            }
            Self::Nbd(NbdDevice { device: None, .. }) | Self::Fuse(FuseDevice { mounted: None, .. }) => Ok(()),
        }
    }

    /// Has the device outlive this process, where that can be. From now on nothing may do I/O on it that this process waits for.
    pub(super) async fn hold(&mut self) {
        if let Self::Fuse(fuse) = self
            && fuse.held.is_none()
            && let (Some(holder), Some(mounted)) = (&fuse.holder, &fuse.mounted)
        {
            match mounted.connection() {
                Ok(Some(device)) => fuse.held = Some(Box::new(Held::begin(holder, fuse.volume, device).await)),
                // The kernel would not ask again for what this process has taken and not answered.
                Ok(None) => {}
                Err(error) => tracing::warn!("cannot have {} held: {error}", fuse.path.display()),
            }
        }
    }

    /// Has the device end with this process again; whether it would not have.
    pub(super) async fn release(&mut self) -> bool {
        let held = match self {
            Self::Fuse(FuseDevice { held, .. }) => held.take(),
            Self::Nbd(_) => None,
        };
        let Some(mut held) = held else { return false };
        if let Err(error) = held.end().await {
            tracing::warn!("a holder may keep a device alive that is not used any more: {}", told(&error));
        }
        true
    }

    /// Leaves the device to the next process, if a holder has it: whether it is left.
    pub(super) fn leave(&mut self) -> bool {
        match self {
            Self::Fuse(FuseDevice { held: Some(held), mounted, .. }) if held.is_attended() => {
                if let Some(mounted) = mounted.take() {
                    mounted.leave();
                }
                true
            }
            Self::Fuse(_) | Self::Nbd(_) => false,
        }
    }

    /// Waits until somebody else has taken the device away; what they did. Cancel safe.
    pub(super) async fn lost(&mut self) -> HostError {
        match self {
            Self::Nbd(NbdDevice { server, export, device: Some(device), .. }) => {
                device.lost(server, export).await.into()
            }
            // A loop device that is taken away is not heard of; it is as good as an idle one.
            Self::Fuse(FuseDevice { held: Some(held), .. }) => held.attend().await,
            Self::Nbd(NbdDevice { device: None, .. }) | Self::Fuse(_) => std::future::pending().await,
        }
    }

    /// Takes the device away, if nobody uses it.
    ///
    /// # Errors
    /// When somebody does: it is served as before.
    pub(super) async fn withdraw(&mut self, volume: &str) -> Result<(), NodeError> {
        if self.is_there() {
            free(self.path(), volume).await?;
        }
        self.release().await;
        let wrap = |source| NodeError::Device { volume: volume.into(), source };
        match self {
            Self::Nbd(nbd) => nbd.disconnect().await.map_err(|error| wrap(error.into())),
            Self::Fuse(FuseDevice { mounted, path, sequence, .. }) => {
                if !loopdev::detach(path, *sequence).await.map_err(|error| wrap(HostError::Loop(error)))? {
                    return Err(busy(volume, path, "somebody whom this process cannot see"));
                }
                if let Some(mounted) = mounted.take()
                    && let Err(error) = mounted.unmount().await
                {
                    tracing::warn!("{}", told(&error));
                }
                Ok(())
            }
        }
    }

    /// Has every request fail from now on, as nothing will serve them again.
    pub(super) async fn fail(&mut self) {
        self.release().await;
        match self {
            Self::Nbd(nbd) => {
                if let Err(error) = nbd.disconnect().await {
                    tracing::error!("{}", told(&error));
                }
            }
            // It ends with this process.
            Self::Fuse(_) => {}
        }
    }
}

impl NbdDevice {
    async fn show(shown: Rc<Shown>, plan: Plan<'_>) -> Result<Self, HostError> {
        let info = shown.info();
        let shape = Shape {
            size_bytes: info.size_bytes,
            read_only: info.read_only,
            identifier: identifier(plan.volume),
            dead_time: plan.dead_time,
        };
        let (server, export) = (Server::new(), plan.volume.to_string());
        server.add(Export { name: export.clone(), description: "Torus volume".into(), device: shown })?;
        let device = match plan.orphan.and_then(orphan) {
            Some(orphan) => KernelDevice::take_over(&server, &export, orphan, shape).await?,
            None => KernelDevice::connect(&server, &export, shape).await?,
        };
        let path = device.device().path();
        let mut shown = Self { server, export, device: Some(device), path };
        if let Some(device) = &mut shown.device
            && plan.orphan.is_some_and(|record| record.size_bytes != info.size_bytes)
        {
            device.resize(info.size_bytes).await?;
        }
        Ok(shown)
    }

    async fn disconnect(&mut self) -> Result<(), KernelNbdError> {
        if let Some(device) = self.device.take() {
            device.disconnect().await?;
            self.server.remove(&self.export, FAREWELL).await;
        }
        Ok(())
    }
}

impl FuseDevice {
    async fn show(shown: Rc<Shown>, plan: &Plan<'_>) -> Result<Self, HostError> {
        let directory = plan.place.join("fuse");
        std::fs::create_dir_all(&directory).map_err(|source| HostError::Directory(directory.clone(), source))?;
        let read_only = shown.info().read_only;
        let mounted = Mounted::mount(shown, &directory, FILE).await?;
        match loopdev::attach(mounted.file(), read_only).await {
            Ok(path) => Ok(Self {
                volume: plan.volume,
                mounted: Some(Box::new(mounted)),
                sequence: loopdev::sequence(&path),
                path,
                holder: plan.holder.map(Path::to_owned),
                held: None,
            }),
            Err(error) => {
                // Why there is no device matters more than how its file went.
                let _ = mounted.unmount().await;
                Err(HostError::Loop(error))
            }
        }
    }

    /// Goes on with the device of a process that is gone, of which a holder has the connection.
    async fn take_over(shown: Rc<Shown>, plan: &Plan<'_>, before: &Record) -> Result<Self, HostError> {
        let holder = before.holder.as_deref().ok_or(HostError::Gone("no holder had it"))?;
        let path = before.device_there().ok_or(HostError::Gone("its loop device was detached"))?.to_owned();
        let held = Held::take(holder, plan.volume).await.map_err(HostError::Holder)?;
        let held = held.ok_or(HostError::Gone("nobody came for it in time"))?;
        let connection = held.device().map_err(|_| HostError::Gone("this process has no descriptor left"))?;
        let mounted = Mounted::take_over(shown, &plan.place.join("fuse"), FILE, connection)?;
        Ok(Self {
            volume: plan.volume,
            mounted: Some(Box::new(mounted)),
            sequence: loopdev::sequence(&path),
            path,
            holder: Some(holder.to_owned()),
            held: Some(Box::new(held)),
        })
    }
}

impl HostError {
    /// Whether a device that waited is known to be of no use any more.
    pub(super) fn is_end_of_device(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Fuse(FuseError::TakeOver(..)))
    }
}

/// By what the kernel knows whose a device is.
fn identifier(volume: VolumeId) -> String {
    format!("torus-{volume}")
}

/// Whether a device that a process which is gone has left waits for the next one.
pub(super) async fn waits(record: &Record) -> bool {
    if orphan(record).is_some() {
        return true;
    }
    let (Kind::Fuse, Some(holder), Some(_)) = (record.kind, &record.holder, record.device_there()) else {
        return false;
    };
    // A holder that is not there has lost what it had.
    matches!(Held::is_there(holder, record.volume).await, Ok(true))
}

/// The kernel NBD device that a process which is gone has left, if it waits for the next one.
pub(super) fn orphan(record: &Record) -> Option<Device> {
    let device = Device::of_path(record.device.as_deref()?).filter(|_| record.kind == Kind::Nbd)?;
    let status = kernel_nbd::status(device).ok()??;
    (status.connected && status.identifier == Some(identifier(record.volume))).then_some(device)
}

/// Fails, and says who, when somebody uses `device` for longer than a look at it takes: udev has it open for a moment, and so
/// has the program by which it grows.
pub(super) async fn free(device: &Path, volume: &str) -> Result<(), NodeError> {
    let deadline = Instant::now() + LOOK;
    loop {
        let path = device.to_owned();
        // All of /proc is looked through, which takes its time.
        let users = spawn_blocking(move || mounts::users(&path)).await.unwrap_or_default();
        if users.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(busy(volume, device, &users.join(", ")));
        }
        sleep(LOOK_PAUSE).await;
    }
}

fn busy(volume: &str, device: &Path, users: &str) -> NodeError {
    NodeError::Busy { volume: volume.into(), device: device.into(), users: users.into() }
}

/// Removes what a process that is gone has left of its device: every request of those who still use it fails, and none
/// of them is waited for.
pub(super) async fn clear(record: &Record, place: &Path) {
    if let Some(device) = orphan(record) {
        if let Err(error) = spawn_blocking(move || kernel_nbd::disconnect(device)).await.expect("it panics nowhere") {
            tracing::warn!("{}", told(&error));
        }
        filesystem::abandon(&device.path()).await;
    }
    if record.kind == Kind::Fuse {
        // Where there is no holder, nothing is held.
        if let Some(holder) = &record.holder {
            let _ = Held::release(holder, record.volume).await;
        }
        clear_fuse(record.device_there(), &place.join("fuse")).await;
    }
}

async fn clear_fuse(device: Option<&Path>, directory: &Path) {
    let mut left = loopdev::find(&directory.join(FILE));
    // Unmounted by somebody: the loop device is known by its record alone.
    left.extend(device.filter(|_| left.is_empty()).filter(|device| is_of(device, directory)).map(Path::to_owned));
    let left = left.into_iter().map(|device| (loopdev::sequence(&device), device)).collect::<Vec<_>>();
    for (sequence, device) in left {
        filesystem::abandon(&device).await;
        match loopdev::detach(&device, sequence).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!("{} is still open somewhere; it goes when it is closed", device.display()),
            Err(error) => tracing::warn!("{}", told(&error)),
        }
    }
    if mounts::on(directory).is_some()
        && let Err(error) = nix::mount::umount2(directory, nix::mount::MntFlags::MNT_DETACH)
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
