//! The slot: the place on a disk that holds one extent. Two header blocks, the frames, and once sealed a footer.
//!
//! ```text
//! slot header, one sector of its block           footer block i: what blocks 976·i to 976·i+975 must be
//!    0   8  magic "TORUSSL1"                        0    8  magic "TORUSFT1"
//!    8   8  disk id                                 8    8  volume id
//!   16   4  number of this slot                    16    8  extent seq
//!   20   1  state: 0 free, 1 open, 2 sealed        24    4  i
//!   21   1  stream: 0 log, 1 checkpoint            28    4  sealed length, blocks
//!   22   1  flags: 1 partial, 2 twin               32    8  digest of the extent
//!   24   8  generation                             40    8  zero
//!   32   8  volume id                              48 3904  sum of each block, 4 bytes each (beyond the end: 0)
//!   40   8  extent seq                           3952  122  bit n: block n is a frame's header
//!   48   8  epoch that made the copy             4092    4  CRC32C of bytes 0..4092
//!   56   8  incarnation that made it
//!   64   4  sealed length, blocks                The sum of a payload block is its CRC32C. A header block ends in
//!   72   8  digest                               its own CRC32C, so that the CRC32C of the whole is the same number
//!  496   8  disk id, again                       for every header; its sum is the CRC32C that it ends in.
//!  508   4  CRC32C of bytes 0..508
//! ```
//!
//! A header of generation *g* is written where *g* is even or odd, over the one of *g* − 2, and lies within one sector:
//! a crash leaves the old one or the new one. Two sound headers are therefore always one generation apart, and what
//! cannot be read, or is further apart, has rotted or gone astray; see [`resolve`].
//!
//! The first header of a copy is written to both places in one commit, the second of the two as its *twin*: a disk that
//! loses one of these writes does not make the agent forget the copy, and answer that it never held it. A twin is
//! believed whatever is left of the one before it, which said the same.
//!
//! A header that carries another disk id is left over from before the disk was formatted, and counts as none. So
//! formatting need not visit the slots.
//!
//! A footer block names the seal it belongs to (extent, length, digest), which the slot's header names too: a footer
//! left from a seal that a crash prevented, or from another extent, is not mistaken for it, and each block can be
//! checked without the others.

use super::disk::{SECTOR_SIZE, close_sector, sector_is_sound};
use super::{Digest, Stream, crc, get_u32, get_u64, put};
use crate::ids::{BLOCK_SIZE, Blocks, DiskId, Epoch, ExtentId, ExtentSeq, Incarnation, VolumeId};
use bytes::Bytes;

/// Blocks of an extent that one footer block speaks for.
pub const FOOTER_COVERS: Blocks = 976;
const SUMS_AT: usize = 48;
const HEADS_AT: usize = SUMS_AT + FOOTER_COVERS as usize * 4;
const FOOTER_CRC_AT: usize = BLOCK_SIZE - 4;
const _: () = assert!(HEADS_AT + FOOTER_COVERS as usize / 8 <= FOOTER_CRC_AT);

/// Blocks of the footer of an extent of `blocks`.
#[must_use]
pub const fn footer_blocks(blocks: Blocks) -> u32 {
    blocks.div_ceil(FOOTER_COVERS)
}

/// A copy of an extent, as its slot's header names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotCopy {
    /// The extent.
    pub extent: ExtentId,
    /// Which order its records belong to.
    pub stream: Stream,
    /// The epoch that made the copy.
    pub epoch: Epoch,
    /// The run of the agent that made it.
    pub incarnation: Incarnation,
    /// It was begun by a fill on an agent that could not say whether it had held more of the extent before: until it
    /// is sealed, its length proves nothing.
    pub partial: bool,
}

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    /// Nothing.
    Free,
    /// A copy that may still grow; how long it is, its frames tell.
    Open(SlotCopy),
    /// A copy closed for ever at this length with this content.
    Sealed(SlotCopy, Blocks, Digest),
}

/// A slot's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotHeader {
    /// Which of a slot's two headers is the newer. The first ever written is 1.
    pub generation: u64,
    /// Written along with the header of the generation before, which says the same.
    pub twin: bool,
    /// What the slot holds.
    pub state: SlotState,
}

/// What lies in the place of a slot header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderRead {
    /// Nothing of this disk's.
    Blank,
    /// A header.
    Sound(SlotHeader),
    /// It was one of this disk's, or cannot be read, or is one of another place.
    Damaged,
}

impl SlotHeader {
    const MAGIC: &[u8; 8] = b"TORUSSL1";

    /// Its block, for `slot` of `disk`.
    #[must_use]
    pub fn encode(&self, disk: DiskId, slot: u32) -> Bytes {
        let mut out = vec![0; BLOCK_SIZE];
        put(&mut out, 0, Self::MAGIC);
        for at in [8, 496] {
            put(&mut out, at, &disk.0.to_le_bytes());
        }
        put(&mut out, 16, &slot.to_le_bytes());
        put(&mut out, 24, &self.generation.to_le_bytes());
        let copy = match &self.state {
            SlotState::Free => None,
            SlotState::Open(copy) => {
                out[20] = 1;
                Some(copy)
            }
            SlotState::Sealed(copy, length, digest) => {
                out[20] = 2;
                put(&mut out, 64, &length.to_le_bytes());
                put(&mut out, 72, &digest.0.to_le_bytes());
                Some(copy)
            }
        };
        if let Some(copy) = copy {
            out[21] = match copy.stream {
                Stream::Log => 0,
                Stream::Checkpoint => 1,
            };
            out[22] = u8::from(copy.partial) | u8::from(self.twin) << 1;
            put(&mut out, 32, &copy.extent.volume.0.to_le_bytes());
            put(&mut out, 40, &copy.extent.seq.0.to_le_bytes());
            put(&mut out, 48, &copy.epoch.0.to_le_bytes());
            put(&mut out, 56, &copy.incarnation.0.to_le_bytes());
        }
        close_sector(&mut out[..SECTOR_SIZE]);
        out.into()
    }

    /// What the header block `block` says, read where headers of `slot` and of even (`parity` 0) or odd (1)
    /// generations lie.
    #[must_use]
    pub fn decode(block: &[u8], disk: DiskId, slot: u32, parity: u64) -> HeaderRead {
        if block.len() < SECTOR_SIZE {
            return HeaderRead::Damaged;
        }
        let sector = &block[..SECTOR_SIZE];
        if get_u64(sector, 8) != disk.0 && get_u64(sector, 496) != disk.0 {
            return HeaderRead::Blank;
        }
        let generation = get_u64(sector, 24);
        let here = &sector[..8] == Self::MAGIC && get_u32(sector, 16) == slot && generation % 2 == parity;
        if !here || !sector_is_sound(sector) {
            return HeaderRead::Damaged;
        }
        let copy = SlotCopy {
            extent: ExtentId { volume: VolumeId(get_u64(sector, 32)), seq: ExtentSeq(get_u64(sector, 40)) },
            stream: if sector[21] == 0 { Stream::Log } else { Stream::Checkpoint },
            epoch: Epoch(get_u64(sector, 48)),
            incarnation: Incarnation(get_u64(sector, 56)),
            partial: sector[22] & 1 != 0,
        };
        let state = match sector[20] {
            0 => SlotState::Free,
            1 => SlotState::Open(copy),
            2 => SlotState::Sealed(copy, get_u32(sector, 64), Digest(get_u64(sector, 72))),
            _ => return HeaderRead::Damaged,
        };
        HeaderRead::Sound(SlotHeader { generation, twin: sector[22] & 2 != 0, state })
    }
}

/// The header that holds, given what lies in a slot's two places; `None` when that cannot be told.
///
/// A twin needs no other header beside it: one that was written after it would lie in the other place.
///
/// A sealed copy survives the loss of the other header: that one was the copy's open past, or at worst says that it
/// was deleted, and sealed content that comes back is garbage to collect and not a lie. An open or a free slot does
/// not: the lost header may have said that the slot holds an acknowledged copy, or that a copy ends elsewhere.
#[must_use]
pub fn resolve(even: HeaderRead, odd: HeaderRead) -> Option<SlotHeader> {
    use HeaderRead::{Blank, Damaged, Sound};
    match (even, odd) {
        (Blank, Blank) => Some(SlotHeader { generation: 0, twin: false, state: SlotState::Free }),
        (Sound(a), Sound(b)) => {
            let (old, new) = if a.generation < b.generation { (a, b) } else { (b, a) };
            (new.twin || new.generation - old.generation == 1).then_some(new)
        }
        (Blank, Sound(only)) | (Sound(only), Blank) => (only.twin || only.generation == 1).then_some(only),
        (Damaged, Sound(left)) | (Sound(left), Damaged) => matches!(left.state, SlotState::Sealed(..)).then_some(left),
        (Blank | Damaged, Damaged) | (Damaged, Blank) => None,
    }
}

/// The seal a footer belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealName {
    /// The extent.
    pub extent: ExtentId,
    /// Where it ends.
    pub length: Blocks,
    /// What it contains.
    pub digest: Digest,
}

/// One block of a footer, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FooterBlock(Bytes);

impl FooterBlock {
    const MAGIC: &[u8; 8] = b"TORUSFT1";

    /// Footer block `index` of `seal`, whose blocks have these `sums`, all of them, and whose frames begin at `heads`,
    /// in order.
    #[must_use]
    pub fn encode(seal: &SealName, index: u32, sums: &[u32], heads: impl Iterator<Item = Blocks>) -> Bytes {
        let first = index * FOOTER_COVERS;
        let end = seal.length.min(first + FOOTER_COVERS);
        let mut out = vec![0; BLOCK_SIZE];
        put(&mut out, 0, Self::MAGIC);
        put(&mut out, 8, &seal.extent.volume.0.to_le_bytes());
        put(&mut out, 16, &seal.extent.seq.0.to_le_bytes());
        put(&mut out, 24, &index.to_le_bytes());
        put(&mut out, 28, &seal.length.to_le_bytes());
        put(&mut out, 32, &seal.digest.0.to_le_bytes());
        for (i, sum) in sums[first as usize..end as usize].iter().enumerate() {
            put(&mut out, SUMS_AT + i * 4, &sum.to_le_bytes());
        }
        for head in heads.skip_while(|head| *head < first).take_while(|head| *head < end) {
            let n = (head - first) as usize;
            out[HEADS_AT + n / 8] |= 1 << (n % 8);
        }
        let sum = crc(&out[..FOOTER_CRC_AT]);
        put(&mut out, FOOTER_CRC_AT, &sum.to_le_bytes());
        out.into()
    }

    /// The footer block in `block`; `None` when it is not, or is not any more, block `index` of the footer of `seal`.
    #[must_use]
    pub fn decode(block: Bytes, seal: &SealName, index: u32) -> Option<FooterBlock> {
        let sound = block.len() == BLOCK_SIZE
            && &block[..8] == Self::MAGIC
            && crc(&block[..FOOTER_CRC_AT]) == get_u32(&block, FOOTER_CRC_AT)
            && get_u64(&block, 8) == seal.extent.volume.0
            && get_u64(&block, 16) == seal.extent.seq.0
            && get_u32(&block, 24) == index
            && get_u32(&block, 28) == seal.length
            && get_u64(&block, 32) == seal.digest.0;
        sound.then_some(FooterBlock(block))
    }

    /// The sum of block `block` of the extent, one of those this footer block covers.
    #[must_use]
    pub fn sum(&self, block: Blocks) -> u32 {
        get_u32(&self.0, SUMS_AT + (block % FOOTER_COVERS) as usize * 4)
    }

    /// Whether block `block` of the extent, one of those this footer block covers, is a frame's header.
    #[must_use]
    pub fn is_head(&self, block: Blocks) -> bool {
        let n = (block % FOOTER_COVERS) as usize;
        self.0[HEADS_AT + n / 8] & 1 << (n % 8) != 0
    }
}

/// The sum of a frame's header block: the checksum that it ends in.
#[must_use]
pub fn head_sum(header_block: &[u8]) -> u32 {
    get_u32(header_block, BLOCK_SIZE - 4)
}

/// Whether `block` is the one that `sum` was taken of.
#[must_use]
pub fn block_matches(block: &[u8], sum: u32, is_head: bool) -> bool {
    match is_head {
        true => head_sum(block) == sum && crc(&block[..BLOCK_SIZE - 4]) == sum,
        false => crc(block) == sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskId = DiskId(0xd15c);
    const EXTENT: ExtentId = ExtentId { volume: VolumeId(0xfeed), seq: ExtentSeq(0x0200_0003) };

    fn copy() -> SlotCopy {
        SlotCopy {
            extent: EXTENT,
            stream: Stream::Checkpoint,
            epoch: Epoch(2),
            incarnation: Incarnation(9),
            partial: true,
        }
    }

    fn header(generation: u64, state: SlotState) -> HeaderRead {
        HeaderRead::Sound(SlotHeader { generation, twin: false, state })
    }

    fn twin(generation: u64) -> HeaderRead {
        HeaderRead::Sound(SlotHeader { generation, twin: true, state: SlotState::Open(copy()) })
    }

    #[test]
    fn a_header_reads_back_only_in_its_place_and_flipped_bits_are_noticed() {
        for state in [SlotState::Free, SlotState::Open(copy()), SlotState::Sealed(copy(), 77, Digest(5))] {
            let block = SlotHeader { generation: 6, twin: false, state }.encode(DISK, 3);
            assert_eq!(SlotHeader::decode(&block, DISK, 3, 0), header(6, state));
            assert_eq!(SlotHeader::decode(&block, DISK, 3, 1), HeaderRead::Damaged);
            assert_eq!(SlotHeader::decode(&block, DISK, 4, 0), HeaderRead::Damaged);
            assert_eq!(SlotHeader::decode(&block, DiskId(1), 3, 0), HeaderRead::Blank);
            for at in 0..SECTOR_SIZE {
                let mut bad = block.to_vec();
                bad[at] ^= 0x40;
                assert_eq!(SlotHeader::decode(&bad, DISK, 3, 0), HeaderRead::Damaged, "byte {at}");
            }
        }
        assert_eq!(SlotHeader::decode(&[0; BLOCK_SIZE], DISK, 3, 0), HeaderRead::Blank);
        let HeaderRead::Sound(written) = twin(4) else { unreachable!("a twin is sound") };
        assert_eq!(SlotHeader::decode(&written.encode(DISK, 3), DISK, 3, 0), twin(4));
    }

    #[test]
    fn either_of_two_headers_written_together_is_enough() {
        use HeaderRead::{Blank, Damaged};
        let open = SlotState::Open(copy());
        let state = |even, odd| resolve(even, odd).map(|h| (h.generation, h.state));
        assert_eq!(state(twin(2), header(1, open)), Some((2, open)));
        assert_eq!(state(twin(2), Blank), Some((2, open)));
        assert_eq!(state(Blank, header(1, open)), Some((1, open)));
        assert_eq!(state(twin(6), header(3, SlotState::Free)), Some((6, open)));
        assert_eq!(state(header(4, SlotState::Free), header(5, open)), Some((5, open)));
        assert_eq!(state(twin(6), header(7, SlotState::Free)), Some((7, SlotState::Free)));
        // What is damaged may have been the copy's end.
        assert_eq!(state(twin(2), Damaged), None);
    }

    #[test]
    fn only_what_is_certain_is_believed() {
        use HeaderRead::{Blank, Damaged};
        let (open, sealed) = (SlotState::Open(copy()), SlotState::Sealed(copy(), 7, Digest(1)));
        let state = |even, odd| resolve(even, odd).map(|h| (h.generation, h.state));
        assert_eq!(state(Blank, Blank), Some((0, SlotState::Free)));
        assert_eq!(state(Blank, header(1, open)), Some((1, open)));
        assert_eq!(state(header(2, sealed), header(1, open)), Some((2, sealed)));
        assert_eq!(state(header(2, sealed), header(3, SlotState::Free)), Some((3, SlotState::Free)));
        assert_eq!(state(header(2, sealed), Damaged), Some((2, sealed)));
        for lost in [
            (Blank, header(3, open)),
            (header(2, open), Blank),
            (header(2, open), header(5, open)),
            (header(2, open), Damaged),
            (Damaged, header(3, SlotState::Free)),
            (Damaged, Blank),
            (Blank, Damaged),
            (Damaged, Damaged),
        ] {
            assert_eq!(state(lost.0, lost.1), None, "{lost:?}");
        }
    }

    #[test]
    fn a_footer_tells_each_block_and_where_frames_begin() {
        let length = FOOTER_COVERS + 10;
        let sums: Vec<u32> = (0..length).map(|i| i * 31 + 7).collect();
        let heads: Vec<Blocks> = vec![0, 5, 975, 976, 980];
        let seal = SealName { extent: EXTENT, length, digest: Digest(99) };
        let blocks: Vec<Bytes> = (0..2).map(|i| FooterBlock::encode(&seal, i, &sums, heads.iter().copied())).collect();
        for block in 0..length {
            let index = block / FOOTER_COVERS;
            let footer = FooterBlock::decode(blocks[index as usize].clone(), &seal, index).unwrap();
            assert_eq!(footer.sum(block), sums[block as usize]);
            assert_eq!(footer.is_head(block), heads.contains(&block), "block {block}");
        }
        assert_eq!(FooterBlock::decode(blocks[0].clone(), &seal, 1), None);
        for other in [
            SealName { digest: Digest(98), ..seal },
            SealName { length: length - 1, ..seal },
            SealName { extent: ExtentId { volume: VolumeId(1), ..EXTENT }, ..seal },
        ] {
            assert_eq!(FooterBlock::decode(blocks[0].clone(), &other, 0), None);
        }
        for at in (0..BLOCK_SIZE).step_by(5) {
            let mut bad = blocks[1].to_vec();
            bad[at] ^= 2;
            assert_eq!(FooterBlock::decode(bad.into(), &seal, 1), None, "byte {at}");
        }
    }
}
