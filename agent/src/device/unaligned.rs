//! Any byte range over a device of whole blocks.
//!
//! A partial block is served by reading the block, changing it and writing it back. Between the two, nobody else's write
//! to that block may slip in, or it would be undone after it was acknowledged. So every write takes its range in a
//! [`RangeQueue`] first: writes of whole blocks share theirs with each other (NBD leaves their order open, and the device
//! below gives them one), a read-modify-write has its range alone.
//!
//! The obvious other way, one mutex around read-modify-writes, is wrong: it does not hold up the aligned write that is in
//! flight while the old block is being read.
//!
//! # Invariants
//! 1. Two ranges of which one is exclusive are never held at once where they overlap.
//! 2. Ranges are granted in the order asked for where they conflict, so none waits for ever.
//! 3. A write of whole blocks that conflicts with nothing reaches the device within the first poll, and takes its place
//!    in the device's order there.
//!
//! What is *not* here: reads take no range. A read beside a write of the same block sees it before or after, as the
//! device below promises.

use super::{BlockDevice, DeviceInfo, IoError, IoErrorKind, StatusExtent};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use torus_core::format::Pieces;

/// Serves any byte range of a [`BlockDevice`]. All front ends of one device share one of these.
pub struct Unaligned<D> {
    device: D,
    queue: RangeQueue,
}

impl<D: BlockDevice> Unaligned<D> {
    /// Serves `device`.
    pub fn new(device: D) -> Self {
        Self { device, queue: RangeQueue::default() }
    }

    /// The device below.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The whole blocks around a range, after checking that it lies inside the device and is not empty.
    fn around(&self, offset: u64, len: u64) -> Result<Range<u64>, IoError> {
        let info = self.device.info();
        let block = u64::from(info.block_bytes);
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= info.size_bytes => {
                Ok(offset / block * block..end.next_multiple_of(block).min(info.size_bytes))
            }
            _ => Err(IoError::new(
                IoErrorKind::Invalid,
                format!("{len} bytes at {offset} are not inside a device of {} bytes", info.size_bytes),
            )),
        }
    }

    /// The block at `offset`, in one piece.
    async fn block(&self, offset: u64) -> Result<Bytes, IoError> {
        Ok(one_piece(self.device.read(offset, self.device.info().block_bytes).await?))
    }

    /// Writes `data` at a place that is not made of whole blocks. The caller holds `outer` alone.
    async fn patch(&self, outer: Range<u64>, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError> {
        let block = u64::from(self.device.info().block_bytes);
        let end = offset + data.len() as u64;
        let (head_end, tail_start) = (outer.start + block, outer.end - block);
        let mut pieces = Pieces::new();
        // Up to three pieces: a changed first block, whole blocks as they came, a changed last block.
        let mut at = offset;
        if offset != outer.start || end < head_end {
            let mut head = BytesMut::from(&self.block(outer.start).await?[..]);
            let stop = end.min(head_end);
            let from = (offset - outer.start) as usize;
            head[from..from + (stop - offset) as usize].copy_from_slice(&data[..(stop - offset) as usize]);
            pieces.push(head.freeze());
            at = stop;
        }
        let whole_end = if end == outer.end { end } else { tail_start };
        if at < whole_end {
            pieces.push(data.slice((at - offset) as usize..(whole_end - offset) as usize));
            at = whole_end;
        }
        if at < end {
            let mut tail = BytesMut::from(&self.block(tail_start).await?[..]);
            tail[..(end - at) as usize].copy_from_slice(&data[(at - offset) as usize..]);
            pieces.push(tail.freeze());
        }
        self.device.write(outer.start, pieces, fua).await
    }
}

impl<D: BlockDevice> BlockDevice for Unaligned<D> {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { block_bytes: 1, ..self.device.info() }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, IoError> {
        let outer = self.around(offset, len.into())?;
        if outer == (offset..offset + u64::from(len)) {
            return self.device.read(offset, len).await;
        }
        let outer_len = u32::try_from(outer.end - outer.start).map_err(|_| {
            IoError::new(IoErrorKind::Invalid, format!("a read of {len} bytes at {offset} is too long: split it"))
        })?;
        let mut pieces = self.device.read(outer.start, outer_len).await?;
        clip(&mut pieces, (offset - outer.start) as usize, len as usize);
        Ok(pieces)
    }

    async fn write(&self, offset: u64, data: Pieces, fua: bool) -> Result<(), IoError> {
        let len: u64 = data.iter().map(|p| p.len() as u64).sum();
        let outer = self.around(offset, len)?;
        let block = self.device.info().block_bytes as usize;
        let whole = outer == (offset..offset + len) && data.iter().all(|p| p.len().is_multiple_of(block));
        let _held = self.queue.take(outer.clone(), if whole { Mode::Shared } else { Mode::Alone }).await;
        match whole {
            true => self.device.write(offset, data, fua).await,
            false => self.patch(outer, offset, one_piece(data), fua).await,
        }
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.device.flush().await
    }

    /// Whole blocks are given back; what is left at the edges keeps its bytes, as a trim is only a hint.
    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        let outer = self.around(offset, len)?;
        let inner = inside(offset..offset + len, &outer, self.device.info().block_bytes.into());
        if inner.is_empty() {
            return if fua { self.device.flush().await } else { Ok(()) };
        }
        let _held = self.queue.take(inner.clone(), Mode::Shared).await;
        self.device.trim(inner.start, inner.end - inner.start, fua).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), IoError> {
        let outer = self.around(offset, len)?;
        let end = offset + len;
        if outer == (offset..end) {
            let _held = self.queue.take(outer, Mode::Shared).await;
            return self.device.write_zeroes(offset, len, no_hole, fua).await;
        }
        let inner = inside(offset..end, &outer, self.device.info().block_bytes.into());
        let _held = self.queue.take(outer.clone(), Mode::Alone).await;
        let zeros = |range: &Range<u64>| one_piece(super::zeros((range.end - range.start) as usize));
        if inner.is_empty() {
            // Inside one block, or over the border of two.
            return self.patch(outer, offset, zeros(&(offset..end)), fua).await;
        }
        let (head, tail) = (offset..inner.start, inner.end..end);
        if !head.is_empty() {
            self.patch(outer.start..inner.start, head.start, zeros(&head), fua).await?;
        }
        if !tail.is_empty() {
            self.patch(inner.end..outer.end, tail.start, zeros(&tail), fua).await?;
        }
        self.device.write_zeroes(inner.start, inner.end - inner.start, no_hole, fua).await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<StatusExtent>, IoError> {
        let outer = self.around(offset, len)?;
        let mut extents = self.device.block_status(outer.start, outer.end - outer.start).await?;
        // Less in front, then less behind.
        if let Some(first) = extents.first_mut() {
            first.len -= offset - outer.start;
        }
        let mut left = len;
        for extent in &mut extents {
            extent.len = extent.len.min(left);
            left -= extent.len;
        }
        extents.retain(|e| e.len > 0);
        Ok(extents)
    }
}

/// The whole blocks inside `range`, whose outer blocks are `outer`; empty when there are none.
fn inside(range: Range<u64>, outer: &Range<u64>, block: u64) -> Range<u64> {
    let start = if range.start == outer.start { range.start } else { outer.start + block };
    let end = if range.end == outer.end { range.end } else { outer.end - block };
    start..end.max(start)
}

/// Leaves the `len` bytes from `skip` on.
fn clip(pieces: &mut Pieces, mut skip: usize, mut len: usize) {
    pieces.retain(|piece| {
        let from = skip.min(piece.len());
        skip -= from;
        let n = len.min(piece.len() - from);
        len -= n;
        *piece = piece.slice(from..from + n);
        n > 0
    });
}

fn one_piece(mut pieces: Pieces) -> Bytes {
    if pieces.len() == 1 {
        return pieces.swap_remove(0);
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in &pieces {
        whole.extend_from_slice(piece);
    }
    whole.freeze()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Beside other shared ones.
    Shared,
    /// Beside no other.
    Alone,
}

/// Ranges held or waited for, in the order in which they were asked for: a range is held when nothing before it
/// conflicts. Its length is bounded by the front ends' bounds on requests in flight.
#[derive(Default)]
struct RangeQueue {
    inner: RefCell<QueueInner>,
}

#[derive(Default)]
struct QueueInner {
    next: u64,
    alone: usize,
    entries: BTreeMap<u64, Entry>,
}

struct Entry {
    range: Range<u64>,
    mode: Mode,
    /// Set while it waits.
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts(&self, other: &Entry) -> bool {
        let overlap = self.range.start < other.range.end && other.range.start < self.range.end;
        overlap && (self.mode == Mode::Alone || other.mode == Mode::Alone)
    }
}

impl RangeQueue {
    /// Waits for `range`; it is held until the answer is dropped.
    fn take(&self, range: Range<u64>, mode: Mode) -> Take<'_> {
        let mut inner = self.inner.borrow_mut();
        let ticket = inner.next;
        inner.next += 1;
        inner.alone += usize::from(mode == Mode::Alone);
        inner.entries.insert(ticket, Entry { range, mode, waker: None });
        Take { held: Some(Held { queue: self, ticket }) }
    }
}

impl QueueInner {
    fn blocked(&self, ticket: u64) -> bool {
        let asked = &self.entries[&ticket];
        self.alone > 0 && self.entries.range(..ticket).any(|(_, earlier)| earlier.conflicts(asked))
    }
}

struct Take<'a> {
    held: Option<Held<'a>>,
}

impl<'a> Future for Take<'a> {
    type Output = Held<'a>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Held<'a>> {
        let held = self.held.take().expect("a future is not polled after it is done");
        let mut inner = held.queue.inner.borrow_mut();
        let blocked = inner.blocked(held.ticket);
        let entry = inner.entries.get_mut(&held.ticket).expect("an entry lives as long as its holder");
        entry.waker = blocked.then(|| cx.waker().clone());
        drop(inner);
        match blocked {
            false => Poll::Ready(held),
            true => {
                self.held = Some(held);
                Poll::Pending
            }
        }
    }
}

/// A place in the queue, given up on drop.
struct Held<'a> {
    queue: &'a RangeQueue,
    ticket: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut inner = self.queue.inner.borrow_mut();
        let left = inner.entries.remove(&self.ticket).expect("an entry lives as long as its holder");
        inner.alone -= usize::from(left.mode == Mode::Alone);
        for later in inner.entries.range_mut(self.ticket..).map(|(_, e)| e).filter(|e| e.conflicts(&left)) {
            if let Some(waker) = later.waker.take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests;
