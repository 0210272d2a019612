//! Mounting, its end, and going on with what another process has mounted.

use super::filesystem::OneFile;
use super::serve::serve;
use super::session::Channel;
use crate::device::BlockDevice;
use fuser::{Config, InitFlags, KernelConfig, MountOption, Request, Session};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking, spawn_local};
use tokio::time::{Instant, sleep};
use torus_core::limits::{FUSE_IN_FLIGHT_REQUESTS_MAX, FUSE_REQUEST_BYTES_MAX};

/// How long the kernel may take to let go of what is unmounted.
const GONE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// The kernel, or fusermount3, refused.
    #[error(
        "cannot mount a FUSE filesystem on {0}: is there a /dev/fuse, and are you root or is fusermount3 installed?"
    )]
    Mount(PathBuf, #[source] io::Error),
    /// It cannot be unmounted: a process is in it.
    #[error("cannot unmount the FUSE filesystem {0}")]
    Unmount(PathBuf, #[source] io::Error),
    /// The connection that another process has left is of no use.
    #[error("cannot go on with the FUSE filesystem {0} that another process has left")]
    TakeOver(PathBuf, #[source] io::Error),
}

/// A device that is a file. Dropped, it is unmounted as far as that is possible, and what still asks gets EIO.
pub struct Mounted {
    directory: PathBuf,
    file: PathBuf,
    channel: Arc<Channel>,
    /// Unmounts when it is dropped. `None`: another process has mounted it.
    mount: Option<Session<Greeting>>,
    thread: Option<JoinHandle<()>>,
    serving: AbortHandle,
    can_be_left: bool,
}

/// What is said to the kernel before the first request.
struct Greeting {
    resends: Arc<AtomicBool>,
}

impl fuser::Filesystem for Greeting {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.set_max_write(FUSE_REQUEST_BYTES_MAX).expect("fuser takes 16 MiB");
        config.set_max_background(FUSE_IN_FLIGHT_REQUESTS_MAX).expect("fuser takes any number but 0");
        // Without it, a loop device has one request under way at a time. Every kernel since 3.10 has it.
        if config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).is_err() {
            tracing::warn!("this kernel's FUSE has no asynchronous direct I/O: the device is going to be slow");
        }
        self.resends.store(config.capabilities().contains(InitFlags::FUSE_HAS_RESEND), Ordering::Relaxed);
        Ok(())
    }
}

impl Mounted {
    /// Mounts a filesystem on `directory` in which `device` is the file `name`. Call it inside a `LocalSet`.
    ///
    /// # Errors
    /// When the kernel or fusermount3 refuses.
    pub async fn mount<D>(device: Rc<D>, directory: &Path, name: &str) -> Result<Self, FuseError>
    where
        D: BlockDevice + 'static,
    {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("torus".into()),
            MountOption::Subtype("torus".into()),
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
        ];
        let place = directory.to_owned();
        let resends = Arc::new(AtomicBool::new(false));
        let greeting = Greeting { resends: Arc::clone(&resends) };
        // The kernel's greeting is waited for on another thread, as this one may have a volume to serve.
        let mounted = spawn_blocking(move || {
            let session = Session::new(greeting, &place, &config)?;
            let connection = session.as_fd().try_clone_to_owned()?;
            Ok((session, connection))
        });
        let wrap = |error| FuseError::Mount(directory.to_owned(), error);
        let mounted = mounted.await.map_err(io::Error::other).and_then(|mounted| mounted);
        let (session, connection) = mounted.map_err(wrap)?;
        let can_be_left = resends.load(Ordering::Relaxed);
        Self::serve(device, directory, name, connection, Some(session), can_be_left).map_err(wrap)
    }

    /// Goes on with the file that another process, which is gone, has mounted on `directory`; `connection` is what it had.
    /// What that process has taken and not answered is asked again. Call it inside a `LocalSet`.
    ///
    /// # Errors
    /// When the kernel does not ask again, or the connection is dead.
    pub fn take_over<D>(device: Rc<D>, directory: &Path, name: &str, connection: OwnedFd) -> Result<Self, FuseError>
    where
        D: BlockDevice + 'static,
    {
        let wrap = |error| FuseError::TakeOver(directory.to_owned(), error);
        let mounted = Self::serve(device, directory, name, connection, None, true).map_err(wrap)?;
        if let Err(error) = mounted.channel.ask_again() {
            mounted.channel.leave();
            return Err(wrap(error));
        }
        Ok(mounted)
    }

    fn serve<D>(
        device: Rc<D>,
        directory: &Path,
        name: &str,
        connection: OwnedFd,
        mount: Option<Session<Greeting>>,
        can_be_left: bool,
    ) -> io::Result<Self>
    where
        D: BlockDevice + 'static,
    {
        let (jobs, asked) = mpsc::channel(FUSE_IN_FLIGHT_REQUESTS_MAX.into());
        let filesystem = OneFile { name: name.to_owned(), read_only: device.info().read_only, jobs };
        let channel = Channel::new(connection);
        let thread = Arc::clone(&channel).serve(filesystem)?;
        let serving = spawn_local(serve(device, asked)).abort_handle();
        let (directory, file) = (directory.to_owned(), directory.join(name));
        Ok(Self { directory, file, channel, mount, thread: Some(thread), serving, can_be_left })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What another process needs to go on with it, where the kernel lets one.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn connection(&self) -> io::Result<Option<OwnedFd>> {
        self.can_be_left.then(|| self.channel.device()).transpose()
    }

    /// Leaves it as it is to another process, which has its [`connection`](Self::connection). What is being asked is left to that
    /// one too.
    pub fn leave(mut self) {
        self.channel.leave();
        // It would be unmounted. What this holds goes with this process.
        std::mem::forget(self.mount.take());
    }

    /// Unmounts it, and waits until the kernel has let go of it. Nobody may have the file open any more.
    ///
    /// # Errors
    /// When somebody is in it; it has vanished from its directory all the same, and ends when they leave.
    pub async fn unmount(mut self) -> Result<(), FuseError> {
        let (directory, mount) = (self.directory.clone(), self.mount.take());
        let is_ours = mount.is_some();
        let unmounting = spawn_blocking(move || {
            // Dropped at the end, which asks fusermount3 where umount may not.
            let _mount = mount;
            match umount2(&directory, MntFlags::empty()) {
                Ok(()) | Err(Errno::EPERM) => Ok(()),
                // It was mounted where only the process saw it that did so.
                Err(Errno::EINVAL | Errno::ENOENT) if !is_ours => Ok(()),
                Err(errno) => {
                    // Best effort after a failure that is told.
                    let _ = umount2(&directory, MntFlags::MNT_DETACH);
                    Err(FuseError::Unmount(directory, errno.into()))
                }
            }
        });
        let unmounted = unmounting.await.expect("unmounting panics nowhere");
        // A mount namespace that copied the mount may keep it alive. It gets errors, and nobody waits for it.
        let deadline = Instant::now() + GONE;
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < deadline {
            sleep(POLL).await;
        }
        unmounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
