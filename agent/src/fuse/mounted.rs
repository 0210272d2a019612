//! Mounting, and its end.

use super::filesystem::OneFile;
use super::serve::serve;
use crate::device::BlockDevice;
use fuser::{BackgroundSession, Config, MountOption, Session};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking, spawn_local};
use tokio::time::{Instant, sleep};
use torus_core::limits::FUSE_IN_FLIGHT_REQUESTS_MAX;

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
}

/// A device that is a file. Dropped, it is unmounted as far as that is possible, and what still asks gets EIO.
pub struct Mounted {
    directory: PathBuf,
    file: PathBuf,
    session: Option<BackgroundSession>,
    serving: AbortHandle,
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
        let read_only = device.info().read_only;
        let (jobs, asked) = mpsc::channel(FUSE_IN_FLIGHT_REQUESTS_MAX.into());
        let filesystem = OneFile { name: name.to_owned(), read_only, jobs };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("torus".into()),
            MountOption::Subtype("torus".into()),
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
        ];
        let place = directory.to_owned();
        // The kernel's greeting is waited for on another thread, as this one may have a volume to serve.
        let mounted = spawn_blocking(move || Session::new(filesystem, &place, &config)?.spawn()).await;
        let session = mounted.map_err(io::Error::other).and_then(|session| session);
        let session = session.map_err(|error| FuseError::Mount(directory.to_owned(), error))?;
        let serving = spawn_local(serve(device, asked)).abort_handle();
        Ok(Self { directory: directory.to_owned(), file: directory.join(name), session: Some(session), serving })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Unmounts it, and waits until the kernel has let go of it. Nobody may have the file open any more.
    ///
    /// # Errors
    /// When somebody is in it; it has vanished from its directory all the same, and ends when they leave.
    pub async fn unmount(mut self) -> Result<(), FuseError> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let directory = self.directory.clone();
        let unmounting = spawn_blocking(move || {
            // All of it moves here; what is not given back is dropped, which asks fusermount3 where umount may not.
            let session = session;
            let unmounted = match umount2(&directory, MntFlags::empty()) {
                Ok(()) | Err(Errno::EPERM) => Ok(()),
                Err(errno) => {
                    // Best effort after a failure that is told.
                    let _ = umount2(&directory, MntFlags::MNT_DETACH);
                    Err(FuseError::Unmount(directory, errno.into()))
                }
            };
            (session.guard, unmounted)
        });
        let (thread, unmounted) = unmounting.await.expect("unmounting panics nowhere");
        // A mount namespace that copied the mount may keep it alive. It gets errors, and nobody waits for it.
        let deadline = Instant::now() + GONE;
        while !thread.is_finished() && Instant::now() < deadline {
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
