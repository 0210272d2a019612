//! Loads for a mounted filesystem that know what must be there afterwards.
//!
//! [`fsx`] works on one file, in every way in which bytes get into a file, against a model of its bytes. [`fsstress`] works
//! on many names. Both can be cut off at any moment, as when a disk dies, and then know what was surely on it: what was
//! synced, and not touched since.

pub mod fsstress;
pub mod fsx;

use std::io;

/// Why a load ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The filesystem gave an error: the disk is gone, or the test fails.
    #[error("the filesystem fails")]
    Io(#[from] io::Error),
    /// What was read is not what was written.
    #[error("{0}")]
    Wrong(String),
}

/// Numbers in an order that nobody can see, and everybody can repeat.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// One that is less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.draw().to_le_bytes());
        words.flatten().take(count).collect()
    }
}
