//! From a commit's writes to as few device writes as possible.
//!
//! Writes are put in order and those that touch are joined, so that frames that follow each other in an extent cost
//! one write. Pieces that direct I/O can take as they lie go to the device from where they are; the others are copied
//! into an aligned buffer, neighbours together.
//!
//! 1. A segment has at most [`SEGMENT_PIECES_MAX`] pieces and [`SEGMENT_BYTES_MAX`] bytes, so it is one system call
//!    whose result cannot overflow.
//! 2. What the core promises (whole blocks, inside the disk, no overlap) is asserted before anything is written: a
//!    disk is better stopped than scribbled on.

use crate::buffer::BufferPool;
use bytes::Bytes;
use torus_core::ids::{BLOCK_BYTES, BLOCK_SIZE};
use torus_core::member::DiskWrite;

/// Pieces of one system call: the kernel's `IOV_MAX`.
pub(crate) const SEGMENT_PIECES_MAX: usize = 1024;
/// Bytes of one system call.
pub(crate) const SEGMENT_BYTES_MAX: usize = 64 << 20;

/// One contiguous device write.
#[derive(Debug)]
pub(crate) struct Segment {
    pub offset: u64,
    pub len: usize,
    /// In order, each fit for direct I/O.
    pub pieces: Vec<Bytes>,
}

/// Asserts that `len` bytes at `offset` are whole blocks of a disk of `disk_bytes`.
///
/// # Panics
/// When they are not: the core has asked for something impossible.
pub(crate) fn assert_range(offset: u64, len: usize, disk_bytes: u64) {
    let whole = offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_SIZE);
    assert!(whole, "disk I/O is in whole blocks, not {len} bytes at {offset}");
    let end = offset.checked_add(len as u64);
    assert!(
        end.is_some_and(|end| end <= disk_bytes),
        "disk I/O stays inside the disk: {len} bytes at {offset} do not fit {disk_bytes}"
    );
}

/// The segments of `writes`, in the order of their offsets.
///
/// # Panics
/// When a write is not whole blocks, ends beyond the disk, or overlaps another.
pub(crate) fn segments(
    mut writes: Vec<DiskWrite>,
    disk_bytes: u64,
    memory_align: usize,
    pool: &BufferPool,
) -> Vec<Segment> {
    writes.sort_by_key(|write| write.offset);
    let mut out: Vec<Segment> = Vec::with_capacity(1);
    let mut end = 0;
    for write in writes {
        assert_range(write.offset, write.len(), disk_bytes);
        assert!(
            write.offset >= end,
            "writes of one commit do not overlap, yet one at {} begins before {end}",
            write.offset
        );
        end = write.offset;
        let fit = |piece: &Bytes| piece.as_ptr().addr().is_multiple_of(memory_align);
        let mut pieces = write.pieces.iter().filter(|piece| !piece.is_empty()).peekable();
        while let Some(piece) = pieces.next() {
            assert!(piece.len().is_multiple_of(BLOCK_SIZE), "a piece of a write is whole blocks, not {}", piece.len());
            if fit(piece) {
                end = place(&mut out, end, piece.clone());
                continue;
            }
            let mut run = vec![piece];
            let mut len = piece.len();
            while let Some(next) = pieces.next_if(|next| !fit(next) && len + next.len() <= SEGMENT_BYTES_MAX) {
                len += next.len();
                run.push(next);
            }
            let mut copy = pool.take(len);
            let mut at = 0;
            for piece in run {
                copy[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
            }
            end = place(&mut out, end, copy.freeze());
        }
    }
    out
}

/// Adds `piece` at `offset`, to the last segment if it ends there and has room. Returns where it ends.
fn place(out: &mut Vec<Segment>, offset: u64, piece: Bytes) -> u64 {
    let end = offset + piece.len() as u64;
    let joins = |last: &Segment| {
        last.offset + last.len as u64 == offset
            && last.pieces.len() < SEGMENT_PIECES_MAX
            && last.len + piece.len() <= SEGMENT_BYTES_MAX
    };
    match out.last_mut() {
        Some(last) if joins(last) => {
            last.len += piece.len();
            last.pieces.push(piece);
        }
        _ => out.push(Segment { offset, len: piece.len(), pieces: vec![piece] }),
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 1 << 30;

    fn aligned(pool: &BufferPool, blocks: usize, byte: u8) -> Bytes {
        let mut buffer = pool.take(blocks * BLOCK_SIZE);
        buffer.fill(byte);
        buffer.freeze()
    }

    fn crooked(blocks: usize, byte: u8) -> Bytes {
        let bytes = Bytes::from(vec![byte; (blocks + 1) * BLOCK_SIZE]);
        let skip = bytes.as_ptr().align_offset(BLOCK_SIZE) + 1;
        bytes.slice(skip % BLOCK_SIZE..skip % BLOCK_SIZE + blocks * BLOCK_SIZE)
    }

    fn write(block: u64, pieces: &[&Bytes]) -> DiskWrite {
        DiskWrite { offset: block * BLOCK_BYTES, pieces: pieces.iter().map(|&p| p.clone()).collect() }
    }

    fn shape(segments: &[Segment]) -> Vec<(u64, usize, usize)> {
        segments.iter().map(|s| (s.offset / BLOCK_BYTES, s.len / BLOCK_SIZE, s.pieces.len())).collect()
    }

    #[test]
    fn neighbours_are_joined_whatever_their_order_and_strangers_are_not() {
        let pool = BufferPool::new(0);
        let piece = aligned(&pool, 2, 1);
        let writes = vec![write(12, &[&piece]), write(8, &[&piece, &piece]), write(20, &[&piece])];
        assert_eq!(shape(&segments(writes, DISK, BLOCK_SIZE, &pool)), [(8, 6, 3), (20, 2, 1)]);
    }

    #[test]
    fn aligned_pieces_stay_where_they_are_and_crooked_ones_are_copied_together() {
        let pool = BufferPool::new(0);
        let (a, b, c) = (aligned(&pool, 1, 1), crooked(1, 2), crooked(3, 3));
        let made = segments(vec![write(0, &[&a, &b, &c, &a])], DISK, BLOCK_SIZE, &pool);
        assert_eq!(shape(&made), [(0, 6, 3)]);
        let pieces = &made[0].pieces;
        assert_eq!(pieces[0].as_ptr(), a.as_ptr());
        assert!(pieces.iter().all(|piece| (piece.as_ptr() as usize).is_multiple_of(BLOCK_SIZE)));
        assert_eq!(pieces.concat(), [&a[..], &b, &c, &a].concat());
        let made = segments(vec![write(0, &[&b])], DISK, 1, &pool);
        assert_eq!(made[0].pieces[0].as_ptr(), b.as_ptr(), "no copy where memory need not be aligned");
    }

    #[test]
    fn a_segment_never_has_more_pieces_than_the_kernel_takes() {
        let pool = BufferPool::new(0);
        let piece = aligned(&pool, 1, 1);
        let many = vec![&piece; SEGMENT_PIECES_MAX + 1];
        let made = segments(vec![write(0, &many)], DISK, BLOCK_SIZE, &pool);
        assert_eq!(shape(&made), [(0, SEGMENT_PIECES_MAX, SEGMENT_PIECES_MAX), (SEGMENT_PIECES_MAX as u64, 1, 1)]);
    }

    #[test]
    fn nothing_to_write_is_no_segment() {
        let pool = BufferPool::new(0);
        assert!(segments(vec![], DISK, BLOCK_SIZE, &pool).is_empty());
        assert!(segments(vec![write(3, &[&Bytes::new()])], DISK, BLOCK_SIZE, &pool).is_empty());
    }

    #[test]
    #[should_panic(expected = "do not overlap")]
    fn overlapping_writes_are_a_defect_of_the_caller() {
        let pool = BufferPool::new(0);
        let piece = aligned(&pool, 2, 1);
        let _ = segments(vec![write(1, &[&piece]), write(2, &[&piece])], DISK, BLOCK_SIZE, &pool);
    }

    #[test]
    #[should_panic(expected = "stays inside the disk")]
    fn a_write_beyond_the_end_is_a_defect_of_the_caller() {
        let pool = BufferPool::new(0);
        let piece = aligned(&pool, 2, 1);
        let _ = segments(vec![write(1, &[&piece])], 2 * BLOCK_BYTES, BLOCK_SIZE, &pool);
    }

    #[test]
    #[should_panic(expected = "whole blocks")]
    fn a_piece_of_half_a_block_is_a_defect_of_the_caller() {
        let pool = BufferPool::new(0);
        let piece = aligned(&pool, 2, 1);
        let (half, rest) = (piece.slice(..2048), piece.slice(2048..));
        let _ = segments(vec![write(1, &[&half, &rest])], DISK, BLOCK_SIZE, &pool);
    }
}
