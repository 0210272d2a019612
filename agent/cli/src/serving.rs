//! Owning a volume in this process and serving it over NBD.

use crate::failure::{self, Failure, Kind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use torus_agent::device::Unaligned;
use torus_agent::metadata::VolumeInfo;
use torus_agent::nbd::{Export, ListenError, Server};
use torus_agent::owner::{Control, OpenVolume, OwnerConfig, OwnerError, OwnerStats, OwnerStatus};
use torus_core::block::VolumeState;
use torus_core::ids::Epoch;
use torus_core::log::recover::OpenError;

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
    pub fn uri(&self, volume: &str) -> String {
        match self {
            Self::Socket(path) => format!("nbd+unix:///{volume}?socket={}", path.display()),
            Self::Tcp(address) => format!("nbd://{address}/{volume}"),
        }
    }

    /// Fails early where another process listens: a volume is not to be taken from anybody only to find that out.
    fn probe(&self) -> Result<(), Failure> {
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
        Err(taken.into())
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        Self::of(Kind::Failed, &error)
    }
}

impl From<OwnerError> for Failure {
    fn from(error: OwnerError) -> Self {
        let kind = match &error {
            OwnerError::Fenced { .. } => Kind::Refused,
            OwnerError::Open(
                OpenError::Held { .. }
                | OpenError::Overtaken { .. }
                | OpenError::Deleting(_)
                | OpenError::Missing { .. }
                | OpenError::Inconsistent(_),
            ) => Kind::Refused,
            _ => Kind::Failed,
        };
        Self::failed_as(kind, failure::told(&error))
    }
}

/// A runtime for everything that has to do with the metadata store; on threads of its own.
pub fn control_runtime() -> Result<Runtime, Failure> {
    let built = Builder::new_multi_thread().worker_threads(1).thread_name("torus-control").enable_all().build();
    built.map_err(|error| Failure::because("cannot start", &error))
}

/// A volume that this thread owns and serves. Dropped, it ends as a crash would.
pub struct Serving {
    server: Server<Unaligned<torus_agent::owner::VolumeDevice>>,
    volume: OpenVolume,
}

impl Serving {
    /// Opens `info` and serves it behind `door`. Call it inside a `LocalSet`.
    pub async fn open(
        control: Control,
        info: &VolumeInfo,
        mut config: OwnerConfig,
        door: &Door,
    ) -> Result<Self, Failure> {
        door.probe()?;
        let name = info.meta.doc.name.clone();
        config.holder.serves = door.uri(&name);
        let volume = OpenVolume::open(control, info, config).await?;
        let server = Server::new();
        let device = Rc::new(Unaligned::new(volume.device()));
        let description = format!("Torus volume {}", info.id);
        let export = Export { name, description, device };
        server.add(export).map_err(|error| Failure::of(Kind::Failed, &error))?;
        let listening = match door {
            Door::Socket(path) => server.listen_unix(path, SOCKET_MODE),
            Door::Tcp(address) => server.listen_tcp(*address).map(|_| ()),
        };
        if let Err(error) = listening {
            // The reason why it is not served matters more than how it was let go.
            let _ = volume.close().await;
            return Err(error.into());
        }
        Ok(Self { server, volume })
    }

    /// The epoch in which it is served.
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
    pub async fn close(self) -> Result<(), Failure> {
        self.server.stop(DRAIN).await;
        Ok(self.volume.close().await?)
    }
}
