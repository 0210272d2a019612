//! Messages on their way out.

use super::Message;
use super::greeting::{HELLO, Hello, REFUSAL, Refusal, WELCOME, Welcome};
use super::head::{HEAD_SIZE, Head};
use crate::format::{Pieces, crc};
use crate::ids::RpcId;
use crate::limits::{TDP_BODY_BYTES_MAX, TDP_HEADS_BYTES, TDP_PAYLOAD_BYTES_MAX};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Messages queued for one connection, as the pieces of one vectored write.
///
/// Heads and bodies of messages without payload lie together in one piece; a payload is queued as it is, by reference.
/// Unbounded by itself: the bytes it holds are those of requests or answers that its user has bounded.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Heads and bodies that no payload has followed yet.
    heads: BytesMut,
    /// Complete pieces before them.
    pieces: VecDeque<Bytes>,
    /// Bytes in `pieces`.
    queued: usize,
}

impl Outbox {
    /// Queues a request or a response.
    ///
    /// # Panics
    /// On a message outside the protocol's limits: the sender's own defect.
    pub fn push<T: Message>(&mut self, rpc: RpcId, message: &T) {
        let payload = message.payload();
        self.begin(message.kind(), rpc, &payload, |out| message.put_body(out));
        if !payload.is_empty() {
            self.close_heads();
            self.queued += payload.iter().map(Bytes::len).sum::<usize>();
            self.pieces.extend(payload);
        }
    }

    /// Queues a client's greeting.
    pub fn hello(&mut self, hello: &Hello) {
        self.begin(HELLO, RpcId(0), &Pieces::new(), |out| hello.put(out));
    }

    /// Queues a server's answer to it.
    pub fn welcome(&mut self, welcome: &Welcome) {
        self.begin(WELCOME, RpcId(0), &Pieces::new(), |out| welcome.put(out));
    }

    /// Queues a last word.
    pub fn refusal(&mut self, refusal: &Refusal) {
        self.begin(REFUSAL, RpcId(0), &Pieces::new(), |out| refusal.put(out));
    }

    fn begin(&mut self, kind: u8, rpc: RpcId, payload: &Pieces, put_body: impl FnOnce(&mut BytesMut)) {
        if self.heads.capacity() - self.heads.len() < 2 * HEAD_SIZE {
            self.heads.reserve(TDP_HEADS_BYTES);
        }
        let start = self.heads.len();
        self.heads.extend_from_slice(&[0; HEAD_SIZE]);
        put_body(&mut self.heads);
        let body = &self.heads[start + HEAD_SIZE..];
        let payload: usize = payload.iter().map(Bytes::len).sum();
        assert!(body.len() <= TDP_BODY_BYTES_MAX, "message of kind {kind} with a body of {} bytes", body.len());
        assert!(payload <= TDP_PAYLOAD_BYTES_MAX, "message of kind {kind} with a payload of {payload} bytes");
        let head = Head { kind, rpc, body: body.len() as u32, payload: payload as u32, body_crc: crc(body) };
        self.heads[start..start + HEAD_SIZE].copy_from_slice(&head.encode());
    }

    fn close_heads(&mut self) {
        if !self.heads.is_empty() {
            self.queued += self.heads.len();
            self.pieces.push_back(self.heads.split().freeze());
        }
    }

    /// Bytes queued and not yet taken by [`Outbox::advance`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.queued + self.heads.len()
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// Fills `slices` with the next pieces to write, in order; returns how many it set.
    pub fn slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>]) -> usize {
        self.close_heads();
        let count = slices.len().min(self.pieces.len());
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
        }
        count
    }

    /// Drops the first `written` bytes.
    ///
    /// # Panics
    /// When more is dropped than the last [`Outbox::slices`] could have given.
    pub fn advance(&mut self, mut written: usize) {
        assert!(written <= self.queued, "{written} bytes written of {}", self.queued);
        self.queued -= written;
        while written > 0 {
            let front = self.pieces.front_mut().expect("`queued` counts the bytes of `pieces`");
            if front.len() > written {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.pieces.pop_front();
        }
    }

    /// Forgets everything queued: the connection is gone.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.pieces.clear();
        self.queued = 0;
    }
}
