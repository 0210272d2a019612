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

use super::leaf::{Draft, Flat, LEAF, Leaf, Run, join};
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
            let runs = usize::from(get_u16(take(&mut rest, 2)?, 0));
            if runs > RUNS_MAX {
                return Err(bad("it has more runs than a leaf is written with"));
            }
            let body = take(&mut rest, if runs == 0 { FLAT_BYTES } else { runs * Run::SIZE })?;
            let mut names = Names { extent, mapped: 0, end: 0 };
            let leaf = if runs == 0 { decode_flat(body, &mut names) } else { decode_runs(body, &mut names) };
            let leaf = leaf.map_err(bad)?;
            self.add_leaf(number, leaf, names.mapped, names.end).map_err(bad)?;
        }
        match rest {
            [] => Ok(total),
            _ => Err(PieceError::NotAPiece),
        }
    }

    /// Adds a leaf with `mapped` blocks that lie somewhere, the last of them just before `end`.
    fn add_leaf(&mut self, number: u32, leaf: Leaf, mapped: u64, end: usize) -> Result<(), &'static str> {
        let first = u64::from(number) * LEAF_BLOCKS;
        if first + end as u64 > self.tree.blocks {
            return Err("it maps blocks beyond the volume's end");
        }
        if mapped == 0 {
            return Err("it maps nothing");
        }
        let group = self.tree.groups[number as usize / GROUP_LEAVES].get_or_insert_with(|| {
            self.memory += Group::ALLOCATED;
            Arc::new(Group::empty())
        });
        let (group, at) = (Arc::make_mut(group), number as usize % GROUP_LEAVES);
        if !group.leaves[at].is_empty() {
            return Err("it is there already");
        }
        group.leaves[at] = leaf;
        self.memory += group.count(at);
        self.mapped += mapped;
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

/// Names the extents of a leaf as the map does, run by run, and counts.
struct Names<'a, F> {
    extent: &'a mut F,
    mapped: u64,
    end: usize,
}

impl<F: FnMut(ExtentIndex, Blocks) -> Option<ExtentIndex>> Names<'_, F> {
    /// The place that `place`, of the run `start..end`, is in this map.
    fn name(&mut self, start: usize, end: usize, place: Place) -> Result<Place, &'static str> {
        if place.is_nothing() {
            return Ok(place);
        }
        let loc = place.loc().ok_or("it refers to an extent that cannot be")?;
        if !place.holds(end - start) {
            return Err("a run reaches beyond its extent");
        }
        let blocks = (end - start) as Blocks;
        let extent = (self.extent)(loc.extent, blocks).ok_or("it refers to an extent that its table lacks")?;
        self.mapped += u64::from(blocks);
        self.end = end;
        Ok(Place::of(Loc { extent, ..loc }))
    }
}

fn decode_runs(
    body: &[u8],
    names: &mut Names<'_, impl FnMut(ExtentIndex, Blocks) -> Option<ExtentIndex>>,
) -> Result<Leaf, &'static str> {
    let mut draft = Draft::new();
    let mut runs = body.chunks_exact(Run::SIZE).map(|run| (usize::from(get_u16(run, 0)), run)).peekable();
    let mut next = 0;
    while let Some((start, run)) = runs.next() {
        let end = runs.peek().map_or(LEAF, |(next, _)| *next);
        if start != next || end <= start || end > LEAF {
            return Err("its runs do not tile it");
        }
        next = end;
        join(&mut draft, Run::new(start, names.name(start, end, Place::unpack(get(run, 2)))?));
    }
    Ok(Leaf::of(&draft))
}

fn decode_flat(
    body: &[u8],
    names: &mut Names<'_, impl FnMut(ExtentIndex, Blocks) -> Option<ExtentIndex>>,
) -> Result<Leaf, &'static str> {
    let mut flat = Flat::of(&[Run::new(0, Place::NOTHING)]);
    let place = |at: usize| Place::unpack(get(body, at * Place::SIZE));
    let mut start = 0;
    while start < LEAF {
        let first = place(start);
        let len = (1..LEAF - start).find(|&i| !first.continues(i, place(start + i))).unwrap_or(LEAF - start);
        flat.fill(start, start + len, names.name(start, start + len, first)?);
        start += len;
    }
    Ok(Leaf::of_flat(flat))
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], PieceError> {
    let (taken, left) = rest.split_at_checked(len).ok_or(PieceError::Short)?;
    *rest = left;
    Ok(taken)
}
