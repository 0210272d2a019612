//! What garbage collection costs, and how much room it takes, in a pool that is nearly full.

use super::world::{World, content};
use crate::block::{IoDone, IoOp};
use crate::format::Pieces;
use crate::ids::Lba;
use crate::meta::docs::AckMode;

/// Where a write goes.
type Draw = fn(&mut u64, u64) -> u64;

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

fn anywhere(state: &mut u64, blocks: u64) -> u64 {
    random(state) % blocks
}

/// Nine writes of ten go to a tenth of the volume.
fn skewed(state: &mut u64, blocks: u64) -> u64 {
    match random(state) % 10 {
        0 => random(state) % blocks,
        _ => random(state) % (blocks / 10),
    }
}

struct Waste {
    amplification: f64,
    free_least: u32,
    moved: u64,
    checkpoints: u64,
}

/// Overwrites a volume that takes `percent` of a pool `times` over, at a depth of 32.
fn overwrite(slots: u32, percent: u64, times: u64, draw: Draw) -> Waste {
    let extents = u64::from(slots) * 3 / 2;
    let blocks = extents * 1024 * percent / 100;
    let mut w = World::new(3, slots, 2, blocks, AckMode::Durable);
    for lba in (0..blocks).step_by(256) {
        let count = (blocks - lba).min(256);
        w.write(lba, count, 1);
    }
    let before = w.owner.serving().unwrap().counters();
    let (mut state, mut free_least) = (7, u32::MAX);
    for round in 0..times * blocks / 32 {
        let ids: Vec<_> = (0..32)
            .map(|_| {
                let lba = draw(&mut state, blocks);
                w.submit(IoOp::Write {
                    lba: Lba(lba),
                    payload: Pieces::from_iter([content(lba, 1, round)]),
                    fua: false,
                })
            })
            .collect();
        for id in ids {
            let result = w.finish(id);
            assert_eq!(result, Ok(IoDone::Done), "in round {round} of {}", times * blocks / 32);
        }
        if round % 64 == 0 {
            free_least = free_least.min(3 * slots - w.used_slots());
        }
    }
    let after = w.owner.serving().unwrap().counters();
    let written = after.log_blocks + after.checkpoint_blocks - before.log_blocks - before.checkpoint_blocks;
    Waste {
        amplification: written as f64 / (after.user_blocks - before.user_blocks) as f64,
        free_least,
        moved: after.moved_blocks - before.moved_blocks,
        checkpoints: after.checkpoints - before.checkpoints,
    }
}

/// In a pool of 60 extents what is open, spare and kept takes a large part; the bar for a real one is with real processes, in
/// `deploy/e2e`.
#[test]
fn a_small_pool_that_is_nearly_full_takes_writes_for_ever() {
    let w = overwrite(40, 70, 1, anywhere);
    println!("amplification {:.2}, {} checkpoints", w.amplification, w.checkpoints);
    assert!(w.amplification < 4.5 && w.moved > 0, "amplification {:.2}", w.amplification);
    assert!(w.free_least > 0 && w.checkpoints > 0);
}

#[test]
fn what_is_overwritten_seldom_is_moved_seldom() {
    let w = overwrite(40, 70, 1, skewed);
    println!("amplification {:.2}, {} checkpoints", w.amplification, w.checkpoints);
    assert!(w.amplification < 3.2 && w.moved > 0, "amplification {:.2}", w.amplification);
    assert!(w.free_least > 0 && w.checkpoints > 0);
}
