//! Garbage collection: empties one sealed extent after the other.
//!
//! A victim's frame headers tell which addresses its blocks were written for; those that the map still sees there are read
//! and appended again as RELOC records, in extents of their own (what has lived this long tends to live longer). RELOC is
//! conditional, so a client's write that comes in between wins. The victim is not deleted here: when nothing refers to it any
//! more it is garbage, and the next checkpoint declares it dead.
//!
//! Records are handed to the writer by the frame, so that a header is not spent on less than one frame can hold, and no longer
//! than [`moved_blocks_max`], so that little is left over at an extent's end: [`space`](super::space) counts on both.
//!
//! Not here: when to collect, and what ([`space`](super::space)).

use super::map::{ExtentIndex, Loc, Map};
use super::reads::{Ask, Asks};
use super::record::BlockRecord;
use super::space::{Candidate, moved_blocks_max, room_made};
use crate::format::{FrameHeader, Pieces, frame};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentId, ExtentSeq, Lba};
use crate::limits::{
    FRAME_PAYLOAD_BLOCKS_MAX, FRAME_RECORDS_MAX, GC_READS_MAX, GC_RECORDS_MAX, GC_SKIP_PAUSE, PEER_WAIT,
    READ_BLOCKS_MAX, RETRY_PAUSE,
};
use crate::log::{Call, Effects, Item, Lane, Log};
use crate::peer::{Request, Response, Unanswered};
use crate::time::Instant;
use std::collections::BTreeMap;

/// Set in the cookie of a record that garbage collection appended.
pub const GC_COOKIE: u64 = 1 << 63;

/// A run of blocks that is still needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Live {
    lba: Lba,
    block: Blocks,
    blocks: Blocks,
}

#[derive(Debug)]
struct Victim {
    index: ExtentIndex,
    seq: ExtentSeq,
    length: Blocks,
    /// Blocks that were needed when it was chosen, and the room that emptying it makes.
    live_then: Blocks,
    room: Blocks,
    /// What of that was given to clients already.
    given: Blocks,
    /// How far its frame headers are read.
    indexed: Blocks,
    asking: bool,
    retry: Instant,
    tried: usize,
    /// Still to be read, in the order of their blocks; the next is the last.
    live: Vec<Live>,
    reading: BTreeMap<u64, Vec<Live>>,
}

/// The collector of one volume.
#[derive(Default, Debug)]
pub struct Gc {
    victim: Option<Victim>,
    reads: u64,
    /// Extents chosen so far.
    begun: u64,
    /// Records that wait for a frame's worth of them.
    packing: Vec<Item>,
    /// Records made and not yet acknowledged.
    underway: usize,
    /// Extents that could not be emptied, and until when they are left alone.
    skip: BTreeMap<ExtentSeq, Instant>,
    /// Blocks moved since the volume was opened.
    pub moved: u64,
}

impl Gc {
    /// Whether it has, or will have, records to append.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.victim.is_some() || self.underway > 0
    }

    /// One of its records is in place: how much room that makes, in step with the work.
    pub fn on_acked(&mut self, blocks: Blocks) -> Blocks {
        self.underway -= 1;
        self.moved += u64::from(blocks);
        self.victim.as_mut().map_or(0, |victim| {
            let part = u64::from(victim.room) * u64::from(blocks) / u64::from(victim.live_then.max(1));
            victim.give(part as Blocks)
        })
    }

    /// When it wants attention even if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.victim.as_ref().filter(|v| !v.asking && v.retry > Instant::default()).map(|v| v.retry)
    }

    /// Has no victim: [`Gc::begin`] may give it one.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.victim.is_none()
    }

    /// Changes whenever it gets ahead.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.moved + self.reads + self.begun
    }

    /// Whether an extent could not be emptied a short while ago.
    #[must_use]
    pub fn skips(&self, now: Instant, seq: ExtentSeq) -> bool {
        self.skip.get(&seq).is_some_and(|until| now < *until)
    }

    /// Begins to empty an extent, which ends at `length`.
    pub fn begin(&mut self, candidate: &Candidate, length: Blocks, capacity: Blocks) {
        self.begun += 1;
        self.victim = Some(Victim {
            index: candidate.index,
            seq: candidate.seq,
            length,
            live_then: candidate.live,
            room: room_made(capacity, candidate.live),
            given: 0,
            indexed: 0,
            asking: false,
            retry: Instant::default(),
            tried: 0,
            live: Vec::new(),
            reading: BTreeMap::new(),
        });
    }

    /// Goes on with its victim.
    pub fn turn(&mut self, now: Instant, map: &Map, log: &mut Log, asks: &mut Asks, out: &mut Effects) {
        log.want_cold(self.is_busy());
        let Some(victim) = &mut self.victim else { return };
        let entry = match log.table.find(victim.seq) {
            Some(index) if index == victim.index => log.table.at(index),
            // Overwritten, declared dead and deleted meanwhile.
            _ => return self.end(log),
        };
        let idle = victim.reading.is_empty() && !victim.asking;
        if entry.is_garbage() && idle {
            return self.end(log);
        }
        if victim.live.is_empty() && idle && victim.indexed >= victim.length {
            // Some of it could not be moved, or is on its way. The former is for a later try.
            let seq = victim.seq;
            self.hand_over(log);
            if self.underway == 0 {
                self.skip.retain(|_, until| now < *until);
                self.skip.insert(seq, now + GC_SKIP_PAUSE);
                self.victim = None;
            }
            return;
        }
        if now < victim.retry {
            return;
        }
        victim.retry = Instant::default();
        let sources: Vec<_> = entry.members.iter().map(|m| m.agent).filter(|&a| log.peers.usable(a)).collect();
        let Some(&agent) = sources.get(victim.tried % sources.len().max(1)) else {
            // Nobody who has it can be reached: another victim, then.
            if idle {
                let seq = victim.seq;
                self.skip.insert(seq, now + RETRY_PAUSE);
                return self.end(log);
            }
            victim.retry = now + RETRY_PAUSE;
            return;
        };
        let (extent, epoch) = (ExtentId { volume: log.config.volume, seq: victim.seq }, log.writer.epoch());
        if victim.live.is_empty() && victim.indexed < victim.length && !victim.asking {
            victim.asking = true;
            let request = Request::Frames { extent, epoch, from: victim.indexed };
            log.calls.send(now, agent, request, PEER_WAIT, Call::Upper(asks.insert(Ask::GcFrames)), out);
        }
        while victim.reading.len() < GC_READS_MAX && self.underway < GC_RECORDS_MAX {
            let batch = next_batch(&mut victim.live, map, victim.index);
            let (Some(first), Some(last)) = (batch.first(), batch.last()) else { break };
            let (offset, blocks) = (first.block, last.block + last.blocks - first.block);
            self.reads += 1;
            victim.reading.insert(self.reads, batch);
            let request = Request::Read { extent, epoch, offset, blocks };
            let upper = asks.insert(Ask::GcBlocks(self.reads));
            log.calls.send(now, agent, request, PEER_WAIT, Call::Upper(upper), out);
        }
    }

    /// Lets the victim go; what was read of it is moved all the same.
    fn end(&mut self, log: &mut Log) {
        if let Some(mut victim) = self.victim.take() {
            log.writer.allow(victim.give(victim.room));
        }
        self.hand_over(log);
    }

    /// Gives the writer what was packed.
    fn hand_over(&mut self, log: &mut Log) {
        for item in self.packing.drain(..) {
            log.writer.append(Lane::Cold, item);
        }
    }

    /// The victim's frame headers have come.
    pub fn on_frames(&mut self, now: Instant, map: &Map, log: &Log, result: Result<Response, Unanswered>) {
        let Some(victim) = &mut self.victim else { return };
        victim.asking = false;
        let before = victim.indexed;
        let extent = ExtentId { volume: log.config.volume, seq: victim.seq };
        let mut found = Vec::new();
        if let Ok(Response::Frames { headers, .. }) = result {
            for bytes in headers {
                let Ok(header) = FrameHeader::decode(&bytes, extent, victim.indexed) else { break };
                find_live(&header, map, victim.index, &mut found);
                victim.indexed += header.blocks();
            }
        }
        if victim.indexed == before {
            victim.tried += 1;
            victim.retry = now + RETRY_PAUSE;
        }
        found.reverse();
        victim.live = found;
    }

    /// Blocks of the victim have come.
    pub fn on_blocks(
        &mut self,
        now: Instant,
        read: u64,
        map: &Map,
        log: &mut Log,
        result: Result<Response, Unanswered>,
    ) {
        let Some(victim) = &mut self.victim else { return };
        let Some(batch) = victim.reading.remove(&read) else { return };
        let first = batch[0].block;
        match result {
            Ok(Response::Data { crcs, bytes }) if frame::verify(&crcs, &bytes).is_ok() => {
                let most = moved_blocks_max(log.config.capacity);
                let pieces = batch.into_iter().flat_map(|live| cut(live, most));
                for live in pieces.filter(|l| still_there(map, victim.index, l)) {
                    let at = (live.block - first) as usize * BLOCK_SIZE;
                    let payload = bytes.slice(at..at + live.blocks as usize * BLOCK_SIZE);
                    let record =
                        BlockRecord::Reloc { lba: live.lba, blocks: live.blocks, from: (victim.seq, live.block) };
                    let item =
                        Item { record: record.encode(), payload: Pieces::from_iter([payload]), cookie: GC_COOKIE };
                    self.packing.push(item);
                    self.underway += 1;
                    let blocks: Blocks = self.packing.iter().map(|i| Blocks::from(i.record.payload_blocks)).sum();
                    if self.packing.len() >= FRAME_RECORDS_MAX || blocks + most > FRAME_PAYLOAD_BLOCKS_MAX {
                        self.packing.drain(..).for_each(|item| log.writer.append(Lane::Cold, item));
                    }
                }
            }
            _ => {
                // Another member, then; if none has it, reads will find out and tell.
                victim.tried += 1;
                victim.retry = now + RETRY_PAUSE;
                if victim.tried < 8 {
                    // Batches fail in any order, and the next one is cut from the end.
                    victim.live.extend(batch);
                    victim.live.sort_unstable_by_key(|live| std::cmp::Reverse(live.block));
                }
            }
        }
    }
}

impl Victim {
    /// So much more of its room, as far as there is any left to give.
    fn give(&mut self, blocks: Blocks) -> Blocks {
        let blocks = blocks.min(self.room - self.given);
        self.given += blocks;
        blocks
    }
}

/// A run as runs of at most so many blocks.
fn cut(live: Live, most: Blocks) -> impl Iterator<Item = Live> {
    (0..live.blocks).step_by(most as usize).map(move |done| Live {
        lba: Lba(live.lba.0 + u64::from(done)),
        block: live.block + done,
        blocks: most.min(live.blocks - done),
    })
}

/// Whether any block of a run is still needed where it was.
fn still_there(map: &Map, index: ExtentIndex, live: &Live) -> bool {
    map.get(live.lba, u64::from(live.blocks)).any(|run| {
        run.at.is_some_and(|at| {
            at.extent == index && u64::from(at.block) == u64::from(live.block) + (run.lba.0 - live.lba.0)
        })
    })
}

/// The runs of a frame that the map still sees in it.
fn find_live(header: &FrameHeader, map: &Map, index: ExtentIndex, found: &mut Vec<Live>) {
    let mut block = header.offset + 1;
    for record in &header.records {
        let blocks = Blocks::from(record.payload_blocks);
        if let Some(BlockRecord::Write { lba, .. } | BlockRecord::Reloc { lba, .. }) = BlockRecord::decode(record)
            && lba.0 + u64::from(blocks) <= map.blocks()
        {
            for run in map.get(lba, u64::from(blocks)) {
                let here = block + (run.lba.0 - lba.0) as Blocks;
                if run.at == Some(Loc { extent: index, block: here }) {
                    found.push(Live { lba: run.lba, block: here, blocks: run.blocks as Blocks });
                }
            }
        }
        block += blocks;
    }
}

/// Takes runs that lie close together off the end of `live`, for one read.
fn next_batch(live: &mut Vec<Live>, map: &Map, index: ExtentIndex) -> Vec<Live> {
    const GAP_MAX: Blocks = 8;
    let mut batch: Vec<Live> = Vec::new();
    while let Some(&next) = live.last() {
        if !still_there(map, index, &next) {
            live.pop();
            continue;
        }
        if let (Some(first), Some(last)) = (batch.first(), batch.last()) {
            let gap = next.block - (last.block + last.blocks);
            if gap > GAP_MAX || next.block + next.blocks - first.block > READ_BLOCKS_MAX {
                break;
            }
        }
        batch.push(next);
        live.pop();
    }
    batch
}
