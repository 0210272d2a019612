//! A large payload on its way in: read from the socket to where it will be sent from.
//!
//! The memory comes from a pool, in pieces of at most one frame. Memory that is new for each payload costs the kernel more
//! to find and to clear, page by page, than the bytes cost to copy.

use torus_core::format::Pieces;
use torus_core::ids::BLOCK_SIZE;
use torus_core::limits::FRAME_PAYLOAD_BLOCKS_MAX;
use torus_store::{AlignedBuf, BufferPool};

/// What is read into one piece of memory.
const PIECE_BYTES: usize = FRAME_PAYLOAD_BLOCKS_MAX as usize * BLOCK_SIZE;

/// Never holds more memory than has arrived, but for one piece: a length that is a lie costs no more.
pub(super) struct Payload {
    memory: BufferPool,
    whole: Pieces,
    filling: AlignedBuf,
    filled: usize,
    /// Bytes after those that `filling` takes.
    left: usize,
}

impl Payload {
    /// One of `len` bytes, none of which has arrived.
    pub(super) fn new(memory: &BufferPool, len: usize) -> Self {
        let first = len.min(PIECE_BYTES);
        let filling = memory.take(first);
        Self { memory: memory.clone(), whole: Pieces::new(), filling, filled: 0, left: len - first }
    }

    /// Where its next bytes go. Empty when all have arrived.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.filling[self.filled..]
    }

    /// The first `n` bytes of [`Payload::room`] have arrived.
    pub(super) fn arrived(&mut self, n: usize) {
        self.filled += n;
        if self.filled == self.filling.len() && self.left > 0 {
            let next = self.left.min(PIECE_BYTES);
            self.left -= next;
            self.filled = 0;
            let done = std::mem::replace(&mut self.filling, self.memory.take(next));
            self.whole.push(done.freeze());
        }
    }

    /// Whether all has arrived.
    pub(super) fn is_whole(&self) -> bool {
        self.left == 0 && self.filled == self.filling.len()
    }

    /// What has arrived, once that is all.
    pub(super) fn into_pieces(mut self) -> Pieces {
        assert!(
            self.is_whole(),
            "a payload of which {} bytes are missing",
            self.left + self.filling.len() - self.filled
        );
        self.whole.push(self.filling.freeze());
        self.whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_end_up_in_order_and_memory_follows_what_has_arrived() {
        let memory = BufferPool::new(0);
        let len = 2 * PIECE_BYTES + 5 * BLOCK_SIZE + 100;
        let sent: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let mut payload = Payload::new(&memory, len);
        let mut at = 0;
        while !payload.is_whole() {
            let n = payload.room().len().min(70_001);
            payload.room()[..n].copy_from_slice(&sent[at..at + n]);
            payload.arrived(n);
            at += n;
            assert!(memory.in_use_bytes() <= at + PIECE_BYTES + BLOCK_SIZE, "{} bytes for {at}", memory.in_use_bytes());
        }
        assert!(payload.room().is_empty());
        let pieces = payload.into_pieces();
        assert_eq!(
            pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>(),
            [PIECE_BYTES, PIECE_BYTES, 5 * BLOCK_SIZE + 100]
        );
        assert!(pieces.concat() == sent, "other bytes than were sent");
    }
}
