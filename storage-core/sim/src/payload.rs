//! What the workload writes: blocks that say which write they come from, in every sector.
//!
//! A reader can therefore tell a block of another address, an older version, or a block put together from two writes
//! from the one block that is right, without the world keeping a copy of anything.

use bytes::Bytes;
use std::fmt;
use torus_core::ids::{BLOCK_SIZE, Lba};

const MAGIC: u64 = 0x7073_694d_6953_746f;
/// Bytes of a sector, the unit in which a disk is torn.
pub const SECTOR_SIZE: usize = 512;

/// One write of the workload; numbered from 1 in the order of issue, over all owners.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct WriteNo(pub u64);

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Zeros throughout.
    Zeros,
    /// All sectors come from this write of this block.
    Written(Lba, WriteNo),
    /// Anything else: nothing the workload ever wrote.
    Garbage,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("zeros"),
            Self::Written(lba, no) => write!(f, "write {} of block {lba}", no.0),
            Self::Garbage => f.write_str("bytes that were never written"),
        }
    }
}

fn sector(seed: u64, lba: Lba, no: WriteNo, index: usize) -> [u64; 5] {
    [MAGIC, seed, lba.0, no.0, index as u64]
}

/// The payload of write `no` over `blocks` blocks from `lba`.
#[must_use]
pub fn build(seed: u64, lba: Lba, no: WriteNo, blocks: u32) -> Bytes {
    let mut out = vec![0; blocks as usize * BLOCK_SIZE];
    for (b, block) in out.chunks_exact_mut(BLOCK_SIZE).enumerate() {
        for (s, bytes) in block.chunks_exact_mut(SECTOR_SIZE).enumerate() {
            for (i, word) in sector(seed, Lba(lba.0 + b as u64), no, s).iter().enumerate() {
                bytes[i * 8..i * 8 + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    out.into()
}

/// What `block` holds, in the world of `seed`.
#[must_use]
pub fn judge(seed: u64, block: &[u8]) -> Content {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    if block.len() != BLOCK_SIZE {
        return Content::Garbage;
    }
    if word(0) == 0 {
        return if block.iter().all(|byte| *byte == 0) { Content::Zeros } else { Content::Garbage };
    }
    let (lba, no) = (Lba(word(16)), WriteNo(word(24)));
    let whole = block.chunks_exact(SECTOR_SIZE).enumerate().all(|(s, bytes)| {
        let words = sector(seed, lba, no, s);
        let tagged = words.iter().enumerate().all(|(i, want)| word(s * SECTOR_SIZE + i * 8) == *want);
        tagged && bytes[words.len() * 8..].iter().all(|byte| *byte == 0)
    });
    if whole { Content::Written(lba, no) } else { Content::Garbage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_says_where_it_comes_from_and_a_mixture_is_noticed() {
        let bytes = build(9, Lba(4), WriteNo(77), 2);
        assert_eq!(judge(9, &bytes[BLOCK_SIZE..]), Content::Written(Lba(5), WriteNo(77)));
        assert_eq!(judge(8, &bytes[BLOCK_SIZE..]), Content::Garbage);
        assert_eq!(judge(9, &[0; BLOCK_SIZE]), Content::Zeros);
        let mut torn = bytes[..BLOCK_SIZE].to_vec();
        torn[3 * SECTOR_SIZE..4 * SECTOR_SIZE]
            .copy_from_slice(&build(9, Lba(4), WriteNo(78), 1)[3 * SECTOR_SIZE..4 * SECTOR_SIZE]);
        assert_eq!(judge(9, &torn), Content::Garbage);
    }
}
