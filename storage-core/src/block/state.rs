//! What the log's records come to: the address map, and for each extent the count of blocks it is still needed for.
//!
//! This is the one place where a record changes the map, at run time and in replay alike, so that the map at any moment
//! equals the checkpoint plus a replay of what came after it (I10, I11).

use super::map::{Loc, Map};
use super::record::BlockRecord;
use crate::format::Record;
use crate::ids::{Blocks, ExtentSeq, Lba};
use crate::log::Table;
use crate::mutation::{self, Mutation};

/// Applies the records of one frame, whose header lies at (`extent`, `offset`).
///
/// Records of an unknown kind, or beyond the volume, are skipped: `false` then, for the caller to refuse.
pub fn apply(map: &mut Map, table: &mut Table, extent: ExtentSeq, offset: Blocks, records: &[Record]) -> bool {
    let mut sound = true;
    let mut block = offset + 1;
    for record in records {
        match BlockRecord::decode(record) {
            Some(meaning) => sound &= apply_one(map, table, extent, block, meaning),
            None => sound = false,
        }
        block += Blocks::from(record.payload_blocks);
    }
    sound
}

fn inside(map: &Map, lba: Lba, blocks: u64) -> bool {
    blocks > 0 && lba.0.checked_add(blocks).is_some_and(|end| end <= map.blocks())
}

fn apply_one(map: &mut Map, table: &mut Table, extent: ExtentSeq, block: Blocks, record: BlockRecord) -> bool {
    match record {
        BlockRecord::Write { lba, blocks } => {
            let Some(index) = table.find(extent).filter(|_| inside(map, lba, u64::from(blocks))) else { return false };
            table.at_mut(index).live += blocks;
            map.set(lba, blocks, Loc { extent: index, block }, &mut |old, n| table.at_mut(old).live -= n);
        }
        BlockRecord::Trim { lba, blocks } | BlockRecord::Zero { lba, blocks } => {
            if !inside(map, lba, blocks) {
                return false;
            }
            map.clear(lba, blocks, &mut |old, n| table.at_mut(old).live -= n);
        }
        BlockRecord::Reloc { lba, blocks, from: (seq, at) } => {
            let Some(to) = table.find(extent).filter(|_| inside(map, lba, u64::from(blocks))) else { return false };
            if mutation::active(Mutation::RelocUnconditional) {
                return apply_one(map, table, extent, block, BlockRecord::Write { lba, blocks });
            }
            // An extent that is gone has nothing in the map: nothing to move.
            let Some(from) = table.find(seq) else { return true };
            relocate(map, table, lba, blocks, Loc { extent: from, block: at }, Loc { extent: to, block });
        }
        BlockRecord::Table { .. } | BlockRecord::Map { .. } => return false,
    }
    true
}

/// Moves those blocks that still lie at `from`; their counts go along.
pub fn relocate(map: &mut Map, table: &mut Table, lba: Lba, blocks: Blocks, from: Loc, to: Loc) {
    let moved = map.relocate(lba, blocks, from, to);
    table.at_mut(from.extent).live -= moved;
    table.at_mut(to.extent).live += moved;
}
