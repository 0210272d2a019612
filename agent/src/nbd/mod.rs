//! The NBD server: block devices for anything that speaks the protocol.
//!
//! `torus_core::nbd` knows the bytes; here are the sockets. A [`Server`] has exports by name and listens on unix
//! sockets and TCP; each connection is one task that runs its own requests, so that a request costs no task, no lock and
//! no hop to another thread.
//!
//! # Invariants
//! 1. A reply goes out only after the device answered. A request that the device never saw is never answered with
//!    success.
//! 2. What one client can make the server hold is bounded: `NBD_IN_FLIGHT_BYTES_MAX` of payload and
//!    `NBD_IN_FLIGHT_REQUESTS_MAX` requests, counted until the last byte of the reply is with the kernel. At the bound
//!    the socket is not read; nothing is refused for it.
//! 3. What a client sends wrong hurts that client alone: an error by the specification, or a closed connection.
//! 4. A request that reached the device is driven to its end, whether or not its client is still there; only when the
//!    grace of [`Server::stop`] or [`Server::remove`] is over is it left to the device.
//! 5. A request that waits in a socket at a bound is not begun once its client has closed that socket: it may have been
//!    repeated on another connection, and overtaken there. (On TCP a peer that closed in good order cannot be told from
//!    one that has nothing more to send until a reply to it is refused; for that round trip the protocol leaves a gap.)
//! 6. Stopping takes no more requests, answers those that were taken, then closes.
//!
//! What is *not* here: TLS; ordering between overlapping requests in flight (the protocol leaves it to the client); and
//! ranges that are not whole blocks (put [`Unaligned`](crate::device::Unaligned) around the device, else such requests
//! are refused).

mod connection;
mod outbox;
mod payload;
mod request;
mod server;
mod socket;

pub use crate::listen::ListenError;
pub use server::{Export, ExportError, Server};

use crate::device::IoErrorKind;
use torus_core::nbd::Errno;

/// The error number that tells a client of a failure.
#[must_use]
pub fn errno(kind: IoErrorKind) -> Errno {
    match kind {
        IoErrorKind::NoSpace => Errno::NoSpc,
        IoErrorKind::Io | IoErrorKind::Corrupt => Errno::Io,
        IoErrorKind::Fenced | IoErrorKind::ShuttingDown => Errno::Shutdown,
        IoErrorKind::Invalid => Errno::Inval,
        IoErrorKind::ReadOnly => Errno::Perm,
        IoErrorKind::NotSupported => Errno::NotSup,
    }
}
