//! The frame: the unit of append. One header block, then its payload blocks.
//!
//! An owner builds a frame once; every member of the extent stores the same bytes at the same offset, so two valid
//! frames at one (extent, offset) are identical (I8) and copies can be compared by digest. The header is a whole block
//! so that payload stays aligned for O_DIRECT and no durable sector is ever rewritten. It names its own place twice,
//! at both ends: a stale or misdirected block, or one torn between sectors, is recognised for what it is.
//!
//! ```text
//!    0   8  magic "TORUSFR1"                2112 1024  CRC32C of each payload block, 4 bytes each (unused: 0)
//!    8   8  volume id                       3136  928  zero
//!   16   8  extent seq                      4064    8  volume id, again
//!   24   4  offset in the extent, blocks    4072    8  extent seq, again
//!   28   2  payload blocks (0..=256)        4080    4  offset, again
//!   30   1  records (1..=64)                4084    8  magic "1RFSUROT"
//!   31   1  stream: 0 log, 1 checkpoint     4092    4  CRC32C of bytes 0..4092
//!   32   8  epoch of the owner
//!   40   8  vseq of the first record
//!   48   8  LAC                             A record (32 bytes): kind 1, flags 1, payload blocks 2, body 28.
//!   56   8  zero                            Record i has vseq base + i. Payloads follow in the records' order.
//!   64 2048 records, 32 bytes each
//! ```

use super::{Pieces, crc, get, get_u16, get_u32, get_u64, put};
use crate::ids::{BLOCK_SIZE, Blocks, Epoch, ExtentId, ExtentSeq, VolumeId, Vseq};
use crate::limits::{FRAME_PAYLOAD_BLOCKS_MAX, FRAME_RECORDS_MAX};
use bytes::Bytes;
use smallvec::SmallVec;

const MAGIC: &[u8; 8] = b"TORUSFR1";
const MAGIC_END: &[u8; 8] = b"1RFSUROT";
const RECORDS_AT: usize = 64;
/// Bytes of one record in a header.
pub const RECORD_SIZE: usize = 32;
const CRCS_AT: usize = RECORDS_AT + FRAME_RECORDS_MAX * RECORD_SIZE;
const TRAILER_AT: usize = 4064;
const CRC_AT: usize = BLOCK_SIZE - 4;

const _: () = assert!(CRCS_AT + FRAME_PAYLOAD_BLOCKS_MAX as usize * 4 <= TRAILER_AT);

/// Which order a frame belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// The volume's log: `vseq` is the one order of its records.
    Log,
    /// A checkpoint: `vseq` counts the checkpoint's own records from 1.
    Checkpoint,
}

/// One record as the log sees it: a kind it does not look into, a share of the payload, 28 bytes that mean something
/// to the layer above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The volume kind's own record kind.
    pub kind: u8,
    /// The volume kind's own flags.
    pub flags: u8,
    /// Payload blocks that belong to this record, following those of the records before it.
    pub payload_blocks: u16,
    /// The volume kind's own content.
    pub body: [u8; 28],
}

impl Record {
    /// Its 32 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut out = [0; RECORD_SIZE];
        out[0] = self.kind;
        out[1] = self.flags;
        put(&mut out, 2, &self.payload_blocks.to_le_bytes());
        put(&mut out, 4, &self.body);
        out
    }

    /// The record in 32 bytes. Every bit pattern is a record; what it means is for the layer above to judge.
    #[must_use]
    pub fn decode(bytes: &[u8; RECORD_SIZE]) -> Record {
        Record { kind: bytes[0], flags: bytes[1], payload_blocks: get_u16(bytes, 2), body: get(bytes, 4) }
    }
}

/// What a header block says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// The extent it was written to.
    pub extent: ExtentId,
    /// Where in that extent the header block lies.
    pub offset: Blocks,
    /// Which order its records belong to.
    pub stream: Stream,
    /// The epoch of the owner that wrote it.
    pub epoch: Epoch,
    /// `vseq` of the first record; the others follow without a gap.
    pub base: Vseq,
    /// The highest `vseq` known durable on whole ensembles when it was written.
    pub lac: Vseq,
    /// Its records, at least one.
    pub records: SmallVec<[Record; 2]>,
    /// CRC32C of each payload block.
    pub crcs: SmallVec<[u32; 8]>,
}

/// Why bytes are not the frame that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The block does not begin or end as a frame header does.
    #[error("no frame header")]
    NotAFrame,
    /// It is, or was, a header of this extent at this offset, but its bytes fail their checksum.
    #[error("damaged frame header")]
    Damaged,
    /// A sound header, of another extent or offset: stale or misdirected.
    #[error("a frame of extent {0} at block {1}")]
    Elsewhere(ExtentId, Blocks),
    /// A sound checksum over fields that break the format's limits.
    #[error("frame header breaks the format: {0}")]
    Invalid(&'static str),
    /// A payload block fails its checksum.
    #[error("payload block {0} of the frame fails its checksum")]
    Payload(Blocks),
    /// The bytes end before the frame does.
    #[error("frame is cut short")]
    Short,
}

impl FrameHeader {
    /// Blocks of payload after the header block.
    #[must_use]
    pub fn payload_blocks(&self) -> Blocks {
        self.crcs.len() as Blocks
    }

    /// Blocks of the whole frame, header included.
    #[must_use]
    pub fn blocks(&self) -> Blocks {
        1 + self.payload_blocks()
    }

    /// `vseq` of the last record.
    #[must_use]
    pub fn last(&self) -> Vseq {
        Vseq(self.base.0 + self.records.len() as u64 - 1)
    }

    /// Its header block.
    ///
    /// # Panics
    /// On a header outside the format's limits: the writer's own defect, never data from outside.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        assert!((1..=FRAME_RECORDS_MAX).contains(&self.records.len()), "frame of {} records", self.records.len());
        assert!(self.payload_blocks() <= FRAME_PAYLOAD_BLOCKS_MAX, "frame of {} blocks", self.payload_blocks());
        let claimed: usize = self.records.iter().map(|r| usize::from(r.payload_blocks)).sum();
        assert_eq!(claimed, self.crcs.len(), "records claim other payload than the frame carries");
        let mut out = vec![0; BLOCK_SIZE];
        put(&mut out, 0, MAGIC);
        put(&mut out, 28, &(self.crcs.len() as u16).to_le_bytes());
        out[30] = self.records.len() as u8;
        out[31] = match self.stream {
            Stream::Log => 0,
            Stream::Checkpoint => 1,
        };
        put(&mut out, 32, &self.epoch.0.to_le_bytes());
        put(&mut out, 40, &self.base.0.to_le_bytes());
        put(&mut out, 48, &self.lac.0.to_le_bytes());
        for (i, record) in self.records.iter().enumerate() {
            put(&mut out, RECORDS_AT + i * RECORD_SIZE, &record.encode());
        }
        for (i, value) in self.crcs.iter().enumerate() {
            put(&mut out, CRCS_AT + i * 4, &value.to_le_bytes());
        }
        for at in [8, TRAILER_AT] {
            put(&mut out, at, &self.extent.volume.0.to_le_bytes());
            put(&mut out, at + 8, &self.extent.seq.0.to_le_bytes());
            put(&mut out, at + 16, &self.offset.to_le_bytes());
        }
        put(&mut out, 4084, MAGIC_END);
        let sum = crc(&out[..CRC_AT]);
        put(&mut out, CRC_AT, &sum.to_le_bytes());
        out.into()
    }

    /// The header in `block`, checked against the place it was read from.
    ///
    /// # Errors
    /// What is there instead: see [`FrameError`]. [`FrameError::Damaged`] only when a frame of *this* place was there:
    /// a reader that finds it knows that something was written, and cannot know whether it was acknowledged.
    pub fn decode(block: &[u8], extent: ExtentId, offset: Blocks) -> Result<FrameHeader, FrameError> {
        if block.len() < BLOCK_SIZE {
            return Err(FrameError::Short);
        }
        let block = &block[..BLOCK_SIZE];
        let place = |at: usize| {
            let id = ExtentId { volume: VolumeId(get_u64(block, at)), seq: ExtentSeq(get_u64(block, at + 8)) };
            (id, get_u32(block, at + 16))
        };
        let (head, tail) = (place(8), place(TRAILER_AT));
        let (begins, ends) = (&block[..8] == MAGIC, &block[4084..4092] == MAGIC_END);
        if crc(&block[..CRC_AT]) != get_u32(block, CRC_AT) {
            let ours = (begins && head == (extent, offset)) || (ends && tail == (extent, offset));
            return Err(if ours { FrameError::Damaged } else { FrameError::NotAFrame });
        }
        if !begins || !ends || head != tail {
            return Err(FrameError::NotAFrame);
        }
        if head != (extent, offset) {
            return Err(FrameError::Elsewhere(head.0, head.1));
        }
        Self::decode_fields(block, extent, offset)
    }

    fn decode_fields(block: &[u8], extent: ExtentId, offset: Blocks) -> Result<FrameHeader, FrameError> {
        let (payload_blocks, count) = (usize::from(get_u16(block, 28)), usize::from(block[30]));
        if payload_blocks > FRAME_PAYLOAD_BLOCKS_MAX as usize {
            return Err(FrameError::Invalid("too many payload blocks"));
        }
        if !(1..=FRAME_RECORDS_MAX).contains(&count) {
            return Err(FrameError::Invalid("impossible number of records"));
        }
        let stream = match block[31] {
            0 => Stream::Log,
            1 => Stream::Checkpoint,
            _ => return Err(FrameError::Invalid("unknown stream")),
        };
        let records: SmallVec<[Record; 2]> =
            (0..count).map(|i| Record::decode(&get(block, RECORDS_AT + i * RECORD_SIZE))).collect();
        let crcs = (0..payload_blocks).map(|i| get_u32(block, CRCS_AT + i * 4)).collect();
        if records.iter().map(|r| usize::from(r.payload_blocks)).sum::<usize>() != payload_blocks {
            return Err(FrameError::Invalid("records and payload disagree"));
        }
        let base = get_u64(block, 40);
        if base == 0 || base.checked_add(count as u64).is_none() {
            return Err(FrameError::Invalid("impossible vseq"));
        }
        Ok(FrameHeader {
            extent,
            offset,
            stream,
            epoch: Epoch(get_u64(block, 32)),
            base: Vseq(base),
            lac: Vseq(get_u64(block, 48)),
            records,
            crcs,
        })
    }
}

/// A frame as it travels and lies on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The encoded header block.
    pub header: Bytes,
    /// The payload, in whole blocks altogether; a piece may be any whole number of blocks.
    pub payload: Pieces,
}

impl Frame {
    /// Blocks of the whole frame.
    #[must_use]
    pub fn blocks(&self) -> Blocks {
        1 + (self.payload.iter().map(Bytes::len).sum::<usize>() / BLOCK_SIZE) as Blocks
    }

    /// The frame at the start of `bytes`, header and payload verified.
    ///
    /// # Errors
    /// As [`FrameHeader::decode`], and for payload that is short or fails its checksum.
    pub fn parse(bytes: &Bytes, extent: ExtentId, offset: Blocks) -> Result<(FrameHeader, Frame), FrameError> {
        let header = FrameHeader::decode(bytes, extent, offset)?;
        let end = header.blocks() as usize * BLOCK_SIZE;
        if bytes.len() < end {
            return Err(FrameError::Short);
        }
        let payload = bytes.slice(BLOCK_SIZE..end);
        verify(&header.crcs, &payload)?;
        let frame = Frame { header: bytes.slice(..BLOCK_SIZE), payload: smallvec::smallvec![payload] };
        Ok((header, frame))
    }
}

/// Blocks of the whole, sound frames that `bytes`, read at block `offset` of `extent`, begin with.
#[must_use]
pub fn whole_frames(bytes: &Bytes, extent: ExtentId, offset: Blocks) -> Blocks {
    let mut blocks = 0;
    while let Ok((header, _)) = Frame::parse(&bytes.slice(blocks as usize * BLOCK_SIZE..), extent, offset + blocks) {
        blocks += header.blocks();
        if blocks as usize * BLOCK_SIZE >= bytes.len() {
            break;
        }
    }
    blocks
}

/// Checks `payload` block by block.
///
/// # Errors
/// [`FrameError::Payload`] with the first block whose checksum differs, [`FrameError::Short`] when the lengths do.
pub fn verify(crcs: &[u32], payload: &[u8]) -> Result<(), FrameError> {
    if payload.len() != crcs.len() * BLOCK_SIZE {
        return Err(FrameError::Short);
    }
    match payload.chunks_exact(BLOCK_SIZE).zip(crcs).position(|(block, want)| crc(block) != *want) {
        Some(i) => Err(FrameError::Payload(i as Blocks)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: ExtentId = ExtentId { volume: VolumeId(0xfeed), seq: ExtentSeq(0x0200_0003) };

    fn sample() -> (FrameHeader, Bytes) {
        let payload: Vec<u8> = (0..3 * BLOCK_SIZE).map(|i| (i % 251) as u8).collect();
        let header = FrameHeader {
            extent: EXTENT,
            offset: 77,
            stream: Stream::Log,
            epoch: Epoch(2),
            base: Vseq(1000),
            lac: Vseq(998),
            records: [(1u8, 1u16), (2, 0), (1, 2)]
                .map(|(kind, payload_blocks)| Record { kind, flags: 0, payload_blocks, body: [kind; 28] })
                .into_iter()
                .collect(),
            crcs: payload.chunks(BLOCK_SIZE).map(crc).collect(),
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&payload);
        (header, bytes.into())
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let (header, bytes) = sample();
        let (read, frame) = Frame::parse(&bytes, EXTENT, 77).unwrap();
        assert_eq!(read, header);
        assert_eq!((frame.blocks(), header.last()), (4, Vseq(1002)));
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_a_damaged_header_is_still_known_as_ours() {
        let (_, bytes) = sample();
        for at in (0..bytes.len()).step_by(37).chain(8..28).chain(4064..4096) {
            let mut bad = bytes.to_vec();
            bad[at] ^= 0x10;
            let error = Frame::parse(&bad.into(), EXTENT, 77).unwrap_err();
            match at {
                0..BLOCK_SIZE => assert_eq!(error, FrameError::Damaged, "byte {at}"),
                _ => assert_eq!(error, FrameError::Payload((at / BLOCK_SIZE - 1) as Blocks), "byte {at}"),
            }
        }
    }

    #[test]
    fn another_place_is_recognised() {
        let (_, bytes) = sample();
        assert_eq!(Frame::parse(&bytes, EXTENT, 78).unwrap_err(), FrameError::Elsewhere(EXTENT, 77));
        let zeros = Bytes::from(vec![0; BLOCK_SIZE]);
        assert_eq!(Frame::parse(&zeros, EXTENT, 77).unwrap_err(), FrameError::NotAFrame);
        assert_eq!(Frame::parse(&bytes.slice(..2 * BLOCK_SIZE), EXTENT, 77).unwrap_err(), FrameError::Short);
    }
}
