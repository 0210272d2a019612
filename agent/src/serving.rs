//! Owning a volume on this thread and serving it over NBD.

use crate::device::Unaligned;
use crate::metadata::VolumeInfo;
use crate::nbd::{Export, ExportError, ListenError, Server};
use crate::owner::{Control, OpenVolume, OwnerConfig, OwnerError, OwnerStats, OwnerStatus, VolumeDevice};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use torus_core::block::VolumeState;
use torus_core::ids::Epoch;

/// How long clients may take to be answered when a volume is let go.
const DRAIN: Duration = Duration::from_secs(10);
/// How long they may take to be told that it was taken over.
const FAREWELL: Duration = Duration::from_secs(1);
/// Permissions of a socket: its owner alone.
const SOCKET_MODE: u32 = 0o600;

/// Where clients connect.
#[derive(Clone, Debug)]
pub enum Door {
    /// A unix socket.
    Socket(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl Door {
    /// How a client names `volume` behind it.
    #[must_use]
    pub fn uri(&self, volume: &str) -> String {
        match self {
            Self::Socket(path) => format!("nbd+unix:///{volume}?socket={}", path.display()),
            Self::Tcp(address) => format!("nbd://{address}/{volume}"),
        }
    }

    /// Fails early where another process listens: a volume is not to be taken from anybody only to find that out.
    fn probe(&self) -> Result<(), ListenError> {
        let taken = match self {
            Self::Socket(path) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                ListenError::SocketInUse(path.clone())
            }
            Self::Tcp(address) => match std::net::TcpListener::bind(address) {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => ListenError::AddressInUse(*address),
                _ => return Ok(()),
            },
            Self::Socket(_) => return Ok(()),
        };
        Err(taken)
    }
}

/// Why a volume is not served, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It is not open.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// Clients cannot connect.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It cannot be shown to them.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// A volume that this thread owns and serves. Dropped, it ends as a crash would.
pub struct Serving {
    server: Server<Unaligned<VolumeDevice>>,
    volume: OpenVolume,
}

impl Serving {
    /// Opens `info` and serves it behind `door`. Call it inside a `LocalSet`.
    ///
    /// # Errors
    /// Why it is not served. Nothing is left of it then.
    pub async fn open(
        control: Control,
        info: &VolumeInfo,
        mut config: OwnerConfig,
        door: &Door,
    ) -> Result<Self, ServeError> {
        door.probe()?;
        let name = info.meta.doc.name.clone();
        config.holder.serves = door.uri(&name);
        let volume = OpenVolume::open(control, info, config).await?;
        let server = Server::new();
        let device = Rc::new(Unaligned::new(volume.device()));
        let description = format!("Torus volume {}", info.id);
        let export = Export { name, description, device };
        let shown = server.add(export).map_err(ServeError::from).and_then(|()| match door {
            Door::Socket(path) => Ok(server.listen_unix(path, SOCKET_MODE)?),
            Door::Tcp(address) => Ok(server.listen_tcp(*address).map(drop)?),
        });
        if let Err(error) = shown {
            // The reason why it is not served matters more than how it was let go.
            let _ = volume.close().await;
            return Err(error);
        }
        Ok(Self { server, volume })
    }

    /// The epoch in which it is served.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match self.volume.state() {
            VolumeState::Serving(epoch) | VolumeState::Fenced(epoch) => epoch,
            _ => Epoch(0),
        }
    }

    /// Figures, while it is served.
    pub async fn stats(&self) -> Option<OwnerStats> {
        self.volume.stats().await
    }

    /// What can be told of it.
    #[must_use]
    pub fn status(&self) -> OwnerStatus {
        self.volume.status()
    }

    /// Waits until it is lost to another owner. Cancel safe.
    pub async fn lost(&mut self) -> OwnerError {
        self.volume.lost().await
    }

    /// Tells clients that it was lost.
    pub async fn leave(self) {
        self.server.stop(FAREWELL).await;
    }

    /// Answers what was asked, writes a checkpoint, lets the volume go.
    ///
    /// # Errors
    /// When it was taken over meanwhile.
    pub async fn close(self) -> Result<(), ServeError> {
        self.server.stop(DRAIN).await;
        Ok(self.volume.close().await?)
    }
}
