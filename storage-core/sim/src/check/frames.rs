//! Every frame that reaches any disk, and which disks hold it durably.
//!
//! Frames are found in what agents write, not in what owners say they send: a header block names its own place.
//!
//! 1. (I8) Two frames at one (extent, offset) are identical.
//! 2. (I9) One epoch gives a `vseq` of the log to one record only, whatever the extent.
//! 3. (I1, I5) When a write is acknowledged in `durable` mode, each of its blocks lies in a frame that is durable on the
//!    whole ensemble of an extent which was registered by then.

use super::Violation;
use crate::payload::{self, Content, WriteNo};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use torus_core::block::record::BlockRecord;
use torus_core::format::{FrameHeader, Pieces, Stream};
use torus_core::ids::{AgentId, BLOCK_SIZE, Blocks, Epoch, ExtentId, ExtentSeq, Lba, VolumeId, Vseq};

/// A frame's place.
pub type Place = (ExtentId, Blocks);

/// A frame as it was first seen.
#[derive(Debug)]
pub struct Seen {
    content: u64,
    /// Its blocks, header included.
    pub blocks: Blocks,
    /// The workload's blocks in it.
    pub writes: Vec<(WriteNo, Lba)>,
    /// Agents that reported it durable, or whose disk did.
    pub durable_on: BTreeSet<AgentId>,
}

/// The registry.
#[derive(Debug, Default)]
pub struct Frames {
    seed: u64,
    frames: BTreeMap<Place, Seen>,
    records: BTreeMap<(VolumeId, Epoch, Vseq), u64>,
    places: BTreeMap<(WriteNo, Lba), Vec<Place>>,
    /// Blocks that garbage collection has copied.
    moved: BTreeSet<(WriteNo, Lba)>,
}

impl Frames {
    /// Of the world of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Looks through what is being written to a disk; the places of the frames in it.
    ///
    /// # Errors
    /// I8, I9.
    pub fn written(&mut self, pieces: &Pieces) -> Result<Vec<Place>, Violation> {
        let blocks: Vec<Bytes> = pieces
            .iter()
            .flat_map(|piece| (0..piece.len()).step_by(BLOCK_SIZE).map(|at| piece.slice(at..at + BLOCK_SIZE)))
            .collect();
        let mut found = Vec::new();
        let mut at = 0;
        while at < blocks.len() {
            let Some(header) = header_of(&blocks[at]) else {
                at += 1;
                continue;
            };
            let end = (at + header.blocks() as usize).min(blocks.len());
            found.push(self.frame(&header, &blocks[at], &blocks[at + 1..end])?);
            at = end;
        }
        Ok(found)
    }

    fn frame(&mut self, header: &FrameHeader, block: &Bytes, payload: &[Bytes]) -> Result<Place, Violation> {
        let place = (header.extent, header.offset);
        let content = hash(block);
        if let Some(seen) = self.frames.get(&place) {
            if seen.content != content {
                return Violation::new("I8", format!("two different frames for block {} of {}", place.1, place.0));
            }
            return Ok(place);
        }
        if header.stream == Stream::Log {
            self.records(header)?;
        }
        let mut writes = Vec::new();
        let moves = header.records.iter().flat_map(|record| {
            let moves = matches!(BlockRecord::decode(record), Some(BlockRecord::Reloc { .. }));
            std::iter::repeat_n(moves, usize::from(record.payload_blocks))
        });
        for (block, moves) in payload.iter().zip(moves) {
            if let Content::Written(lba, no) = payload::judge(self.seed, block) {
                writes.push((no, lba));
                self.places.entry((no, lba)).or_default().push(place);
                if moves {
                    self.moved.insert((no, lba));
                }
            }
        }
        self.frames.insert(place, Seen { content, blocks: header.blocks(), writes, durable_on: BTreeSet::new() });
        Ok(place)
    }

    fn records(&mut self, header: &FrameHeader) -> Result<(), Violation> {
        let mut first = 0;
        for (i, record) in header.records.iter().enumerate() {
            let end = first + usize::from(record.payload_blocks);
            let mut bytes = record.encode().to_vec();
            bytes.extend(header.crcs[first..end].iter().flat_map(|crc| crc.to_le_bytes()));
            first = end;
            let vseq = Vseq(header.base.0 + i as u64);
            let known = *self.records.entry((header.extent.volume, header.epoch, vseq)).or_insert(hash(&bytes));
            if known != hash(&bytes) {
                return Violation::new("I9", format!("epoch {} gives vseq {vseq} to two records", header.epoch));
            }
        }
        Ok(())
    }

    /// `agent` holds these frames durably.
    pub fn durable(&mut self, agent: AgentId, places: &[Place]) {
        for place in places {
            if let Some(seen) = self.frames.get_mut(place) {
                seen.durable_on.insert(agent);
            }
        }
    }

    /// The frame at a place.
    #[must_use]
    pub fn at(&self, place: Place) -> Option<&Seen> {
        self.frames.get(&place)
    }

    /// All frames of an extent, by offset.
    pub fn of(&self, extent: ExtentId) -> impl Iterator<Item = (Place, &Seen)> {
        self.frames.range((extent, 0)..=(extent, Blocks::MAX)).map(|(place, seen)| (*place, seen))
    }

    /// Where a block of a write lies: everywhere it was ever written to.
    #[must_use]
    pub fn places(&self, no: WriteNo, lba: Lba) -> &[Place] {
        self.places.get(&(no, lba)).map_or(&[], Vec::as_slice)
    }

    /// Whether garbage collection has copied a block of a write.
    #[must_use]
    pub fn was_moved(&self, no: WriteNo, lba: Lba) -> bool {
        self.moved.contains(&(no, lba))
    }

    /// What a block of an extent holds, if it is one of the workload's.
    #[must_use]
    pub fn write_at(&self, extent: ExtentId, block: Blocks) -> Option<(WriteNo, Lba)> {
        let ((_, offset), seen) = self.frames.range((extent, 0)..=(extent, block)).next_back()?;
        seen.writes.get((block - offset).checked_sub(1)? as usize).copied()
    }

    /// How many frames there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether no frame was ever written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// The frame header in `block`, wherever it belongs.
fn header_of(block: &[u8]) -> Option<FrameHeader> {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    if block[..8] != *b"TORUSFR1" {
        return None;
    }
    let extent = ExtentId { volume: VolumeId(word(8)), seq: ExtentSeq(word(16)) };
    FrameHeader::decode(block, extent, word(24) as u32).ok()
}
