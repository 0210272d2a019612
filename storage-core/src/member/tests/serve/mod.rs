//! What a member does while it runs, request by request.

mod append;
mod disks;
mod fence;
mod read;
mod seal;

use super::world::*;
use crate::format::{Frame, crc};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentId};
use crate::peer::{Rejection, Response};

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
