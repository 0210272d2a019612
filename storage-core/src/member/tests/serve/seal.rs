//! Copies end: sealed, or deleted.

use super::super::world::*;
use super::{rejected, with_frames};
use crate::format::Stream;
use crate::ids::{Epoch, ExtentId, ExtentSeq, VolumeId};
use crate::peer::{Copy, FreeSpace, Rejection, Request, Response};

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
