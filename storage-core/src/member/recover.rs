//! A disk at start-up: whose it is, what its slots hold, how far its open copies are good.
//!
//! Only open slots are scanned. Their valid prefix is all frames, in order and without a gap, whose header and payload
//! hold: anything that was ever acknowledged is in it, unless the disk has lost it. Beyond it a scan looks for anything
//! that is, or was, a frame of this extent: a frame that a crash tore looks the same as an acknowledged one that
//! rotted, so such a copy says `damaged` and leaves it to the owner to ask the other members.
//!
//! What recovery finds may have been written by a process that was killed before its sync. The first commit of the run,
//! which raises the incarnation, makes it durable; nothing is answered before.

use super::MemberStats;
use super::commit::Commits;
use super::copy::{Frames, OpenCopy};
use super::disk::{Content, DiskCore, Slot};
use super::fences::FenceTable;
use super::port::{DiskError, DiskNo, DiskReader, DiskWrite};
use super::read::Reads;
use crate::format::disk::{
    DISK_FORMAT, DiskIds, FENCE_BLOCKS, Geometry, GeometryError, SECTOR_SIZE, Superblock, SuperblockError,
};
use crate::format::slot::{HeaderRead, SealName, SlotCopy, SlotHeader, SlotState, resolve};
use crate::format::{FrameError, FrameHeader, crc};
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, ClusterId, DiskId, ExtentId, Incarnation};
use crate::limits::FRAME_BLOCKS_MAX;
use crate::mutation::{Mutation, active};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Blocks read at once during a scan.
const SCAN_BLOCKS: u64 = 256;

/// What a disk must say about itself for an agent to use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    /// The agent's cluster.
    pub cluster: ClusterId,
    /// The agent.
    pub agent: AgentId,
    /// The cluster's extent size.
    pub extent_blocks: Blocks,
}

/// Why a disk is not used. The caller names the device.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecoverError {
    /// Nothing of ours is on it.
    #[error("the disk is not formatted for Torus. Format it, or give the right device")]
    NotFormatted,
    /// It was written by a newer version.
    #[error("the disk has format {found}; this agent knows formats up to {DISK_FORMAT}. Run a newer agent")]
    NewerFormat {
        /// The disk's format.
        found: u32,
    },
    /// It belongs to another cluster.
    #[error("the disk {disk} belongs to cluster {found}, and this agent to {expected}. It is left as it is")]
    OtherCluster {
        /// The disk.
        disk: DiskId,
        /// Its cluster.
        found: ClusterId,
        /// The agent's.
        expected: ClusterId,
    },
    /// It belongs to another agent.
    #[error("the disk {disk} belongs to agent {found}, and this is {expected}. Start that agent with it instead")]
    OtherAgent {
        /// The disk.
        disk: DiskId,
        /// Its agent.
        found: AgentId,
        /// This one.
        expected: AgentId,
    },
    /// It was formatted with another extent size.
    #[error("the disk {disk} has extents of {found} blocks, and the cluster has {expected}. Format it anew")]
    OtherExtentSize {
        /// The disk.
        disk: DiskId,
        /// Its extents.
        found: Blocks,
        /// The cluster's.
        expected: Blocks,
    },
    /// The device is smaller than when it was formatted.
    #[error("the disk {disk} has {bytes} bytes and was formatted with {needed}: the device was cut short")]
    CutShort {
        /// The disk.
        disk: DiskId,
        /// Bytes it has.
        bytes: u64,
        /// Bytes it needs.
        needed: u64,
    },
    /// Both superblocks are damaged.
    #[error(
        "both superblocks of the disk are damaged, so it cannot be told whose it is. Replace the disk; its extents are repaired from other members"
    )]
    SuperblockLost,
    /// A part of the fence table is damaged in both places.
    #[error(
        "the fences of disk {disk} are damaged in both places, so it cannot be told what it has promised. Replace the disk; its extents are repaired from other members"
    )]
    FencesLost {
        /// The disk.
        disk: DiskId,
    },
    /// Its geometry is impossible.
    #[error("the disk cannot be laid out")]
    Geometry(#[source] GeometryError),
}

/// What recovery found on a disk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// Copies that are not sealed.
    pub open: u32,
    /// Of these, copies that end in something damaged: they are not proof of their length.
    pub open_damaged: Vec<ExtentId>,
    /// Sealed copies.
    pub sealed: u32,
    /// Slots of which it cannot be told what they hold. While there are any, the agent answers *unknown* for extents
    /// it does not find, and never *never*.
    pub slots_damaged: Vec<u32>,
    /// A superblock or a fence sector was damaged in one of its two places, and is mended by the first commit.
    pub mended: bool,
}

/// The writes that make a blank device a disk. Whatever it held is lost; slots need no visit, because their old
/// headers carry another disk id: `ids.disk` must be drawn at random.
#[must_use]
pub fn format_disk(geometry: Geometry, ids: DiskIds) -> Vec<DiskWrite> {
    let write = |offset, block| DiskWrite { offset, pieces: smallvec::smallvec![block] };
    let superblock = |generation| Superblock { ids, geometry, incarnation: Incarnation(0), generation };
    let fences = FenceTable::empty(ids.disk);
    let fences = (0..FENCE_BLOCKS).flat_map(|i| {
        let block = fences.block(i);
        [write(Geometry::fence_at(0, i), block.clone()), write(Geometry::fence_at(1, i), block)]
    });
    let superblocks = [0, 1].map(|g| write(Geometry::superblock_at(g), superblock(g).encode()));
    fences.chain(superblocks).collect()
}

/// What a device says about itself, whoever it belongs to.
///
/// # Errors
/// [`RecoverError::NotFormatted`], [`RecoverError::NewerFormat`] or [`RecoverError::SuperblockLost`].
pub fn inspect(reader: &mut dyn DiskReader) -> Result<Superblock, RecoverError> {
    read_superblock(reader).map(|(superblock, _)| superblock)
}

/// The newer superblock, and whether the other one is lost.
fn read_superblock(reader: &mut dyn DiskReader) -> Result<(Superblock, bool), RecoverError> {
    let copies = [0, 1].map(|generation| match reader.read(Geometry::superblock_at(generation), BLOCK_SIZE) {
        Ok(block) => Superblock::decode(&block),
        Err(_) => Err(SuperblockError::Damaged),
    });
    for copy in copies {
        if let Err(SuperblockError::Newer(found)) = copy {
            return Err(RecoverError::NewerFormat { found });
        }
    }
    match copies {
        [Ok(a), Ok(b)] => Ok((if a.generation < b.generation { b } else { a }, false)),
        [Ok(only), _] | [_, Ok(only)] => Ok((only, true)),
        [Err(SuperblockError::Absent), Err(SuperblockError::Absent)] => Err(RecoverError::NotFormatted),
        _ => Err(RecoverError::SuperblockLost),
    }
}

/// Reads `blocks` blocks at `offset`, one by one where they cannot be read together.
fn read_run(reader: &mut dyn DiskReader, offset: u64, blocks: u64, each: &mut dyn FnMut(u64, Option<&[u8]>)) {
    let mut at = 0;
    while at < blocks {
        let count = SCAN_BLOCKS.min(blocks - at);
        let place = |block: u64| offset + block * BLOCK_SIZE as u64;
        let expected = count as usize * BLOCK_SIZE;
        match reader.read(place(at), expected) {
            Ok(bytes) if bytes.len() == expected => {
                for (i, block) in bytes.chunks_exact(BLOCK_SIZE).enumerate() {
                    each(at + i as u64, Some(block));
                }
            }
            _ => (at..at + count).for_each(|block| match reader.read(place(block), BLOCK_SIZE) {
                Ok(bytes) if bytes.len() == BLOCK_SIZE => each(block, Some(&bytes)),
                _ => each(block, None),
            }),
        }
        at += count;
    }
}

impl DiskCore {
    /// Reads a disk back. It serves once a [`Member`](super::Member) has it.
    ///
    /// # Errors
    /// When it is not this agent's disk, or cannot be trusted. See [`RecoverError`].
    pub fn recover(reader: &mut dyn DiskReader, expected: &Expected) -> Result<DiskCore, RecoverError> {
        let (found, superblock_lost) = read_superblock(reader)?;
        check(&found, expected, reader.size())?;
        let Superblock { ids, geometry, .. } = found;
        let (fences, mend) = read_fences(reader, &found)?;
        // Where a superblock is lost, it may have been the newer one.
        let incarnation = Incarnation(found.incarnation.0 + if superblock_lost { 2 } else { 1 });
        let mut commits = Commits::default();
        let batch = commits.pending();
        batch.superblock = Some(Superblock { incarnation, generation: found.generation + 1, ..found });
        batch.fence_blocks.extend(mend.iter().copied());
        let mut core = DiskCore {
            no: DiskNo(0),
            ids,
            geometry,
            incarnation,
            findings: Findings { mended: superblock_lost || !mend.is_empty(), ..Findings::default() },
            slots: Vec::with_capacity(geometry.slots() as usize),
            extents: BTreeMap::new(),
            filled: BTreeMap::new(),
            free: (0..0).collect(),
            damaged_slots: 0,
            fences,
            commits,
            reads: Reads::default(),
            failed: None,
            settled: Vec::new(),
            stats: MemberStats::default(),
        };
        for (number, header) in read_headers(reader, &found).into_iter().enumerate() {
            core.recover_slot(reader, number as u32, header);
        }
        Ok(core)
    }

    fn recover_slot(&mut self, reader: &mut dyn DiskReader, number: u32, header: Option<SlotHeader>) {
        let generation = header.map_or(0, |header| header.generation);
        let content = match header.map(|header| header.state) {
            Some(SlotState::Free) => {
                self.free.push_back(number);
                Content::Free
            }
            Some(SlotState::Sealed(copy, length, digest)) => {
                Content::Found(copy, SealName { extent: copy.extent, length, digest })
            }
            Some(SlotState::Open(copy)) => {
                let scan = Scan::of(reader, &self.geometry, number, &copy);
                let copy = OpenCopy {
                    frames: scan.frames,
                    suspect_end: scan.suspect_end,
                    written: true,
                    ..OpenCopy::new(copy, None)
                };
                self.commits.pending().reaches.insert(number, copy.frames.reach());
                Content::Open(Box::new(copy))
            }
            None => Content::Damaged,
        };
        let content = self.index(number, content);
        match &content {
            Content::Damaged => {
                self.damaged_slots += 1;
                self.findings.slots_damaged.push(number);
            }
            Content::Open(copy) => {
                self.findings.open += 1;
                if copy.name.partial || copy.frames.length() < copy.suspect_end {
                    self.findings.open_damaged.push(copy.name.extent);
                }
            }
            Content::Found(..) => self.findings.sealed += 1,
            Content::Free | Content::Sealed(..) | Content::Leaving(..) => {}
        }
        self.slots.push(Slot { generation, readers: 0, content });
    }

    /// Notes where an extent lies. Two slots that both claim it cannot both be right: the later one found is put
    /// aside, as a slot of which nothing is certain.
    fn index(&mut self, number: u32, content: Content) -> Content {
        let extent = match &content {
            Content::Open(copy) => copy.name.extent,
            Content::Found(copy, _) => copy.extent,
            Content::Free | Content::Sealed(..) | Content::Leaving(..) | Content::Damaged => return content,
        };
        if self.extents.contains_key(&extent) {
            self.commits.pending().reaches.remove(&number);
            return Content::Damaged;
        }
        self.extents.insert(extent, number);
        content
    }
}

fn check(found: &Superblock, expected: &Expected, bytes: u64) -> Result<(), RecoverError> {
    let DiskIds { cluster, agent, disk } = found.ids;
    if cluster != expected.cluster {
        return Err(RecoverError::OtherCluster { disk, found: cluster, expected: expected.cluster });
    }
    if agent != expected.agent {
        return Err(RecoverError::OtherAgent { disk, found: agent, expected: expected.agent });
    }
    let found_blocks = found.geometry.extent_blocks();
    if found_blocks != expected.extent_blocks {
        return Err(RecoverError::OtherExtentSize { disk, found: found_blocks, expected: expected.extent_blocks });
    }
    let needed = found.geometry.bytes();
    match needed <= bytes {
        true => Ok(()),
        false => Err(RecoverError::CutShort { disk, bytes, needed }),
    }
}

fn read_fences(reader: &mut dyn DiskReader, found: &Superblock) -> Result<(FenceTable, Vec<usize>), RecoverError> {
    let copies = [0, 1].map(|copy| {
        let mut image = vec![0; FENCE_BLOCKS * BLOCK_SIZE];
        read_run(reader, Geometry::fence_at(copy, 0), FENCE_BLOCKS as u64, &mut |i, block| {
            if let Some(block) = block {
                image[i as usize * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(block);
            }
        });
        image
    });
    let disk = found.ids.disk;
    match FenceTable::decode(disk, [&copies[0], &copies[1]]) {
        Some(table) => Ok(table),
        // Formatting was cut short, and nothing was ever served.
        None if found.incarnation == Incarnation(0) => Err(RecoverError::NotFormatted),
        None => Err(RecoverError::FencesLost { disk }),
    }
}

/// The header that holds of each slot; `None` where that cannot be told.
fn read_headers(reader: &mut dyn DiskReader, found: &Superblock) -> Vec<Option<SlotHeader>> {
    let slots = found.geometry.slots();
    let [even, odd] = [0, 1].map(|parity| {
        let mut headers = Vec::with_capacity(slots as usize);
        read_run(reader, found.geometry.header_at(0, parity), u64::from(slots), &mut |slot, block| {
            headers.push(match block {
                Some(block) => SlotHeader::decode(&block[..SECTOR_SIZE], found.ids.disk, slot as u32, parity),
                None => HeaderRead::Damaged,
            });
        });
        headers
    });
    even.into_iter().zip(odd).map(|(even, odd)| resolve(even, odd)).collect()
}

/// What the frames of an open slot come to.
struct Scan<'a> {
    reader: &'a mut dyn DiskReader,
    geometry: Geometry,
    slot: u32,
    window: (Blocks, Bytes),
    frames: Frames,
    suspect_end: Blocks,
}

impl<'a> Scan<'a> {
    fn of(reader: &'a mut dyn DiskReader, geometry: &Geometry, slot: u32, copy: &SlotCopy) -> Scan<'a> {
        let (window, frames) = ((0, Bytes::new()), Frames::default());
        let mut scan = Scan { reader, geometry: *geometry, slot, window, frames, suspect_end: 0 };
        while let Some((header, block)) = scan.next_frame(copy) {
            scan.frames.push(&header, &block);
        }
        scan.look_beyond(copy.extent);
        scan
    }

    /// Block `block`, if it can be read.
    fn block(&mut self, block: Blocks) -> Result<Bytes, DiskError> {
        let (first, bytes) = &self.window;
        let at = block.checked_sub(*first).map(|i| i as usize * BLOCK_SIZE);
        if let Some(at) = at.filter(|at| at + BLOCK_SIZE <= bytes.len()) {
            return Ok(bytes.slice(at..at + BLOCK_SIZE));
        }
        let blocks = (SCAN_BLOCKS as Blocks).min(self.geometry.extent_blocks() - block);
        let offset = self.geometry.data_at(self.slot, block);
        if let Ok(bytes) = self.reader.read(offset, blocks as usize * BLOCK_SIZE)
            && bytes.len() == blocks as usize * BLOCK_SIZE
        {
            self.window = (block, bytes.clone());
            return Ok(bytes.slice(..BLOCK_SIZE));
        }
        self.reader.read(offset, BLOCK_SIZE)
    }

    /// The frame that follows those found, if there is a sound one.
    fn next_frame(&mut self, copy: &SlotCopy) -> Option<(FrameHeader, Bytes)> {
        let at = self.frames.length();
        if at >= self.geometry.extent_blocks() {
            return None;
        }
        let block = self.block(at).ok()?;
        let header = FrameHeader::decode(&block, copy.extent, at).ok()?;
        let fits = header.blocks() <= self.geometry.extent_blocks() - at;
        if !fits || header.stream != copy.stream || header.base <= self.frames.last() {
            return None;
        }
        for (i, want) in header.crcs.iter().enumerate() {
            let payload = self.block(at + 1 + i as Blocks).ok()?;
            if crc(&payload) != *want && !active(Mutation::CrcIgnored) {
                return None;
            }
        }
        Some((header, block))
    }

    /// Looks for traces of frames beyond the valid prefix, until a stretch longer than any frame shows none.
    fn look_beyond(&mut self, extent: ExtentId) {
        let (mut at, end) = (self.frames.length(), self.geometry.extent_blocks());
        let mut horizon = at.saturating_add(FRAME_BLOCKS_MAX).min(end);
        while at < horizon {
            let trace = match self.block(at).map(|block| FrameHeader::decode(&block, extent, at)) {
                Ok(Ok(header)) => Some(header.blocks()),
                Ok(Err(FrameError::Damaged | FrameError::Invalid(_))) | Err(_) => Some(1),
                Ok(Err(_)) => None,
            };
            if let Some(blocks) = trace {
                self.suspect_end = self.suspect_end.max((at + blocks).min(end));
                horizon = (at + blocks + FRAME_BLOCKS_MAX).min(end);
            }
            at += 1;
        }
    }
}
