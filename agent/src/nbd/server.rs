//! Exports, listeners, connections, and how they end.

use super::connection::{ConnectionError, negotiate, transmit};
use super::socket::Socket;
use crate::device::BlockDevice;
use crate::listen::{self, ListenError, SocketFile};
use bytes::BytesMut;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use torus_core::ids::BLOCK_SIZE;
use torus_core::limits::{
    NBD_BUFFERS_IDLE_BYTES, NBD_CONNECTIONS_MAX, NBD_EXPORTS_MAX, NBD_HANDSHAKE_TIME_MAX, NBD_STRING_BYTES_MAX,
};
use torus_core::nbd::{ExportInfo, Exports, Session};
use torus_store::BufferPool;

/// How long to wait before accepting again when the system has no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A device under a name.
pub struct Export<D> {
    /// What clients ask for.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// What is served. A flush on it covers what was acknowledged on every connection.
    pub device: Rc<D>,
}

/// Why an export was not added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// It is there.
    #[error("export {0:?} is already served here: remove it first, or choose another name")]
    Exists(String),
    /// The protocol does not take it.
    #[error("the name or the description of export {0:?} is longer than {NBD_STRING_BYTES_MAX} bytes: shorten it")]
    TooLong(String),
    /// There are too many.
    #[error(
        "cannot serve export {0:?}: this server has {NBD_EXPORTS_MAX} already. Remove one, or start another server"
    )]
    TooMany(String),
    /// There is none.
    #[error("export {0:?} is not served here: it was removed, or never added")]
    Missing(String),
}

/// An NBD server on the present thread. Needs a `LocalSet`.
///
/// Dropping it closes the listeners and every connection at once; see [`Server::stop`] for the graceful way.
pub struct Server<D> {
    shared: Rc<Shared<D>>,
}

struct Shared<D> {
    exports: RefCell<BTreeMap<String, Served<D>>>,
    stopping: Stopping,
    connections: Rc<Count>,
    doors: Rc<Count>,
    handshake_time_max: Duration,
    /// For the large payloads of all connections.
    memory: BufferPool,
}

struct Served<D> {
    description: String,
    device: Rc<D>,
    stopping: Stopping,
    connections: Rc<Count>,
}

/// The two ways in which a connection is told to end.
#[derive(Clone)]
struct Stopping {
    /// Take nothing more, answer what was taken, close.
    drain: CancellationToken,
    /// Close.
    now: CancellationToken,
}

impl Stopping {
    fn new() -> Self {
        Self { drain: CancellationToken::new(), now: CancellationToken::new() }
    }

    fn child(&self) -> Self {
        Self { drain: self.drain.child_token(), now: self.now.child_token() }
    }

    /// Drains `connections` for up to `grace`, then closes what is left. Whether all were drained.
    async fn stop(&self, connections: &Count, grace: Duration) -> bool {
        self.drain.cancel();
        let drained = timeout(grace, connections.zero()).await.is_ok();
        self.now.cancel();
        connections.zero().await;
        drained
    }
}

/// How many there are.
#[derive(Default)]
struct Count {
    now: Cell<usize>,
    fell: Notify,
}

impl Count {
    fn one(self: &Rc<Self>) -> Counted {
        self.now.set(self.now.get() + 1);
        Counted(self.clone())
    }

    async fn zero(&self) {
        while self.now.get() > 0 {
            self.fell.notified().await;
        }
    }
}

/// One of those that a [`Count`] counts.
struct Counted(Rc<Count>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.set(self.0.now.get() - 1);
        self.0.fell.notify_waiters();
    }
}

impl<D: BlockDevice> Exports for Shared<D> {
    /// The default export is the only one, where there is only one.
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let exports = self.exports.borrow();
        let (name, served) = match exports.get_key_value(name) {
            Some(found) => found,
            None if name.is_empty() && exports.len() == 1 => exports.first_key_value()?,
            None => return None,
        };
        let info = served.device.info();
        Some(ExportInfo {
            name: name.clone(),
            description: served.description.clone(),
            size_bytes: info.size_bytes,
            read_only: info.read_only,
            block_min_bytes: info.block_bytes,
            block_preferred_bytes: info.block_bytes.max(BLOCK_SIZE as u32),
        })
    }

    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        for (name, served) in &*self.exports.borrow() {
            each(name, &served.description);
        }
    }
}

impl<D: BlockDevice + 'static> Default for Server<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D: BlockDevice + 'static> Server<D> {
    /// A server without exports that listens nowhere.
    #[must_use]
    pub fn new() -> Self {
        Self::with_handshake_time(NBD_HANDSHAKE_TIME_MAX)
    }

    fn with_handshake_time(handshake_time_max: Duration) -> Self {
        let shared = Shared {
            exports: RefCell::default(),
            stopping: Stopping::new(),
            connections: Rc::default(),
            doors: Rc::default(),
            handshake_time_max,
            memory: BufferPool::new(NBD_BUFFERS_IDLE_BYTES),
        };
        Self { shared: Rc::new(shared) }
    }

    /// Serves `export` to those who ask for it from now on.
    ///
    /// # Errors
    /// When the name is taken or too long, or there are too many exports.
    pub fn add(&self, export: Export<D>) -> Result<(), ExportError> {
        let Export { name, description, device } = export;
        let mut exports = self.shared.exports.borrow_mut();
        if exports.contains_key(&name) {
            return Err(ExportError::Exists(name));
        }
        if name.len().max(description.len()) > NBD_STRING_BYTES_MAX {
            return Err(ExportError::TooLong(name.chars().take(64).collect()));
        }
        if exports.len() >= NBD_EXPORTS_MAX {
            return Err(ExportError::TooMany(name));
        }
        let stopping = self.shared.stopping.child();
        exports.insert(name, Served { description, device, stopping, connections: Rc::default() });
        Ok(())
    }

    /// Serves the export `name` no longer: its clients get answers to what they asked for, and are closed after `grace`
    /// at the latest. Gives whether all got their answers; `true` also where there is no such export.
    pub async fn remove(&self, name: &str, grace: Duration) -> bool {
        let served = self.shared.exports.borrow_mut().remove(name);
        match served {
            Some(served) => served.stopping.stop(&served.connections, grace).await,
            None => true,
        }
    }

    /// Clients connected now, those that still negotiate among them.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.now.get()
    }

    /// Listens on a unix socket whose file gets the permissions `mode`. A file left by a process that is gone is
    /// replaced; the file is removed when the server stops.
    ///
    /// # Errors
    /// When another process listens there, or the system refuses.
    pub fn listen_unix(&self, path: &Path, mode: u32) -> Result<(), ListenError> {
        let (listener, file) = listen::unix(path, mode)?;
        self.spawn_accept(UnixDoor { listener, _file: file });
        Ok(())
    }

    /// Listens on `address`, and gives the one it got: port 0 takes a free one.
    ///
    /// # Errors
    /// When the address is in use, or the system refuses.
    pub fn listen_tcp(&self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let listener = listen::tcp(address)?;
        let bound = listener.local_addr().map_err(|error| ListenError::Address(address, error))?;
        self.spawn_accept(TcpDoor { listener });
        Ok(bound)
    }

    /// Serves the export `name` to a client at the other end of `stream` that knows it already and negotiates nothing, as
    /// the kernel does: plain replies, no block status. `client` is for the log. Gives what is cancelled when the connection is
    /// over and all that came by it is done.
    ///
    /// # Errors
    /// When there is no such export.
    pub fn serve_connected(
        &self,
        stream: tokio::net::UnixStream,
        name: &str,
        client: &str,
    ) -> Result<CancellationToken, ExportError> {
        let session = Session { export: name.to_owned(), structured: false, base_allocation: false };
        let serving = self.shared.serving(&session).ok_or_else(|| ExportError::Missing(name.to_owned()))?;
        let over = CancellationToken::new();
        let (client, counted, done) = (client.to_owned(), self.shared.connections.one(), over.clone().drop_guard());
        spawn_local(async move {
            match Socket::new(stream) {
                Ok(socket) => serving.serve(socket, session, BytesMut::new(), &client).await,
                Err(error) => tracing::warn!(client, %error, "cannot serve an NBD connection"),
            }
            drop((counted, done));
        });
        Ok(over)
    }

    /// Stops listening, lets every connection answer what it was asked, and closes all after `grace` at the latest.
    /// Gives whether all got their answers.
    pub async fn stop(self, grace: Duration) -> bool {
        let drained = self.shared.stopping.stop(&self.shared.connections, grace).await;
        self.shared.doors.zero().await;
        drained
    }

    fn spawn_accept(&self, door: impl Door + 'static) {
        let shared = self.shared.clone();
        spawn_local(async move {
            // The door is closed, and a socket's file removed, before anyone learns that the server has stopped.
            let _open = shared.doors.one();
            shared.stopping.drain.run_until_cancelled(accept_all(&shared, door)).await;
        });
    }
}

impl<D> Drop for Server<D> {
    fn drop(&mut self) {
        self.shared.stopping.drain.cancel();
        self.shared.stopping.now.cancel();
    }
}

/// Something that connections come in by.
trait Door {
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;
    /// The next connection, and who it is.
    async fn accept(&self) -> io::Result<(Self::Stream, String)>;
}

struct UnixDoor {
    listener: UnixListener,
    _file: SocketFile,
}

impl Door for UnixDoor {
    type Stream = Socket;
    async fn accept(&self) -> io::Result<(Self::Stream, String)> {
        let (stream, _) = self.listener.accept().await?;
        let client = match stream.peer_cred().ok().and_then(|who| who.pid()) {
            Some(pid) => format!("process {pid}"),
            None => "a process elsewhere".to_owned(),
        };
        Ok((Socket::new(stream)?, client))
    }
}

struct TcpDoor {
    listener: TcpListener,
}

impl Door for TcpDoor {
    type Stream = tokio::net::TcpStream;
    async fn accept(&self) -> io::Result<(Self::Stream, String)> {
        let (stream, address) = self.listener.accept().await?;
        if let Err(error) = listen::prepare(&stream) {
            // It is gone already, which its first read will tell.
            tracing::debug!(client = %address, %error, "cannot set an NBD connection up");
        }
        Ok((stream, address.to_string()))
    }
}

async fn accept_all<D: BlockDevice + 'static>(shared: &Rc<Shared<D>>, door: impl Door) {
    loop {
        match door.accept().await {
            Ok((_, client)) if shared.connections.now.get() >= NBD_CONNECTIONS_MAX => {
                tracing::warn!(client, "NBD client turned away: {NBD_CONNECTIONS_MAX} are connected");
            }
            Ok((stream, client)) => {
                let counted = shared.connections.one();
                let shared = shared.clone();
                spawn_local(async move {
                    serve(&shared, stream, &client).await;
                    drop(counted);
                });
            }
            // It left before it was let in.
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionReset) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept an NBD connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection from its first byte to its last.
async fn serve<D, S>(shared: &Rc<Shared<D>>, mut stream: S, client: &str)
where
    D: BlockDevice + 'static,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let negotiated = {
        let negotiating = timeout(shared.handshake_time_max, negotiate(&mut stream, &**shared));
        match shared.stopping.drain.run_until_cancelled(negotiating).await {
            None => return,
            Some(Err(_)) => return tracing::info!(client, "NBD client closed: it took too long to negotiate"),
            Some(Ok(Ok(None))) => return,
            Some(Ok(Err(error))) => return report(client, &error),
            Some(Ok(Ok(Some(negotiated)))) => negotiated,
        }
    };
    let (session, input) = negotiated;
    match shared.serving(&session) {
        Some(serving) => serving.serve(stream, session, input, client).await,
        None => tracing::info!(client, export = session.export, "NBD client closed: its export was just removed"),
    }
}

/// What one connection needs of its export.
struct Serving<D> {
    device: Rc<D>,
    memory: BufferPool,
    stopping: Stopping,
    _counted: Counted,
}

impl<D: BlockDevice> Shared<D> {
    fn serving(&self, session: &Session) -> Option<Serving<D>> {
        let exports = self.exports.borrow();
        let served = exports.get(&session.export)?;
        let (device, stopping) = (served.device.clone(), served.stopping.clone());
        Some(Serving { device, memory: self.memory.clone(), stopping, _counted: served.connections.one() })
    }
}

impl<D: BlockDevice> Serving<D> {
    /// The transmission phase.
    async fn serve<S>(self, stream: S, session: Session, input: BytesMut, client: &str)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let export = session.export.clone();
        tracing::info!(client, export, "NBD client connected");
        let drained = self.stopping.drain.clone().cancelled_owned();
        let transmitting = transmit(stream, self.device, session, input, self.memory, drained);
        match self.stopping.now.run_until_cancelled(transmitting).await {
            None => tracing::warn!(client, export, "NBD client closed before all of its requests were answered"),
            Some(Ok(())) => tracing::info!(client, export, "NBD client gone"),
            Some(Err(error)) => report(client, &error),
        }
    }
}

fn report(client: &str, error: &ConnectionError) {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::info!(client, cause, "NBD client closed: {error}");
}

#[cfg(test)]
mod tests;
