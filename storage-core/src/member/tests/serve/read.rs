//! Reads of what is durable, checked, and of the headers of frames.

use super::super::world::*;
use super::{data, rejected, with_frames};
use crate::format::Frame;
use crate::format::slot::FOOTER_COVERS;
use crate::ids::{BLOCK_SIZE, Blocks};
use crate::limits::{FRAMES_HEADERS_MAX, READ_BLOCKS_MAX};
use crate::peer::{Rejection, Response};

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
