//! Sockets to listen on. A unix socket's file outlives a process that was killed, so one that nobody listens on any more
//! is replaced; one that somebody listens on, or anything else at that path, is left alone.

use futures::Stream;
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// A peer that is silent for this long is asked whether it is there, this often; so a dead one is noticed after about
/// a minute, and what it held is given back.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process does.
    #[error("cannot listen on socket {0}: another process is listening there. Stop it, or choose another path")]
    SocketInUse(PathBuf),
    /// The path is taken.
    #[error("cannot listen on socket {0}: something that is not a socket is there. Remove it, or choose another path")]
    NotASocket(PathBuf),
    /// The path does not fit into an address.
    #[error("cannot listen on socket {0}: the path is too long for a socket (107 bytes). Choose a shorter one")]
    PathTooLong(PathBuf),
    /// The system refused.
    #[error("cannot listen on socket {0}")]
    Socket(PathBuf, #[source] io::Error),
    /// Another process has the port.
    #[error("cannot listen on {0}: the address is in use. Stop what listens there, or choose another port")]
    AddressInUse(SocketAddr),
    /// The system refused.
    #[error("cannot listen on {0}")]
    Address(SocketAddr, #[source] io::Error),
}

/// A unix socket's file, removed when the listener goes, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // It may be gone in the same moment, and then all is as it should be.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on the unix socket `path`, whose file gets the permissions `mode`.
///
/// # Errors
/// When somebody listens there, something else is there, or the system refuses.
pub fn unix(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile), ListenError> {
    let (socket, file) = bound(path, mode, Type::STREAM)?;
    let listener = UnixListener::from_std(socket.into()).map_err(|error| ListenError::Socket(path.into(), error))?;
    Ok((listener, file))
}

/// The same for connections on which messages keep their borders.
///
/// # Errors
/// As [`unix`].
pub fn messages(path: &Path, mode: u32) -> Result<(Socket, SocketFile), ListenError> {
    bound(path, mode, Type::SEQPACKET)
}

fn bound(path: &Path, mode: u32, kind: Type) -> Result<(Socket, SocketFile), ListenError> {
    let failed = |error| ListenError::Socket(path.into(), error);
    let address = SockAddr::unix(path).map_err(|_| ListenError::PathTooLong(path.into()))?;
    let socket = Socket::new(Domain::UNIX, kind, None).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    // On Linux a socket's own mode, less the umask, is what its file is made with, so there is no moment at which more
    // may connect than are meant to.
    fchmod(&socket, Mode::from_bits_truncate(mode)).map_err(|error| failed(error.into()))?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(failed(error));
        }
        remove_stale(path, &address, kind)?;
        socket.bind(&address).map_err(failed)?;
    }
    let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
    let file = SocketFile { path: path.into(), inode };
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)?;
    Ok((socket, file))
}

/// The connections that `listener` accepts, for a gRPC server.
pub fn accepted(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold(listener, |listener| async move {
        let connection = listener.accept().await.map(|(connection, _)| connection);
        Some((connection, listener))
    })
}

/// Removes the socket file at `path` if nobody listens on it.
fn remove_stale(path: &Path, address: &SockAddr, kind: Type) -> Result<(), ListenError> {
    let failed = |error| ListenError::Socket(path.into(), error);
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !found.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.into()));
    }
    let probe = Socket::new(Domain::UNIX, kind, None).map_err(failed)?;
    probe.set_nonblocking(true).map_err(failed)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(failed(error)),
        // Connected, or its backlog is full.
        _ => Err(ListenError::SocketInUse(path.into())),
    }
}

/// Listens on `address`; port 0 takes a free one.
pub(crate) fn tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::AddressInUse(address),
        _ => ListenError::Address(address, error),
    })
}

/// Sets an accepted connection up: small replies leave at once, and a dead peer is noticed.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_PROBES);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, file) = unix(&path, 0o600).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = unix(&path, 0o600).unwrap_err();
        assert!(matches!(error, ListenError::SocketInUse(_)), "{error}");
        assert!(path.exists());

        // As after kill -9: the file stays, nobody listens.
        std::mem::forget(file);
        // A child that another test starts in this moment has the listener, too, until it runs its program.
        socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
        drop(listener);
        let (_listener, file) = unix(&path, 0o660).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(file);
        assert!(!path.exists(), "a listener takes its file along");
    }

    #[tokio::test]
    async fn what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(unix(&path, 0o600).unwrap_err(), ListenError::NotASocket(_)));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        assert!(matches!(unix(&link, 0o600).unwrap_err(), ListenError::NotASocket(_)));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        let long = dir.path().join("x".repeat(200));
        assert!(matches!(unix(&long, 0o600).unwrap_err(), ListenError::PathTooLong(_)));

        // Another one took the path meanwhile: its file is not ours to remove.
        let path = dir.path().join("s");
        let (listener, file) = unix(&path, 0o600).unwrap();
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let same_inode_number = std::fs::metadata(&path).unwrap().ino() == file.inode;
        drop(file);
        assert_eq!(path.exists(), !same_inode_number);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let error = tcp(address).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
    }
}
