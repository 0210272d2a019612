//! A disk: what is durable, what is merely written, and what power loss makes of the difference.
//!
//! A write goes to the volatile side and can be read back from there at once; a sync makes it durable. At a power loss
//! every sector that was not synced is kept, lost, or kept in one of the versions that were written, each by itself: so
//! writes are torn and reordered, as POSIX allows. On top of that a disk may be *faulty*: it lies about a write, puts it
//! elsewhere, or forgets bits. Such faults are given to so few agents that the promise still holds (see
//! [`crate::options`]); errors that a disk admits are given to any that the promise can spare.
//!
//! Sparse, in blocks that share memory with the frames they came from: a world of small volumes costs little.

use crate::payload::SECTOR_SIZE;
use crate::rng::Rng;
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use torus_core::format::Pieces;
use torus_core::ids::{BLOCK_BYTES, BLOCK_SIZE};

/// What a faulty disk does, once in so many writes or reads; 0: never.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    /// A written block that never arrives.
    pub lost_write_one_in: u64,
    /// A written block that lands in place of another.
    pub misdirected_one_in: u64,
    /// A read whose bytes come back with a flipped bit, this once.
    pub flip_on_read_one_in: u64,
    /// A commit that fails, with its writes half done.
    pub error_one_in: u64,
}

/// One disk.
#[derive(Debug)]
pub struct SimDisk {
    blocks: u64,
    durable: BTreeMap<u64, Bytes>,
    /// Versions of each block since the last sync, oldest first.
    volatile: BTreeMap<u64, SmallVec<[Bytes; 1]>>,
    /// Blocks of the commit in flight.
    in_flight: Vec<u64>,
    /// Faults from now on.
    pub faults: DiskFaults,
    rng: Rng,
    /// Faults that happened, for the report.
    pub corruptions: u64,
}

/// Why a commit failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskError;

impl SimDisk {
    /// A new disk of zeros.
    #[must_use]
    pub fn new(bytes: u64, rng: Rng) -> Self {
        Self {
            blocks: bytes / BLOCK_BYTES,
            durable: BTreeMap::new(),
            volatile: BTreeMap::new(),
            in_flight: Vec::new(),
            faults: DiskFaults::default(),
            rng,
            corruptions: 0,
        }
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.blocks * BLOCK_BYTES
    }

    fn happens(&mut self, one_in: u64) -> bool {
        one_in != 0 && self.rng.one_in(one_in)
    }

    /// Writes `pieces` from byte `offset` on, to the volatile side.
    ///
    /// # Panics
    /// On a write that is not in whole blocks inside the disk: the store would have refused it.
    pub fn write(&mut self, offset: u64, pieces: &Pieces) {
        assert!(offset.is_multiple_of(BLOCK_BYTES), "write at byte {offset} is not aligned");
        let mut at = offset / BLOCK_BYTES;
        for piece in pieces {
            assert!(piece.len().is_multiple_of(BLOCK_SIZE), "write of {} bytes is not aligned", piece.len());
            for from in (0..piece.len()).step_by(BLOCK_SIZE) {
                assert!(at < self.blocks, "write at block {at} beyond the disk's {}", self.blocks);
                self.write_block(at, piece.slice(from..from + BLOCK_SIZE));
                at += 1;
            }
        }
    }

    fn write_block(&mut self, mut at: u64, block: Bytes) {
        if self.happens(self.faults.lost_write_one_in) {
            self.corruptions += 1;
            return;
        }
        if self.happens(self.faults.misdirected_one_in) {
            self.corruptions += 1;
            at = (at + self.rng.within(1..64)).min(self.blocks - 1);
        }
        self.volatile.entry(at).or_default().push(block);
        self.in_flight.push(at);
    }

    /// Whether the commit that ends now fails instead; its writes may then be anywhere between done and not done.
    pub fn commit_fails(&mut self) -> bool {
        self.happens(self.faults.error_one_in)
    }

    /// Makes everything written so far durable.
    pub fn sync(&mut self) {
        self.in_flight.clear();
        for (at, mut versions) in std::mem::take(&mut self.volatile) {
            if let Some(last) = versions.pop() {
                self.durable.insert(at, last);
            }
        }
    }

    /// Reports a commit without making it durable: only as a deliberate defect.
    pub fn skip_sync(&mut self) {
        self.in_flight.clear();
    }

    /// The process that wrote is killed: of the commit in flight some blocks never reached the disk. Nothing else is
    /// lost, and nothing is made durable.
    pub fn lose_process(&mut self) {
        for at in std::mem::take(&mut self.in_flight) {
            if self.rng.one_in(2) {
                continue;
            }
            if let Some(versions) = self.volatile.get_mut(&at) {
                versions.pop();
                if versions.is_empty() {
                    self.volatile.remove(&at);
                }
            }
        }
    }

    /// Loses power: settles every sector that was not synced, each by itself.
    pub fn lose_power(&mut self) {
        self.in_flight.clear();
        let style = self.rng.within(0..4);
        for (at, versions) in std::mem::take(&mut self.volatile) {
            let old = self.durable.get(&at).cloned().unwrap_or_else(zeros);
            let settled = match style {
                0 => old,
                1 => versions.last().cloned().unwrap_or(old),
                2 if self.rng.one_in(2) => old,
                2 => versions[self.rng.index(versions.len())].clone(),
                _ => self.tear(&old, &versions),
            };
            self.durable.insert(at, settled);
        }
    }

    fn tear(&mut self, old: &Bytes, versions: &[Bytes]) -> Bytes {
        let mut out = old.to_vec();
        for at in (0..BLOCK_SIZE).step_by(SECTOR_SIZE) {
            let choice = self.rng.index(versions.len() + 1);
            if let Some(version) = versions.get(choice) {
                out[at..at + SECTOR_SIZE].copy_from_slice(&version[at..at + SECTOR_SIZE]);
            }
        }
        out.into()
    }

    /// Reads `len` bytes from byte `offset` on: what was last written there, synced or not.
    ///
    /// # Panics
    /// On a read outside the disk or not in whole blocks.
    pub fn read(&mut self, offset: u64, len: usize) -> Bytes {
        assert!(offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_SIZE), "unaligned read");
        let first = offset / BLOCK_BYTES;
        let count = (len / BLOCK_SIZE) as u64;
        assert!(first + count <= self.blocks, "read beyond the disk");
        let flips = self.happens(self.faults.flip_on_read_one_in) && len > 0;
        if count == 1 && !flips {
            return self.block(first);
        }
        let mut out = Vec::with_capacity(len);
        for at in first..first + count {
            out.extend_from_slice(&self.block(at));
        }
        if flips {
            self.corruptions += 1;
            let bit = self.rng.index(len * 8);
            out[bit / 8] ^= 1 << (bit % 8);
        }
        out.into()
    }

    fn block(&self, at: u64) -> Bytes {
        let written = self.volatile.get(&at).and_then(|versions| versions.last());
        written.or_else(|| self.durable.get(&at)).cloned().unwrap_or_else(zeros)
    }

    /// Flips one bit of one durable block that was ever written.
    pub fn rot(&mut self) {
        if self.durable.is_empty() {
            return;
        }
        let nth = self.rng.index(self.durable.len());
        let bit = self.rng.index(BLOCK_SIZE * 8);
        if let Some(block) = self.durable.values_mut().nth(nth) {
            let mut bytes = block.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            *block = bytes.into();
            self.corruptions += 1;
        }
    }

    /// Replaces the disk by an empty one of the same size.
    pub fn wipe(&mut self) {
        self.durable.clear();
        self.volatile.clear();
        self.in_flight.clear();
    }
}

fn zeros() -> Bytes {
    static ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
    Bytes::from_static(&ZEROS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(byte: u8) -> Pieces {
        smallvec::smallvec![Bytes::from(vec![byte; 2 * BLOCK_SIZE])]
    }

    #[test]
    fn what_was_synced_survives_and_what_was_not_may_be_torn() {
        let mut kept = 0;
        let mut torn = 0;
        for seed in 0..200 {
            let mut disk = SimDisk::new(1 << 20, Rng::new(seed));
            disk.write(0, &filled(1));
            disk.sync();
            disk.write(0, &filled(2));
            assert_eq!(disk.read(0, BLOCK_SIZE)[0], 2);
            disk.lose_power();
            let now = disk.read(0, 2 * BLOCK_SIZE);
            assert!(now.iter().all(|byte| *byte == 1 || *byte == 2));
            kept += u32::from(now.iter().all(|byte| *byte == 1));
            torn += u32::from(now[..BLOCK_SIZE].contains(&1) && now[..BLOCK_SIZE].contains(&2));
        }
        assert!(kept > 20 && torn > 20, "kept {kept}, torn {torn}");
    }

    #[test]
    fn rot_changes_one_bit() {
        let mut disk = SimDisk::new(1 << 20, Rng::new(3));
        disk.write(8 * BLOCK_BYTES, &filled(0));
        disk.sync();
        disk.rot();
        let ones: u32 = disk.read(8 * BLOCK_BYTES, 2 * BLOCK_SIZE).iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(ones, 1);
    }
}
