//! TDP, the Torus data protocol: [`Request`]s and [`Response`]s as bytes on a TCP connection. `docs/PROTOCOL.md` shows
//! the same byte tables.
//!
//! A framing of our own rather than gRPC, because every byte of a write passes here `replicas` times: a message is a
//! fixed head, a small body, and a payload of whole blocks that is sent from where it lies and received where it will
//! be written from. A sender queues messages in an [`Outbox`], which gives one vectored write for all that is waiting;
//! a receiver reads into an [`Inbox`], which takes many small messages out of one read and lets a large payload be read
//! straight into aligned memory. Neither does I/O or knows a socket.
//!
//! ```text
//! head (32 bytes), then body, then payload
//!    0   4  magic "TDP1"                       16   8  rpc id
//!    4   1  kind                               24   4  CRC32C of the body
//!    5   3  zero                               28   4  CRC32C of bytes 0..28
//!    8   4  body length, bytes
//!   12   4  payload length, bytes: whole blocks
//! ```
//!
//! 1. Nothing a peer sends makes a receiver panic, nor hold more than one body and one payload of the sizes in
//!    [`limits`](crate::limits): lengths are judged from a checked head, before any memory is taken.
//! 2. Head and body are covered by checksums of their own. The payload is not, here: frames, raw frames and header
//!    blocks carry their checksums, and a [`Response::Data`] carries those of its blocks in its body. One pass over the
//!    payload is enough, and it is made by those who know what the bytes mean.
//! 3. A connection carries requests one way and responses the other, after one [`Hello`] answered by one [`Welcome`] or
//!    [`Refusal`]. Anything else ends it.
//! 4. The head, [`Hello`] and [`Refusal`] are the same in all versions, so that any two versions can at least say why
//!    they part.
//!
//! Not here: who connects to whom and when, what an answer means, time.

mod greeting;
mod head;
mod inbox;
mod outbox;
mod request;
mod response;
#[cfg(test)]
mod tests;
mod wire;

pub use greeting::{Hello, Identity, Refusal, Role, Welcome};
pub use inbox::{Inbox, Memory};
pub use outbox::Outbox;
pub use wire::WireError;

use crate::peer::{Request, Response};

/// The oldest version of the protocol that this program speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest version of the protocol that this program speaks.
pub const VERSION_MAX: u16 = 1;

/// What travels under an rpc id: [`Request`] or [`Response`]. The crate implements it for these two alone.
pub trait Message: sealed::Sealed {}

impl Message for Request {}
impl Message for Response {}

mod sealed {
    use super::wire::WireError;
    use crate::format::Pieces;
    use bytes::{Bytes, BytesMut};

    /// The two halves of a message's bytes.
    pub trait Sealed: Sized {
        /// Which kind of message this is, as the head names it.
        fn kind(&self) -> u8;
        /// Appends the body.
        fn put_body(&self, out: &mut BytesMut);
        /// The payload, untouched.
        fn payload(&self) -> Pieces;
        /// The message of this kind and body, its `payload` bytes yet to come.
        fn take_body(kind: u8, body: &[u8], payload: usize) -> Result<Self, WireError>;
        /// Completes the message with the payload whose length [`Sealed::take_body`] accepted.
        fn attach(&mut self, payload: Bytes);
    }
}
