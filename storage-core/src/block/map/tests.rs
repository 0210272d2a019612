use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Three groups and a piece of a leaf.
const SIZE: u64 = 3 * GROUP_BLOCKS + 1000;

fn index(n: u32) -> ExtentIndex {
    ExtentIndex::new(n).unwrap()
}

fn at(extent: u32, block: Blocks) -> Loc {
    Loc { extent: index(extent), block }
}

/// The map as one would write it without a thought for memory.
#[derive(Clone, Default)]
struct Model(BTreeMap<u64, Loc>);

impl Model {
    fn write(&mut self, lba: u64, blocks: u64, loc: Option<Loc>) -> BTreeMap<ExtentIndex, u64> {
        let gone: Vec<u64> = self.0.range(lba..lba + blocks).map(|(lba, _)| *lba).collect();
        let mut displaced = BTreeMap::new();
        for lba in gone {
            *displaced.entry(self.0.remove(&lba).unwrap().extent).or_default() += 1;
        }
        if let Some(loc) = loc {
            self.0.extend((0..blocks).map(|i| (lba + i, loc.plus(i as Blocks))));
        }
        displaced
    }

    fn relocate(&mut self, lba: u64, blocks: Blocks, from: Loc, to: Loc) -> Blocks {
        let mut moved = 0;
        for i in 0..blocks {
            if let Some(loc) = self.0.get_mut(&(lba + u64::from(i)))
                && *loc == from.plus(i)
            {
                *loc = to.plus(i);
                moved += 1;
            }
        }
        moved
    }

    /// Maximal runs of what is mapped.
    fn runs(&self) -> Vec<(Lba, u64, Loc)> {
        let mut runs: Vec<(Lba, u64, Loc)> = Vec::new();
        for (&lba, &loc) in &self.0 {
            match runs.last_mut() {
                Some((first, blocks, at))
                    if first.0 + *blocks == lba
                        && at.extent == loc.extent
                        && u64::from(at.block) + *blocks == u64::from(loc.block) =>
                {
                    *blocks += 1;
                }
                _ => runs.push((Lba(lba), 1, loc)),
            }
        }
        runs
    }

    fn live(&self) -> BTreeMap<ExtentIndex, u64> {
        let mut live = BTreeMap::new();
        self.0.values().for_each(|loc| *live.entry(loc.extent).or_default() += 1);
        live
    }
}

fn tally(into: &mut BTreeMap<ExtentIndex, u64>) -> impl FnMut(ExtentIndex, Blocks) {
    |extent, blocks| {
        assert!(blocks > 0);
        *into.entry(extent).or_default() += u64::from(blocks);
    }
}

fn none(_: ExtentIndex, _: Blocks) {
    panic!("nothing was to be displaced");
}

/// The runs must tile what was asked for, be maximal, and say what the model says.
fn check_get(runs: impl Iterator<Item = Mapped>, model: &Model, lba: u64, blocks: u64) {
    let mut next = lba;
    let mut before: Option<Mapped> = None;
    for run in runs {
        assert_eq!(run.lba.0, next, "runs follow one another");
        assert!(run.blocks > 0);
        for i in 0..run.blocks {
            let expected = model.0.get(&(next + i)).copied();
            assert_eq!(run.at.map(|loc| loc.plus(i as Blocks)), expected, "block {}", next + i);
        }
        if let Some(before) = before {
            let end = before.at.map(|loc| (loc.extent, u64::from(loc.block) + before.blocks));
            assert_ne!(end, run.at.map(|loc| (loc.extent, u64::from(loc.block))), "runs are maximal");
        }
        next += run.blocks;
        before = Some(run);
    }
    assert_eq!(next, lba + blocks);
}

fn encode(snapshot: &Snapshot, bytes_max: usize, shift: u32) -> Vec<Vec<u8>> {
    let (mut pieces, mut from) = (Vec::new(), Some(Lba(0)));
    while let Some(lba) = from {
        let mut piece = Vec::new();
        from = snapshot.encode(lba, bytes_max, &mut |e| index(e.get() as u32 + shift), &mut piece);
        assert!(piece.len() <= bytes_max);
        pieces.push(piece);
    }
    pieces
}

fn load(blocks: u64, pieces: &[Vec<u8>], shift: u32) -> (Map, BTreeMap<ExtentIndex, u64>) {
    let (mut map, mut live) = (Map::new(blocks), BTreeMap::new());
    for piece in pieces {
        let read = map.load(piece, &mut |extent, blocks| {
            let extent = index(extent.get() as u32 - shift);
            *live.entry(extent).or_default() += u64::from(blocks);
            Some(extent)
        });
        assert_eq!(read, Ok(piece.len()));
    }
    (map, live)
}

/// What `memory` should have come to, counted afresh.
fn memory(map: &Map) -> usize {
    let groups = map.tree.groups.iter().flatten();
    groups.map(|g| Group::ALLOCATED + g.leaves.iter().map(|leaf| allocated(leaf.heap())).sum::<usize>()).sum()
}

#[derive(Clone, Debug)]
enum Op {
    Set(u64, Blocks, Loc),
    Clear(u64, u64),
    Relocate(u64, Blocks, Loc),
    /// Many single blocks in one leaf, so that it goes flat.
    Scatter(u64, u64),
    Get(u64, u64),
    Snapshot,
    Reload(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Addresses gather around a few places, so that edits meet; extents are few, for the same reason.
    let lba = || prop_oneof![Just(0), Just(GROUP_BLOCKS - 30), 3000..5000u64, 0..SIZE - 3000].boxed();
    let blocks = || prop_oneof![1..4u32, 1..300u32, Just(1024), 1..3000u32].boxed();
    let loc = || (0..5u32, prop_oneof![0..2000u32, 60_000..62_000u32]).prop_map(|(e, b)| at(e, b)).boxed();
    let op = prop_oneof![
        6 => (lba(), blocks(), loc()).prop_map(|(lba, blocks, loc)| Op::Set(lba, blocks, loc)),
        2 => (lba(), blocks()).prop_map(|(lba, blocks)| Op::Clear(lba, blocks.into())),
        1 => (0..SIZE).prop_map(|lba| Op::Clear(lba, SIZE - lba)),
        4 => (lba(), blocks(), loc()).prop_map(|(lba, blocks, to)| Op::Relocate(lba, blocks, to)),
        3 => (lba(), any::<u64>()).prop_map(|(lba, seed)| Op::Scatter(lba, seed)),
        3 => (lba(), blocks()).prop_map(|(lba, blocks)| Op::Get(lba, blocks.into())),
        1 => Just(Op::Snapshot),
        1 => (PIECE_BYTES_MIN..40_000usize).prop_map(Op::Reload),
    ];
    prop::collection::vec(op, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_map_is_what_a_plain_ordered_map_would_be(ops in ops()) {
        let (mut map, mut model) = (Map::new(SIZE), Model::default());
        let mut snapshots: Vec<(Snapshot, Model)> = Vec::new();
        for op in ops {
            let mut displaced = BTreeMap::new();
            match op {
                Op::Set(lba, blocks, loc) => {
                    map.set(Lba(lba), blocks, loc, &mut tally(&mut displaced));
                    prop_assert_eq!(displaced, model.write(lba, blocks.into(), Some(loc)));
                }
                Op::Clear(lba, blocks) => {
                    map.clear(Lba(lba), blocks, &mut tally(&mut displaced));
                    prop_assert_eq!(displaced, model.write(lba, blocks, None));
                }
                Op::Relocate(lba, blocks, to) => {
                    // From where the first mapped block lies: some of the others do, too, and some do not.
                    if let Some((&found, &loc)) = model.0.range(lba..lba + u64::from(blocks)).next()
                        && let Some(block) = loc.block.checked_sub((found - lba) as Blocks)
                        && block + blocks <= 1 << 16
                    {
                        let from = Loc { block, ..loc };
                        let moved = map.relocate(Lba(lba), blocks, from, to);
                        prop_assert!(moved > 0);
                        prop_assert_eq!(moved, model.relocate(lba, blocks, from, to));
                    }
                }
                Op::Scatter(lba, seed) => {
                    let mut random = seed | 1;
                    for _ in 0..700 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        let loc = at((random >> 40) as u32 % 5, (random >> 20) as u32 & 0xffff);
                        let lba = lba + (random >> 54);
                        map.set(Lba(lba), 1, loc, &mut tally(&mut displaced));
                        for (extent, blocks) in model.write(lba, 1, Some(loc)) {
                            *displaced.get_mut(&extent).unwrap() -= blocks;
                        }
                    }
                    prop_assert!(displaced.values().all(|n| *n == 0));
                }
                Op::Get(lba, blocks) => check_get(map.get(Lba(lba), blocks), &model, lba, blocks),
                Op::Snapshot => snapshots.push((map.snapshot(), model.clone())),
                Op::Reload(bytes_max) => {
                    let (loaded, live) = load(SIZE, &encode(&map.snapshot(), bytes_max, 7), 7);
                    prop_assert_eq!(live, model.live());
                    map = loaded;
                }
            }
            prop_assert_eq!(map.mapped_blocks(), model.0.len() as u64);
            prop_assert_eq!(map.memory, memory(&map));
        }
        check_get(map.get(Lba(0), SIZE), &model, 0, SIZE);
        snapshots.push((map.snapshot(), model));
        for (snapshot, model) in snapshots {
            prop_assert_eq!(snapshot.runs().collect::<Vec<_>>(), model.runs());
            prop_assert_eq!(snapshot.mapped_blocks(), model.0.len() as u64);
        }
    }

    #[test]
    fn hostile_bytes_are_refused_and_never_panic(
        noise in prop::collection::vec(any::<u8>(), 0..64),
        cut in 0..6000usize,
        flips in prop::collection::vec((0..6000usize, any::<u8>()), 0..6),
    ) {
        let mut map = Map::new(SIZE);
        map.set(Lba(1000), 700, at(3, 17), &mut none);
        (0..LEAF_BLOCKS).for_each(|i| map.set(Lba(4096 + i), 1, at(2, 2 * i as u32), &mut none));
        let mut piece = encode(&map.snapshot(), 1 << 16, 0).remove(0);
        let cut = cut % piece.len();
        prop_assert!(Map::new(SIZE).load(&piece[..cut], &mut |extent, _| Some(extent)).is_err());
        for (at, byte) in flips {
            let at = at % piece.len();
            piece[at] = byte;
        }
        let mut read = Map::new(SIZE);
        if read.load(&piece, &mut |extent, _| (extent.get() < 1000).then_some(extent)).is_ok() {
            let (again, live) = load(SIZE, &encode(&read.snapshot(), 1 << 16, 0), 0);
            prop_assert_eq!(again.snapshot().runs().collect::<Vec<_>>(), read.snapshot().runs().collect::<Vec<_>>());
            prop_assert_eq!(live.values().sum::<u64>(), read.mapped_blocks());
            prop_assert_eq!(read.memory, memory(&read));
        }
        let mut headed = b"TORUSMAP\x01\0\0\0\x01\0\0\0".to_vec();
        headed.extend_from_slice(&(20 + noise.len() as u32).to_le_bytes());
        headed.extend_from_slice(&noise);
        let _ = Map::new(SIZE).load(&headed, &mut |extent, _| Some(extent));
        let _ = Map::new(SIZE).load(&noise, &mut |extent, _| Some(extent));
    }
}

#[test]
fn the_end_of_an_extent_is_not_carried_on_by_the_next_extents_start() {
    let mut map = Map::new(LEAF_BLOCKS * 2);
    map.set(Lba(1020), 4, at(5, 65_532), &mut none);
    map.set(Lba(1024), 4, at(6, 0), &mut none);
    map.set(Lba(2000), 1, at(7, 65_535), &mut none);
    map.set(Lba(2001), 1, at(8, 0), &mut none);
    let runs: Vec<_> = map.snapshot().runs().collect();
    let expected = [(1020, 4, at(5, 65_532)), (1024, 4, at(6, 0)), (2000, 1, at(7, 65_535)), (2001, 1, at(8, 0))];
    assert_eq!(runs, expected.map(|(lba, blocks, loc)| (Lba(lba), blocks, loc)));
    assert_eq!(ExtentIndex::new(ExtentIndex::COUNT), None);
    map.set(Lba(0), 2, at(ExtentIndex::COUNT - 1, 65_534), &mut none);
    let first = map.get(Lba(0), 4).collect::<Vec<_>>();
    assert_eq!(first[0], Mapped { lba: Lba(0), blocks: 2, at: Some(at(ExtentIndex::COUNT - 1, 65_534)) });
    assert_eq!(first[1], Mapped { lba: Lba(2), blocks: 2, at: None });
}

#[test]
fn what_was_overwritten_is_not_relocated() {
    let mut map = Map::new(1 << 20);
    map.set(Lba(100), 10, at(1, 50), &mut none);
    map.set(Lba(103), 2, at(2, 0), &mut |extent, blocks| assert_eq!((extent, blocks), (index(1), 2)));
    assert_eq!(map.relocate(Lba(100), 10, at(1, 50), at(9, 7)), 8);
    let runs: Vec<_> = map.snapshot().runs().collect();
    assert_eq!(runs, [(Lba(100), 3, at(9, 7)), (Lba(103), 2, at(2, 0)), (Lba(105), 5, at(9, 12))]);
    assert_eq!(map.relocate(Lba(100), 10, at(1, 50), at(9, 7)), 0, "twice is once");
}

#[test]
fn a_write_that_reached_the_log_as_frames_takes_no_allocation() {
    let mut map = Map::new(1 << 20);
    // A sequential write as the log lays it down: 256 blocks, then a frame's header, in extents of 64 MiB.
    for (i, block) in (0..16_000 - 257).step_by(257).enumerate() {
        map.set(Lba(77 + 256 * i as u64), 256, at(3, block + 1), &mut none);
    }
    let leaves = map.tree.groups.iter().flatten().flat_map(|group| &group.leaves);
    assert_eq!(leaves.map(Leaf::heap).sum::<usize>(), 0);
}

#[test]
fn a_flat_leaf_becomes_small_again() {
    let mut map = Map::new(1 << 20);
    let empty = map.memory_bytes();
    (0..LEAF_BLOCKS).for_each(|i| map.set(Lba(i), 1, at(2, 3 * i as u32), &mut none));
    assert_eq!(map.memory_bytes() - empty, Group::ALLOCATED + 5152);
    let mut displaced = 0;
    map.set(Lba(0), LEAF_BLOCKS as u32, at(4, 0), &mut |_, blocks| displaced += blocks);
    assert_eq!((displaced, map.memory_bytes() - empty), (1024, Group::ALLOCATED));
    map.clear(Lba(0), 1 << 20, &mut |_, _| {});
    assert_eq!((map.mapped_blocks(), map.memory_bytes()), (0, empty), "nothing takes nothing");
}

#[test]
fn a_volume_of_the_largest_size_costs_little_until_it_is_written() {
    let mut map = Map::new(VOLUME_BLOCKS_MAX);
    map.set(Lba(VOLUME_BLOCKS_MAX - 1), 1, at(0, 0), &mut none);
    assert!(map.memory_bytes() < 3 << 20, "{map:?}");
    let runs: Vec<_> = map.get(Lba(0), VOLUME_BLOCKS_MAX).collect();
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[0], Mapped { lba: Lba(0), blocks: VOLUME_BLOCKS_MAX - 1, at: None });
}

#[test]
fn a_volume_grows_under_its_map() {
    let mut map = Map::new(10);
    map.set(Lba(8), 2, at(0, 0), &mut none);
    map.resize(GROUP_BLOCKS + 10);
    map.set(Lba(10), 5, at(0, 2), &mut none);
    assert_eq!(map.snapshot().runs().collect::<Vec<_>>(), [(Lba(8), 7, at(0, 0))]);
    assert_eq!(map.blocks(), GROUP_BLOCKS + 10);
}

#[test]
#[should_panic(expected = "2 blocks at 9 are not in a volume of 10 blocks")]
fn an_address_beyond_the_end_is_a_broken_invariant() {
    Map::new(10).set(Lba(9), 2, at(0, 0), &mut none);
}

#[test]
fn the_encoded_form_is_frozen() {
    let mut map = Map::new(1 << 20);
    map.set(Lba(1024), 3, at(0x010203, 0x0405), &mut none);
    let piece = encode(&map.snapshot(), PIECE_BYTES_MIN, 0).remove(0);
    let expected = [
        b"TORUSMAP\x01\0\0\0\x01\0\0\0\x28\0\0\0".as_slice(),
        b"\x01\0\0\0\x02\0",
        b"\0\0\x05\x04\x03\x02\x01",
        b"\x03\0\xff\xff\xff\xff\xff",
    ];
    assert_eq!(piece, expected.concat());
}

#[test]
fn pieces_that_lie_are_refused_by_name() {
    let piece = |leaf: &[u8]| {
        let mut piece = b"TORUSMAP\x01\0\0\0\x01\0\0\0".to_vec();
        piece.extend_from_slice(&(20 + leaf.len() as u32).to_le_bytes());
        [&piece, leaf].concat()
    };
    let refusal = |bytes: &[u8]| {
        let read = Map::new(2000).load(bytes, &mut |extent, _| (extent.get() < 9).then_some(extent));
        read.unwrap_err().to_string()
    };
    let leaf = |runs: &[u8]| refusal(&piece(&[b"\x01\0\0\0\x01\0", runs].concat()));
    assert!(refusal(b"").contains("no piece"));
    assert!(refusal(b"TORUSMAP\x02\0\0\0\0\0\0\0\x14\0\0\0").contains("version 2"));
    assert!(refusal(b"TORUSMAP\x01\0\0\0\0\0\0\0\x15\0\0\0").contains("cut short"));
    assert!(leaf(b"\0\0\0\0\0").contains("cut short"));
    assert!(leaf(b"\x01\0\0\0\0\0\0").contains("do not tile"));
    let three = b"\x01\0\0\0\x03\0\0\0\0\0\x01\0\0\x0a\0\x0a\0\x01\0\0\x05\0\0\0\x01\0\0";
    assert!(refusal(&piece(three)).contains("do not tile"), "though the second carries on the first");
    assert!(leaf(b"\0\0\0\0\x09\0\0").contains("its table lacks"));
    assert!(leaf(b"\0\0\0\0\xff\xff\xff").contains("cannot be"));
    assert!(leaf(b"\0\0\xff\xff\x01\0\0").contains("beyond its extent"));
    assert!(leaf(b"\0\0\0\0\x01\0\0").contains("beyond the volume's end"));
    assert!(leaf(b"\0\0\xff\xff\xff\xff\xff").contains("maps nothing"));
    assert!(refusal(&piece(b"\xff\xff\xff\xff\x01\0\0\0\0\0\x01\0\0")).contains("beyond the volume's end"));
    assert!(refusal(&piece(b"\0\0\0\0\x01\0\0\0\0\0\x01\0\0\x07")).contains("no piece"));
}
