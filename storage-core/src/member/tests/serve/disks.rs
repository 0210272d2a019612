//! Disks that fail, and agents with several.

use super::super::world::*;
use super::{data, rejected, with_frames};
use crate::ids::Epoch;
use crate::member::ReqId;
use crate::peer::{Copy, FreeSpace, Rejection, Request, Response};

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
