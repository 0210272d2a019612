//! What the address map of a 1 TiB volume really takes: a process of its own, so that its size is the map's.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

use torus_core::block::map::{ExtentIndex, Loc, Map};
use torus_core::ids::{Blocks, Lba};
use torus_core::limits::EXTENT_BLOCKS_DEFAULT;

const MIB: usize = 1 << 20;
const TIB_BLOCKS: u64 = 1 << 28;
const LEAF_BLOCKS: u64 = 1024;

/// One TiB, or a sixteenth of one (and of the bounds) where nothing is optimised: memory goes by the leaf.
const SHARE: u64 = if cfg!(debug_assertions) { 16 } else { 1 };
const BLOCKS: u64 = TIB_BLOCKS / SHARE;
const LARGE_RUNS_MAX: usize = 16 * MIB / SHARE as usize;
const RANDOM_MAX: usize = 1536 * MIB / SHARE as usize;

/// Memory of this process that is really there, without what it has mapped of files: its own program is not the map.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// The log as a writer that never stops fills it: `blocks` at a time, a frame header before each 256.
struct Log {
    extent: u32,
    block: Blocks,
}

impl Log {
    fn append(&mut self, map: &mut Map, lba: u64, blocks: u64) {
        let mut at = lba;
        while at < lba + blocks {
            let len = (lba + blocks - at).min(256) as Blocks;
            if self.block + 1 + len > EXTENT_BLOCKS_DEFAULT {
                *self = Log { extent: self.extent + 1, block: 0 };
            }
            let loc = Loc { extent: ExtentIndex::new(self.extent).unwrap(), block: self.block + 1 };
            map.set(Lba(at), len, loc, &mut |_, _| panic!("nothing is written twice"));
            self.block += 1 + len;
            at += u64::from(len);
        }
    }
}

/// `make`'s map must keep within `bound`, by its own account and by the process's size, and the two must agree.
/// It is handed back to be kept: the next one must not be made of memory that this one gave up.
#[must_use]
fn measure(what: &str, bound: usize, make: impl FnOnce() -> Map) -> Map {
    let before = resident_bytes();
    let map = make();
    let resident = resident_bytes() - before;
    let counted = map.memory_bytes();
    println!(
        "{what}: counted {:.2} MiB, resident {:.2} MiB",
        counted as f64 / MIB as f64,
        resident as f64 / MIB as f64
    );
    assert!(counted <= bound, "{what}: {counted} bytes by its own account");
    assert!(resident <= bound, "{what}: {resident} bytes resident");
    assert!(resident.abs_diff(counted) <= counted / 50 + MIB / 2, "{what}: {counted} counted, {resident} resident");
    map
}

fn large_runs(run_blocks: u64, first: u64) -> Map {
    let (mut map, mut log) = (Map::new(BLOCKS), Log { extent: 0, block: 0 });
    let mut at = first;
    while at < BLOCKS {
        let blocks = run_blocks.min(BLOCKS - at);
        log.append(&mut map, at, blocks);
        at += blocks;
    }
    assert_eq!(map.mapped_blocks(), BLOCKS - first);
    map
}

/// Every block somewhere else: the first leaf block by block in random order, all others as it, loaded as a checkpoint
/// is, which takes a fraction of the time.
fn random_blocks() -> Map {
    let mut one = Map::new(LEAF_BLOCKS);
    for i in 0..LEAF_BLOCKS {
        let random = i * 389 % LEAF_BLOCKS;
        let loc = Loc { extent: ExtentIndex::new(i as u32 * 16).unwrap(), block: (i * 63) as Blocks };
        one.set(Lba(random), 1, loc, &mut |_, _| {});
    }
    let mut piece = Vec::new();
    assert_eq!(one.snapshot().encode(Lba(0), 1 << 16, &mut |extent| extent, &mut piece), None);
    let mut map = Map::new(BLOCKS);
    for leaf in 0..(BLOCKS / LEAF_BLOCKS) as u32 {
        piece[20..24].copy_from_slice(&leaf.to_le_bytes());
        map.load(&piece, &mut |extent, _| Some(extent)).unwrap();
    }
    assert_eq!(map.mapped_blocks(), BLOCKS);
    map
}

#[test]
fn a_tebibyte_keeps_within_its_bounds() {
    let _kept = [
        measure("runs of 4 MiB, aligned", LARGE_RUNS_MAX, || large_runs(1024, 0)),
        measure("runs of 4 MiB, not aligned", LARGE_RUNS_MAX, || large_runs(1024, 333)),
        measure("runs of 9 MiB, not aligned", LARGE_RUNS_MAX, || large_runs(2304, 1)),
        measure("random 4 KiB", RANDOM_MAX, random_blocks),
    ];
}
