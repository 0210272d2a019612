//! The records of a block volume: what the log carries without looking.
//!
//! ```text
//! kind  body (28 bytes, little-endian)                                  payload
//!  1    WRITE    lba u64                                                the blocks from lba on
//!  2    TRIM     lba u64, blocks u64                                    none
//!  3    ZERO     lba u64, blocks u64                                    none
//!  4    RELOC    lba u64, from: extent seq u64, block u32               the blocks from lba on, as they were at `from`
//!  5    SNAP     reserved for snapshots
//! 32    TABLE    bytes u32                                              a piece of a checkpoint's extent table
//! 33    MAP      bytes u32                                              a piece of a checkpoint's address map
//! ```
//!
//! TABLE and MAP occur in checkpoint extents only, one per frame. RELOC is conditional: it holds for those blocks that the
//! map still says lie at `from` when the record is applied, so replay is deterministic.

#![allow(missing_docs, reason = "the fields of a variant are described by its own line")]

use crate::format::{Record, get_u32, get_u64, put};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentSeq, Lba};

/// What a record means to a block volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockRecord {
    /// These blocks now hold the payload.
    Write { lba: Lba, blocks: Blocks },
    /// These blocks hold nothing that matters: they read as zeros.
    Trim { lba: Lba, blocks: u64 },
    /// These blocks hold zeros.
    Zero { lba: Lba, blocks: u64 },
    /// Those of these blocks that lay at `from` and after it now lie in this record's payload.
    Reloc { lba: Lba, blocks: Blocks, from: (ExtentSeq, Blocks) },
    /// A piece of a checkpoint's extent table, of so many bytes.
    Table { bytes: u32 },
    /// A piece of a checkpoint's address map, of so many bytes.
    Map { bytes: u32 },
}

impl BlockRecord {
    /// The record as the log carries it.
    #[must_use]
    pub fn encode(&self) -> Record {
        let mut body = [0; 28];
        let (kind, payload) = match *self {
            BlockRecord::Write { lba, blocks } => {
                put(&mut body, 0, &lba.0.to_le_bytes());
                (1, blocks)
            }
            BlockRecord::Trim { lba, blocks } | BlockRecord::Zero { lba, blocks } => {
                put(&mut body, 0, &lba.0.to_le_bytes());
                put(&mut body, 8, &blocks.to_le_bytes());
                (if matches!(self, BlockRecord::Trim { .. }) { 2 } else { 3 }, 0)
            }
            BlockRecord::Reloc { lba, blocks, from: (seq, block) } => {
                put(&mut body, 0, &lba.0.to_le_bytes());
                put(&mut body, 8, &seq.0.to_le_bytes());
                put(&mut body, 16, &block.to_le_bytes());
                (4, blocks)
            }
            BlockRecord::Table { bytes } | BlockRecord::Map { bytes } => {
                put(&mut body, 0, &bytes.to_le_bytes());
                let kind = if matches!(self, BlockRecord::Table { .. }) { 32 } else { 33 };
                (kind, bytes.div_ceil(BLOCK_SIZE as u32))
            }
        };
        Record { kind, flags: 0, payload_blocks: payload as u16, body }
    }

    /// What a record means; `None` for a kind that this program does not know.
    #[must_use]
    pub fn decode(record: &Record) -> Option<BlockRecord> {
        let (lba, blocks) = (Lba(get_u64(&record.body, 0)), Blocks::from(record.payload_blocks));
        Some(match record.kind {
            1 => BlockRecord::Write { lba, blocks },
            2 => BlockRecord::Trim { lba, blocks: get_u64(&record.body, 8) },
            3 => BlockRecord::Zero { lba, blocks: get_u64(&record.body, 8) },
            4 => {
                let from = (ExtentSeq(get_u64(&record.body, 8)), get_u32(&record.body, 16));
                BlockRecord::Reloc { lba, blocks, from }
            }
            32 => BlockRecord::Table { bytes: get_u32(&record.body, 0) },
            33 => BlockRecord::Map { bytes: get_u32(&record.body, 0) },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_what_they_say() {
        let records = [
            BlockRecord::Write { lba: Lba(1 << 33), blocks: 256 },
            BlockRecord::Trim { lba: Lba(7), blocks: 1 << 34 },
            BlockRecord::Zero { lba: Lba(0), blocks: 1 },
            BlockRecord::Reloc { lba: Lba(9), blocks: 3, from: (ExtentSeq(0x0700_0001), 16_000) },
            BlockRecord::Table { bytes: 4097 },
            BlockRecord::Map { bytes: 1 << 20 },
        ];
        for record in records {
            assert_eq!(BlockRecord::decode(&record.encode()), Some(record));
        }
        assert_eq!(BlockRecord::Table { bytes: 4097 }.encode().payload_blocks, 2);
        assert_eq!(BlockRecord::decode(&Record { kind: 99, flags: 0, payload_blocks: 0, body: [0; 28] }), None);
    }
}
