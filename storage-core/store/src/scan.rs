//! Start-up reads: synchronous for who asks, parallel underneath.
//!
//! A scan reads the header blocks of thousands of slots, one after the other, at equal distances. Asked for one at a
//! time a disk gives them at its latency; a [`Scan`] notices the stride after two reads and keeps a batch of the
//! following ones in flight.
//!
//! It borrows the disk, so that nothing is written while it holds what it read ahead.

use crate::disk::Disk;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use torus_core::ids::{BLOCK_BYTES, BLOCK_SIZE};
use torus_core::member::{DiskError, DiskErrorKind, DiskEvent, DiskOp, DiskReader};

/// Reads ahead of the one that is asked for.
const AHEAD_READS_MAX: usize = 32;
/// Bytes ahead of the one that is asked for.
const AHEAD_BYTES_MAX: usize = 4 << 20;

/// A disk before it serves. Reads are whole blocks.
#[derive(Debug)]
pub struct Scan<'a> {
    disk: &'a mut Disk,
    /// Where the last read was, and how far it was from the one before.
    last: Option<(u64, u64)>,
    /// Reads ahead, in order.
    ahead: VecDeque<Ahead>,
    next_id: u64,
    /// Answers not yet asked for, by id.
    answers: BTreeMap<u64, Result<Bytes, DiskError>>,
    events: Vec<DiskEvent>,
}

#[derive(Debug)]
struct Ahead {
    id: u64,
    offset: u64,
    len: usize,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(disk: &'a mut Disk) -> Self {
        Self { disk, last: None, ahead: VecDeque::new(), next_id: 0, answers: BTreeMap::new(), events: Vec::new() }
    }

    fn begin(&mut self, offset: u64, len: usize) -> DiskOp {
        let id = self.next_id;
        self.next_id += 1;
        self.ahead.push_back(Ahead { id, offset, len });
        DiskOp::Read { id, offset, len }
    }

    /// Keeps reads in flight at the places that come next if the stride goes on.
    fn read_ahead(&mut self, offset: u64, len: usize, stride: u64) {
        let reads = (AHEAD_BYTES_MAX / len.max(1)).clamp(1, AHEAD_READS_MAX);
        let (mut at, have) = self.ahead.back().map_or((offset, 0), |last| (last.offset, self.ahead.len()));
        // Topped up by halves, so that many reads share one call to the kernel.
        if have > reads / 2 {
            return;
        }
        let mut ops = Vec::with_capacity(reads);
        while self.ahead.len() < reads {
            at = match at.checked_add(stride) {
                Some(next) if next.checked_add(len as u64).is_some_and(|end| end <= self.disk.bytes()) => next,
                _ => break,
            };
            ops.push(self.begin(at, len));
        }
        self.disk.submit_all(ops);
    }

    /// Waits for the answer of `id`.
    fn answer(&mut self, id: u64) -> Result<Bytes, DiskError> {
        loop {
            if let Some(result) = self.answers.remove(&id) {
                return result;
            }
            self.collect(true)?;
        }
    }

    fn collect(&mut self, wait: bool) -> Result<(), DiskError> {
        self.disk.completions(&mut self.events);
        if self.events.is_empty() && wait {
            self.disk.wait().map_err(|error| DiskError {
                kind: DiskErrorKind::Io,
                text: format!("wait for {}: {error}", self.disk.path().display()),
            })?;
            self.disk.completions(&mut self.events);
        }
        for event in self.events.drain(..) {
            if let DiskEvent::Read { id, result } = event {
                self.answers.insert(id, result);
            }
        }
        Ok(())
    }

    /// Forgets what was read ahead, once it has arrived.
    fn drain(&mut self) -> Result<(), DiskError> {
        while let Some(Ahead { id, .. }) = self.ahead.pop_front() {
            // An error at a place that nobody asked for is nobody's error.
            while !self.answers.contains_key(&id) {
                self.collect(true)?;
            }
            self.answers.remove(&id);
        }
        Ok(())
    }
}

impl DiskReader for Scan<'_> {
    fn size(&self) -> u64 {
        self.disk.bytes()
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.size())
            || !offset.is_multiple_of(BLOCK_BYTES)
            || !len.is_multiple_of(BLOCK_SIZE)
        {
            let text =
                format!("read {} at {offset}: {len} bytes there are not blocks of it", self.disk.path().display());
            return Err(DiskError { kind: DiskErrorKind::Io, text });
        }
        if self.ahead.front().is_some_and(|next| (next.offset, next.len) != (offset, len)) {
            self.drain()?;
        }
        let stride = match self.last {
            Some((last, _)) if offset > last => offset - last,
            _ => 0,
        };
        let steady = stride > 0 && self.last.is_some_and(|(_, before)| before == stride);
        self.last = Some((offset, stride));
        if self.ahead.is_empty() {
            let op = self.begin(offset, len);
            self.disk.submit(op);
        }
        let id = self.ahead.pop_front().map_or(0, |first| first.id);
        if steady {
            self.read_ahead(offset, len, stride);
        }
        self.answer(id)
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        // What fails here has no one left to tell; the disk itself will say it again when it is used.
        let _ = self.drain();
    }
}
