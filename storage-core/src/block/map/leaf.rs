//! A leaf: where 1024 consecutive blocks lie, in as few bytes as it takes.
//!
//! A leaf is a sequence of runs that tile it, holes being runs of nothing. Up to [`FEW`] runs are kept in the leaf
//! itself, up to [`MANY`] in a boxed slice, and beyond that each block has its own five bytes. An edit goes from any of
//! the three to any other; a flat leaf counts its runs as it changes, so that it notices when it has become simple
//! again without being searched.
//!
//! 1. Runs tile the leaf: the first begins at 0, each next one later, the last ends at [`LEAF`].
//! 2. No run carries on the one before it.
//! 3. A flat leaf has more than [`MANY_AGAIN`] runs.

use super::place::Place;
use crate::ids::Blocks;
use smallvec::SmallVec;
use std::sync::Arc;

/// Blocks that a leaf covers: 4 MiB.
pub(super) const LEAF: usize = 1024;
/// Runs kept without an allocation. A sequential write reaches the log as frames of 256 blocks with a header between
/// them, over extents of a few leaves: five runs, six where an extent ends.
const FEW: usize = 6;
/// Runs in a slice at most: at seven bytes each they are then still well below a flat leaf, and so is the copying that
/// an edit of them costs.
const MANY: usize = 512;
/// A flat leaf with this many runs or fewer becomes a slice: half of [`MANY`], so that it does not swing.
const MANY_AGAIN: usize = 256;

/// Runs while they are edited.
pub(super) type Draft = SmallVec<[Run; 32]>;

/// From `start` on, blocks lie at `place` and after it, up to where the next run begins.
#[derive(Clone, Copy)]
pub(super) struct Run {
    start: [u8; 2],
    place: [u8; Place::SIZE],
}

impl Run {
    pub const SIZE: usize = size_of::<Run>();

    pub fn new(start: usize, place: Place) -> Self {
        Self { start: (start as u16).to_le_bytes(), place: place.pack() }
    }
    pub fn start(&self) -> usize {
        usize::from(u16::from_le_bytes(self.start))
    }
    pub fn place(&self) -> Place {
        Place::unpack(self.place)
    }
}

#[derive(Clone)]
pub(super) enum Leaf {
    Few(Few),
    Many(Arc<[Run]>),
    Flat(Arc<Flat>),
}

const _: () = assert!(size_of::<Leaf>() == 48, "what a leaf costs in every map");

#[derive(Clone)]
pub(super) struct Few {
    len: u8,
    runs: [Run; FEW],
}

#[derive(Clone)]
pub(super) struct Flat {
    /// Blocks after the first that do not carry on the block before them: one less than there are runs.
    breaks: u16,
    places: [[u8; Place::SIZE]; LEAF],
}

impl Leaf {
    /// A leaf of nothing.
    pub fn empty() -> Self {
        Self::of(&[Run::new(0, Place::NOTHING)])
    }

    /// The leaf of these runs, which hold to invariants 1 and 2.
    pub fn of(runs: &[Run]) -> Self {
        if runs.len() <= FEW {
            let mut few = Few { len: runs.len() as u8, runs: [Run::new(0, Place::NOTHING); FEW] };
            few.runs[..runs.len()].copy_from_slice(runs);
            Leaf::Few(few)
        } else if runs.len() <= MANY {
            Leaf::Many(Arc::from(runs))
        } else {
            Leaf::Flat(Arc::new(Flat::of(runs)))
        }
    }

    /// The leaf of these places, whose runs were not counted yet.
    pub fn of_flat(mut flat: Flat) -> Self {
        flat.breaks = flat.breaks_in(0, LEAF);
        let mut leaf = Leaf::Flat(Arc::new(flat));
        leaf.simplify();
        leaf
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Leaf::Few(Few { len: 1, runs }) if runs[0].place().is_nothing())
    }

    /// The run at `at`, from there on: its place, and where it ends, `end` at the latest.
    pub fn run(&self, at: usize, end: usize) -> (Place, usize) {
        match self {
            Leaf::Few(few) => run_in(few.runs(), at, end),
            Leaf::Many(runs) => run_in(runs, at, end),
            Leaf::Flat(flat) => flat.run(at, end),
        }
    }

    /// How many runs it has, holes included.
    pub fn count(&self) -> usize {
        match self {
            Leaf::Few(few) => few.runs().len(),
            Leaf::Many(runs) => runs.len(),
            Leaf::Flat(flat) => usize::from(flat.breaks) + 1,
        }
    }

    /// All runs, holes included, in order.
    pub fn runs(&self) -> impl Iterator<Item = (usize, Place)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            (at < LEAF).then(|| {
                let start = at;
                let (place, end) = self.run(at, LEAF);
                at = end;
                (start, place)
            })
        })
    }

    /// Lets `from..to` lie at `place` and after it. `displaced` gets what lay there, holes left out.
    pub fn write(&mut self, from: usize, to: usize, place: Place, displaced: &mut impl FnMut(Place, Blocks)) {
        debug_assert!(from < to && to <= LEAF && place.holds(to - from));
        if let Leaf::Flat(shared) = self {
            let flat = Arc::make_mut(shared);
            flat.write(from, to, place, displaced);
            self.simplify();
            return;
        }
        let draft = edited(self.slice(), from, to, place, displaced);
        match self {
            // A slice that no snapshot shares and that keeps its length is edited where it is.
            Leaf::Many(runs) if runs.len() == draft.len() => match Arc::get_mut(runs) {
                Some(runs) => runs.copy_from_slice(&draft),
                None => *runs = Arc::from(&draft[..]),
            },
            _ => *self = Self::of(&draft),
        }
    }

    /// Holds invariant 3.
    fn simplify(&mut self) {
        if matches!(self, Leaf::Flat(_)) && self.count() <= MANY_AGAIN {
            let runs: Draft = self.runs().map(|(start, place)| Run::new(start, place)).collect();
            *self = Self::of(&runs);
        }
    }

    /// Bytes asked of the allocator, 0 for none.
    pub fn heap(&self) -> usize {
        const COUNTERS: usize = 2 * size_of::<usize>();
        match self {
            Leaf::Few(_) => 0,
            Leaf::Many(runs) => COUNTERS + runs.len() * Run::SIZE,
            Leaf::Flat(_) => (COUNTERS + size_of::<Flat>()).next_multiple_of(align_of::<usize>()),
        }
    }

    fn slice(&self) -> &[Run] {
        match self {
            Leaf::Few(few) => few.runs(),
            Leaf::Many(runs) => runs,
            Leaf::Flat(_) => unreachable!("a flat leaf has no slice of runs"),
        }
    }
}

impl Few {
    fn runs(&self) -> &[Run] {
        &self.runs[..usize::from(self.len)]
    }
}

impl Flat {
    pub fn of(runs: &[Run]) -> Self {
        let mut flat = Flat { breaks: (runs.len() - 1) as u16, places: [[0; Place::SIZE]; LEAF] };
        for (i, run) in runs.iter().enumerate() {
            let end = runs.get(i + 1).map_or(LEAF, Run::start);
            flat.fill(run.start(), end, run.place());
        }
        flat
    }

    fn place(&self, at: usize) -> Place {
        Place::unpack(self.places[at])
    }

    fn run(&self, at: usize, end: usize) -> (Place, usize) {
        let first = self.place(at);
        let len = (1..end - at).find(|&i| !first.continues(i, self.place(at + i))).unwrap_or(end - at);
        (first, at + len)
    }

    fn write(&mut self, from: usize, to: usize, place: Place, displaced: &mut impl FnMut(Place, Blocks)) {
        let breaks = self.breaks_in(from, to);
        let mut at = from;
        while at < to {
            let (old, end) = self.run(at, to);
            if !old.is_nothing() {
                displaced(old, (end - at) as Blocks);
            }
            at = end;
        }
        self.fill(from, to, place);
        self.breaks = self.breaks - breaks + self.breaks_in(from, to);
    }

    pub fn fill(&mut self, from: usize, to: usize, place: Place) {
        for (i, slot) in self.places[from..to].iter_mut().enumerate() {
            *slot = place.plus(i).pack();
        }
    }

    /// Breaks that a write of `from..to` can change.
    fn breaks_in(&self, from: usize, to: usize) -> u16 {
        let breaks = (from.max(1)..=to.min(LEAF - 1)).filter(|&i| !self.place(i - 1).continues(1, self.place(i)));
        breaks.count() as u16
    }
}

/// [`Leaf::run`] over a slice.
fn run_in(runs: &[Run], at: usize, end: usize) -> (Place, usize) {
    let after = runs.partition_point(|run| run.start() <= at);
    let run = &runs[after - 1];
    let upto = runs.get(after).map_or(LEAF, Run::start);
    (run.place().plus(at - run.start()), upto.min(end))
}

/// `runs` with `from..to` at `place`.
fn edited(runs: &[Run], from: usize, to: usize, place: Place, displaced: &mut impl FnMut(Place, Blocks)) -> Draft {
    // The runs `first..last` are those that `from..to` touches.
    let first = runs.partition_point(|run| run.start() <= from) - 1;
    let last = runs.partition_point(|run| run.start() < to);
    let mut draft = Draft::with_capacity(runs.len() + 2);
    draft.extend_from_slice(&runs[..first]);
    let (mut at, mut rest) = (from, None);
    while at < to {
        let (old, end) = run_in(&runs[first..], at, LEAF);
        if !old.is_nothing() {
            displaced(old, (end.min(to) - at) as Blocks);
        }
        rest = (end > to).then(|| Run::new(to, old.plus(to - at)));
        at = end;
    }
    if runs[first].start() < from {
        draft.push(runs[first]);
    }
    join(&mut draft, Run::new(from, place));
    if let Some(rest) = rest {
        join(&mut draft, rest);
    }
    if let Some((next, others)) = runs[last..].split_first() {
        join(&mut draft, *next);
        draft.extend_from_slice(others);
    }
    draft
}

/// Adds a run unless it carries on the one before.
pub(super) fn join(draft: &mut Draft, run: Run) {
    match draft.last() {
        Some(before) if before.place().continues(run.start() - before.start(), run.place()) => {}
        _ => draft.push(run),
    }
}
