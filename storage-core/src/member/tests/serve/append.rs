//! Frames are taken, acknowledged when they are durable, and never twice.

use super::super::world::*;
use super::{rejected, with_frames};
use crate::format::{Frame, Stream};
use crate::ids::{BLOCK_SIZE, Epoch};
use crate::limits::EXTENT_BLOCKS_MIN;
use crate::peer::{Class, Copy, FreeSpace, Rejection, Request, Response};

#[test]
fn an_append_is_answered_when_its_commit_has_landed_and_not_before() {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    assert_eq!(world.call(create(x, 1)), Response::Created { free: FreeSpace { free: 7, total: 8 } });
    let first = world.ask(append(x, 0, 2));
    let early = frame(x, 3, 1);
    let second = world.ask(Request::Append { extent: x, epoch: Epoch(1), offset: 3, frame: early, early: true });
    assert_eq!(world.answer(first), None);
    assert_eq!(world.answer(second), Some(&Response::Received { length: 5 }));
    world.finish_commit(0);
    assert_eq!(world.answer(first), Some(&Response::Appended { length: 3 }));
    assert_eq!(world.answer(second), Some(&Response::Received { length: 5 }), "it is in the next commit");
    world.finish_commit(0);
    assert_eq!(world.answer(second), Some(&Response::Appended { length: 5 }));
}

#[test]
fn what_arrives_together_shares_one_commit() {
    let (mut world, x, y) = (World::new(1, 8), extent(1, 0), extent(1, 1));
    world.call(create(x, 1));
    world.call(create(y, 1));
    let asked = world.ask_all([append(x, 0, 1), append(y, 0, 1), append(x, 2, 3), fence(x.volume, 2)]);
    world.finish_commit(0);
    for (req, length) in asked.iter().zip([2, 2, 6]) {
        assert_eq!(world.answer(*req), Some(&Response::Appended { length }));
    }
    assert!(matches!(world.answer(asked[3]), Some(Response::Fenced { .. })));
    assert!(world.disks[0].commit.is_none(), "nothing is left for a second commit");
}

#[test]
fn what_arrives_during_a_commit_shares_the_next_and_runs_are_one_write() {
    let (mut world, x, y) = (World::new(1, 8), extent(1, 0), extent(1, 1));
    world.call(create(x, 1));
    world.call(create(y, 1));
    world.ask(append(x, 0, 1));
    for i in 1..10 {
        world.ask(append(x, i * 2, 1));
        world.ask(append(y, (i - 1) * 2, 1));
    }
    world.finish_commit(0);
    let (_, writes) = world.disks[0].commit.as_ref().unwrap();
    assert_eq!(writes.len(), 4, "the header of y in both places, one run of frames each");
    world.settle();
    assert!(
        world.answers.values().all(|a| matches!(a.last(), Some(Response::Appended { .. } | Response::Created { .. })))
    );
    assert_eq!(world.member.stats().commits, 3, "the start, the first frame, the rest");
}

#[test]
fn a_resend_is_answered_like_the_first_and_something_else_is_not_taken() {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    world.call(create(x, 1));
    let first = world.ask(append(x, 0, 2));
    let again = world.ask(append(x, 0, 2));
    assert_eq!((world.answer(first), world.answer(again)), (None, None));
    world.settle();
    assert_eq!(world.answer(again), Some(&Response::Appended { length: 3 }));
    assert_eq!(world.call(append(x, 0, 2)), Response::Appended { length: 3 });
    assert_eq!(rejected(world.call(append(x, 0, 1))), Rejection::WrongOffset { length: 3 });
    assert_eq!(rejected(world.call(append(x, 1, 1))), Rejection::WrongOffset { length: 3 });
    assert_eq!(rejected(world.call(append(x, 5, 1))), Rejection::WrongOffset { length: 3 });
    assert_eq!(world.member.stats().appends, 1);
}

#[test]
fn bytes_that_are_not_what_they_claim_are_not_taken() {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    world.call(create(x, 1));
    let send = |world: &mut World, frame: Frame| {
        let request = Request::Append { extent: x, epoch: Epoch(1), offset: 0, frame, early: false };
        rejected(world.call(request))
    };
    let good = frame(x, 0, 2);
    for at in [0, 100, 2 * BLOCK_SIZE - 1] {
        let mut payload = good.payload.concat();
        payload[at] ^= 1;
        let bad = Frame { header: good.header.clone(), payload: smallvec::smallvec![payload.into()] };
        assert!(matches!(send(&mut world, bad), Rejection::BadBytes(_)));
    }
    let mut header = good.header.to_vec();
    header[40] ^= 1;
    let bad = Frame { header: header.into(), payload: good.payload.clone() };
    assert!(matches!(send(&mut world, bad), Rejection::BadBytes(_)));
    let short =
        Frame { header: good.header.clone(), payload: smallvec::smallvec![good.payload[0].slice(..BLOCK_SIZE)] };
    assert!(matches!(send(&mut world, short), Rejection::BadBytes(_)));
    let ragged = Frame { header: good.header.clone(), payload: smallvec::smallvec![good.payload[0].slice(..77)] };
    assert!(matches!(send(&mut world, ragged), Rejection::BadBytes(_)));
    assert!(matches!(send(&mut world, frame(extent(1, 1), 0, 2)), Rejection::BadBytes(_)), "of another extent");
    assert!(matches!(send(&mut world, frame(x, 4, 2)), Rejection::BadBytes(_)), "of another offset");
    assert_eq!(world.copy(x, 1), Copy::Open { length: 0, lac: Default::default(), damaged: false });
}

#[test]
fn a_frame_of_another_epoch_than_its_request_or_out_of_order_is_not_taken() {
    let (mut world, x, y) = (World::new(1, 8), extent(1, 0), extent(2, 0));
    world.call(create(y, 1));
    let request = Request::Append { extent: y, epoch: Epoch(1), offset: 0, frame: frame(y, 0, 1), early: false };
    assert!(matches!(rejected(world.call(request)), Rejection::BadBytes(_)), "the frame says epoch 2");
    world.call(create(x, 1));
    world.call(append(x, 0, 3));
    let mut other = crate::format::FrameHeader::decode(&frame(x, 4, 0).header, x, 4).unwrap();
    other.base = crate::ids::Vseq(1);
    let frame = Frame { header: other.encode(), payload: smallvec::smallvec![] };
    let request = Request::Append { extent: x, epoch: Epoch(1), offset: 4, frame, early: false };
    assert_eq!(rejected(world.call(request)), Rejection::BadBytes("vseq 1 after 1".into()));
}

#[test]
fn an_extent_takes_frames_up_to_its_end_and_no_block_more() {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    world.call(create(x, 1));
    let mut at = 0;
    while at + 250 <= EXTENT_BLOCKS_MIN {
        assert_eq!(world.call(append(x, at, 249)), Response::Appended { length: at + 250 });
        at += 250;
    }
    let left = (EXTENT_BLOCKS_MIN - at) as usize;
    assert!(matches!(rejected(world.call(append(x, at, left))), Rejection::BadBytes(_)));
    assert_eq!(world.call(append(x, at, left - 1)), Response::Appended { length: EXTENT_BLOCKS_MIN });
    assert!(matches!(rejected(world.call(append(x, EXTENT_BLOCKS_MIN, 0))), Rejection::BadBytes(_)));
    assert!(matches!(world.call(seal(x, 1, EXTENT_BLOCKS_MIN)), Response::Sealed { .. }));
    let world = &mut world.crash(&mut || false);
    assert!(matches!(world.copy(x, 1), Copy::Sealed { length: EXTENT_BLOCKS_MIN, .. }));
}

#[test]
fn create_is_idempotent_while_the_copy_is_empty() {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    let created = Response::Created { free: FreeSpace { free: 7, total: 8 } };
    assert_eq!(world.call(create(x, 1)), created);
    assert_eq!(world.call(create(x, 1)), created);
    world.call(append(x, 0, 0));
    assert_eq!(rejected(world.call(create(x, 1))), Rejection::WrongOffset { length: 1 });
    assert_eq!(rejected(world.call(append(extent(1, 7), 0, 0))), Rejection::NoSuchExtent);
    assert_eq!(rejected(world.call(create(x, 2))), Rejection::Closed { length: 1 });
    assert_eq!(rejected(world.call(create(x, 1))), Rejection::Fenced { epoch: Epoch(2) });
}

#[test]
fn the_last_slots_are_for_what_makes_room() {
    let mut world = World::new(1, 8);
    for i in 0..6 {
        assert!(matches!(world.call(create(extent(1, i), 1)), Response::Created { .. }));
    }
    let full = Rejection::NoSpace { free: FreeSpace { free: 2, total: 8 } };
    assert_eq!(rejected(world.call(create(extent(1, 6), 1))), full);
    for i in 6..8 {
        let extent = extent(1, i);
        let request = Request::Create { extent, epoch: Epoch(1), stream: Stream::Log, class: Class::Reserve };
        assert!(matches!(world.call(request), Response::Created { .. }));
    }
    let bytes = raw(&frame(extent(1, 9), 0, 0));
    let full = Rejection::NoSpace { free: FreeSpace { free: 0, total: 8 } };
    assert_eq!(rejected(world.call(fill(extent(1, 9), 1, 0, bytes))), full);
    assert_eq!(world.call(delete(extent(1, 3), 1)), Response::Deleted { free: FreeSpace { free: 1, total: 8 } });
}

#[test]
fn a_fill_adds_whole_sound_frames_to_a_copy_that_takes_no_appends() {
    let (mut world, x, _) = with_frames(&[2]);
    let bytes: Vec<u8> = [frame(x, 3, 1), frame(x, 5, 0)].iter().flat_map(raw).collect();
    let why = rejected(world.call(fill(x, 1, 3, bytes.clone())));
    assert_eq!(why, Rejection::BadBytes("the copy still takes appends of epoch 1".into()));
    assert_eq!(world.call(fill(x, 2, 3, bytes.clone())), Response::Appended { length: 6 });
    assert_eq!(world.call(fill(x, 2, 3, bytes.clone())), Response::Appended { length: 6 }, "a resend");
    let overlap: Vec<u8> = [frame(x, 5, 0), frame(x, 6, 1)].iter().flat_map(raw).collect();
    assert_eq!(world.call(fill(x, 2, 5, overlap)), Response::Appended { length: 8 });
    let append = Request::Append { extent: x, epoch: Epoch(2), offset: 8, frame: frame(x, 8, 0), early: false };
    assert_eq!(rejected(world.call(append)), Rejection::Closed { length: 8 }, "a fill ends appends");
    assert_eq!(rejected(world.call(fill(x, 2, 9, raw(&frame(x, 9, 0))))), Rejection::WrongOffset { length: 8 });
    assert_eq!(rejected(world.call(fill(x, 2, 3, raw(&frame(x, 3, 2))))), Rejection::WrongOffset { length: 8 });
    let mut torn = raw(&frame(x, 8, 2));
    torn[2 * BLOCK_SIZE] ^= 1;
    assert!(matches!(rejected(world.call(fill(x, 2, 8, torn))), Rejection::BadBytes(_)));
    assert!(matches!(rejected(world.call(fill(x, 2, 8, vec![]))), Rejection::BadBytes(_)));
    let cut = raw(&frame(x, 8, 2))[..2 * BLOCK_SIZE].to_vec();
    assert!(matches!(rejected(world.call(fill(x, 2, 8, cut))), Rejection::BadBytes(_)));
    let y = extent(1, 5);
    assert_eq!(rejected(world.call(fill(y, 2, 1, raw(&frame(y, 1, 0))))), Rejection::NoSuchExtent);
    let piecewise = Request::Fill {
        extent: y,
        epoch: Epoch(2),
        stream: Stream::Log,
        copy: 0,
        offset: 0,
        bytes: raw(&frame(y, 0, 3)).chunks(BLOCK_SIZE).map(|block| block.to_vec().into()).collect(),
    };
    assert_eq!(world.call(piecewise), Response::Appended { length: 4 });
    let mut world = world.crash(&mut || false);
    assert!(matches!(world.copy(y, 2), Copy::Open { length: 4, damaged: false, .. }));
    assert!(matches!(world.copy(x, 2), Copy::Open { length: 8, damaged: false, .. }));
}
