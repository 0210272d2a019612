//! What a front end is given to serve: a block device, whoever makes it.
//!
//! NBD, FUSE and ublk consume [`BlockDevice`]; the owner of a replicated volume implements it, and so do the decorators
//! here ([`Unaligned`], [`ReadOnly`]) and the stand-in of tests ([`testing::MemoryDevice`]). It is the narrowest thing that the front
//! ends have in common, so that none of them knows what a volume is.
//!
//! The futures are not `Send`: a device, its front ends and its driver live on one thread, where an I/O needs no lock
//! and no hop. Front ends are generic over the device, so a call costs no allocation of its own.
//!
//! # The contract
//! 1. An offset and a length are multiples of `block_bytes`, the length is not zero, and the range lies inside the
//!    device. The caller checks; a device answers [`IoErrorKind::Invalid`] rather than serve a range that breaks this.
//!    A read or a write carries what a front end takes at most (`NBD_REQUEST_BYTES_MAX`, 64 MiB) and two blocks more; a
//!    trim, zeroes and a status may span the device.
//! 2. A call takes its place in the order of the device when its future is first polled. What a write is given is
//!    what every read begins to return once the write is acknowledged, until a later write to the same blocks.
//!    Calls in flight at the same time on the same blocks are unordered, but each block reads as one of them wrote it.
//! 3. An acknowledged `flush`, or `fua` on a call, means durable: for a flush everything acknowledged, on whichever
//!    connection, before it was called.
//! 4. A future is driven to its end. To drop one is to leave the outcome unknown, as a crash does; it never undoes.
//! 5. `size_bytes` may grow while the device is open. It never shrinks.
//!
//! What is *not* here: ranges that are not made of whole blocks (that is [`Unaligned`]'s), bounds on what is in flight
//! (each front end's), and retrying (the owner's: when the promise cannot be kept I/O waits, it does not fail).

mod read_only;
mod unaligned;

pub mod testing;

pub use read_only::ReadOnly;
pub use torus_core::format::zeros::{is_zeros, push_zeros, zeros};
pub use unaligned::Unaligned;

use std::future::Future;
use torus_core::format::Pieces;

/// A device of fixed-size blocks. See the module for what every method promises.
pub trait BlockDevice {
    /// Its present shape. Cheap: asked for every request.
    fn info(&self) -> DeviceInfo;

    /// The `len` bytes at `offset`, in pieces of whole blocks. Runs that are known to be zeros come as [`zeros`], which
    /// costs no memory and which [`is_zeros`] recognises.
    ///
    /// # Errors
    /// [`IoErrorKind::Corrupt`] when no good copy of some block is left; never other bytes than were written.
    fn read(&self, offset: u64, len: u32) -> impl Future<Output = Result<Pieces, IoError>>;

    /// Writes `data` at `offset`; each piece is made of whole blocks. With `fua` it is durable when this returns.
    ///
    /// # Errors
    /// When it was refused, nothing of it is ever read. After any other error each block reads as before or as written.
    fn write(&self, offset: u64, data: Pieces, fua: bool) -> impl Future<Output = Result<(), IoError>>;

    /// Makes everything durable that was acknowledged before this call.
    ///
    /// # Errors
    /// When some of it may not be durable.
    fn flush(&self) -> impl Future<Output = Result<(), IoError>>;

    /// Gives the range back. It reads as zeros from then on. Costs no more than a small write, whatever the length.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn trim(&self, offset: u64, len: u64, fua: bool) -> impl Future<Output = Result<(), IoError>>;

    /// Makes the range read as zeros; with `no_hole` its space stays promised to it. Costs no more than a small write,
    /// whatever the length.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        no_hole: bool,
        fua: bool,
    ) -> impl Future<Output = Result<(), IoError>>;

    /// What is allocated from `offset` on: consecutive extents of whole blocks that cover `offset..offset + len` or,
    /// where that would take too many, a prefix of it that is not empty.
    ///
    /// # Errors
    /// When it cannot be known.
    fn block_status(&self, offset: u64, len: u64) -> impl Future<Output = Result<Vec<StatusExtent>, IoError>>;
}

/// The shape of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Its size; a multiple of `block_bytes`, or of 4096 where `block_bytes` is 1. May grow.
    pub size_bytes: u64,
    /// The unit of offsets and lengths: 4096, or 1 behind [`Unaligned`].
    pub block_bytes: u32,
    /// Writes, trims and zeroes answer [`IoErrorKind::ReadOnly`].
    pub read_only: bool,
}

/// A run of blocks that are alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusExtent {
    /// Its length in bytes; not zero.
    pub len: u64,
    /// Takes no space.
    pub hole: bool,
    /// Reads as zeros.
    pub zero: bool,
}

/// Appends `extent`, joining it to the last one where both are alike.
pub fn push_extent(extents: &mut Vec<StatusExtent>, extent: StatusExtent) {
    match extents.last_mut() {
        Some(last) if (last.hole, last.zero) == (extent.hole, extent.zero) => last.len += extent.len,
        _ => extents.push(extent),
    }
}

/// Why an I/O failed: the kind for the front end's error number, the message for people.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct IoError {
    /// What a client is to make of it.
    pub kind: IoErrorKind,
    /// What failed, on which object, and what to do next.
    pub message: String,
}

impl IoError {
    /// An error of `kind` that says `message`.
    pub fn new(kind: IoErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// What a client is to make of a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum IoErrorKind {
    /// The pool is full; refused before anything was written.
    NoSpace,
    /// It did not work, and is not going to by itself.
    Io,
    /// No copy of these blocks passes its checksum.
    Corrupt,
    /// Another owner has the volume: nothing more is served here.
    Fenced,
    /// The device is being closed.
    ShuttingDown,
    /// The request breaks the contract: a range outside the device, or not made of whole blocks.
    Invalid,
    /// The device takes no writes.
    ReadOnly,
    /// The device has no such operation.
    NotSupported,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_extents_are_joined() {
        let extent = |len, hole| StatusExtent { len, hole, zero: hole };
        let mut extents = Vec::new();
        for e in [extent(1, true), extent(2, true), extent(4, false), extent(8, true)] {
            push_extent(&mut extents, e);
        }
        assert_eq!(extents, [extent(3, true), extent(4, false), extent(8, true)]);
    }
}
