//! A frame between packing and the moment when all its members have it durably.

use crate::format::{Pieces, Record};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentSeq, Vseq};
use bytes::Bytes;
use smallvec::SmallVec;

/// A frame in the window.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) base: Vseq,
    pub(super) records: SmallVec<[Record; 2]>,
    pub(super) cookies: SmallVec<[u64; 2]>,
    pub(super) payload: Pieces,
    pub(super) crcs: SmallVec<[u32; 8]>,
    /// Where it is, or was until it lost its extent (then it is in `unplaced`).
    pub(super) place: Option<(ExtentSeq, Blocks)>,
    /// Members that have not yet made it durable.
    pub(super) waiting: u8,
    /// Members that have not yet received it.
    pub(super) unreceived: u8,
    /// Packed from what garbage collection moves.
    pub(super) cold: bool,
}

impl Flight {
    pub(super) fn last(&self) -> Vseq {
        Vseq(self.base.0 + self.records.len() as u64 - 1)
    }
    pub(super) fn blocks(&self) -> Blocks {
        1 + self.crcs.len() as Blocks
    }
    pub(super) fn covers(&self, extent: ExtentSeq, block: Blocks) -> bool {
        self.place.is_some_and(|(seq, at)| seq == extent && (at + 1..at + self.blocks()).contains(&block))
    }
    /// Its payload at (`extent`, `block`), if that is where it lies.
    pub(super) fn block(&self, extent: ExtentSeq, block: Blocks) -> Option<Bytes> {
        let (_, offset) = self.place.filter(|_| self.covers(extent, block))?;
        let mut skip = (block - offset - 1) as usize * BLOCK_SIZE;
        for piece in &self.payload {
            if skip < piece.len() {
                return Some(piece.slice(skip..skip + BLOCK_SIZE));
            }
            skip -= piece.len();
        }
        None
    }
}
