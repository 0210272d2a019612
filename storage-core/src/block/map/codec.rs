//! A map as bytes, for a checkpoint.
//!
//! A checkpoint is a sequence of pieces, each a number of whole leaves, so that it can be written frame by frame from a
//! snapshot and loaded piece by piece. Extents are named by their number in the checkpoint's own extent table: the
//! caller translates, both ways. Pieces carry no checksum: they travel in frames, which do.
//!
//! ```text
//! a piece                                         a leaf
//!    0  8  magic "TORUSMAP"                          0  4  leaf number: its first block's address / 1024
//!    8  2  version: 1                                4  2  n: runs (1..=731), or 0: flat
//!   10  2  zero                                      6     n runs, 7 bytes each:
//!   12  4  leaves                                             0  2  first block in the leaf
//!   16  4  bytes of the whole piece                           2  2  block in extent  \ of that block;
//!   20     the leaves, ascending                              4  3  extent           / all ones: nothing
//!                                                        or flat, 5 bytes for each of the leaf's 1024 blocks:
//! little-endian                                               0  2  block in extent  \ all ones: nothing
//!                                                             2  3  extent           /
//! ```
//!
//! A leaf that is not there is empty. A run ends where the next begins, the last one with the leaf.

use super::leaf::{Draft, LEAF, Leaf, Run, join};
use super::place::Place;
use super::{ExtentIndex, GROUP_LEAVES, Group, LEAF_BLOCKS, Loc, Map, Snapshot};
use crate::format::{get, get_u16, get_u32, put};
use crate::ids::{Blocks, Lba};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"TORUSMAP";
const VERSION: u16 = 1;
const HEADER: usize = 20;
const LEAF_HEADER: usize = 6;
const FLAT_BYTES: usize = LEAF * Place::SIZE;
/// Most runs that are written as runs: one more would be larger than a flat leaf.
const RUNS_MAX: usize = FLAT_BYTES / Run::SIZE;

/// The least room that [`Snapshot::encode`] needs to get ahead: a piece of one flat leaf.
pub const PIECE_BYTES_MIN: usize = HEADER + LEAF_HEADER + FLAT_BYTES;

/// Why bytes are not a piece of this map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// The bytes do not begin as a piece does.
    #[error("no piece of an address map")]
    NotAPiece,
    /// Written by a newer program.
    #[error("a piece of an address map in format version {0}, but this program reads up to version 1: use a newer one")]
    Newer(u16),
    /// The bytes end before the piece does.
    #[error("the piece of an address map is cut short")]
    Short,
    /// A leaf breaks the format.
    #[error("leaf {leaf} of the address map breaks the format: {reason}")]
    Leaf {
        /// Its number.
        leaf: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Snapshot {
    /// Appends to `out` a piece of at most `bytes_max` bytes with the leaves from the one of `from` on, naming extents
    /// by what `number` makes of them. Says from where to go on with the next piece; `None`: that was all.
    ///
    /// # Panics
    /// When `bytes_max` is below [`PIECE_BYTES_MIN`].
    pub fn encode(
        &self,
        from: Lba,
        bytes_max: usize,
        number: &mut impl FnMut(ExtentIndex) -> ExtentIndex,
        out: &mut Vec<u8>,
    ) -> Option<Lba> {
        assert!(bytes_max >= PIECE_BYTES_MIN, "{bytes_max} bytes are too few for a piece of a map");
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        let (mut leaves, mut next) = (0u32, None);
        for (leaf_number, leaf) in self.leaves(from) {
            let leaf_bytes = LEAF_HEADER + FLAT_BYTES.min(leaf.count() * Run::SIZE);
            if out.len() - start + leaf_bytes > bytes_max {
                next = Some(Lba(u64::from(leaf_number) * LEAF_BLOCKS));
                break;
            }
            encode_leaf(leaf_number, leaf, number, out);
            leaves += 1;
        }
        let bytes = (out.len() - start) as u32;
        let header = &mut out[start..start + HEADER];
        put(header, 0, MAGIC);
        put(header, 8, &VERSION.to_le_bytes());
        put(header, 12, &leaves.to_le_bytes());
        put(header, 16, &bytes.to_le_bytes());
        next
    }

    /// The leaves that are not empty, from the one of `from` on.
    fn leaves(&self, from: Lba) -> impl Iterator<Item = (u32, &Leaf)> {
        let first = (from.0 / LEAF_BLOCKS) as usize;
        let groups = self.tree.groups.iter().enumerate().skip(first / GROUP_LEAVES);
        let leaves = groups.filter_map(|(i, group)| Some((i * GROUP_LEAVES, group.as_ref()?)));
        let leaves = leaves.flat_map(|(base, group)| (base..).zip(&group.leaves));
        let leaves = leaves.filter(move |(number, leaf)| *number >= first && !leaf.is_empty());
        leaves.map(|(number, leaf)| (number as u32, leaf))
    }
}

impl Map {
    /// Adds the leaves of the piece that `bytes` begins with; says how many bytes it had. `extent` translates an extent
    /// number of the checkpoint, and is told how many blocks refer to it each time it is asked; it answers `None` for a
    /// number that the checkpoint's table does not have.
    ///
    /// # Errors
    /// When the bytes are no such piece. Part of its leaves may have been added then: the map is of no use any more.
    pub fn load(
        &mut self,
        bytes: &[u8],
        extent: &mut impl FnMut(ExtentIndex, Blocks) -> Option<ExtentIndex>,
    ) -> Result<usize, PieceError> {
        if bytes.len() < HEADER || bytes[..8] != *MAGIC {
            return Err(PieceError::NotAPiece);
        }
        match get_u16(bytes, 8) {
            VERSION => {}
            0 => return Err(PieceError::NotAPiece),
            newer => return Err(PieceError::Newer(newer)),
        }
        let leaves = get_u32(bytes, 12);
        let total = get_u32(bytes, 16) as usize;
        let mut rest = bytes.get(HEADER..total).ok_or(PieceError::Short)?;
        let mut after = None;
        for _ in 0..leaves {
            let number = get_u32(take(&mut rest, 4)?, 0);
            let bad = |reason| PieceError::Leaf { leaf: number, reason };
            if after >= Some(number) {
                return Err(bad("leaves are not in ascending order"));
            }
            after = Some(number);
            let draft = decode_leaf(&mut rest, number, extent)?;
            self.add_leaf(number, &draft).map_err(bad)?;
        }
        match rest {
            [] => Ok(total),
            _ => Err(PieceError::NotAPiece),
        }
    }

    fn add_leaf(&mut self, number: u32, runs: &[Run]) -> Result<(), &'static str> {
        let first = u64::from(number) * LEAF_BLOCKS;
        let room = self.tree.blocks.checked_sub(first).ok_or("it is beyond the volume's end")?;
        let last = runs.last().expect("a leaf has runs");
        let end = if last.place().is_nothing() { last.start() } else { LEAF };
        if end as u64 > room {
            return Err("it maps blocks beyond the volume's end");
        }
        if end == 0 {
            return Err("it maps nothing");
        }
        let group = self.tree.groups[number as usize / GROUP_LEAVES].get_or_insert_with(|| {
            self.memory += Group::ALLOCATED;
            Arc::new(Group::empty())
        });
        let (group, leaf) = (Arc::make_mut(group), number as usize % GROUP_LEAVES);
        if !group.leaves[leaf].is_empty() {
            return Err("it is there already");
        }
        group.leaves[leaf] = Leaf::of(runs);
        self.memory += group.count(leaf);
        let ends = runs.iter().skip(1).map(Run::start).chain([LEAF]);
        let mapped = runs.iter().zip(ends).filter(|(run, _)| !run.place().is_nothing());
        self.mapped += mapped.map(|(run, end)| (end - run.start()) as u64).sum::<u64>();
        Ok(())
    }
}

fn encode_leaf(leaf_number: u32, leaf: &Leaf, number: &mut impl FnMut(ExtentIndex) -> ExtentIndex, out: &mut Vec<u8>) {
    let mut runs = leaf.runs().map(|(start, place)| {
        let place = place.loc().map_or(Place::NOTHING, |loc| Place::of(Loc { extent: number(loc.extent), ..loc }));
        (start, place)
    });
    out.extend_from_slice(&leaf_number.to_le_bytes());
    let count_at = out.len();
    out.extend_from_slice(&[0; 2]);
    let count = leaf.count();
    if count <= RUNS_MAX {
        put(out, count_at, &(count as u16).to_le_bytes());
        for (start, place) in runs {
            out.extend_from_slice(&(start as u16).to_le_bytes());
            out.extend_from_slice(&place.pack());
        }
    } else {
        let mut run = runs.next();
        while let Some((start, place)) = run {
            run = runs.next();
            let end = run.map_or(LEAF, |(next, _)| next);
            (start..end).for_each(|at| out.extend_from_slice(&place.plus(at - start).pack()));
        }
    }
}

/// The runs of a leaf whose number was read already.
fn decode_leaf(
    rest: &mut &[u8],
    number: u32,
    extent: &mut impl FnMut(ExtentIndex, Blocks) -> Option<ExtentIndex>,
) -> Result<Draft, PieceError> {
    let bad = |reason| PieceError::Leaf { leaf: number, reason };
    let count = usize::from(get_u16(take(rest, 2)?, 0));
    let mut draft = Draft::new();
    if count > 0 {
        for run in take(rest, count.min(RUNS_MAX + 1) * Run::SIZE)?.chunks_exact(Run::SIZE) {
            let run = Run::new(usize::from(get_u16(run, 0)), Place::unpack(get(run, 2)));
            let after = draft.last().map_or(0, |before| before.start() + 1);
            let fits = if draft.is_empty() { run.start() == 0 } else { (after..LEAF).contains(&run.start()) };
            if !fits {
                return Err(bad("its runs do not tile it"));
            }
            join(&mut draft, run);
        }
        if count > RUNS_MAX {
            return Err(bad("it has more runs than a leaf is written with"));
        }
    } else {
        for (at, place) in take(rest, FLAT_BYTES)?.chunks_exact(Place::SIZE).enumerate() {
            join(&mut draft, Run::new(at, Place::unpack(get(place, 0))));
        }
    }
    translate(&draft, extent).map_err(bad)
}

/// `runs` with extents named as the map does.
fn translate(
    runs: &[Run],
    extent: &mut impl FnMut(ExtentIndex, Blocks) -> Option<ExtentIndex>,
) -> Result<Draft, &'static str> {
    let mut draft = Draft::with_capacity(runs.len());
    for (i, run) in runs.iter().enumerate() {
        let (start, mut place) = (run.start(), run.place());
        if !place.is_nothing() {
            let blocks = runs.get(i + 1).map_or(LEAF, Run::start) - start;
            let loc = place.loc().ok_or("it refers to an extent that cannot be")?;
            if !place.holds(blocks) {
                return Err("a run reaches beyond its extent");
            }
            let named = extent(loc.extent, blocks as Blocks).ok_or("it refers to an extent that its table lacks")?;
            place = Place::of(Loc { extent: named, ..loc });
        }
        join(&mut draft, Run::new(start, place));
    }
    Ok(draft)
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], PieceError> {
    let (taken, left) = rest.split_at_checked(len).ok_or(PieceError::Short)?;
    *rest = left;
    Ok(taken)
}
