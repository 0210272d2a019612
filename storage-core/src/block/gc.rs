//! Garbage collection: empties the sealed extents of which the least is still needed.
//!
//! A victim's frame headers tell which addresses its blocks were written for; those that the map still sees there are read
//! and appended again as RELOC records, in extents of their own (what has lived this long tends to live longer). RELOC is
//! conditional, so a client's write that comes in between wins. The victim is not deleted here: when nothing refers to it any
//! more it is garbage, and the next checkpoint declares it dead.

use super::map::{ExtentIndex, Loc, Map};
use super::reads::{Ask, Asks};
use super::record::BlockRecord;
use crate::format::{FrameHeader, Pieces, Stream, frame};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentId, ExtentSeq, Lba};
use crate::limits::{GC_READS_MAX, GC_RECORDS_MAX, PEER_WAIT, READ_BLOCKS_MAX, RETRY_PAUSE};
use crate::log::{Call, Effects, Item, Lane, Log};
use crate::peer::{Request, Response, Unanswered};
use crate::time::Instant;
use std::collections::{BTreeMap, BTreeSet};

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
    /// Records appended and not yet acknowledged.
    underway: usize,
    /// Extents that could not be emptied for now.
    skip: BTreeSet<ExtentSeq>,
    /// Blocks moved since the volume was opened.
    pub moved: u64,
}

/// How much room there is, as the collector sees it.
///
/// Blocks are not all that counts: an extent takes a slot however early it ended, and one that lost a member may end after
/// a few blocks. In a tight pool extents are therefore also merged, as long as that surely gains a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pressure {
    /// Sealed blocks of the volume, needed or not.
    pub used: u64,
    /// Blocks that the map refers to.
    pub live: u64,
    /// The pool has little room left.
    pub tight: bool,
    /// Some extents hold so little that moving it together gives back a slot.
    pub scattered: bool,
}

impl Pressure {
    /// Blocks that could be given back.
    #[must_use]
    pub fn garbage(&self) -> u64 {
        self.used.saturating_sub(self.live)
    }

    /// Looks at a volume.
    #[must_use]
    pub fn of(log: &Log) -> Pressure {
        let (mut used, mut live) = (0, 0);
        let mut each = Vec::new();
        for (_, entry) in log.table.iter() {
            if let Some(seal) = entry.seal().filter(|_| entry.stream == Stream::Log && !entry.is_garbage()) {
                used += u64::from(seal.length);
                live += u64::from(entry.live);
                each.push(entry.live);
            }
        }
        let space = log.space();
        let tight = space.free * 4 < space.total || log.is_refused();
        Pressure { used, live, tight, scattered: tight && is_scattered(each, log.config.capacity) }
    }

    /// Whether anything is going to be given back in a pool that is tight: writes wait for that, so this must be nothing that
    /// [`collect`](Self::collect) leaves alone.
    #[must_use]
    pub fn hope(&self, capacity: Blocks) -> bool {
        let slack = u64::from(capacity);
        self.scattered || self.garbage() > (2 * slack).max(slack + self.live / 16)
    }

    /// Whether extents should be emptied: at once when the pool is tight, otherwise when a third is garbage.
    #[must_use]
    pub fn collect(&self, capacity: Blocks) -> bool {
        let slack = u64::from(capacity);
        match self.tight {
            true => self.scattered || self.garbage() > slack + self.live / 16,
            false => self.garbage() > 8 * slack + self.live / 2,
        }
    }
}

/// Whether the emptiest of these extents fit together into fewer, even if each block needs a header of its own. So merging
/// always gains, and comes to an end.
fn is_scattered(mut live: Vec<Blocks>, capacity: Blocks) -> bool {
    live.sort_unstable();
    let mut sum = 0;
    live.iter().enumerate().any(|(others, live)| {
        sum += 2 * u64::from(*live);
        others > 0 && sum <= others as u64 * u64::from(capacity)
    })
}

impl Gc {
    /// Whether it has, or will have, records to append.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.victim.is_some() || self.underway > 0
    }

    /// One of its records is in place.
    pub fn on_acked(&mut self, blocks: Blocks) {
        self.underway -= 1;
        self.moved += u64::from(blocks);
    }

    /// When it wants attention even if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.victim.as_ref().filter(|v| !v.asking && v.retry > Instant::default()).map(|v| v.retry)
    }

    /// Goes on with a victim, or finds one if `pressure` is such.
    pub fn turn(
        &mut self,
        now: Instant,
        pressure: Option<Pressure>,
        map: &Map,
        log: &mut Log,
        asks: &mut Asks,
        out: &mut Effects,
    ) {
        if self.victim.is_none()
            && let Some(pressure) = pressure.filter(|pressure| pressure.collect(log.config.capacity))
        {
            self.victim = self.choose(log, pressure.scattered);
        }
        log.want_cold(self.is_busy());
        let Some(victim) = &mut self.victim else { return };
        let entry = log.table.at(victim.index);
        let idle = victim.reading.is_empty() && !victim.asking;
        if entry.is_garbage() && idle {
            self.victim = None;
            return;
        }
        if victim.live.is_empty() && idle && victim.indexed >= victim.length {
            // Some of it could not be moved, or is on its way. The former is for a later try.
            if self.underway == 0 {
                self.skip.insert(victim.seq);
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

    /// The sealed extent of which the least is needed, if emptying it gains anything. With `merge`, one that is merely short
    /// will do.
    fn choose(&mut self, log: &Log, merge: bool) -> Option<Victim> {
        let half = log.config.capacity / 2;
        let candidate = |skip: &BTreeSet<ExtentSeq>| {
            log.table
                .iter()
                .filter(|(_, e)| e.stream == Stream::Log && !e.is_garbage() && !e.dead && !skip.contains(&e.seq))
                .filter_map(|(index, e)| e.seal().map(|seal| (index, e.seq, e.live, seal.length)))
                .filter(|(_, _, live, length)| *live < length - length / 16 || merge && *live <= half)
                .min_by_key(|(_, _, live, _)| *live)
        };
        let (index, seq, _, length) = match candidate(&self.skip) {
            Some(found) => found,
            None => {
                self.skip.clear();
                candidate(&self.skip)?
            }
        };
        Some(Victim {
            index,
            seq,
            length,
            indexed: 0,
            asking: false,
            retry: Instant::default(),
            tried: 0,
            live: Vec::new(),
            reading: BTreeMap::new(),
        })
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
                for live in batch.into_iter().filter(|l| still_there(map, victim.index, l)) {
                    let at = (live.block - first) as usize * BLOCK_SIZE;
                    let payload = bytes.slice(at..at + live.blocks as usize * BLOCK_SIZE);
                    let record =
                        BlockRecord::Reloc { lba: live.lba, blocks: live.blocks, from: (victim.seq, live.block) };
                    let item =
                        Item { record: record.encode(), payload: Pieces::from_iter([payload]), cookie: GC_COOKIE };
                    log.writer.append(Lane::Cold, item);
                    self.underway += 1;
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
