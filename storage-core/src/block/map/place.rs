//! A place in the log: which extent, which block of it; five bytes.

use crate::ids::Blocks;
use crate::limits::EXTENT_BLOCKS_MAX;
use std::fmt;

const BLOCK_BITS: u32 = EXTENT_BLOCKS_MAX.trailing_zeros();
const BLOCK_MASK: u64 = EXTENT_BLOCKS_MAX as u64 - 1;

const _: () = assert!(BLOCK_BITS == 16, "a place is 24 bits of extent and 16 bits of block");

/// An extent's number in its owner's extent table: dense, so that it fits 24 bits where an
/// [`ExtentSeq`](crate::ids::ExtentSeq) takes 64. It lives as long as the owner does and is never written as it is: a
/// checkpoint numbers extents by a table of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentIndex(u32);

impl ExtentIndex {
    /// The number of indices there are: 2²⁴ - 1, the last 24-bit number being the mark for "nothing".
    pub const COUNT: u32 = (1 << 24) - 1;

    /// The index `n`; `None` when it is not below [`ExtentIndex::COUNT`].
    #[must_use]
    pub const fn new(n: u32) -> Option<Self> {
        if n < Self::COUNT { Some(Self(n)) } else { None }
    }

    /// As a number, to index the extent table by.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for ExtentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Where a block lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Loc {
    /// In which extent.
    pub extent: ExtentIndex,
    /// At which block of it, frame headers counted; below [`EXTENT_BLOCKS_MAX`].
    pub block: Blocks,
}

impl Loc {
    /// The place `blocks` further on in the same extent.
    ///
    /// # Panics
    /// When that is past the end of the largest extent.
    #[must_use]
    pub fn plus(self, blocks: Blocks) -> Self {
        let block = self.block + blocks;
        assert!(block < EXTENT_BLOCKS_MAX, "block {block} lies in no extent");
        Self { extent: self.extent, block }
    }
}

impl fmt::Debug for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}+{}", self.extent, self.block)
    }
}

/// A [`Loc`] or nothing, as the 40-bit number `extent << 16 | block`: the next block of a run is the next number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Place {
    pub const SIZE: usize = 5;
    pub const NOTHING: Place = Place((1 << 40) - 1);

    pub fn of(loc: Loc) -> Self {
        Self(u64::from(loc.extent.0) << BLOCK_BITS | u64::from(loc.block))
    }

    pub fn loc(self) -> Option<Loc> {
        let block = (self.0 & BLOCK_MASK) as Blocks;
        self.extent().map(|extent| Loc { extent, block })
    }

    pub fn extent(self) -> Option<ExtentIndex> {
        ExtentIndex::new((self.0 >> BLOCK_BITS) as u32)
    }

    pub fn is_nothing(self) -> bool {
        self == Self::NOTHING
    }

    /// The place `blocks` further on; nothing stays nothing.
    pub fn plus(self, blocks: usize) -> Self {
        if self.is_nothing() { self } else { Self(self.0 + blocks as u64) }
    }

    /// Whether `next` carries on a run of `blocks` blocks that begins here. The number after an extent's last block is
    /// another extent's block 0: that is no continuation.
    pub fn continues(self, blocks: usize, next: Self) -> bool {
        let expected = self.plus(blocks);
        next == expected && (next.is_nothing() || next.0 & BLOCK_MASK != 0)
    }

    /// Whether a run of `blocks` blocks from here stays inside its extent.
    pub fn holds(self, blocks: usize) -> bool {
        self.is_nothing() || (self.0 & BLOCK_MASK) + blocks as u64 <= u64::from(EXTENT_BLOCKS_MAX)
    }

    /// Little-endian: block, then extent.
    pub fn pack(self) -> [u8; Self::SIZE] {
        let [a, b, c, d, e, ..] = self.0.to_le_bytes();
        [a, b, c, d, e]
    }

    pub fn unpack([a, b, c, d, e]: [u8; Self::SIZE]) -> Self {
        Self(u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]))
    }
}
