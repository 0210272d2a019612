//! Crashes, damage and wrong disks, one by one.

use super::world::*;
use crate::format::disk::{FENCE_BLOCKS, Geometry, Superblock};
use crate::format::slot::SlotHeader;
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, ClusterId, DiskId, Epoch, ExtentId, Incarnation, Vseq};
use crate::limits::{EXTENT_BLOCKS_MIN, HELD_AT_START_MAX};
use crate::member::{DiskCore, Expected, Member, MemberEffects, RecoverError, format_disk, inspect};
use crate::peer::{Copy, Rejection, Request, Response};
use crate::time::Instant;

/// A world with an extent of one frame for each payload, all acknowledged.
fn with_frames(payloads: &[usize]) -> (World, ExtentId) {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    world.call(create(x, 1));
    let mut at = 0;
    for payload in payloads {
        assert!(matches!(world.call(append(x, at, *payload)), Response::Appended { .. }));
        at += 1 + *payload as Blocks;
    }
    (world, x)
}

fn open(length: Blocks, lac: u64, damaged: bool) -> Copy {
    Copy::Open { length, lac: Vseq(lac), damaged }
}

fn rejected(response: Response) -> Rejection {
    match response {
        Response::Rejected(why) => why,
        other => panic!("not rejected: {other:?}"),
    }
}

fn refusal(platter: &mut Platter, expected: &Expected) -> RecoverError {
    DiskCore::recover(platter, expected).expect_err("a disk that is to be refused")
}

#[test]
fn a_disk_that_is_not_ours_is_refused_by_name() {
    let disk = formatted(0, 8);
    let mut blank = Platter { bytes: disk.bytes, ..Platter::default() };
    assert_eq!(refusal(&mut blank, &expected()), RecoverError::NotFormatted);
    let says = |expected: Expected| refusal(&mut disk.clone(), &expected).to_string();
    let text = says(Expected { cluster: ClusterId(9), ..expected() });
    assert!(
        text.contains("d15c0000 belongs to cluster 00000000000000c1, and this agent to 0000000000000009"),
        "{text}"
    );
    let text = says(Expected { agent: AgentId(9), ..expected() });
    assert!(text.contains("belongs to agent 00000000000000a1"), "{text}");
    let text = says(Expected { extent_blocks: 2048, ..expected() });
    assert!(text.contains("extents of 1024 blocks, and the cluster has 2048"), "{text}");
    let mut short = disk.clone();
    short.bytes -= BLOCK_SIZE as u64;
    assert!(matches!(refusal(&mut short, &expected()), RecoverError::CutShort { .. }));
    let mut newer = disk.clone();
    let block = newer.block(Geometry::superblock_at(1));
    block[8] = 2;
    crate::format::disk::close_sector(&mut block[..512]);
    assert_eq!(refusal(&mut newer, &expected()), RecoverError::NewerFormat { found: 2 });
    assert_eq!(inspect(&mut disk.clone()).unwrap().ids, ids(0));
}

#[test]
fn one_lost_superblock_is_mended_and_two_are_refused() {
    let mut world = World::new(1, 8).crash(&mut || false);
    assert_eq!(world.member.disks()[0].incarnation(), Incarnation(2));
    world.call(fence(V, 3));
    let mut platters = world.lose_power(&mut || false);
    let newest = inspect(&mut platters[0]).unwrap();
    platters[0].flip(Geometry::superblock_at(newest.generation), 50);
    let world = World::over(platters, Instant(0));
    let core = &world.member.disks()[0];
    assert!(core.findings().mended);
    assert_eq!(core.incarnation(), Incarnation(3), "never a number that was used");
    let mut platters = world.lose_power(&mut || false);
    let mended = recover(&mut platters[0]).unwrap();
    assert!(!mended.findings().mended);
    platters[0].flip(0, 50);
    platters[0].flip(BLOCK_SIZE as u64, 50);
    assert_eq!(refusal(&mut platters[0], &expected()), RecoverError::SuperblockLost);
}

#[test]
fn one_lost_fence_sector_is_mended_and_two_are_refused() {
    let mut world = World::new(1, 8);
    world.call(fence(V, 3));
    let mut platters = world.lose_power(&mut || false);
    platters[0].flip(Geometry::fence_at(0, 0), 40);
    platters[0].unreadable.insert(Geometry::fence_at(1, FENCE_BLOCKS - 1));
    let mut world = World::over(platters, Instant(0));
    assert!(world.member.disks()[0].findings().mended);
    assert_eq!(rejected(world.call(fence(V, 2))), Rejection::Fenced { epoch: Epoch(3) });
    let mut platters = world.lose_power(&mut || false);
    platters[0].unreadable.clear();
    platters[0].flip(Geometry::fence_at(1, 0), 40);
    let mut world = World::over(platters, Instant(0));
    assert_eq!(rejected(world.call(fence(V, 2))), Rejection::Fenced { epoch: Epoch(3) });
    let mut platters = world.lose_power(&mut || false);
    platters[0].flip(Geometry::fence_at(0, 0), 40);
    platters[0].flip(Geometry::fence_at(1, 0), 40);
    assert_eq!(refusal(&mut platters[0], &expected()), RecoverError::FencesLost { disk: ids(0).disk });
}

#[test]
fn nothing_is_answered_before_the_start_is_recorded() {
    let platters = with_frames(&[1]).0.lose_power(&mut || false);
    let x = extent(1, 0);
    let mut world = World::starting(platters, Instant(0));
    let read = world.ask(read(x, 1, 0, 2));
    let held: Vec<_> = (1..HELD_AT_START_MAX).map(|_| world.ask(frames(x, 1, 0))).collect();
    let fence = world.ask(fence(V, 2));
    assert_eq!((world.answer(read), world.disks[0].reads.len()), (None, 0));
    assert!(matches!(world.answer(fence), Some(Response::Rejected(Rejection::DiskFailed(_)))), "the queue has an end");
    let (_, writes) = world.disks[0].commit.as_ref().unwrap();
    let superblock = Superblock::decode(&writes[0].pieces[0]).unwrap();
    assert_eq!(superblock.incarnation, Incarnation(2));
    world.settle();
    assert!(matches!(world.answer(read), Some(Response::Data { .. })));
    assert!(held.iter().all(|req| matches!(world.answer(*req), Some(Response::Frames { .. }))));
}

#[test]
fn a_disk_that_cannot_record_its_start_serves_nothing_and_says_why() {
    let (mut world, x) = with_frames(&[1]);
    world.call(seal(x, 1, 2));
    let mut world = World::starting(world.lose_power(&mut || false), Instant(0));
    world.fail_commit(0);
    assert!(world.member.is_started());
    assert!(matches!(rejected(world.call(fence(V, 2))), Rejection::DiskFailed(_)));
    assert!(matches!(rejected(world.call(read(x, 2, 0, 1))), Rejection::DiskFailed(_)));
    assert!(matches!(rejected(world.call(frames(x, 2, 0))), Rejection::DiskFailed(_)));
}

#[test]
fn after_a_restart_open_copies_take_no_appends_but_all_else() {
    let (world, x) = with_frames(&[1, 2]);
    let mut world = world.crash(&mut || false);
    assert_eq!(rejected(world.call(append(x, 5, 1))), Rejection::Closed { length: 5 });
    assert_eq!(rejected(world.call(append(x, 2, 2))), Rejection::Closed { length: 5 });
    assert_eq!(rejected(world.call(create(x, 1))), Rejection::Closed { length: 5 });
    assert!(matches!(world.call(read(x, 1, 0, 5)), Response::Data { .. }));
    assert!(matches!(world.call(frames(x, 1, 0)), Response::Frames { headers, end: true } if headers.len() == 2));
    assert_eq!(world.copy(x, 2), open(5, 0, false));
    assert_eq!(world.call(fill(x, 2, 5, raw(&frame(x, 5, 4)))), Response::Appended { length: 10 });
    assert_eq!(world.copy(x, 2), open(10, 1, false));
    let sealed = world.call(seal(x, 2, 5));
    assert_eq!(sealed, Response::Sealed { length: 5, digest: digest(&[frame(x, 0, 1), frame(x, 2, 2)]) });
}

#[test]
fn an_empty_copy_from_before_a_restart_is_not_created_again() {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    world.call(create(x, 1));
    world.ask(append(x, 0, 1));
    let header = world.member.disks()[0].geometry.header_at(0, 1);
    let mut kept = 0;
    let (_, writes) = world.disks[0].commit.clone().unwrap();
    let headers: Vec<bool> = writes.iter().flat_map(|w| vec![w.offset == header; w.len() / 512]).collect();
    let mut world = world.crash(&mut || {
        kept += 1;
        headers[kept - 1]
    });
    assert_eq!(rejected(world.call(create(x, 1))), Rejection::Closed { length: 0 });
    assert_eq!(world.copy(x, 1), open(0, 0, false));
}

#[test]
fn a_torn_frame_is_cut_off_and_reported_and_filled_over() {
    for torn_sector in [0, 7, 8, 20] {
        let (mut world, x) = with_frames(&[1]);
        world.ask(append(x, 2, 2));
        let mut sector = 0;
        let mut world = world.crash(&mut || {
            sector += 1;
            sector - 1 != torn_sector
        });
        let frame = frame(x, 2, 2);
        assert_eq!(world.copy(x, 2), open(2, 0, true), "without sector {torn_sector}");
        assert_eq!(rejected(world.call(read(x, 2, 1, 2))), Rejection::PastEnd { length: 2 });
        assert_eq!(world.call(fill(x, 2, 2, raw(&frame))), Response::Appended { length: 5 });
        assert_eq!(world.copy(x, 2), open(5, 0, false));
        let mut world = world.crash(&mut || false);
        assert_eq!(world.copy(x, 2), open(5, 0, false));
    }
}

#[test]
fn a_frame_that_never_reached_the_disk_leaves_no_doubt() {
    let (mut world, x) = with_frames(&[1]);
    world.ask(append(x, 2, 2));
    let mut world = world.crash(&mut || false);
    assert_eq!(world.copy(x, 2), open(2, 0, false));
}

#[test]
fn a_hole_before_sound_frames_is_damage_until_all_of_them_are_filled() {
    for lost in [true, false] {
        let (world, x) = with_frames(&[1, 250, 3, 250, 1]);
        let hole = world.place(x, 2);
        let mut platters = world.lose_power(&mut || false);
        match lost {
            true => drop(platters[0].blocks.remove(&hole)),
            false => platters[0].flip(hole + BLOCK_SIZE as u64 * 9, 9),
        }
        let mut world = World::over(platters, Instant(0));
        let core = &world.member.disks()[0];
        assert_eq!(core.findings().open_damaged, [x]);
        assert_eq!(world.copy(x, 2), open(2, 0, true));
        world.call(fill(x, 2, 2, raw(&frame(x, 2, 250))));
        assert_eq!(world.copy(x, 2), open(253, 0, true), "more was here, up to block 510");
        world.call(fill(x, 2, 253, raw(&frame(x, 253, 3))));
        world.call(fill(x, 2, 257, raw(&frame(x, 257, 250))));
        assert!(matches!(world.copy(x, 2), Copy::Open { length: 508, damaged: true, .. }));
        world.call(fill(x, 2, 508, raw(&frame(x, 508, 1))));
        assert!(matches!(world.copy(x, 2), Copy::Open { length: 510, damaged: false, .. }));
    }
}

#[test]
fn an_unreadable_block_where_a_frame_may_be_is_damage() {
    let (world, x) = with_frames(&[1, 2]);
    let place = world.place(x, 5);
    let mut platters = world.lose_power(&mut || false);
    platters[0].unreadable.insert(place);
    let mut world = World::over(platters, Instant(0));
    assert_eq!(world.copy(x, 2), open(5, 0, true));
}

#[test]
fn a_lost_slot_header_makes_nothing_never_and_its_slot_is_not_used_again() {
    let (mut world, x) = with_frames(&[1]);
    let y = extent(1, 1);
    world.call(create(y, 1));
    world.call(append(y, 0, 0));
    let header = world.member.disks()[0].geometry.header_at(0, 1);
    for unreadable in [false, true] {
        let mut platters = vec![world.disks[0].platter.clone()];
        match unreadable {
            true => drop(platters[0].unreadable.insert(header)),
            false => platters[0].flip(header, 33),
        }
        let mut world = World::over(platters, Instant(0));
        assert_eq!(world.member.disks()[0].findings().slots_damaged, [0]);
        assert_eq!(world.copy(x, 2), Copy::Unknown);
        assert_eq!(world.copy(extent(1, 9), 2), Copy::Unknown);
        assert_eq!(world.copy(y, 2), open(1, 0, false));
        assert_eq!(rejected(world.call(read(x, 2, 0, 1))), Rejection::NoSuchExtent);
        assert_eq!(world.member.free_space().total, 7);
        world.call(fill(x, 2, 0, raw(&frame(x, 0, 1))));
        assert_eq!(world.copy(x, 2), open(2, 0, true), "begun where it may have been longer");
        assert_ne!(world.member.disks()[0].extents[&x], 0);
    }
}

#[test]
fn a_disk_that_loses_one_write_of_a_header_does_not_forget_the_copy() {
    for generation in [1, 2] {
        let (world, x) = with_frames(&[1]);
        let header = world.member.disks()[0].geometry.header_at(0, generation);
        let mut platters = world.lose_power(&mut || false);
        platters[0].blocks.remove(&header).expect("the header goes to both of its places");
        let mut world = World::over(platters, Instant(0));
        assert_eq!(world.copy(x, 2), open(2, 0, false), "without generation {generation}");
    }
}

#[test]
fn a_sealed_copy_survives_the_loss_of_its_older_header() {
    let (mut world, x) = with_frames(&[1]);
    let sealed = world.call(seal(x, 1, 2));
    let header = world.member.disks()[0].geometry.header_at(0, 2);
    let mut platters = world.lose_power(&mut || false);
    platters[0].flip(header, 33);
    let mut world = World::over(platters, Instant(0));
    assert!(matches!(world.copy(x, 2), Copy::Sealed { length: 2, .. }));
    assert_eq!(world.call(seal(x, 2, 2)), sealed);
    assert!(matches!(world.call(read(x, 2, 0, 2)), Response::Data { .. }));
    assert!(matches!(world.call(delete(x, 2)), Response::Deleted { .. }));
    let mut world = world.crash(&mut || false);
    assert_eq!(world.copy(x, 2), Copy::Never);
}

#[test]
fn a_seal_that_a_crash_interrupts_can_be_made_elsewhere() {
    let (mut world, x) = with_frames(&[1, 2]);
    world.ask(seal(x, 1, 5));
    assert!(world.finish_commit(0));
    let mut world = world.crash(&mut || false);
    assert_eq!(world.copy(x, 2), open(5, 0, false));
    let sealed = Response::Sealed { length: 2, digest: digest(&[frame(x, 0, 1)]) };
    assert_eq!(world.call(seal(x, 2, 2)), sealed);
    let mut world = world.crash(&mut || false);
    assert_eq!(world.call(seal(x, 2, 2)), sealed);
    assert!(matches!(world.call(read(x, 2, 1, 1)), Response::Data { .. }));
    assert_eq!(rejected(world.call(read(x, 2, 2, 1))), Rejection::PastEnd { length: 2 });
}

#[test]
fn frames_of_an_earlier_extent_in_the_slot_are_not_taken_for_the_next_ones() {
    let mut world = World::new(1, 4);
    let old = extent(1, 0);
    world.call(create(old, 1));
    (0..20).for_each(|i| drop(world.call(append(old, i * 3, 2))));
    world.call(delete(old, 1));
    let mut new = old;
    for i in 1..5 {
        new = extent(1, i);
        world.call(create(new, 1));
        world.call(append(new, 0, 2));
        if world.member.disks()[0].extents[&new] == 0 {
            break;
        }
        world.call(delete(new, 1));
    }
    assert_eq!(world.member.disks()[0].extents[&new], 0, "the slot is used again");
    let mut world = world.crash(&mut || false);
    assert_eq!(world.copy(new, 1), open(3, 0, false));
}

#[test]
fn what_an_earlier_format_left_is_not_seen() {
    let (world, _) = with_frames(&[1, 2]);
    let geometry = world.member.disks()[0].geometry();
    let mut platters = world.lose_power(&mut || false);
    for write in format_disk(geometry, crate::format::disk::DiskIds { disk: DiskId(77), ..ids(0) }) {
        platters[0].apply(&write, &mut || true);
    }
    let mut world = World::over(platters, Instant(0));
    assert_eq!(world.member.held().count(), 0);
    assert_eq!(world.copy(extent(1, 0), 1), Copy::Never);
    assert_eq!(world.member.free_space().free, 8);
}

#[test]
fn a_format_cut_short_is_no_disk() {
    let geometry = Geometry::with_slots(EXTENT_BLOCKS_MIN, 8).unwrap();
    let mut platter = Platter { bytes: geometry.bytes(), ..Platter::default() };
    let writes = format_disk(geometry, ids(0));
    for write in &writes[writes.len() - 2..] {
        platter.apply(write, &mut || true);
    }
    assert_eq!(refusal(&mut platter, &expected()), RecoverError::NotFormatted);
}

#[test]
fn of_two_copies_on_two_disks_the_better_one_counts() {
    for order in [[0, 1], [1, 0]] {
        let mut platters = Vec::new();
        for (disk, sealed) in [(0, false), (1, true)] {
            let mut world = World::over(vec![formatted(disk, 8)], Instant(0));
            let x = extent(1, 0);
            world.call(create(x, 1));
            world.call(append(x, 0, 1));
            if sealed {
                world.call(seal(x, 1, 2));
            }
            platters.extend(world.lose_power(&mut || false));
        }
        let platters = order.map(|disk| platters[disk].clone()).into();
        let mut world = World::over(platters, Instant(0));
        assert!(matches!(world.copy(extent(1, 0), 2), Copy::Sealed { length: 2, .. }));
        assert_eq!(world.copy(extent(1, 1), 2), Copy::Unknown, "something is not as it should be");
        assert_eq!(world.member.held().count(), 1);
    }
}

#[test]
fn two_slots_that_claim_one_extent_are_not_both_believed() {
    let (mut world, x) = with_frames(&[1, 2]);
    let core = &world.member.disks()[0];
    let place = core.geometry.header_at(5, 1);
    let state = match &core.slots[0].content {
        crate::member::disk::Content::Open(copy) => crate::format::slot::SlotState::Open(copy.name),
        other => panic!("{other:?}"),
    };
    let forged = SlotHeader { generation: 1, twin: false, state }.encode(ids(0).disk, 5);
    *world.disks[0].platter.block(place) = forged.to_vec();
    let mut world = world.crash(&mut || false);
    assert_eq!(world.copy(x, 1), open(5, 0, false));
    assert_eq!(world.member.disks()[0].findings().slots_damaged, [5]);
}

#[test]
fn an_agent_without_a_disk_says_so() {
    let mut out = MemberEffects::default();
    let mut member = Member::new(Vec::new(), 1, Instant(0), &mut out);
    let x = extent(1, 0);
    let requests = [
        create(x, 1),
        fence(V, 1),
        delete(x, 1),
        Request::Fill {
            extent: x,
            epoch: Epoch(1),
            stream: crate::format::Stream::Log,
            copy: 0,
            offset: 0,
            bytes: Default::default(),
        },
    ];
    for (i, request) in requests.into_iter().enumerate() {
        let req = crate::member::ReqId(i as u64);
        member.step(Instant(0), crate::member::MemberEvent::Request { req, request }, &mut out);
        assert!(matches!(out.replies[i].1, Response::Rejected(Rejection::DiskFailed(_))), "{:?}", out.replies[i]);
    }
}
