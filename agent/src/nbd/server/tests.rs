use super::*;
use crate::device::testing::MemoryDevice;
use crate::device::{DeviceInfo, IoError, StatusExtent};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::LocalSet;
use torus_core::format::Pieces;

const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(30);

/// Memory whose flushes never end.
struct Stuck(MemoryDevice);

impl BlockDevice for Stuck {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }
    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, IoError> {
        self.0.read(offset, len).await
    }
    async fn write(&self, offset: u64, data: Pieces, fua: bool) -> Result<(), IoError> {
        self.0.write(offset, data, fua).await
    }
    async fn flush(&self) -> Result<(), IoError> {
        std::future::pending().await
    }
    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.0.trim(offset, len, fua).await
    }
    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), IoError> {
        self.0.write_zeroes(offset, len, no_hole, fua).await
    }
    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<StatusExtent>, IoError> {
        self.0.block_status(offset, len).await
    }
}

fn export(name: &str) -> Export<Stuck> {
    let device = Rc::new(Stuck(MemoryDevice::new(1 << 20)));
    Export { name: name.into(), description: String::new(), device }
}

/// A server of `one` and `two`, and where it listens.
fn server(handshake_time_max: Duration) -> (Server<Stuck>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with_handshake_time(handshake_time_max);
    server.add(export("one")).unwrap();
    server.add(export("two")).unwrap();
    server.listen_unix(&dir.path().join("s"), 0o600).unwrap();
    (server, dir)
}

async fn connect(dir: &TempDir, name: &str) -> UnixStream {
    let mut socket = UnixStream::connect(dir.path().join("s")).await.unwrap();
    let choose = [&[0, 0, 0, 3][..], b"IHAVEOPT", &1u32.to_be_bytes(), &(name.len() as u32).to_be_bytes()].concat();
    socket.write_all(&[&choose[..], name.as_bytes()].concat()).await.unwrap();
    socket.read_exact(&mut [0; 18 + 10]).await.unwrap();
    socket
}

/// Sends a request, and gives whether it is answered before the connection closes.
async fn ask(socket: &mut UnixStream, kind: u16) -> bool {
    let mut request = [0; 28];
    request[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
    request[6..8].copy_from_slice(&kind.to_be_bytes());
    socket.write_all(&request).await.is_ok() && socket.read_exact(&mut [0; 16]).await.is_ok()
}

const READ: u16 = 0;
const FLUSH: u16 = 3;

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(LONG * 2, test).await.expect("it hangs") });
}

#[test]
fn a_client_that_never_negotiates_is_closed() {
    run(async {
        let (server, dir) = server(SOON);
        let mut silent = UnixStream::connect(dir.path().join("s")).await.unwrap();
        let mut served = connect(&dir, "one").await;
        let mut said = Vec::new();
        silent.read_to_end(&mut said).await.unwrap();
        assert_eq!(said.len(), 18, "the greeting, and no more");
        assert!(ask(&mut served, READ).await, "who negotiated in time stays");
        assert_eq!(server.connections(), 1);
    });
}

#[test]
fn stopping_closes_idle_clients_and_takes_the_socket_along() {
    run(async {
        let (server, dir) = server(LONG);
        let mut idle = connect(&dir, "one").await;
        let mut negotiating = UnixStream::connect(dir.path().join("s")).await.unwrap();
        negotiating.read_exact(&mut [0; 18]).await.unwrap();
        assert!(server.stop(LONG).await);
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(negotiating.read(&mut [0]).await.unwrap(), 0);
        assert!(!dir.path().join("s").exists());
    });
}

#[test]
fn stopping_waits_for_the_device_no_longer_than_told() {
    run(async {
        let (server, dir) = server(LONG);
        let mut socket = connect(&dir, "one").await;
        let stuck = spawn_local(async move { ask(&mut socket, FLUSH).await });
        while server.connections() == 0 {
            tokio::task::yield_now().await;
        }
        // The flush has to be with the device, or there is nothing to wait for.
        let mut other = connect(&dir, "one").await;
        assert!(ask(&mut other, READ).await);
        assert!(!server.stop(SOON).await, "a flush that never ends counts as drained");
        assert!(!stuck.await.unwrap());
    });
}

#[test]
fn removing_an_export_leaves_the_others_alone() {
    run(async {
        let (server, dir) = server(LONG);
        let mut one = connect(&dir, "one").await;
        let mut two = connect(&dir, "two").await;
        assert!(server.remove("one", LONG).await);
        assert_eq!(one.read(&mut [0]).await.unwrap(), 0);
        assert!(ask(&mut two, READ).await);
        assert!(server.remove("one", LONG).await, "removing what is not there is no failure");

        // With one left, that is the default.
        let mut default = connect(&dir, "").await;
        assert!(ask(&mut default, READ).await);
        server.add(export("one")).unwrap();
        let mut again = connect(&dir, "one").await;
        assert!(ask(&mut again, READ).await);
    });
}

#[test]
fn who_is_connected_already_negotiates_nothing() {
    run(async {
        let (server, _dir) = server(SOON);
        let (mut client, stream) = UnixStream::pair().unwrap();
        let over = server.serve_connected(stream, "one", "a test").unwrap();
        assert!(ask(&mut client, READ).await, "the first byte is a request's");
        assert_eq!(server.connections(), 1);
        assert!(!over.is_cancelled());
        drop(client);
        over.cancelled().await;
        assert_eq!(server.connections(), 0);

        let (mut client, stream) = UnixStream::pair().unwrap();
        let over = server.serve_connected(stream, "one", "a test").unwrap();
        assert!(server.remove("one", LONG).await);
        assert!(over.is_cancelled(), "it counts as a client of its export");
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        let (_client, stream) = UnixStream::pair().unwrap();
        let error = server.serve_connected(stream, "one", "a test").unwrap_err();
        assert!(matches!(error, ExportError::Missing(_)), "{error}");
    });
}

#[test]
fn dropping_the_server_closes_everything() {
    run(async {
        let (server, dir) = server(LONG);
        let mut socket = connect(&dir, "one").await;
        drop(server);
        assert!(!ask(&mut socket, FLUSH).await);
        while dir.path().join("s").exists() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn exports_that_cannot_be_served_are_refused_by_name() {
    let server = Server::new();
    server.add(export("one")).unwrap();
    let error = server.add(export("one")).unwrap_err();
    assert!(error.to_string().contains("\"one\" is already served"), "{error}");
    assert!(matches!(server.add(export(&"x".repeat(NBD_STRING_BYTES_MAX + 1))), Err(ExportError::TooLong(_))));
    for i in 1..NBD_EXPORTS_MAX {
        server.add(export(&format!("e{i}"))).unwrap();
    }
    assert!(matches!(server.add(export("last")), Err(ExportError::TooMany(_))));
}
