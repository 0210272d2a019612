//! A block device as a file: what a loop device is put on where the kernel has no NBD.
//!
//! ```text
//!   loop device ──▶ kernel FUSE ──▶ FUSE thread ── bounded queue ──▶ device thread: BlockDevice
//!        ▲                                                                 │
//!        └──────────────────── /dev/fuse ◀─────── replies ─────────────────┘
//! ```
//!
//! A FUSE filesystem with one file in it. The thread that reads requests only decodes them: a request changes threads
//! once, and its answer goes straight from the device's thread to the kernel. FUSE and not a network block device,
//! because it is in every kernel that runs containers. What it lacks is a life after the process that serves it: a filesystem
//! ends with the last descriptor of its connection. Where somebody else has one (`crate::holder`), another process can go on
//! with it, and the kernel asks that one again for what the first had taken and not answered (Linux 6.9).
//!
//! # Invariants
//! 1. `fsync` is a flush: an answer means that everything answered before is durable. The file is not cached, so there is
//!    nothing else that a flush could miss.
//! 2. At most [`FUSE_IN_FLIGHT_REQUESTS_MAX`] requests are with the device and as many in the queue, each of at most
//!    [`FUSE_REQUEST_BYTES_MAX`]; the kernel keeps the rest.
//! 3. A request is answered by the device, or with EIO when nobody is left to ask, or left to the process that goes on: never
//!    left waiting without one.
//! 4. Nothing here, nor in a process that holds this, may wait for I/O on the file or on what is built on it: killed in
//!    the middle of that, such a process could never end. Programs that do are run as children.
//!
//! What is *not* here: the loop device and what is mounted on it (`crate::node`), and ranges that are not whole blocks
//! (put [`Unaligned`](crate::device::Unaligned) around the device).
//!
//! [`FUSE_IN_FLIGHT_REQUESTS_MAX`]: torus_core::limits::FUSE_IN_FLIGHT_REQUESTS_MAX
//! [`FUSE_REQUEST_BYTES_MAX`]: torus_core::limits::FUSE_REQUEST_BYTES_MAX

mod filesystem;
mod mounted;
mod serve;
mod session;
mod wire;

pub use mounted::{FuseError, Mounted};

use crate::device::IoErrorKind;
use nix::errno::Errno;

/// The error number that tells a program of a failure.
#[must_use]
pub fn errno(kind: IoErrorKind) -> Errno {
    match kind {
        IoErrorKind::NoSpace => Errno::ENOSPC,
        IoErrorKind::Io | IoErrorKind::Corrupt | IoErrorKind::Fenced | IoErrorKind::ShuttingDown => Errno::EIO,
        IoErrorKind::Invalid => Errno::EINVAL,
        IoErrorKind::ReadOnly => Errno::EROFS,
        IoErrorKind::NotSupported => Errno::EOPNOTSUPP,
    }
}

#[cfg(test)]
mod tests;
