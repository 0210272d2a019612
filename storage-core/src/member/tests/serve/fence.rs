//! Fences and leases: who may write and read.

use super::super::world::*;
use super::{rejected, with_frames};
use crate::ids::{Epoch, ExtentSeq, VolumeId};
use crate::limits::READ_LEASE;
use crate::peer::{Copy, Rejection, Request, Response};
use crate::time::Duration;

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
        super::super::world::fence(V, 4),
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
