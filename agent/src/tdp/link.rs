//! One TCP connection: reads into an inbox, one vectored write for everything queued.
//!
//! Reads go through `AsyncRead` and not through `try_read`: only there tokio notes that a short read has emptied the
//! socket, which saves the second read that would do nothing but find this out. At one request per turn that is one
//! system call in four.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use torus_core::ids::RpcId;
use torus_core::tdp::{Inbox, Message, Outbox};

/// Pieces given to one write.
const SLICES: usize = 128;
/// A peer that is silent for this long is asked by the kernel whether it is still there,
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// every so often,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// and given up after so many unanswered questions.
const KEEPALIVE_RETRIES: u32 = 3;
/// Sent bytes that stay unacknowledged for this long end the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// An established connection's sending half. Its methods borrow it shared: the task that reads the connection and the
/// task that answers on it are two.
pub(super) struct Link {
    socket: OwnedWriteHalf,
    outbox: RefCell<Outbox>,
    /// The socket took no more: [`Link::drain`] waits for it.
    blocked: Cell<bool>,
    /// Wakes the connection's task when `blocked`, or something else that it waits by, has changed.
    pub changed: Notify,
}

/// Its receiving half.
pub(super) struct Source(OwnedReadHalf);

impl Link {
    /// Takes over `stream`.
    pub fn new(stream: TcpStream) -> io::Result<(Link, Source)> {
        stream.set_nodelay(true)?;
        let socket = socket2::SockRef::from(&stream);
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        let (read, socket) = stream.into_split();
        let (outbox, blocked, changed) = Default::default();
        Ok((Link { socket, outbox, blocked, changed }, Source(read)))
    }

    /// Queues a message; [`Link::flush`] sends it.
    pub fn push<T: Message>(&self, rpc: RpcId, message: &T) {
        self.outbox.borrow_mut().push(rpc, message);
    }

    /// Queues whatever else an outbox takes.
    pub fn queue(&self, put: impl FnOnce(&mut Outbox)) {
        put(&mut self.outbox.borrow_mut());
    }

    /// Bytes queued.
    pub fn queued(&self) -> usize {
        self.outbox.borrow().bytes()
    }

    /// Whether queued bytes wait for the socket.
    pub fn blocked(&self) -> bool {
        self.blocked.get()
    }

    /// Writes what is queued, as much as the socket takes now; the rest goes out by [`Link::drain`].
    pub fn flush(&self) -> io::Result<()> {
        if self.blocked() { Ok(()) } else { self.write() }
    }

    fn write(&self) -> io::Result<()> {
        let mut outbox = self.outbox.borrow_mut();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = outbox.slices(&mut slices);
            match self.socket.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => outbox.advance(written),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !self.blocked.replace(true) {
                        self.changed.notify_one();
                    }
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        self.blocked.set(false);
        Ok(())
    }

    /// Waits until the socket takes more and writes it. Cancel safe.
    pub async fn drain(&self) -> io::Result<()> {
        self.socket.writable().await?;
        self.write()
    }

    /// Ends the connection for both sides, whoever still holds it.
    pub fn shutdown(&self) {
        let stream: &TcpStream = self.socket.as_ref();
        // Fails on a connection that has ended already.
        let _ = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Both);
        self.changed.notify_one();
    }

    /// The other end's address, for messages.
    pub fn peer(&self) -> String {
        self.socket.peer_addr().map_or_else(|_| "a peer that is gone".into(), |a| a.to_string())
    }
}

impl Source {
    /// Waits for bytes and reads once; `0` is the end of the stream. Cancel safe.
    pub async fn read<T: Message, B: AsMut<[u8]>>(&mut self, inbox: &mut Inbox<T, B>) -> io::Result<usize> {
        let [mut payload, mut staging] = inbox.space();
        let space = if payload.is_empty() { &mut staging } else { &mut payload };
        let read = self.0.read(space).await?;
        inbox.received(read);
        Ok(read)
    }
}
