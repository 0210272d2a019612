//! A FUSE connection that the holder of this host keeps too ([`crate::holder`]), so that the device outlives this process.
//!
//! 1. Nothing that this process waits for, nor its children, may do I/O on a device that is held: killed in the middle of that,
//!    they would wait for the next process, which on Kubernetes does not start before they are gone. So a device is held while
//!    pods use it, and not while it is formatted, checked, mounted, grown or unmounted.
//! 2. A holder that is not there is tried again, and one that has gone is given the connection anew: it may start later, and be
//!    replaced.

use crate::holder::{Connection, HolderError};
use crate::process::told;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use torus_core::ids::VolumeId;

/// How long is waited before a holder that is not there is looked for again: at first, and at most.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// What is held, or to be held as soon as there is a holder.
pub(super) struct Held {
    socket: PathBuf,
    volume: VolumeId,
    device: OwnedFd,
    /// The connection by which the holder knows that this process attends to it.
    attending: Option<Attending>,
}

struct Attending {
    connection: Connection,
    /// The same, to be waited for.
    watched: UnixStream,
}

impl Held {
    /// Has `device` held, now if there is a holder on `socket`, or else when there is.
    pub(super) async fn begin(socket: &Path, volume: VolumeId, device: OwnedFd) -> Self {
        let mut held = Self { socket: socket.into(), volume, device, attending: None };
        if let Err(error) = held.hand_over().await {
            tracing::warn!(
                %volume,
                "the device ends with this process: {}. Start torus-holder on this host to have it outlive an agent",
                told(&error)
            );
        }
        held
    }

    /// What the holder on `socket` has of `volume`, if it has anything: this process attends to it from now on.
    pub(super) async fn take(socket: &Path, volume: VolumeId) -> Result<Option<Self>, HolderError> {
        let path = socket.to_owned();
        let taking = spawn_blocking(move || {
            let connection = Connection::open(&path)?;
            Ok(connection.take(&volume.to_string())?.map(|device| (connection, device)))
        });
        let Some((connection, device)) = joined(taking.await)? else { return Ok(None) };
        let attending = Some(Attending::by(connection)?);
        Ok(Some(Self { socket: socket.into(), volume, device, attending }))
    }

    /// Whether the holder on `socket` has anything of `volume`.
    pub(super) async fn is_there(socket: &Path, volume: VolumeId) -> Result<bool, HolderError> {
        let socket = socket.to_owned();
        joined(spawn_blocking(move || Connection::open(&socket)?.has(&volume.to_string())).await)
    }

    /// Has the holder on `socket` let go of what it has of `volume`.
    pub(super) async fn release(socket: &Path, volume: VolumeId) -> Result<(), HolderError> {
        let socket = socket.to_owned();
        joined(spawn_blocking(move || Connection::open(&socket)?.release(&volume.to_string())).await)
    }

    /// The connection to the kernel.
    pub(super) fn device(&self) -> std::io::Result<OwnedFd> {
        self.device.try_clone()
    }

    /// A holder has it, as far as is known.
    pub(super) fn is_attended(&self) -> bool {
        self.attending.is_some()
    }

    /// Sees to it that there is a holder that has it. Never ends. Cancel safe.
    pub(super) async fn attend(&mut self) -> ! {
        let mut pause = RETRY;
        loop {
            if let Some(attending) = &self.attending {
                // It says nothing unless it is asked: what can be read is its end.
                let _ = attending.watched.readable().await;
                self.attending = None;
                tracing::warn!(volume = %self.volume, "the holder has gone");
                pause = RETRY;
            }
            sleep(pause).await;
            if self.hand_over().await.is_ok() {
                tracing::info!(volume = %self.volume, "there is a holder for the device");
            }
            pause = (2 * pause).min(RETRY_MAX);
        }
    }

    /// Has the device end with this process again.
    ///
    /// # Errors
    /// When that is not certain.
    pub(super) async fn end(&mut self) -> Result<(), HolderError> {
        match self.attending.take() {
            None => Ok(()),
            Some(attending) => {
                let (connection, volume) = (attending.end()?, self.volume);
                let ended = spawn_blocking(move || connection.release(&volume.to_string()));
                match joined(ended.await) {
                    // With the holder, all that it held is gone.
                    Err(_) if Connection::open(&self.socket).is_err() => Ok(()),
                    ended => ended,
                }
            }
        }
    }

    async fn hand_over(&mut self) -> Result<(), HolderError> {
        let (socket, name) = (self.socket.clone(), self.volume.to_string());
        let device = self.device().map_err(|error| HolderError::Confused(error.to_string()))?;
        let handing = spawn_blocking(move || {
            let connection = Connection::open(&socket)?;
            connection.keep(&name, device.as_fd())?;
            Ok(connection)
        });
        self.attending = Some(Attending::by(joined(handing.await)?)?);
        Ok(())
    }
}

fn joined<T>(ended: Result<Result<T, HolderError>, tokio::task::JoinError>) -> Result<T, HolderError> {
    ended.unwrap_or_else(|error| Err(HolderError::Confused(error.to_string())))
}

impl Attending {
    fn by(connection: Connection) -> Result<Self, HolderError> {
        let watched = || {
            let watched = std::os::unix::net::UnixStream::from(connection.as_fd().try_clone_to_owned()?);
            watched.set_nonblocking(true)?;
            UnixStream::from_std(watched)
        };
        match watched() {
            Ok(watched) => Ok(Self { connection, watched }),
            Err(error) => Err(HolderError::Confused(error.to_string())),
        }
    }

    /// The connection, for one more question.
    fn end(self) -> Result<Connection, HolderError> {
        let blocking = self.watched.into_std().and_then(|watched| watched.set_nonblocking(false));
        blocking.map(|()| self.connection).map_err(|error| HolderError::Confused(error.to_string()))
    }
}
