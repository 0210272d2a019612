//! The NBD protocol's bytes: what a server says and understands, after
//! [doc/proto.md](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md) of the NBD project.
//!
//! [`Handshake`] is the fixed newstyle negotiation as a state machine over buffers; [`RequestHeader`] and [`Command`]
//! are what a client may ask for afterwards; [`reply`] gives every answer its bytes. Sockets, devices and time are the
//! front end's. Everything is big-endian on the wire.
//!
//! # Invariants
//! 1. No byte from a client panics, and none makes the negotiation hold more than
//!    [`NBD_OPTION_BYTES_MAX`](crate::limits::NBD_OPTION_BYTES_MAX) of input.
//! 2. A [`Command`] lies inside the export, is made of whole minimum blocks and is not empty; what does not is a
//!    [`Refusal`] with the error number that the specification asks for.
//! 3. An option or a command that is not understood is answered, not hung up on; a wrong magic number ends the
//!    connection, because from there on the stream cannot be trusted.
//!
//! What is *not* here: oldstyle negotiation, TLS (STARTTLS is answered "unsupported", the specification's NOTLS mode),
//! extended headers, and the RESIZE extension (a grown device is served to its new end at once, and clients learn the
//! new size when they ask again).

mod handshake;
pub mod reply;
mod request;

pub use handshake::{ExportInfo, Exports, Handshake, HandshakeError, Progress, Session};
pub use request::{BadMagic, Command, Cookie, Refusal, RequestHeader, Shape};

/// Error numbers of replies. The values are the protocol's, not this system's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    /// It did not work.
    Io = 5,
    /// The request is wrong.
    Inval = 22,
    /// The pool is full, or the range ends beyond the export.
    NoSpc = 28,
    /// A request without payload is too large.
    Overflow = 75,
    /// A fast zero would not be fast.
    NotSup = 95,
    /// The server is going away; a client should disconnect.
    Shutdown = 108,
}

/// What an export can do, as told to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// Set in every answer: the other flags mean something.
    pub const HAS_FLAGS: Self = Self(1);
    /// Writes are refused.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// FLUSH is understood.
    pub const FLUSH: Self = Self(1 << 2);
    /// FUA is understood.
    pub const FUA: Self = Self(1 << 3);
    /// TRIM is understood.
    pub const TRIM: Self = Self(1 << 5);
    /// WRITE_ZEROES is understood.
    pub const WRITE_ZEROES: Self = Self(1 << 6);
    /// READ may ask for one chunk. Only beside structured replies.
    pub const DF: Self = Self(1 << 7);
    /// A flush on one connection covers what was acknowledged on all.
    pub const MULTI_CONN: Self = Self(1 << 8);
    /// CACHE is understood.
    pub const CACHE: Self = Self(1 << 10);
    /// WRITE_ZEROES may ask to fail rather than be slow.
    pub const FAST_ZERO: Self = Self(1 << 11);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What every Torus export can do.
    #[must_use]
    pub const fn of_export(read_only: bool) -> Self {
        let common = Self::HAS_FLAGS.with(Self::FLUSH).with(Self::FUA).with(Self::MULTI_CONN).with(Self::CACHE);
        match read_only {
            true => common.with(Self::READ_ONLY),
            false => common.with(Self::TRIM).with(Self::WRITE_ZEROES).with(Self::FAST_ZERO),
        }
    }
}

#[cfg(test)]
mod tests;
