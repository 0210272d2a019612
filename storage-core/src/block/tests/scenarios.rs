use super::world::{EXTENT_BLOCKS, World, content};
use crate::block::volume::VolumeState;
use crate::block::{IoDone, IoError, IoOp};
use crate::format::Pieces;
use crate::ids::{AgentId, BLOCK_SIZE, Lba};
use crate::limits::READ_LEASE;
use crate::meta::docs::AckMode;
use crate::time::Duration;
use std::collections::{BTreeMap, VecDeque};

fn world(mode: AckMode) -> World {
    World::new(3, 64, 2, 16 * 1024, mode)
}

#[test]
fn reads_see_what_was_written_and_zeros_elsewhere() {
    for mode in [AckMode::Durable, AckMode::Received] {
        let mut w = world(mode);
        assert_eq!(w.read(100, 3), vec![0; 3 * BLOCK_SIZE]);
        w.write(100, 3, 1);
        w.write(101, 1, 2);
        assert_eq!(w.read(100, 3), [content(100, 1, 1), content(101, 1, 2), content(102, 1, 1)].concat());
        assert_eq!(w.io(IoOp::Trim { lba: Lba(101), blocks: 1, fua: false }), Ok(IoDone::Done));
        assert_eq!(w.read(101, 1), vec![0; BLOCK_SIZE]);
        assert_eq!(w.io(IoOp::Flush), Ok(IoDone::Done));
        let status = w.io(IoOp::Status { lba: Lba(99), blocks: 5 }).unwrap();
        assert_eq!(status, IoDone::Status(vec![(1, false), (1, true), (1, false), (1, true), (1, false)]));
        let beyond = w.io(IoOp::Read { lba: Lba(16 * 1024 - 1), blocks: 2 });
        assert!(matches!(beyond, Err(IoError::OutOfRange { .. })), "{beyond:?}");
    }
}

#[test]
fn a_write_larger_than_a_frame_is_one_write() {
    let mut w = world(AckMode::Durable);
    w.write(7, 1000, 5);
    assert_eq!(w.read(7, 1000), content(7, 1000, 5));
}

#[test]
fn writes_that_keep_coming_share_frames() {
    const WRITES: u64 = 2000;
    let mut w = world(AckMode::Durable);
    w.write(0, 1, 0);
    w.answers_take = Duration::from_micros(200);
    let asked = |w: &World| w.agents.values().map(|agent| agent.requests).sum::<u64>();
    let before = asked(&w);
    let write = |w: &mut World, i: u64| {
        let payload = Pieces::from_iter([content(i % 999, 1, i)]);
        w.submit(IoOp::Write { lba: Lba(i % 999), payload, fua: false })
    };
    let mut underway: VecDeque<_> = (0..32).map(|i| write(&mut w, i)).collect();
    for i in 32..WRITES + 32 {
        let first = underway.pop_front().unwrap();
        assert_eq!(w.finish(first), Ok(IoDone::Done));
        if i < WRITES {
            underway.push_back(write(&mut w, i));
        }
    }
    // Two copies of each frame.
    let frames = (asked(&w) - before) / 2;
    assert!(frames * 8 <= WRITES, "{frames} frames for {WRITES} writes, 32 at a time");
}

#[test]
fn a_volume_is_the_same_after_its_owner_died() {
    let mut w = world(AckMode::Durable);
    for i in 0..300 {
        w.write(i * 7 % 1000, 3, i);
    }
    let before = w.read(0, 1100);
    w.open();
    assert_eq!(w.owner.state(), VolumeState::Serving(crate::ids::Epoch(2)));
    assert_eq!(w.read(0, 1100), before);
    w.write(5, 1, 999);
    w.open();
    assert_eq!(w.read(5, 1), content(5, 1, 999));
}

#[test]
fn a_clean_close_leaves_nothing_to_replay() {
    let mut w = world(AckMode::Received);
    for i in 0..50 {
        w.write(i * 3, 2, i);
    }
    let before = w.read(0, 200);
    w.close();
    assert_eq!(w.extents_in_meta(), 0);
    w.open();
    assert_eq!(w.read(0, 200), before);
}

#[test]
fn an_agent_that_dies_is_done_without_and_made_whole_when_it_is_back() {
    for mode in [AckMode::Durable, AckMode::Received] {
        let mut w = world(mode);
        let mut expected = BTreeMap::new();
        for round in 0..6u64 {
            let victim = AgentId(1 + round % 3);
            let mut pending = Vec::new();
            for i in 0..40 {
                let (lba, tag) = (i * 5 % 190, round * 1000 + i);
                let payload = Pieces::from_iter([content(lba, 2, tag)]);
                pending.push((lba, tag, w.submit(IoOp::Write { lba: Lba(lba), payload, fua: false })));
                if i == 20 {
                    w.kill(victim);
                }
            }
            for (lba, tag, id) in pending {
                assert_eq!(w.finish(id), Ok(IoDone::Done));
                expected.insert(lba, tag);
                expected.insert(lba + 1, tag);
            }
            assert_eq!(w.io(IoOp::Flush), Ok(IoDone::Done));
            w.start(victim);
            w.idle(Duration::from_secs(4));
            for (&lba, &tag) in &expected {
                assert_eq!(w.read(lba, 1), content(lba, 1, tag), "block {lba}");
            }
        }
        let log = &w.owner.serving().unwrap().log;
        assert_eq!(log.under_replicated(), 0, "{:#?}", log.table);
    }
}

#[test]
fn copies_of_an_agent_that_stays_away_are_made_anew() {
    let mut w = world(AckMode::Durable);
    for i in 0..400 {
        w.write(i * 4, 4, i);
    }
    w.kill(AgentId(2));
    w.write(0, 1, 7777);
    w.idle(Duration::from_secs(20));
    let serving = w.owner.serving().unwrap();
    for (_, entry) in serving.log.table.iter().filter(|(_, e)| e.live > 0 && e.seal().is_some()) {
        assert!(entry.members.iter().all(|m| m.agent != AgentId(2) && m.synced), "{entry:?}");
    }
    // The other copies may go now, one agent at a time.
    w.kill(AgentId(1));
    assert_eq!(w.read(4, 4), content(4, 4, 1));
    assert_eq!(w.read(0, 1), content(0, 1, 7777));
}

#[test]
fn overwriting_for_ever_needs_no_more_room_than_garbage_collection_leaves() {
    // 3 agents of 40 slots, two copies: room for 60 extents of 1024 blocks; the volume takes 24 of them at the least.
    let mut w = World::new(3, 40, 2, 24 * 1024, AckMode::Durable);
    let mut tags = vec![0u64; 24 * 1024];
    let mut random = 12345u64;
    for round in 0..12u64 {
        for _ in 0..3000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (lba, blocks) = ((random >> 33) % (24 * 1024 - 8), 1 + (random >> 20) % 8);
            let payload = Pieces::from_iter([content(lba, blocks, round + 1)]);
            let id = w.submit(IoOp::Write { lba: Lba(lba), payload, fua: false });
            if random.is_multiple_of(16) {
                assert_eq!(w.finish(id), Ok(IoDone::Done), "round {round}");
            }
            tags[lba as usize..(lba + blocks) as usize].fill(round + 1);
        }
        assert_eq!(w.io(IoOp::Flush), Ok(IoDone::Done));
        w.until(|w| w.owner.serving().unwrap().underway() == 0);
        assert!(w.done.values().all(Result::is_ok), "a write was refused in round {round}");
        w.done.clear();
    }
    let counters = w.owner.serving().unwrap().counters();
    assert!(counters.checkpoints > 0 && counters.moved_blocks > 0, "{counters:?}");
    for lba in (0..24 * 1024).step_by(97) {
        let want = match tags[lba as usize] {
            0 => vec![0; BLOCK_SIZE],
            tag => content(lba, 1, tag).to_vec(),
        };
        assert_eq!(w.read(lba, 1), want, "block {lba}");
    }
    w.open();
    for lba in (0..24 * 1024).step_by(97).filter(|l| tags[*l as usize] > 0) {
        assert_eq!(w.read(lba, 1), content(lba, 1, tags[lba as usize]), "block {lba} after a takeover");
    }
    let trim = IoOp::Trim { lba: Lba(0), blocks: 24 * 1024, fua: false };
    assert_eq!(w.io(trim), Ok(IoDone::Done));
    w.idle(Duration::from_secs(60));
    assert!(w.used_slots() <= 2 * 12, "{} slots are still taken", w.used_slots());
}

#[test]
fn extents_lie_beside_the_owner_while_there_is_room_and_are_read_there() {
    let mut w = World::new(6, 24, 2, 64 * 1024, AckMode::Durable);
    let near = AgentId(4);
    let members = |w: &World| -> Vec<Vec<AgentId>> {
        let table = &w.owner.serving().unwrap().log.table;
        table.iter().map(|(_, entry)| entry.members.iter().map(|member| member.agent).collect()).collect()
    };
    let fill = |w: &mut World, extents, tag| {
        for lba in (0..extents * EXTENT_BLOCKS).step_by(256) {
            w.write(lba.into(), 256, tag);
        }
    };
    fill(&mut w, 4, 0);
    assert!(members(&w).iter().any(|members| !members.contains(&near)), "by the ring alone it has a third of them");
    assert_eq!(w.io(IoOp::Trim { lba: Lba(0), blocks: 64 * 1024, fua: false }), Ok(IoDone::Done));
    w.idle(Duration::from_secs(60));
    w.near = Some(near);
    w.open();
    fill(&mut w, 4, 1);
    w.idle(Duration::from_secs(60));
    let all = members(&w);
    assert!(all.len() > 4 && all.iter().all(|members| members.contains(&near)), "{all:?}");
    let asked =
        |w: &World| w.agents.iter().filter(|(id, _)| **id != near).map(|(_, agent)| agent.requests).sum::<u64>();
    let before = asked(&w);
    for lba in (0..4 * EXTENT_BLOCKS).step_by(64) {
        assert_eq!(w.read(lba.into(), 1), content(lba.into(), 1, 1));
    }
    assert!(asked(&w) - before < 4, "others were asked for more than a lease: {}", asked(&w) - before);
    // It does not become full before the others.
    fill(&mut w, 30, 2);
    let free: Vec<_> = w.agents.iter().map(|(id, agent)| (*id, agent.free_slots())).collect();
    assert!(
        free.iter().all(|(_, free)| *free > 3) && members(&w).iter().any(|members| !members.contains(&near)),
        "{free:?}"
    );
}

#[test]
fn a_pool_that_is_really_full_refuses_writes_and_still_reads() {
    let mut w = World::new(2, 12, 2, 64 * 1024, AckMode::Durable);
    let mut acked = 0;
    let error = loop {
        let payload = Pieces::from_iter([content(acked * 8, 8, acked + 1)]);
        match w.io(IoOp::Write { lba: Lba(acked * 8), payload, fua: false }) {
            Ok(_) => acked += 1,
            Err(error) => break error,
        }
        assert!(acked * 8 < u64::from(EXTENT_BLOCKS) * 12, "more was taken than there is room for");
    };
    assert_eq!(error, IoError::NoSpace);
    for i in 0..acked {
        assert_eq!(w.read(i * 8, 8), content(i * 8, 8, i + 1), "write {i}");
    }
    // Trimming makes room again.
    assert_eq!(w.io(IoOp::Trim { lba: Lba(0), blocks: acked * 4, fua: false }), Ok(IoDone::Done));
    w.idle(Duration::from_secs(30));
    w.write(0, 8, 1);
}

/// What was acknowledged is on the other member, which is away for a moment just when it is to be copied.
#[test]
fn a_member_that_is_silent_for_a_moment_is_waited_for_before_one_that_forgot_is_believed() {
    let mut w = World::new(2, 64, 2, 16 * 1024, AckMode::Durable);
    w.write(1, 1, 1);
    w.write(2, 1, 2);
    w.forget_last_commit(AgentId(2));
    w.begin_open();
    // Its answer to that is on its way.
    w.until(|w| w.is_opening("reading the log's tail"));
    w.kill(AgentId(1));
    w.idle(READ_LEASE / 4);
    w.start(AgentId(1));
    w.finish_open();
    assert_eq!(w.read(1, 1), content(1, 1, 1));
    assert_eq!(w.read(2, 1), content(2, 1, 2));
}

/// Not even a slot for an extent that could grant it a lease.
#[test]
fn a_volume_without_any_extent_is_read_and_its_next_owner_waits() {
    let mut w = World::new(1, 1, 1, 1024, AckMode::Durable);
    assert_eq!(w.read(7, 1), vec![0; BLOCK_SIZE]);
    assert_eq!(w.extents_in_meta(), 0);
    let payload = Pieces::from_iter([content(1, 1, 1)]);
    assert_eq!(w.io(IoOp::Write { lba: Lba(1), payload, fua: false }), Err(IoError::NoSpace));
    // For longer than a lease.
    w.idle(READ_LEASE * 3);
    assert_eq!(w.read(7, 1), vec![0; BLOCK_SIZE]);
    let before = w.now;
    w.open();
    assert!(w.now.since(before) >= READ_LEASE, "the witness was not waited out");
    assert_eq!(w.read(7, 1), vec![0; BLOCK_SIZE]);
}

#[test]
fn with_all_agents_gone_nothing_is_acknowledged_and_everything_resumes() {
    let mut w = world(AckMode::Durable);
    w.write(1, 1, 1);
    for id in 1..=3 {
        w.kill(AgentId(id));
    }
    let payload = Pieces::from_iter([content(1, 1, 2)]);
    let id = w.submit(IoOp::Write { lba: Lba(1), payload, fua: false });
    w.idle(Duration::from_secs(30));
    assert!(!w.done.contains_key(&id), "acknowledged by nobody");
    for id in 1..=3 {
        w.start(AgentId(id));
    }
    assert_eq!(w.finish(id), Ok(IoDone::Done));
    assert_eq!(w.read(1, 1), content(1, 1, 2));
}
