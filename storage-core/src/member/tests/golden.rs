//! Disks that earlier versions wrote. An image is what a disk holds beyond a fresh one: places and blocks. It shows a
//! sealed copy, an open one, a checkpoint's, one that a fill began, a slot given back, and two fences.
//!
//! Images are only ever added. A new format is a new image beside the old ones, which must go on being read.

use super::world::*;
use crate::format::{FrameHeader, Stream};
use crate::ids::{BLOCK_SIZE, Epoch, ExtentId, ExtentSeq, Incarnation, VolumeId};
use crate::peer::{Class, Copy, Request, Response};
use crate::time::Instant;

const V1: &[u8] = include_bytes!("../../../testdata/disk-v1.bin");
const OTHER: VolumeId = VolumeId(0xcafe);

/// Numbers as owners drew them when the first image was made.
fn extent(epoch: u64, count: u64) -> ExtentId {
    ExtentId { volume: V, seq: ExtentSeq(epoch << 24 | count) }
}

fn checkpoint_frame(extent: ExtentId) -> crate::format::Frame {
    let frame = frame(extent, 0, 1);
    let mut header = FrameHeader::decode(&frame.header, extent, 0).unwrap();
    header.stream = Stream::Checkpoint;
    crate::format::Frame { header: header.encode(), ..frame }
}

/// What the image is of.
fn history() -> World {
    let mut world = World::new(1, 8);
    let (sealed, open, points, filled, gone) = (extent(1, 0), extent(1, 1), extent(1, 2), extent(1, 3), extent(1, 4));
    for x in [sealed, open, gone] {
        world.call(create(x, 1));
        world.call(append(x, 0, 2));
        world.call(append(x, 3, 0));
    }
    world.call(seal(sealed, 1, 4));
    world.call(delete(gone, 1));
    let (epoch, stream, class) = (Epoch(1), Stream::Checkpoint, Class::Reserve);
    world.call(Request::Create { extent: points, epoch, stream, class });
    let frame = checkpoint_frame(points);
    world.call(Request::Append { extent: points, epoch, offset: 0, frame, early: false });
    world.call(fence(V, 2));
    world.call(fence(OTHER, 9));
    world.call(fill(filled, 2, 0, raw(&super::world::frame(filled, 0, 1))));
    world
}

fn image(world: World) -> Vec<u8> {
    let (fresh, platter) = (formatted(0, 8), world.lose_power(&mut || false).remove(0));
    let changed = platter.blocks.iter().filter(|(place, block)| fresh.blocks.get(place) != Some(block));
    changed.flat_map(|(place, block)| place.to_le_bytes().into_iter().chain(block.iter().copied())).collect()
}

#[test]
fn this_version_writes_what_the_image_shows() {
    let written = image(history());
    if std::env::var_os("TORUS_NEW_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/disk-new.bin"), &written).unwrap();
    }
    let blocks = |image: &[u8]| -> Vec<Vec<u8>> { image.chunks(8 + BLOCK_SIZE).map(<[u8]>::to_vec).collect() };
    let (written, golden) = (blocks(&written), blocks(V1));
    assert_eq!(written.len(), golden.len());
    for (new, old) in written.iter().zip(&golden) {
        let difference = new.iter().zip(old).position(|(a, b)| a != b);
        assert_eq!(difference, None, "in the block at {:?}", &old[..8]);
    }
}

#[test]
fn a_disk_of_version_1_is_read() {
    let mut platter = formatted(0, 8);
    for entry in V1.chunks_exact(8 + BLOCK_SIZE) {
        let place = u64::from_le_bytes(entry[..8].try_into().unwrap());
        *platter.block(place) = entry[8..].to_vec();
    }
    let mut world = World::over(vec![platter], Instant(0));
    assert_eq!(world.member.disks()[0].incarnation(), Incarnation(2));
    let fences: Vec<_> = world.member.fences().collect();
    assert_eq!(fences, [(V, Epoch(2)), (OTHER, Epoch(9))]);
    let frames = [frame(extent(1, 0), 0, 2), frame(extent(1, 0), 3, 0)];
    assert_eq!(world.copy(extent(1, 0), 2), Copy::Sealed { length: 4, digest: digest(&frames) });
    assert!(matches!(world.copy(extent(1, 1), 2), Copy::Open { length: 4, damaged: false, .. }));
    assert!(matches!(world.copy(extent(1, 2), 2), Copy::Open { length: 2, damaged: false, .. }));
    assert!(matches!(world.copy(extent(1, 3), 2), Copy::Open { length: 2, damaged: false, .. }));
    assert_eq!(world.copy(extent(1, 4), 2), Copy::Never);
    let held: Vec<_> =
        world.member.held().map(|held| (held.extent.seq.0 & 0xff_ffff, held.stream, held.epoch)).collect();
    let (log, points) = (Stream::Log, Stream::Checkpoint);
    assert_eq!(held, [(0, log, Epoch(1)), (1, log, Epoch(1)), (2, points, Epoch(1)), (3, log, Epoch(2))]);
    match world.call(read(extent(1, 0), 2, 0, 4)) {
        Response::Data { bytes, .. } => assert!(bytes[..] == frames.iter().flat_map(raw).collect::<Vec<u8>>()[..]),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.member.free_space().free, 4);
}
