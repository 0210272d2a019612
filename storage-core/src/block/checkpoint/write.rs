//! Writing a checkpoint beside the running volume.
//!
//! The picture is taken at a moment when everything that is acknowledged is durable; the map's snapshot shares its leaves with
//! the running map, so taking it is cheap. Pieces go into checkpoint extents one after the other. When all extents are
//! sealed, HEAD is swapped, conditional on the epoch and on the HEAD before. If anything goes wrong on the way the attempt
//! is abandoned: its extents are garbage, and another one begins later.

use super::table::{Title, encode};
use crate::block::map::{ExtentIndex, LEAF_BLOCKS, Snapshot};
use crate::block::record::BlockRecord;
use crate::format::{Frame, FrameHeader, Pieces, Stream, crc};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentId, ExtentSeq, Lba, Vseq};
use crate::limits::{APPEND_WAIT, CHECKPOINT_BLOCKS_UNDERWAY_MAX, FRAME_PAYLOAD_BLOCKS_MAX};
use crate::log::open::{Phase, Placed};
use crate::log::table::Entry;
use crate::log::{Call, Effects, Log};
use crate::meta::docs::{HeadDoc, SealedExtent};
use crate::mutation::{self, Mutation};
use crate::peer::Request;
use crate::time::Instant;
use bytes::Bytes;
use std::collections::VecDeque;

const PIECE_BYTES: usize = FRAME_PAYLOAD_BLOCKS_MAX as usize * BLOCK_SIZE;

/// A checkpoint that is being written.
#[derive(Debug)]
pub struct Checkpoint {
    title: Title,
    snapshot: Snapshot,
    /// The table as it goes into the checkpoint.
    table: Vec<Entry>,
    written: usize,
    /// The number of each extent in that table, by its index in the owner's.
    numbers: Vec<u32>,
    map_from: Option<Lba>,
    ready: VecDeque<(BlockRecord, Bytes)>,
    pieces: u64,
    bytes: u64,
    current: Option<ExtentSeq>,
    extents: Vec<ExtentSeq>,
    /// Sealed extents that the table lists: they need no key of their own afterwards.
    pub contained: Vec<ExtentSeq>,
    /// Extents that the table lists as dead.
    pub dead: Vec<ExtentSeq>,
}

/// How far a checkpoint has come.
#[derive(Debug)]
pub enum Progress {
    /// Not finished.
    Underway,
    /// It cannot be finished.
    Abandoned,
    /// All extents are sealed and proven: this is the HEAD to commit.
    Written(HeadDoc),
}

impl Checkpoint {
    /// Takes the picture. Everything acknowledged is durable at this moment.
    #[must_use]
    pub fn begin(log: &Log, snapshot: Snapshot) -> Checkpoint {
        let vseq = log.writer.lac();
        assert_eq!(vseq, log.writer.acked(), "a checkpoint is taken when everything acknowledged is durable");
        let mut dead = log.garbage(vseq);
        // The checkpoints before this one are needed no more once HEAD names this one.
        dead.extend(log.table.iter().filter(|(_, e)| e.pinned && e.stream == Stream::Checkpoint).map(|(_, e)| e.seq));
        let mut numbers = Vec::new();
        let mut table = Vec::new();
        let mut contained = Vec::new();
        for (index, entry) in log.table.iter() {
            if numbers.len() <= index.get() {
                numbers.resize(index.get() + 1, u32::MAX);
            }
            numbers[index.get()] = table.len() as u32;
            let mut entry = entry.clone();
            entry.dead = dead.contains(&entry.seq);
            if entry.seal().is_some() && (entry.dead || entry.stream == Stream::Log) {
                contained.push(entry.seq);
            }
            table.push(entry);
        }
        Checkpoint {
            title: Title { volume: log.config.volume, size: snapshot.blocks(), vseq },
            snapshot,
            table,
            written: 0,
            numbers,
            map_from: Some(Lba(if mutation::active(Mutation::CheckpointIncomplete) { LEAF_BLOCKS } else { 0 })),
            ready: VecDeque::new(),
            pieces: 0,
            bytes: 0,
            current: None,
            extents: Vec::new(),
            contained,
            dead,
        }
    }

    /// The last record it contains.
    #[must_use]
    pub fn vseq(&self) -> Vseq {
        self.title.vseq
    }

    /// Blocks written so far, frames' headers included.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.pieces + self.bytes.div_ceil(BLOCK_SIZE as u64)
    }

    /// Its extents.
    #[must_use]
    pub fn extents(&self) -> &[ExtentSeq] {
        &self.extents
    }

    /// The next piece, made when it is needed.
    fn piece(&mut self) -> Option<&(BlockRecord, Bytes)> {
        if self.ready.is_empty() {
            let (bytes, record): (Vec<u8>, fn(u32) -> BlockRecord) =
                if self.written < self.table.len() || self.pieces == 0 {
                    let (bytes, count) = encode(&self.title, &self.table[self.written..], PIECE_BYTES);
                    self.written += count;
                    (bytes, |bytes| BlockRecord::Table { bytes })
                } else {
                    let mut bytes = Vec::new();
                    let numbers = &self.numbers;
                    let mut number = |index: ExtentIndex| {
                        ExtentIndex::new(numbers[index.get()]).expect("the map refers to extents of the table alone")
                    };
                    self.map_from = self.snapshot.encode(self.map_from?, PIECE_BYTES, &mut number, &mut bytes);
                    (bytes, |bytes| BlockRecord::Map { bytes })
                };
            let record = record(bytes.len() as u32);
            let mut padded = bytes;
            padded.resize(padded.len().next_multiple_of(BLOCK_SIZE), 0);
            self.ready.push_back((record, padded.into()));
        }
        self.ready.front()
    }

    /// Does what can be done now.
    pub fn turn(&mut self, now: Instant, log: &mut Log, out: &mut Effects) -> Progress {
        loop {
            let Some(seq) = self.current else {
                if self.piece().is_none() {
                    return self.finish(log);
                }
                let Some(&seq) = log.register_checkpoint(now, out).first() else { return Progress::Underway };
                self.current = Some(seq);
                self.extents.push(seq);
                continue;
            };
            let Some(x) = log.writer.open.get_mut(&seq) else { return Progress::Abandoned };
            match x.phase {
                Phase::Registering | Phase::Creating => return Progress::Underway,
                Phase::Closing | Phase::Sealing => return Progress::Abandoned,
                Phase::Ready => {}
            }
            let durable = x.durable();
            x.frames.retain(|f| f.end > durable);
            let (length, room) = (x.length, log.config.capacity - x.length);
            let fits = self.piece().is_some_and(|(_, bytes)| ((bytes.len() / BLOCK_SIZE) as Blocks) < room);
            if !fits {
                // Full, or the last: it ends when all of it is durable.
                if durable < length {
                    return Progress::Underway;
                }
                let x = log.writer.open.get_mut(&seq).expect("the extent is open");
                (x.popped, x.popped_end) = (x.last, x.length);
                x.close(false);
                log.table.get_mut(seq).expect("a registered extent is in the table").pinned = true;
                self.current = None;
                continue;
            }
            if length - durable > CHECKPOINT_BLOCKS_UNDERWAY_MAX {
                return Progress::Underway;
            }
            self.send(now, log, seq, out);
        }
    }

    /// Sends the next piece to all members of `seq`.
    fn send(&mut self, now: Instant, log: &mut Log, seq: ExtentSeq, out: &mut Effects) {
        let (record, payload) = self.ready.pop_front().expect("a piece is ready");
        let epoch = log.writer.epoch();
        let x = log.writer.open.get_mut(&seq).expect("the extent is open");
        self.pieces += 1;
        self.bytes += payload.len() as u64;
        let id = ExtentId { volume: log.config.volume, seq };
        let header = FrameHeader {
            extent: id,
            offset: x.length,
            stream: Stream::Checkpoint,
            epoch,
            base: Vseq(self.pieces),
            lac: Vseq(0),
            records: [record.encode()].into_iter().collect(),
            crcs: payload.chunks_exact(BLOCK_SIZE).map(crc).collect(),
        };
        let frame = Frame { header: header.encode(), payload: Pieces::from_iter([payload]) };
        x.length += header.blocks();
        x.last = header.base;
        x.frames.push_back(Placed { base: header.base, last: header.base, end: x.length });
        for member in &x.members {
            let request =
                Request::Append { extent: id, epoch, offset: header.offset, frame: frame.clone(), early: false };
            let call = Call::Append { seq, end: header.offset + header.blocks() };
            log.calls.send(now, member.agent, request, APPEND_WAIT, call, out);
        }
    }

    /// When every extent is sealed and a member has told its content: the HEAD.
    fn finish(&self, log: &Log) -> Progress {
        let mut extents = Vec::new();
        for &seq in &self.extents {
            let Some(entry) = log.table.get(seq) else { return Progress::Abandoned };
            let (Some(seal), Some(digest)) = (entry.seal(), entry.digest()) else { return Progress::Underway };
            if seal.length == 0 {
                return Progress::Abandoned;
            }
            let members = entry.members.iter().map(|m| m.agent).collect();
            extents.push(SealedExtent { seq, members, length: seal.length, digest });
        }
        Progress::Written(HeadDoc { epoch: log.writer.epoch(), vseq: self.title.vseq, extents, bytes: self.bytes })
    }
}
