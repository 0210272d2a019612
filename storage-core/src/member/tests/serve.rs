//! What a member does while it runs, request by request.

use super::world::*;
use crate::format::slot::FOOTER_COVERS;
use crate::format::{Frame, Stream, crc};
use crate::ids::{BLOCK_SIZE, Blocks, Epoch, ExtentId, ExtentSeq, VolumeId};
use crate::limits::{EXTENT_BLOCKS_MIN, FRAMES_HEADERS_MAX, READ_BLOCKS_MAX, READ_LEASE};
use crate::member::ReqId;
use crate::peer::{Class, Copy, FreeSpace, Rejection, Request, Response};
use crate::time::Duration;

fn rejected(response: Response) -> Rejection {
    match response {
        Response::Rejected(why) => why,
        other => panic!("not rejected: {other:?}"),
    }
}

fn data(response: Response) -> Vec<u8> {
    match response {
        Response::Data { crcs, bytes } => {
            let right: Vec<u32> = bytes.chunks(BLOCK_SIZE).map(crc).collect();
            assert_eq!(right[..], crcs[..], "the reader checks the same sums");
            bytes.to_vec()
        }
        other => panic!("no data: {other:?}"),
    }
}

/// A world with an extent of frames with these payloads, and their bytes.
fn with_frames(payloads: &[usize]) -> (World, ExtentId, Vec<Frame>) {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    world.call(create(x, 1));
    let mut at = 0;
    let mut all = Vec::new();
    for payload in payloads {
        assert!(matches!(world.call(append(x, at, *payload)), Response::Appended { .. }));
        all.push(frame(x, at, *payload));
        at += 1 + *payload as Blocks;
    }
    (world, x, all)
}

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
fn a_fence_shuts_older_epochs_out_at_once_and_is_answered_when_durable() {
    let (mut world, x, _) = with_frames(&[1]);
    let late = world.ask(append(x, 2, 1));
    let request = Request::Fence { volume: V, epoch: Epoch(5), extents: vec![x.seq, ExtentSeq(77)] };
    let fence = world.ask(request.clone());
    let fenced = Response::Rejected(Rejection::Fenced { epoch: Epoch(5) });
    for request in [
        append(x, 4, 1),
        create(extent(1, 1), 4),
        read(x, 4, 0, 1),
        frames(x, 4, 0),
        seal(x, 4, 2),
        delete(x, 4),
        fill(x, 4, 4, raw(&frame(x, 4, 0))),
        Request::Lease { volume: V, epoch: Epoch(4) },
        super::world::fence(V, 4),
    ] {
        let req = world.ask(request);
        assert_eq!(world.answer(req), Some(&fenced));
    }
    assert_eq!(world.answer(fence), None);
    world.finish_commit(0);
    assert!(matches!(world.answer(late), Some(Response::Appended { length: 4 })), "accepted before the fence");
    assert_eq!(world.answer(fence), None);
    world.finish_commit(0);
    let open = Copy::Open { length: 4, lac: Default::default(), damaged: false };
    let copies = vec![(x.seq, open), (ExtentSeq(77), Copy::Never)];
    assert_eq!(world.answer(fence), Some(&Response::Fenced { lease: READ_LEASE, extents: copies.clone() }));
    let req = world.ask(request);
    assert!(world.disks[0].commit.is_none(), "nothing to write for the same fence");
    assert_eq!(world.answer(req), Some(&Response::Fenced { lease: READ_LEASE, extents: copies }));
}

#[test]
fn a_fence_waits_for_appends_accepted_before_it() {
    let (mut world, x, _) = with_frames(&[1]);
    world.call(fence(V, 1));
    world.ask(append(x, 2, 1));
    let second = world.ask(append(x, 4, 1));
    let same_epoch = world.ask(Request::Fence { volume: V, epoch: Epoch(1), extents: vec![x.seq] });
    world.finish_commit(0);
    assert_eq!((world.answer(second), world.answer(same_epoch)), (None, None));
    world.finish_commit(0);
    let Some(Response::Fenced { extents, .. }) = world.answer(same_epoch) else { panic!() };
    assert!(matches!(extents[0].1, Copy::Open { length: 6, .. }));
}

#[test]
fn a_new_owner_is_told_how_long_an_older_lease_runs() {
    let mut world = World::new(1, 8);
    world.pass(Duration::from_secs(60));
    let lease_left = |world: &mut World, epoch| match world.call(fence(V, epoch)) {
        Response::Fenced { lease, .. } => lease,
        other => panic!("{other:?}"),
    };
    assert_eq!(lease_left(&mut world, 2), Duration::ZERO);
    assert_eq!(world.call(Request::Lease { volume: V, epoch: Epoch(2) }), Response::Leased);
    world.pass(Duration::from_millis(500));
    assert_eq!(lease_left(&mut world, 2), Duration::ZERO, "its own lease is no obstacle");
    assert_eq!(lease_left(&mut world, 3), READ_LEASE - Duration::from_millis(500));
    let x = extent(3, 0);
    world.call(create(x, 3));
    world.pass(Duration::from_secs(60));
    world.call(append(x, 0, 1));
    world.pass(Duration::from_millis(100));
    assert_eq!(lease_left(&mut world, 4), READ_LEASE - Duration::from_millis(100), "an append grants one too");
    let mut world = world.crash(&mut || false);
    world.pass(Duration::from_millis(300));
    assert_eq!(lease_left(&mut world, 5), READ_LEASE - Duration::from_millis(300), "as if granted just before");
}

#[test]
fn reads_are_of_what_is_durable_and_inside() {
    let (mut world, x, all) = with_frames(&[2, 3]);
    let bytes: Vec<u8> = all.iter().flat_map(raw).collect();
    assert_eq!(data(world.call(read(x, 1, 0, 7))), bytes, "headers too");
    assert_eq!(data(world.call(read(x, 1, 1, 2))), bytes[BLOCK_SIZE..3 * BLOCK_SIZE]);
    assert_eq!(rejected(world.call(read(x, 1, 6, 2))), Rejection::PastEnd { length: 7 });
    assert_eq!(rejected(world.call(read(x, 1, Blocks::MAX, 2))), Rejection::PastEnd { length: 7 });
    assert!(matches!(rejected(world.call(read(x, 1, 0, 0))), Rejection::BadBytes(_)));
    assert!(matches!(rejected(world.call(read(x, 1, 0, READ_BLOCKS_MAX + 1))), Rejection::BadBytes(_)));
    assert_eq!(rejected(world.call(read(extent(1, 9), 1, 0, 1))), Rejection::NoSuchExtent);
    world.ask(append(x, 7, 4));
    let waits = world.ask(read(x, 1, 8, 4));
    assert!(world.disks[0].reads.is_empty(), "not from a sector that is being written");
    world.settle();
    assert_eq!(data(world.answer(waits).cloned().unwrap()), frame(x, 7, 4).payload.concat());
}

#[test]
fn damage_never_reaches_a_reader() {
    for sealed in [false, true] {
        let (mut world, x, _) = with_frames(&[2, 3]);
        if sealed {
            world.call(seal(x, 1, 7));
        }
        for block in [0, 2, 3, 6] {
            let place = world.place(x, block);
            let damaged = Response::Rejected(Rejection::Damaged { block });
            world.disks[0].platter.flip(place, 1000);
            assert_eq!(world.call(read(x, 1, 0, 7)), damaged);
            if block == 0 || block == 3 {
                assert_eq!(world.call(frames(x, 1, 0)), damaged);
            }
            world.disks[0].platter.flip(place, 1000);
        }
        // A block of the same extent in the wrong place, and a header as an older life of the slot may have left it.
        let (from, to) = (world.place(x, 0), world.place(x, 3));
        let stale = world.disks[0].platter.block(from).clone();
        let good = std::mem::replace(world.disks[0].platter.block(to), stale);
        assert_eq!(rejected(world.call(read(x, 1, 3, 1))), Rejection::Damaged { block: 3 });
        *world.disks[0].platter.block(to) = good;
        world.disks[0].platter.unreadable.insert(to);
        assert_eq!(rejected(world.call(read(x, 1, 3, 1))), Rejection::Damaged { block: 3 });
        world.disks[0].platter.unreadable.clear();
        assert!(matches!(world.call(read(x, 1, 0, 7)), Response::Data { .. }));
        assert!(world.member.stats().reads_damaged >= 8);
    }
}

#[test]
fn a_damaged_footer_lends_its_name_to_no_data() {
    let (mut world, x, _) = with_frames(&[2, 3]);
    world.call(seal(x, 1, 7));
    let mut world = world.crash(&mut || false);
    let core = &world.member.disks()[0];
    let footer = core.geometry.footer_at(core.extents[&x], 0);
    world.disks[0].platter.flip(footer, 60);
    assert_eq!(rejected(world.call(read(x, 1, 1, 1))), Rejection::Damaged { block: 0 });
    world.disks[0].platter.flip(footer, 60);
    assert!(matches!(world.call(read(x, 1, 1, 1)), Response::Data { .. }));
    world.disks[0].platter.flip(footer, 60);
    assert!(matches!(world.call(read(x, 1, 1, 1)), Response::Data { .. }), "from the cache");
}

#[test]
fn a_seal_is_answered_after_footer_and_header_one_after_the_other() {
    let (mut world, x, all) = with_frames(&[2, 3]);
    let req = world.ask(seal(x, 1, 7));
    let again = world.ask(seal(x, 1, 7));
    let other = world.ask(seal(x, 1, 3));
    assert_eq!(world.answer(other), Some(&Response::Rejected(Rejection::Closed { length: 7 })));
    assert_eq!(rejected(world.call_now(append(x, 7, 0))), Rejection::Closed { length: 7 });
    let at = |world: &World| world.disks[0].commit.as_ref().unwrap().1[0].offset;
    let core = &world.member.disks()[0];
    assert_eq!(at(&world), core.geometry.footer_at(0, 0));
    let header = core.geometry.header_at(0, 3);
    world.finish_commit(0);
    assert_eq!((world.answer(req), at(&world)), (None, header));
    world.finish_commit(0);
    let sealed = Response::Sealed { length: 7, digest: digest(&all) };
    assert_eq!((world.answer(req), world.answer(again)), (Some(&sealed), Some(&sealed)));
    assert_eq!(world.call(seal(x, 1, 7)), sealed);
    assert_eq!(rejected(world.call(seal(x, 1, 3))), Rejection::Closed { length: 7 });
    assert_eq!(rejected(world.call(append(x, 7, 0))), Rejection::Closed { length: 7 });
    assert_eq!(rejected(world.call(fill(x, 9, 7, raw(&frame(x, 7, 0))))), Rejection::Closed { length: 7 });
}

#[test]
fn a_seal_cuts_where_a_frame_ends_and_nothing_beyond_it_is_acknowledged() {
    let (mut world, x, all) = with_frames(&[2, 3]);
    assert_eq!(rejected(world.call(seal(x, 1, 8))), Rejection::PastEnd { length: 7 });
    assert_eq!(rejected(world.call(seal(x, 1, 2))), Rejection::WrongOffset { length: 7 });
    assert_eq!(rejected(world.call(seal(extent(1, 9), 1, 0))), Rejection::NoSuchExtent);
    let beyond = world.ask(append(x, 7, 1));
    let reader = world.ask(read(x, 1, 8, 1));
    let sealed = world.call(seal(x, 1, 3));
    assert_eq!(sealed, Response::Sealed { length: 3, digest: digest(&all[..1]) });
    assert_eq!(world.answer(beyond), Some(&Response::Rejected(Rejection::Closed { length: 3 })));
    assert_eq!(world.answer(reader), Some(&Response::Rejected(Rejection::PastEnd { length: 3 })));
    assert_eq!(rejected(world.call(read(x, 1, 3, 1))), Rejection::PastEnd { length: 3 });
}

#[test]
fn an_empty_copy_can_be_sealed() {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    world.call(create(x, 1));
    assert_eq!(world.call(seal(x, 1, 0)), Response::Sealed { length: 0, digest: Default::default() });
    assert_eq!(world.call(frames(x, 1, 0)), Response::Frames { headers: vec![], end: true });
    let mut world = world.crash(&mut || false);
    assert_eq!(world.copy(x, 2), Copy::Sealed { length: 0, digest: Default::default() });
}

#[test]
fn frames_lists_headers_in_order_page_by_page_open_and_sealed() {
    let payloads: Vec<usize> = (0..400).map(|i| [0, 1, 0, 3, 0][i % 5]).chain([200]).collect();
    let (mut world, x, all) = with_frames(&payloads);
    let length: Blocks = all.iter().map(Frame::blocks).sum();
    assert!(length > FOOTER_COVERS / 2);
    for sealed in [false, true] {
        if sealed {
            world.call(seal(x, 1, length));
        }
        let (mut from, mut seen) = (0, Vec::new());
        loop {
            let Response::Frames { headers, end } = world.call(frames(x, 1, from)) else { panic!() };
            assert!(headers.len() <= FRAMES_HEADERS_MAX);
            for header in headers {
                let read = crate::format::FrameHeader::decode(&header, x, from).unwrap();
                from += read.blocks();
                seen.push(header);
            }
            if end {
                break;
            }
        }
        assert!(seen.iter().eq(all.iter().map(|frame| &frame.header)), "sealed: {sealed}");
        assert_eq!(world.call(frames(x, 1, length)), Response::Frames { headers: vec![], end: true });
        assert_eq!(world.call(frames(x, 1, Blocks::MAX)), Response::Frames { headers: vec![], end: true });
    }
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

#[test]
fn a_deleted_slot_is_free_once_that_is_durable_and_nobody_reads_it() {
    let (mut world, x, _) = with_frames(&[2]);
    let reader = world.ask(read(x, 1, 0, 3));
    let late = world.ask(append(x, 3, 0));
    let req = world.ask(delete(x, 1));
    let again = world.ask(delete(x, 1));
    assert_eq!(world.answer(late), Some(&Response::Rejected(Rejection::NoSuchExtent)));
    assert_eq!(rejected(world.call_now(read(x, 1, 0, 1))), Rejection::NoSuchExtent);
    assert_eq!(rejected(world.call_now(create(x, 1))), Rejection::NoSuchExtent);
    assert_eq!(world.answer(req), None);
    while world.finish_commit(0) {}
    let free = FreeSpace { free: 7, total: 8 };
    assert_eq!(world.answer(req), Some(&Response::Deleted { free }), "the reader holds the slot");
    assert_eq!(world.answer(again), Some(&Response::Deleted { free }));
    assert_eq!(world.member.free_space().free, 7);
    world.settle();
    assert!(matches!(world.answer(reader), Some(Response::Data { .. })));
    assert_eq!(world.member.free_space().free, 8);
    assert!(matches!(world.call(delete(x, 1)), Response::Deleted { .. }));
    assert_eq!(world.copy(x, 1), Copy::Never);
    let mut world = world.crash(&mut || false);
    assert_eq!(world.copy(x, 1), Copy::Never);
}

#[test]
fn copies_are_listed_until_they_are_durably_gone() {
    let list = |from: ExtentId| Request::List { volume: from.volume, epoch: Epoch(1), from: from.seq };
    let listed = |extents: &[ExtentId], hidden| Response::Listed {
        extents: extents.iter().map(|extent| extent.seq).collect(),
        end: true,
        hidden,
    };
    let mut world = World::new(2, 8);
    let all = [extent(1, 0), extent(1, 1), extent(1, 2)];
    for x in all {
        world.call(create(x, 1));
        world.call(append(x, 0, 0));
    }
    assert_eq!(world.call(list(all[0])), listed(&all, false), "of both disks, in order");
    assert_eq!(world.call(list(all[2])), listed(&all[2..], false));
    let other = Request::List { volume: VolumeId(V.0 + 1), epoch: Epoch(1), from: ExtentSeq(0) };
    assert_eq!(world.call(other), listed(&[], false));
    let deleting = world.ask(delete(all[1], 1));
    assert_eq!(world.call_now(list(all[0])), listed(&all, false), "its freeing is not durable");
    world.settle();
    assert!(matches!(world.answer(deleting), Some(Response::Deleted { .. })));
    assert_eq!(world.call(list(all[0])), listed(&[all[0], all[2]], false));
    world.ask(delete(all[0], 1));
    world.fail_commit(usize::from(world.disks[0].commit.is_none()));
    assert!(matches!(world.call(list(all[0])), Response::Listed { hidden: true, .. }), "a disk is lost");
}

#[test]
fn deleting_what_was_never_written_writes_nothing() {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    world.call(create(x, 1));
    let req = world.ask(delete(x, 1));
    assert_eq!(world.answer(req), Some(&Response::Deleted { free: FreeSpace { free: 8, total: 8 } }));
    assert!(world.disks[0].commit.is_none());
}

#[test]
fn deleting_during_a_seal_wins() {
    for commits in 0..3 {
        let (mut world, x, _) = with_frames(&[2]);
        let sealing = world.ask(seal(x, 1, 3));
        (0..commits).for_each(|_| assert!(world.finish_commit(0)));
        assert!(matches!(world.call(delete(x, 1)), Response::Deleted { .. }));
        let sealed = matches!(world.answer(sealing), Some(Response::Sealed { .. }));
        assert_eq!(sealed, commits == 2);
        let mut world = world.crash(&mut || false);
        assert_eq!(world.copy(x, 1), Copy::Never);
    }
}

#[test]
fn a_failed_commit_ends_the_disk_but_not_its_reads() {
    let (mut world, x, all) = with_frames(&[2]);
    let (y, z) = (extent(1, 1), extent(1, 2));
    world.call(create(y, 1));
    world.call(append(y, 0, 0));
    world.call(seal(y, 1, 1));
    world.call(create(z, 1));
    let waiting: Vec<ReqId> =
        [append(x, 3, 1), append(x, 5, 1), read(x, 1, 3, 1), seal(x, 1, 5), delete(y, 1), fence(V, 1)]
            .map(|request| world.ask(request))
            .into();
    world.fail_commit(0);
    let failed = Rejection::DiskFailed("disk: Input/output error".into());
    for (i, req) in waiting.iter().enumerate().filter(|(i, _)| *i != 1 && *i != 5) {
        assert_eq!(world.answer(*req), Some(&Response::Rejected(failed.clone())), "request {i}");
    }
    assert_eq!(world.answer(waiting[1]), Some(&Response::Rejected(Rejection::Closed { length: 5 })), "sealed away");
    assert!(matches!(world.answer(waiting[5]), Some(Response::Rejected(Rejection::DiskFailed(_)))));
    assert_eq!(world.out.failed.len(), 1);
    for request in [append(x, 3, 1), create(extent(1, 3), 1), seal(x, 1, 3), delete(x, 1), fence(V, 9)] {
        assert!(matches!(rejected(world.call(request)), Rejection::DiskFailed(_)));
    }
    assert!(world.disks[0].commit.is_none(), "it is never tried again");
    assert_eq!(data(world.call(read(x, 9, 0, 3))), raw(&all[0]));
    assert_eq!(world.member.free_space(), FreeSpace::default());
}

#[test]
fn an_agent_spreads_over_its_disks_and_fences_all_of_them() {
    let mut world = World::new(3, 8);
    for i in 0..6 {
        world.call(create(extent(1, i), 1));
        world.call(append(extent(1, i), 0, 1));
    }
    assert!(world.member.disks().iter().all(|disk| disk.free_space().free == 6));
    assert_eq!(world.member.free_space(), FreeSpace { free: 18, total: 24 });
    let req =
        world.ask(Request::Fence { volume: V, epoch: Epoch(3), extents: (0..7).map(|i| extent(1, i).seq).collect() });
    world.finish_commit(2);
    world.finish_commit(0);
    assert_eq!(world.answer(req), None, "one disk is not done");
    world.finish_commit(1);
    let Some(Response::Fenced { extents, .. }) = world.answer(req) else { panic!() };
    let never: Vec<bool> = extents.iter().map(|(_, copy)| *copy == Copy::Never).collect();
    assert_eq!(never, [false, false, false, false, false, false, true]);
    for disk in 0..3 {
        assert_eq!(world.member.disks()[disk].fences.epoch(V), Epoch(3));
    }
}

#[test]
fn with_a_disk_failed_or_missing_nothing_was_never_held() {
    let mut world = World::new(2, 8);
    let (a, b) = (extent(1, 0), extent(1, 1));
    for x in [a, b] {
        world.call(create(x, 1));
        world.call(append(x, 0, 0));
    }
    world.ask(append(b, 1, 0));
    world.fail_commit(1);
    assert!(matches!(world.copy(a, 2), Copy::Open { length: 1, .. }));
    assert_eq!(world.copy(b, 2), Copy::Unknown);
    assert_eq!(world.copy(extent(1, 9), 2), Copy::Unknown);
    assert!(matches!(rejected(world.call(delete(extent(1, 9), 2))), Rejection::DiskFailed(_)));
    assert!(matches!(world.call(create(extent(2, 0), 2)), Response::Created { .. }), "the other disk works");
    // A copy that repair begins now may have been longer on the disk that failed.
    let x = extent(1, 9);
    world.call(fill(x, 2, 0, raw(&frame(x, 0, 0))));
    assert!(matches!(world.copy(x, 2), Copy::Open { length: 1, damaged: true, .. }));
    let mut platters = world.lose_power(&mut || false);
    platters.truncate(1);
    let mut out = crate::member::MemberEffects::default();
    let core = recover(&mut platters[0]).unwrap();
    let member = crate::member::Member::new(vec![core], 1, crate::time::Instant(0), &mut out);
    let mut world = World::over(platters, crate::time::Instant(0));
    world.member = member;
    for (disk, op) in out.ops.drain(..) {
        let crate::member::DiskOp::Commit { id, .. } = op else { panic!() };
        world.disk_event(usize::from(disk.0), crate::member::DiskEvent::Committed { id, result: Ok(()) });
    }
    assert_eq!(world.copy(b, 2), Copy::Unknown);
    assert!(matches!(world.copy(x, 2), Copy::Open { length: 1, damaged: true, .. }), "it is remembered");
    world.call(seal(x, 2, 1));
    assert!(matches!(world.copy(x, 2), Copy::Sealed { length: 1, .. }));
}

#[test]
fn more_volumes_than_a_disk_remembers_are_refused() {
    let mut world = World::new(1, 8);
    for i in 1..=crate::limits::FENCED_VOLUMES_MAX as u64 {
        world.ask(fence(VolumeId(i), 1));
    }
    world.settle();
    let why = rejected(world.call(fence(V, 1)));
    assert_eq!(why, Rejection::TooManyVolumes(crate::limits::FENCED_VOLUMES_MAX));
    assert!(matches!(world.call(fence(VolumeId(5), 2)), Response::Fenced { .. }));
    let world = world.crash(&mut || false);
    assert_eq!(world.member.fences().count(), crate::limits::FENCED_VOLUMES_MAX);
}

#[test]
fn a_deletion_that_comes_late_hits_no_copy_made_since() {
    let (mut world, x) = (World::new(1, 8), extent(1, 0));
    let filled = |copy| Request::Fill {
        extent: x,
        epoch: Epoch(2),
        stream: Stream::Log,
        copy,
        offset: 0,
        bytes: smallvec::smallvec![raw(&frame(x, 0, 1)).into()],
    };
    let late = |epoch, copy| Request::Delete { extent: x, epoch: Epoch(epoch), copy };
    world.call(filled(4));
    assert_eq!(rejected(world.call(late(2, 3))), Rejection::NewerCopy { copy: 4 });
    assert_eq!(rejected(world.call(late(1, 9))), Rejection::Fenced { epoch: Epoch(2) });
    assert!(matches!(world.call(late(2, 4)), Response::Deleted { .. }));
    assert_eq!(world.copy(x, 2), Copy::Never);
    world.call(filled(5));
    assert!(matches!(world.call(late(3, 0)), Response::Deleted { .. }), "a newer owner knows");
}
