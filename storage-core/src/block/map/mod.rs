//! The address map: from block address to place in the log, for one volume, in its owner's memory.
//!
//! Every block that was written lies somewhere in the log, and the owner must know where for each of them, so this is
//! the one structure whose size follows the data: at most 1.5 GiB for a TiB written in random 4 KiB blocks, at most
//! 16 MiB for one written in runs of 4 MiB and more. A general ordered map takes several times that and chases
//! pointers. Here the address picks the leaf, and the leaf picks its form:
//!
//! | a leaf (4 MiB of addresses) that is | takes |
//! |---|---|
//! | up to 6 runs: unwritten, one extent's contiguous blocks, a large write cut into frames | 48 bytes |
//! | up to 512 runs | 48 + 24 + 7 a run |
//! | more | 48 + 5144: five bytes for each block |
//!
//! Leaves stand in groups of 64 (256 MiB), and a group of nothing is not there at all. Groups and the larger leaves are
//! reference counted, so that a [`Snapshot`] shares all of them and the map copies only what it then changes: a
//! checkpoint is written from a snapshot while writes go on. While one is held, each leaf that changes exists twice;
//! the copies are on the snapshot's account and go with it.
//!
//! 1. A block lies in one place or in none; what is beyond the volume's size lies in none.
//! 2. Every reference that an edit takes away is reported as displaced, once: the sum of what was set less what was
//!    displaced is, for each extent, the number of blocks that the map has in it.
//! 3. [`Map::relocate`] changes only blocks that the map still says lie where they are being moved from (garbage
//!    collection is a conditional record: replay is then deterministic).
//! 4. A snapshot never changes.
//!
//! Not here: what an [`ExtentIndex`] stands for and how much of an extent is live (the owner's extent table), the order
//! of records, and when to take a checkpoint. The encoded form is in `codec.rs` and in `docs/FORMAT.md`. `tests.rs`
//! holds all four against a plain ordered map; `tests/map_memory.rs` holds the bounds against the process's real size.

mod codec;
mod leaf;
mod place;
#[cfg(test)]
mod tests;

pub use codec::{PIECE_BYTES_MIN, PieceError};
pub use place::{ExtentIndex, Loc};

use crate::ids::{Blocks, Lba};
use crate::limits::VOLUME_BLOCKS_MAX;
use leaf::{LEAF, Leaf};
use place::Place;
use std::fmt;
use std::sync::Arc;

pub(crate) const LEAF_BLOCKS: u64 = LEAF as u64;
const GROUP_LEAVES: usize = 64;
const GROUP_BLOCKS: u64 = GROUP_LEAVES as u64 * LEAF_BLOCKS;

/// A run of blocks that lie one after the other in one extent, or of blocks that lie nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// Its first block.
    pub lba: Lba,
    /// How many blocks it has.
    pub blocks: u64,
    /// Where the first of them lies; `None`: never written, or trimmed.
    pub at: Option<Loc>,
}

/// The map of a volume. See the [module](self).
pub struct Map {
    tree: Tree,
    mapped: u64,
    /// Allocated for groups and leaves; the tree's top is counted when asked for.
    memory: usize,
}

/// A map as it was at one moment.
#[derive(Clone)]
pub struct Snapshot {
    tree: Tree,
    mapped: u64,
}

#[derive(Clone)]
struct Tree {
    /// Size of the volume.
    blocks: u64,
    groups: Vec<Option<Arc<Group>>>,
}

#[derive(Clone)]
struct Group {
    /// Leaves that are not empty; a group has at least one.
    used: u8,
    leaves: [Leaf; GROUP_LEAVES],
}

impl Map {
    /// The map of a volume of `blocks` blocks of which none was written.
    ///
    /// # Panics
    /// When that is more than [`VOLUME_BLOCKS_MAX`].
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        let mut map = Self { tree: Tree { blocks: 0, groups: Vec::new() }, mapped: 0, memory: 0 };
        map.resize(blocks);
        map
    }

    /// Makes the volume `blocks` blocks long, which it never was longer than.
    ///
    /// # Panics
    /// When that is less than it has, or more than [`VOLUME_BLOCKS_MAX`].
    pub fn resize(&mut self, blocks: u64) {
        assert!(blocks >= self.tree.blocks, "a volume only grows: {} to {blocks} blocks", self.tree.blocks);
        assert!(blocks <= VOLUME_BLOCKS_MAX, "no volume has {blocks} blocks");
        let groups = blocks.div_ceil(GROUP_BLOCKS) as usize;
        self.tree.groups.reserve_exact(groups - self.tree.groups.len());
        self.tree.groups.resize(groups, None);
        self.tree.blocks = blocks;
    }

    /// Size of the volume in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.tree.blocks
    }

    /// Where `blocks` blocks from `lba` on lie: maximal runs in address order, holes included.
    ///
    /// # Panics
    /// When they reach beyond the volume's size.
    pub fn get(&self, lba: Lba, blocks: u64) -> impl Iterator<Item = Mapped> {
        self.tree.get(lba, blocks)
    }

    /// From now on `blocks` blocks from `lba` on lie at `loc` and after it. `displaced` is told, in pieces, the extent
    /// and number of blocks of every reference that this takes away.
    ///
    /// # Panics
    /// When they reach beyond the volume's size or beyond the end of the largest extent.
    pub fn set(&mut self, lba: Lba, blocks: Blocks, loc: Loc, displaced: &mut impl FnMut(ExtentIndex, Blocks)) {
        let place = Place::of(loc);
        assert!(place.holds(blocks as usize), "{blocks} blocks at {loc:?} reach beyond their extent");
        self.write(lba, u64::from(blocks), place, displaced);
        self.mapped += u64::from(blocks);
    }

    /// From now on `blocks` blocks from `lba` on lie nowhere; `displaced` as with [`Map::set`].
    ///
    /// # Panics
    /// When they reach beyond the volume's size.
    pub fn clear(&mut self, lba: Lba, blocks: u64, displaced: &mut impl FnMut(ExtentIndex, Blocks)) {
        self.write(lba, blocks, Place::NOTHING, displaced);
    }

    /// Of `blocks` blocks from `lba` on, moves those that still lie where they did: the `i`th from `from` + i to
    /// `to` + i, if it lies at `from` + i. Says how many moved: that many references went from one extent to the other.
    ///
    /// # Panics
    /// When the blocks reach beyond the volume's size, or a place beyond the end of the largest extent.
    pub fn relocate(&mut self, lba: Lba, blocks: Blocks, from: Loc, to: Loc) -> Blocks {
        let (mut done, mut moved) = (0, 0);
        while done < blocks {
            let at = Lba(lba.0 + u64::from(done));
            let run = self.get(at, u64::from(blocks - done)).next().expect("blocks that are there lie in a run");
            let len = run.blocks as Blocks;
            // Within a run blocks lie one after the other: all of it still lies there, or none of it.
            if run.at == Some(from.plus(done)) {
                self.set(at, len, to.plus(done), &mut |_, _| {});
                moved += len;
            }
            done += len;
        }
        moved
    }

    /// How many blocks lie somewhere.
    #[must_use]
    pub fn mapped_blocks(&self) -> u64 {
        self.mapped
    }

    /// Memory that the map takes, the allocator's own share included, in bytes. What only a snapshot still holds is
    /// not in it.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + allocated(self.tree.groups.capacity() * size_of::<Option<Arc<Group>>>()) + self.memory
    }

    /// The map as it is now. Costs one reference count per 256 MiB that were written to; what changes later is copied
    /// first, a leaf and its group at a time.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { tree: self.tree.clone(), mapped: self.mapped }
    }

    /// All edits but `set`'s adding to `mapped`.
    fn write(&mut self, lba: Lba, blocks: u64, place: Place, displaced: &mut impl FnMut(ExtentIndex, Blocks)) {
        let end = self.tree.end(lba, blocks);
        let mut displaced = |place: Place, blocks: Blocks| {
            self.mapped -= u64::from(blocks);
            displaced(place.extent().expect("holes are not displaced"), blocks);
        };
        let mut at = lba.0;
        while at < end {
            let group_at = at / GROUP_BLOCKS * GROUP_BLOCKS;
            let upto = end.min(group_at + GROUP_BLOCKS);
            let slot = &mut self.tree.groups[(at / GROUP_BLOCKS) as usize];
            if slot.is_none() && place.is_nothing() {
                at = upto;
                continue;
            }
            let group = slot.get_or_insert_with(|| {
                self.memory += Group::ALLOCATED;
                Arc::new(Group::empty())
            });
            let group = Arc::make_mut(group);
            while at < upto {
                let (from, leaf) = ((at % LEAF_BLOCKS) as usize, ((at - group_at) / LEAF_BLOCKS) as usize);
                let to = LEAF.min(from + (upto - at) as usize);
                self.memory -= group.forget(leaf);
                group.leaves[leaf].write(from, to, place.plus((at - lba.0) as usize), &mut displaced);
                self.memory += group.count(leaf);
                at += (to - from) as u64;
            }
            if group.used == 0 {
                *slot = None;
                self.memory -= Group::ALLOCATED;
            }
        }
    }
}

impl Snapshot {
    /// Size of the volume in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.tree.blocks
    }

    /// How many blocks lie somewhere.
    #[must_use]
    pub fn mapped_blocks(&self) -> u64 {
        self.mapped
    }

    /// As [`Map::get`].
    ///
    /// # Panics
    /// When the blocks reach beyond the volume's size.
    pub fn get(&self, lba: Lba, blocks: u64) -> impl Iterator<Item = Mapped> {
        self.tree.get(lba, blocks)
    }

    /// All blocks that lie somewhere, in address order, as maximal runs.
    pub fn runs(&self) -> impl Iterator<Item = (Lba, u64, Loc)> {
        self.tree.get(Lba(0), self.tree.blocks).filter_map(|run| Some((run.lba, run.blocks, run.at?)))
    }
}

impl Tree {
    /// Where `blocks` blocks from `lba` on end.
    fn end(&self, lba: Lba, blocks: u64) -> u64 {
        let end = lba.0.checked_add(blocks).filter(|&end| end <= self.blocks);
        end.unwrap_or_else(|| panic!("{blocks} blocks at {lba} are not in a volume of {} blocks", self.blocks))
    }

    fn get(&self, lba: Lba, blocks: u64) -> impl Iterator<Item = Mapped> {
        let (mut at, end) = (lba.0, self.end(lba, blocks));
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let (place, upto) = self.run(at, end);
                let run = Mapped { lba: Lba(at), blocks: upto - at, at: place.loc() };
                at = upto;
                run
            })
        })
    }

    /// The maximal run at `at`, from there on, `end` at the latest.
    fn run(&self, at: u64, end: u64) -> (Place, u64) {
        let (place, mut upto) = self.run_in_leaf(at, end);
        while upto < end {
            let (next, next_upto) = self.run_in_leaf(upto, end);
            if !place.continues((upto - at) as usize, next) {
                break;
            }
            upto = next_upto;
        }
        (place, upto)
    }

    /// [`Tree::run`] as far as one leaf, or one group that is not there, knows.
    fn run_in_leaf(&self, at: u64, end: u64) -> (Place, u64) {
        let Some(group) = &self.groups[(at / GROUP_BLOCKS) as usize] else {
            return (Place::NOTHING, end.min((at / GROUP_BLOCKS + 1) * GROUP_BLOCKS));
        };
        let leaf_at = at / LEAF_BLOCKS * LEAF_BLOCKS;
        let leaf = &group.leaves[(leaf_at % GROUP_BLOCKS / LEAF_BLOCKS) as usize];
        let (place, upto) = leaf.run((at - leaf_at) as usize, LEAF.min((end - leaf_at) as usize));
        (place, leaf_at + upto as u64)
    }
}

impl Group {
    const ALLOCATED: usize = allocated(2 * size_of::<usize>() + size_of::<Group>());

    fn empty() -> Self {
        Self { used: 0, leaves: std::array::from_fn(|_| Leaf::empty()) }
    }

    /// Takes a leaf out of the account before it changes: what it has allocated.
    fn forget(&mut self, leaf: usize) -> usize {
        self.used -= u8::from(!self.leaves[leaf].is_empty());
        allocated(self.leaves[leaf].heap())
    }

    /// Puts a leaf that has changed back.
    fn count(&mut self, leaf: usize) -> usize {
        self.used += u8::from(!self.leaves[leaf].is_empty());
        allocated(self.leaves[leaf].heap())
    }
}

/// What an allocation of `bytes` costs: glibc's `malloc` puts a word before it and rounds up to two.
const fn allocated(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + size_of::<usize>()).next_multiple_of(2 * size_of::<usize>()) }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({} of {} blocks mapped, {} bytes)", self.mapped, self.tree.blocks, self.memory_bytes())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({} of {} blocks mapped)", self.mapped, self.tree.blocks)
    }
}
