//! What a disk says about itself, and the fences it remembers.
//!
//! ```text
//! disk, in blocks of 4 KiB                       superblock, one sector (512 bytes) of its block
//!    0  superblock, even generations                0   8  magic "TORUSDK1"
//!    1  superblock, odd generations                 8   4  format version: 1
//!    2  fence table, first copy (71)               12   4  blocks in an extent
//!   73  fence table, second copy (71)              16   8  cluster id
//!  144  slot headers, even generations (slots)     24   8  agent id
//!       slot headers, odd generations (slots)      32   8  disk id, drawn at random when it is formatted
//!       slots: extent_blocks of frames,            40   4  slots
//!       then the footer, each                      48   8  incarnation: raised durably at every start
//!                                                  56   8  generation of this superblock
//! fence sector (8 to a block)                     508   4  CRC32C of bytes 0..508
//!    0   8  magic "TORUSFN1"
//!    8   8  disk id                              The first 16 bytes and the checksum keep their places in all
//!   16   4  number of this sector                formats to come, so that an old agent knows a newer disk.
//!   20   4  entries in use (0..=29)
//!   24   8  generation
//!   32 464  entries: volume id 8, epoch 8
//!  496   8  disk id, again
//!  508   4  CRC32C of bytes 0..508
//! ```
//!
//! Everything that is rewritten in place lies within one 512-byte sector, which a disk writes whole or not at all. So
//! a sector that fails its checksum has rotted; it was not torn by a crash, and nothing has to be guessed.
//! The superblock alternates between its two places: losing the newer one loses at most a start. A fence lost would be
//! a promise broken, so both places of a fence sector are written in the same commit, before anyone hears of it: after
//! a crash either may be the newer one, and every fence that was answered is in both.

use super::{crc, get_u32, get_u64, put};
use crate::ids::{AgentId, BLOCK_BYTES, BLOCK_SIZE, Blocks, ClusterId, DiskId, Epoch, Incarnation, VolumeId};
use crate::limits::{EXTENT_BLOCKS_MAX, EXTENT_BLOCKS_MIN, FENCED_VOLUMES_MAX, SLOTS_MIN};
use bytes::Bytes;

use super::slot::footer_blocks;

/// The unit a disk writes whole or not at all.
pub const SECTOR_SIZE: usize = 512;
/// The format this code writes, and the newest it reads.
pub const DISK_FORMAT: u32 = 1;
/// Superblocks and fence sectors carry their checksum here.
const SECTOR_CRC_AT: usize = SECTOR_SIZE - 4;

/// Seals a sector with its checksum.
pub(crate) fn close_sector(sector: &mut [u8]) {
    let sum = crc(&sector[..SECTOR_CRC_AT]);
    put(sector, SECTOR_CRC_AT, &sum.to_le_bytes());
}

/// Whether a sector's checksum holds.
pub(super) fn sector_is_sound(sector: &[u8]) -> bool {
    crc(&sector[..SECTOR_CRC_AT]) == get_u32(sector, SECTOR_CRC_AT)
}

/// Why a disk cannot be laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The extent size is out of range.
    #[error("extents of {0} blocks: from {EXTENT_BLOCKS_MIN} to {EXTENT_BLOCKS_MAX} are possible")]
    ExtentBlocks(Blocks),
    /// Too small for the smallest number of slots.
    #[error(
        "a disk of {bytes} bytes is too small: {SLOTS_MIN} slots for extents of {extent_blocks} blocks take {needed}. \
         Give it more space, or use smaller extents"
    )]
    TooSmall {
        /// Bytes of the disk.
        bytes: u64,
        /// Blocks in an extent.
        extent_blocks: Blocks,
        /// Bytes needed.
        needed: u64,
    },
}

/// Where things lie on a disk. All positions are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    extent_blocks: Blocks,
    slots: u32,
}

const FENCE_AT: u64 = 2;
/// Fences in a sector.
pub const FENCES_PER_SECTOR: usize = 29;
/// Fence sectors in a block.
pub const SECTORS_PER_BLOCK: usize = BLOCK_SIZE / SECTOR_SIZE;
/// Blocks of one copy of the fence table.
pub const FENCE_BLOCKS: usize = FENCED_VOLUMES_MAX.div_ceil(FENCES_PER_SECTOR * SECTORS_PER_BLOCK);
const HEADERS_AT: u64 = FENCE_AT + 2 * FENCE_BLOCKS as u64;

impl Geometry {
    /// As many slots as fit into `bytes`.
    ///
    /// # Errors
    /// When fewer than [`SLOTS_MIN`] do, or the extent size is impossible.
    pub fn fit(bytes: u64, extent_blocks: Blocks) -> Result<Geometry, GeometryError> {
        let one = Geometry::with_slots(extent_blocks, 1)?;
        let per_slot = one.bytes() / BLOCK_BYTES - HEADERS_AT;
        let slots = (bytes / BLOCK_BYTES).saturating_sub(HEADERS_AT) / per_slot;
        if slots < u64::from(SLOTS_MIN) {
            let needed = (HEADERS_AT + u64::from(SLOTS_MIN) * per_slot) * BLOCK_BYTES;
            return Err(GeometryError::TooSmall { bytes, extent_blocks, needed });
        }
        Ok(Geometry { extent_blocks, slots: u32::try_from(slots).unwrap_or(u32::MAX) })
    }

    /// The geometry of a disk that says how many slots it has.
    ///
    /// # Errors
    /// When the extent size is impossible.
    pub fn with_slots(extent_blocks: Blocks, slots: u32) -> Result<Geometry, GeometryError> {
        match (EXTENT_BLOCKS_MIN..=EXTENT_BLOCKS_MAX).contains(&extent_blocks) {
            true => Ok(Geometry { extent_blocks, slots }),
            false => Err(GeometryError::ExtentBlocks(extent_blocks)),
        }
    }

    /// Blocks in an extent.
    #[must_use]
    pub fn extent_blocks(&self) -> Blocks {
        self.extent_blocks
    }

    /// Slots on the disk.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Bytes the whole takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.footer_at(self.slots, 0) - u64::from(self.extent_blocks) * BLOCK_BYTES
    }

    /// The place of a superblock of `generation`.
    #[must_use]
    pub fn superblock_at(generation: u64) -> u64 {
        generation % 2 * BLOCK_BYTES
    }

    /// Block `index` of a copy (0 or 1) of the fence table.
    #[must_use]
    pub fn fence_at(copy: usize, index: usize) -> u64 {
        (FENCE_AT + (copy * FENCE_BLOCKS + index) as u64) * BLOCK_BYTES
    }

    /// The place of `slot`'s header of `generation`. Headers of even generations lie together, as do those of odd
    /// ones, so that start-up reads them as two long runs.
    #[must_use]
    pub fn header_at(&self, slot: u32, generation: u64) -> u64 {
        (HEADERS_AT + generation % 2 * u64::from(self.slots) + u64::from(slot)) * BLOCK_BYTES
    }

    /// Block `block` of the frames in `slot`.
    #[must_use]
    pub fn data_at(&self, slot: u32, block: Blocks) -> u64 {
        let stride = u64::from(self.extent_blocks + footer_blocks(self.extent_blocks));
        let first = HEADERS_AT + 2 * u64::from(self.slots);
        (first + u64::from(slot) * stride + u64::from(block)) * BLOCK_BYTES
    }

    /// Block `index` of the footer of `slot`.
    #[must_use]
    pub fn footer_at(&self, slot: u32, index: u32) -> u64 {
        self.data_at(slot, self.extent_blocks + index)
    }
}

/// Whose disk it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskIds {
    /// The cluster it was formatted for.
    pub cluster: ClusterId,
    /// The agent it belongs to.
    pub agent: AgentId,
    /// Itself.
    pub disk: DiskId,
}

/// What a disk says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Whose it is.
    pub ids: DiskIds,
    /// How it is laid out.
    pub geometry: Geometry,
    /// The last run of an agent over it; 0: never served.
    pub incarnation: Incarnation,
    /// Which of two superblocks is the newer.
    pub generation: u64,
}

/// Why a block is not a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// There is nothing of ours.
    #[error("no superblock")]
    Absent,
    /// It is, or was, one, but fails its checksum.
    #[error("damaged superblock")]
    Damaged,
    /// Sound, of a later format.
    #[error("disk format {0}, newer than {DISK_FORMAT}")]
    Newer(u32),
}

impl Superblock {
    const MAGIC: &[u8; 8] = b"TORUSDK1";

    /// Its block.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = vec![0; BLOCK_SIZE];
        put(&mut out, 0, Self::MAGIC);
        put(&mut out, 8, &DISK_FORMAT.to_le_bytes());
        put(&mut out, 12, &self.geometry.extent_blocks.to_le_bytes());
        put(&mut out, 16, &self.ids.cluster.0.to_le_bytes());
        put(&mut out, 24, &self.ids.agent.0.to_le_bytes());
        put(&mut out, 32, &self.ids.disk.0.to_le_bytes());
        put(&mut out, 40, &self.geometry.slots.to_le_bytes());
        put(&mut out, 48, &self.incarnation.0.to_le_bytes());
        put(&mut out, 56, &self.generation.to_le_bytes());
        close_sector(&mut out[..SECTOR_SIZE]);
        out.into()
    }

    /// The superblock in `block`.
    ///
    /// # Errors
    /// What is there instead.
    pub fn decode(block: &[u8]) -> Result<Superblock, SuperblockError> {
        if block.len() < SECTOR_SIZE || &block[..8] != Self::MAGIC {
            return Err(SuperblockError::Absent);
        }
        if !sector_is_sound(&block[..SECTOR_SIZE]) {
            return Err(SuperblockError::Damaged);
        }
        match get_u32(block, 8) {
            DISK_FORMAT => {}
            newer => return Err(SuperblockError::Newer(newer)),
        }
        let geometry =
            Geometry::with_slots(get_u32(block, 12), get_u32(block, 40)).map_err(|_| SuperblockError::Damaged)?;
        let ids = DiskIds {
            cluster: ClusterId(get_u64(block, 16)),
            agent: AgentId(get_u64(block, 24)),
            disk: DiskId(get_u64(block, 32)),
        };
        let incarnation = Incarnation(get_u64(block, 48));
        Ok(Superblock { ids, geometry, incarnation, generation: get_u64(block, 56) })
    }
}

/// One sector of the fence table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FenceSector {
    /// Raised with every change.
    pub generation: u64,
    /// "Nothing for this volume from an epoch below this one", at most [`FENCES_PER_SECTOR`] times.
    pub entries: Vec<(VolumeId, Epoch)>,
}

impl FenceSector {
    const MAGIC: &[u8; 8] = b"TORUSFN1";

    /// Writes it as sector `number` of `disk` into `out`, [`SECTOR_SIZE`] zero bytes.
    pub fn encode(&self, disk: DiskId, number: u32, out: &mut [u8]) {
        put(out, 0, Self::MAGIC);
        put(out, 8, &disk.0.to_le_bytes());
        put(out, 16, &number.to_le_bytes());
        put(out, 20, &(self.entries.len() as u32).to_le_bytes());
        put(out, 24, &self.generation.to_le_bytes());
        for (i, (volume, epoch)) in self.entries.iter().enumerate() {
            put(out, 32 + i * 16, &volume.0.to_le_bytes());
            put(out, 40 + i * 16, &epoch.0.to_le_bytes());
        }
        put(out, 496, &disk.0.to_le_bytes());
        close_sector(out);
    }

    /// The sector in `bytes`; `None` when it is not, or is not any more, sector `number` of `disk`.
    #[must_use]
    pub fn decode(bytes: &[u8], disk: DiskId, number: u32) -> Option<FenceSector> {
        let count = get_u32(bytes, 20) as usize;
        let sound = &bytes[..8] == Self::MAGIC
            && sector_is_sound(bytes)
            && get_u64(bytes, 8) == disk.0
            && get_u32(bytes, 16) == number
            && count <= FENCES_PER_SECTOR;
        sound.then(|| FenceSector {
            generation: get_u64(bytes, 24),
            entries: (0..count)
                .map(|i| (VolumeId(get_u64(bytes, 32 + i * 16)), Epoch(get_u64(bytes, 40 + i * 16))))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_all_of_it_fits() {
        let bytes = 300 << 20;
        let geometry = Geometry::fit(bytes, EXTENT_BLOCKS_MIN).unwrap();
        assert!(geometry.bytes() <= bytes);
        assert!(Geometry::fit(geometry.bytes() - 1, EXTENT_BLOCKS_MIN).unwrap().slots() < geometry.slots());
        let last = geometry.slots() - 1;
        let mut places = vec![
            Geometry::superblock_at(0),
            Geometry::superblock_at(1),
            Geometry::fence_at(0, 0),
            Geometry::fence_at(0, FENCE_BLOCKS - 1),
            Geometry::fence_at(1, 0),
            Geometry::fence_at(1, FENCE_BLOCKS - 1),
            geometry.header_at(0, 0),
            geometry.header_at(last, 2),
            geometry.header_at(0, 1),
            geometry.header_at(last, 3),
            geometry.data_at(0, 0),
            geometry.data_at(0, EXTENT_BLOCKS_MIN - 1),
            geometry.footer_at(0, 0),
            geometry.footer_at(0, footer_blocks(EXTENT_BLOCKS_MIN) - 1),
            geometry.data_at(1, 0),
            geometry.footer_at(last, footer_blocks(EXTENT_BLOCKS_MIN) - 1),
        ];
        assert_eq!(places.last().unwrap() + BLOCK_BYTES, geometry.bytes());
        let sorted = places.clone();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places, sorted);
        assert_eq!((FENCE_BLOCKS, geometry.header_at(0, 0)), (71, 144 * BLOCK_BYTES), "as the table above says");
    }

    #[test]
    fn too_small_and_odd_disks_are_refused_with_numbers() {
        let error = Geometry::fit(1 << 20, EXTENT_BLOCKS_MIN).unwrap_err();
        assert!(error.to_string().contains("4 slots for extents of 1024 blocks take 17"), "{error}");
        assert_eq!(Geometry::fit(1 << 40, 7).unwrap_err(), GeometryError::ExtentBlocks(7));
    }

    #[test]
    fn a_superblock_reads_back_and_a_flipped_bit_is_noticed() {
        let ids = DiskIds { cluster: ClusterId(1), agent: AgentId(2), disk: DiskId(3) };
        let geometry = Geometry::with_slots(EXTENT_BLOCKS_MIN, 9).unwrap();
        let superblock = Superblock { ids, geometry, incarnation: Incarnation(4), generation: 5 };
        let block = superblock.encode();
        assert_eq!(Superblock::decode(&block), Ok(superblock));
        for at in 0..SECTOR_SIZE {
            let mut bad = block.to_vec();
            bad[at] ^= 4;
            let want = if at < 8 { SuperblockError::Absent } else { SuperblockError::Damaged };
            assert_eq!(Superblock::decode(&bad), Err(want), "byte {at}");
        }
        let mut newer = block.to_vec();
        newer[8] = 2;
        close_sector(&mut newer[..SECTOR_SIZE]);
        assert_eq!(Superblock::decode(&newer), Err(SuperblockError::Newer(2)));
    }

    #[test]
    fn a_fence_sector_reads_back_only_in_its_place() {
        let entries = (1..=FENCES_PER_SECTOR as u64).map(|i| (VolumeId(i), Epoch(i * 7))).collect();
        let sector = FenceSector { generation: 11, entries };
        let mut bytes = vec![0; SECTOR_SIZE];
        sector.encode(DiskId(3), 12, &mut bytes);
        assert_eq!(FenceSector::decode(&bytes, DiskId(3), 12), Some(sector));
        assert_eq!(FenceSector::decode(&bytes, DiskId(3), 13), None);
        assert_eq!(FenceSector::decode(&bytes, DiskId(4), 12), None);
        for at in 0..SECTOR_SIZE {
            bytes[at] ^= 1;
            assert_eq!(FenceSector::decode(&bytes, DiskId(3), 12), None, "byte {at}");
            bytes[at] ^= 1;
        }
    }
}
