//! Requests of front ends: taken in, handed to the log or the reads, answered when their time has come.
//!
//! Writes are answered in the order of their records. A flush, and a write that must be durable where others need not be, is
//! answered when the log's LAC has reached the record that it waits for (P2).

use super::{Done, Serving};
use crate::block::gc::GC_COOKIE;
use crate::block::io::{IoDone, IoError, IoId, IoOp};
use crate::block::map::Loc;
use crate::block::record::BlockRecord;
use crate::block::state::{apply, relocate};
use crate::format::{Pieces, Record};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentSeq, Lba, Vseq};
use crate::limits::FRAME_PAYLOAD_BLOCKS_MAX;
use crate::log::{Effects, Item, Lane, LogEvent};
use crate::meta::docs::AckMode;
use crate::mutation::{self, Mutation};
use crate::time::Instant;
use bytes::Bytes;

/// A write, trim or write of zeros that is not answered yet.
#[derive(Debug)]
pub(super) struct WriteOp {
    pub(super) left: usize,
    fua: bool,
    pub(super) failed: Option<IoError>,
}

impl Serving {
    /// Everything that is not answered fails with `error`.
    pub fn fail_all(&mut self, error: &IoError, done: &mut Done) {
        let writes = std::mem::take(&mut self.writes).into_keys().map(IoId);
        let flushes = std::mem::take(&mut self.flushes).into_iter().map(|(_, io)| io);
        let statuses = std::mem::take(&mut self.statuses).into_iter().map(|(io, ..)| io);
        done.extend(writes.chain(flushes).chain(statuses).map(|io| (io, Err(error.clone()))));
        self.reads.fail_all(error, done);
    }

    /// Takes a request in.
    pub fn on_io(&mut self, id: IoId, op: IoOp, done: &mut Done) {
        if self.closing {
            return done.push((id, Err(IoError::Closed)));
        }
        let (lba, blocks) = match &op {
            IoOp::Read { lba, blocks }
            | IoOp::Trim { lba, blocks, .. }
            | IoOp::Zero { lba, blocks, .. }
            | IoOp::Status { lba, blocks } => (*lba, *blocks),
            IoOp::Write { lba, payload, .. } => {
                (*lba, (payload.iter().map(Bytes::len).sum::<usize>() / BLOCK_SIZE) as u64)
            }
            IoOp::Flush => return self.on_flush(id, done),
        };
        let end = lba.0.saturating_add(blocks);
        if blocks == 0 || end > self.map.blocks() {
            return done.push((id, Err(IoError::OutOfRange { lba, end, size: self.map.blocks() })));
        }
        match op {
            IoOp::Read { .. } => self.reads.push(id, lba, blocks),
            IoOp::Status { .. } => self.statuses.push_back((id, lba, blocks)),
            IoOp::Write { payload, fua, .. } => self.on_write(id, lba, payload, fua),
            IoOp::Trim { fua, .. } => self.on_clear(id, BlockRecord::Trim { lba, blocks }, fua),
            IoOp::Zero { fua, .. } => self.on_clear(id, BlockRecord::Zero { lba, blocks }, fua),
            IoOp::Flush => {}
        }
    }

    /// In `durable` mode everything acknowledged is on stable storage already.
    fn on_flush(&mut self, id: IoId, done: &mut Done) {
        let acked = self.log.writer.acked();
        if self.log.writer.lac() >= acked || mutation::active(Mutation::FlushDoesNotWait) {
            done.push((id, Ok(IoDone::Done)));
        } else {
            self.flushes.push_back((acked, id));
        }
    }

    fn on_clear(&mut self, id: IoId, record: BlockRecord, fua: bool) {
        self.writes.insert(id.0, WriteOp { left: 1, fua, failed: None });
        let item = Item { record: record.encode(), payload: Pieces::new(), cookie: id.0 };
        self.log.writer.append(Lane::Hot, item);
    }

    /// Cuts a write into records of at most one frame each.
    fn on_write(&mut self, id: IoId, mut lba: Lba, payload: Pieces, fua: bool) {
        let mut left = 0;
        let mut taken = Pieces::new();
        let mut blocks: Blocks = 0;
        let mut emit = |lba: &mut Lba, taken: &mut Pieces, blocks: &mut Blocks| {
            let record = BlockRecord::Write { lba: *lba, blocks: *blocks }.encode();
            self.log.writer.append(Lane::Hot, Item { record, payload: std::mem::take(taken), cookie: id.0 });
            self.counters.user_blocks += u64::from(*blocks);
            *lba = Lba(lba.0 + u64::from(*blocks));
            *blocks = 0;
            left += 1;
        };
        for mut piece in payload {
            while !piece.is_empty() {
                let room = (FRAME_PAYLOAD_BLOCKS_MAX - blocks) as usize * BLOCK_SIZE;
                let part = piece.split_to(room.min(piece.len()));
                blocks += (part.len() / BLOCK_SIZE) as Blocks;
                taken.push(part);
                if blocks == FRAME_PAYLOAD_BLOCKS_MAX {
                    emit(&mut lba, &mut taken, &mut blocks);
                }
            }
        }
        if blocks > 0 {
            emit(&mut lba, &mut taken, &mut blocks);
        }
        self.writes.insert(id.0, WriteOp { left, fua, failed: None });
    }

    /// Takes in what the log has acknowledged.
    pub(super) fn settle(&mut self, done: &mut Done) {
        if self.log.fenced().is_some() {
            return;
        }
        for event in self.log.writer.take_events() {
            match event {
                LogEvent::Acked { base, records, cookies, extent, offset } => {
                    let blocks = 1 + records.iter().map(|r| u64::from(r.payload_blocks)).sum::<u64>();
                    self.logged += blocks;
                    let sound = apply(&mut self.map, &mut self.log.table, extent, offset, &records);
                    assert!(sound, "an owner's own record at vseq {base} cannot be applied");
                    self.answer_acked(base, &records, &cookies, done);
                }
                LogEvent::Moved { records, from, to } => self.on_moved(&records, from, to),
            }
        }
        let lac = self.log.writer.lac();
        while self.flushes.front().is_some_and(|(vseq, _)| *vseq <= lac) {
            let (_, io) = self.flushes.pop_front().expect("the queue has a front");
            done.push((io, Ok(IoDone::Done)));
        }
    }

    fn answer_acked(&mut self, base: Vseq, records: &[Record], cookies: &[u64], done: &mut Done) {
        let durable = self.log.config.mode == AckMode::Durable;
        for (i, (record, &cookie)) in records.iter().zip(cookies).enumerate() {
            if cookie == GC_COOKIE {
                let room = self.gc.on_acked(Blocks::from(record.payload_blocks));
                self.log.writer.allow(room);
                continue;
            }
            let Some(op) = self.writes.get_mut(&cookie) else { continue };
            op.left -= 1;
            if op.left > 0 {
                continue;
            }
            let op = self.writes.remove(&cookie).expect("the write is under way");
            let io = IoId(cookie);
            match op.failed {
                Some(error) => done.push((io, Err(error))),
                None if op.fua && !durable => {
                    let vseq = Vseq(base.0 + i as u64);
                    let at = self.flushes.partition_point(|(v, _)| *v <= vseq);
                    self.flushes.insert(at, (vseq, io));
                }
                None => done.push((io, Ok(IoDone::Done))),
            }
        }
    }

    /// Records that were acknowledged on receipt have a new place: the map follows, where it still points to the old one.
    fn on_moved(&mut self, records: &[Record], from: (ExtentSeq, Blocks), to: (ExtentSeq, Blocks)) {
        let (Some(old), Some(new)) = (self.log.table.find(from.0), self.log.table.find(to.0)) else { return };
        let mut skip = 1;
        for record in records {
            let blocks = Blocks::from(record.payload_blocks);
            if let Some(BlockRecord::Write { lba, .. } | BlockRecord::Reloc { lba, .. }) = BlockRecord::decode(record) {
                let from = Loc { extent: old, block: from.1 + skip };
                let to = Loc { extent: new, block: to.1 + skip };
                relocate(&mut self.map, &mut self.log.table, lba, blocks, from, to);
            }
            skip += blocks;
        }
    }

    /// Which blocks hold data is as good as a read: clients skip what does not.
    pub(super) fn answer_statuses(&mut self, now: Instant, out: &mut Effects, done: &mut Done) {
        if self.statuses.is_empty() {
            return;
        }
        self.log.want_lease(now, out);
        while self.log.may_read(now)
            && let Some((io, lba, blocks)) = self.statuses.pop_front()
        {
            let mut runs: Vec<(u64, bool)> = Vec::new();
            for run in self.map.get(lba, blocks) {
                match runs.last_mut() {
                    Some((count, data)) if *data == run.at.is_some() => *count += run.blocks,
                    _ => runs.push((run.blocks, run.at.is_some())),
                }
            }
            done.push((io, Ok(IoDone::Status(runs))));
        }
    }
}
