//! Reads: of blocks, and of frame headers. Every block is checked against the sum that was taken of it when it was
//! accepted, before anyone sees it.
//!
//! Sums of an open copy are in memory; those of a sealed one are in its footer, which is read beside the data, not
//! before it, and kept in a [`FooterCache`]. Only what is durable is read from the disk: a read of what is still on its
//! way waits for its commit, so that no read ever meets a half-written sector.
//!
//! How many reads are open is bounded by what the drivers let in: each belongs to one request.

use super::disk::{Content, DiskCore};
use super::port::{DiskError, DiskErrorKind, DiskOp, MemberEffects, ReqId};
use crate::format::crc;
use crate::format::slot::{FOOTER_COVERS, FooterBlock, SealName, block_matches};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentId};
use crate::limits::{FOOTER_CACHE_BYTES, FRAMES_HEADERS_MAX, READ_BLOCKS_MAX};
use crate::mutation::{Mutation, active};
use crate::peer::Rejection;
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Headers this close to each other are read in one go, with the payload between them.
const HEADER_GAP_MAX: Blocks = 8;

/// Blocks somebody wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub req: ReqId,
    pub slot: u32,
    pub offset: Blocks,
    pub blocks: Blocks,
}

/// A block and the sum it must have.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    block: Blocks,
    sum: u32,
    is_head: bool,
}

/// What a job is for.
#[derive(Debug)]
enum Goal {
    /// `blocks` from `offset`; what they must be is in the job's `wanted`, or will be once the footers are here.
    Data { offset: Blocks, blocks: Blocks },
    /// Headers from a block on: the footers will tell where they are.
    FindHeaders { from: Blocks },
    /// These headers, and whether they are the last.
    Headers { end: bool },
}

/// Something a disk was asked for.
#[derive(Clone, Copy, Debug)]
enum Part {
    Footer(u32),
    /// Blocks of frames.
    Frames(Blocks, Blocks),
}

#[derive(Debug)]
struct Job {
    req: ReqId,
    slot: u32,
    goal: Goal,
    wanted: SmallVec<[Wanted; 4]>,
    /// Of a sealed copy.
    seal: Option<SealName>,
    footers: SmallVec<[(u32, FooterBlock); 2]>,
    frames: SmallVec<[(Blocks, Bytes); 1]>,
    waiting: usize,
    failure: Option<Rejection>,
}

/// The reads of one disk.
#[derive(Debug)]
pub(super) struct Reads {
    next: u64,
    jobs: BTreeMap<u64, Job>,
    parts: BTreeMap<u64, (u64, Part)>,
    footers: FooterCache,
}

impl Default for Reads {
    fn default() -> Reads {
        let footers = FooterCache::new(FOOTER_CACHE_BYTES / BLOCK_SIZE);
        Reads { next: 0, jobs: BTreeMap::new(), parts: BTreeMap::new(), footers }
    }
}

impl DiskCore {
    /// Blocks of an extent.
    pub(super) fn read_blocks(
        &mut self,
        req: ReqId,
        extent: ExtentId,
        offset: Blocks,
        blocks: Blocks,
        out: &mut MemberEffects,
    ) {
        if !(1..=READ_BLOCKS_MAX).contains(&blocks) {
            let text = format!("a read of {blocks} blocks: 1 to {READ_BLOCKS_MAX} are taken");
            return out.replies.refuse(req, Rejection::BadBytes(text));
        }
        match self.extents.get(&extent) {
            Some(slot) => self.read(Ask { req, slot: *slot, offset, blocks }, out),
            None => out.replies.refuse(req, Rejection::NoSuchExtent),
        }
    }

    pub(super) fn read(&mut self, ask: Ask, out: &mut MemberEffects) {
        let Ask { req, slot, offset, blocks } = ask;
        let end = offset.saturating_add(blocks);
        let failed = self.check_works();
        let (wanted, seal) = match &mut self.slots[slot as usize].content {
            Content::Open(copy) => {
                let length = copy.length();
                if end > length {
                    return out.replies.refuse(req, Rejection::PastEnd { length });
                }
                if end > copy.durable.get().length {
                    return match failed {
                        Ok(()) => copy.reads.push((end, ask)),
                        Err(why) => out.replies.refuse(req, why),
                    };
                }
                let frames = &copy.frames;
                let mut heads = frames.heads(offset).peekable();
                let wanted = (offset..end)
                    .map(|block| Wanted {
                        block,
                        sum: frames.sums()[block as usize],
                        is_head: heads.next_if_eq(&block).is_some(),
                    })
                    .collect();
                (wanted, None)
            }
            Content::Sealed(_, seal) => {
                let seal = *seal.get();
                if end > seal.length {
                    return out.replies.refuse(req, Rejection::PastEnd { length: seal.length });
                }
                (SmallVec::new(), Some(seal))
            }
            Content::Free | Content::Found(..) | Content::Leaving(..) | Content::Damaged => {
                return out.replies.refuse(req, failed.err().unwrap_or(Rejection::NoSuchExtent));
            }
        };
        self.stats.reads += 1;
        self.stats.read_blocks += u64::from(blocks);
        let goal = Goal::Data { offset, blocks };
        let footers = seal.map_or(0..0, |_| offset / FOOTER_COVERS..(end - 1) / FOOTER_COVERS + 1);
        self.begin(Job::new(req, slot, goal, wanted, seal), footers, &[(offset, blocks)], out);
    }

    /// The headers of an extent's frames, from block `from` on.
    pub(super) fn frames(&mut self, req: ReqId, extent: ExtentId, from: Blocks, out: &mut MemberEffects) {
        let Some(slot) = self.extents.get(&extent).copied() else {
            return out.replies.refuse(req, Rejection::NoSuchExtent);
        };
        match &self.slots[slot as usize].content {
            Content::Open(copy) => {
                let length = copy.durable.get().length.min(copy.length());
                let frames = &copy.frames;
                let mut heads = frames.heads(from).take_while(|head| *head < length);
                let wanted: SmallVec<[Wanted; 4]> = heads
                    .by_ref()
                    .take(FRAMES_HEADERS_MAX)
                    .map(|block| Wanted { block, sum: frames.sums()[block as usize], is_head: true })
                    .collect();
                let end = heads.next().is_none();
                drop(heads);
                let ranges = ranges_of(&wanted);
                self.begin(Job::new(req, slot, Goal::Headers { end }, wanted, None), 0..0, &ranges, out);
            }
            Content::Sealed(_, seal) => {
                // No frame is longer than a footer block covers, so two of them always show the next header.
                let seal = *seal.get();
                let first = from / FOOTER_COVERS;
                let footers = first..(first.saturating_add(2)).min(seal.length.div_ceil(FOOTER_COVERS)).max(first);
                let job = Job::new(req, slot, Goal::FindHeaders { from }, SmallVec::new(), Some(seal));
                self.begin(job, footers, &[], out);
            }
            Content::Free | Content::Found(..) | Content::Leaving(..) | Content::Damaged => {
                out.replies.refuse(req, self.check_works().err().unwrap_or(Rejection::NoSuchExtent));
            }
        }
    }

    /// Starts `job` with what it needs first.
    fn begin(
        &mut self,
        mut job: Job,
        footers: std::ops::Range<u32>,
        ranges: &[(Blocks, Blocks)],
        out: &mut MemberEffects,
    ) {
        self.reads.next += 1;
        let id = self.reads.next;
        self.slots[job.slot as usize].readers += 1;
        for index in footers {
            let seal = job.seal.expect("only sealed copies have a footer");
            match self.reads.footers.get(job.slot, index, &seal) {
                Some(footer) => job.footers.push((index, footer)),
                None => {
                    self.stats.footer_reads += 1;
                    let offset = self.geometry.footer_at(job.slot, index);
                    self.ask_disk(id, &mut job, Part::Footer(index), offset, BLOCK_SIZE, out);
                }
            }
        }
        self.ask_ranges(id, &mut job, ranges, out);
        self.proceed(id, job, out);
    }

    fn ask_ranges(&mut self, id: u64, job: &mut Job, ranges: &[(Blocks, Blocks)], out: &mut MemberEffects) {
        for (first, blocks) in ranges {
            let (offset, len) = (self.geometry.data_at(job.slot, *first), *blocks as usize * BLOCK_SIZE);
            self.ask_disk(id, job, Part::Frames(*first, *blocks), offset, len, out);
        }
    }

    fn ask_disk(&mut self, job: u64, state: &mut Job, part: Part, offset: u64, len: usize, out: &mut MemberEffects) {
        self.reads.next += 1;
        state.waiting += 1;
        self.reads.parts.insert(self.reads.next, (job, part));
        out.ops.push((self.no, DiskOp::Read { id: self.reads.next, offset, len }));
    }

    /// The disk answers a read.
    pub(super) fn on_read(&mut self, id: u64, result: Result<Bytes, DiskError>, out: &mut MemberEffects) {
        let (job_id, part) = self.reads.parts.remove(&id).expect("an answer to a read that was not asked for");
        let mut job = self.reads.jobs.remove(&job_id).expect("a part of a read belongs to a job");
        job.waiting -= 1;
        if let Err(why) = self.take_in(&mut job, part, result) {
            job.failure.get_or_insert(why);
        }
        self.proceed(job_id, job, out);
    }

    fn take_in(&mut self, job: &mut Job, part: Part, result: Result<Bytes, DiskError>) -> Result<(), Rejection> {
        let (first, blocks) = match part {
            Part::Footer(index) => (index * FOOTER_COVERS, 1),
            Part::Frames(first, blocks) => (first, blocks),
        };
        let bytes = match result {
            Ok(bytes) if bytes.len() == blocks as usize * BLOCK_SIZE => bytes,
            Err(DiskError { kind: DiskErrorKind::Gone, text }) => return Err(Rejection::DiskFailed(text)),
            Ok(_) | Err(_) => return Err(Rejection::Damaged { block: first }),
        };
        match part {
            Part::Frames(..) => job.frames.push((first, bytes)),
            Part::Footer(index) => {
                let seal = job.seal.expect("only sealed copies have a footer");
                let footer = FooterBlock::decode(bytes, &seal, index).ok_or(Rejection::Damaged { block: first })?;
                self.reads.footers.put(job.slot, index, &seal, footer.clone());
                job.footers.push((index, footer));
            }
        }
        Ok(())
    }

    /// Goes on with `job` if all it asked for has come.
    fn proceed(&mut self, id: u64, mut job: Job, out: &mut MemberEffects) {
        if job.waiting == 0
            && job.failure.is_none()
            && let Goal::FindHeaders { from } = job.goal
        {
            let end = job.find_headers(from);
            job.goal = Goal::Headers { end };
            let ranges = ranges_of(&job.wanted);
            self.ask_ranges(id, &mut job, &ranges, out);
        }
        if job.waiting > 0 {
            self.reads.jobs.insert(id, job);
            return;
        }
        let slot = job.slot;
        if let Err(why) = job.finish(out) {
            self.stats.reads_damaged += u64::from(matches!(why.1, Rejection::Damaged { .. }));
            out.replies.refuse(why.0, why.1);
        }
        self.slots[slot as usize].readers -= 1;
        self.give_back(slot);
    }
}

/// Groups headers into ranges to read: few, and without much between.
fn ranges_of(wanted: &[Wanted]) -> SmallVec<[(Blocks, Blocks); 4]> {
    let mut ranges: SmallVec<[(Blocks, Blocks); 4]> = SmallVec::new();
    for Wanted { block, .. } in wanted {
        match ranges.last_mut() {
            Some((first, blocks))
                if *block - (*first + *blocks) < HEADER_GAP_MAX && *block - *first < READ_BLOCKS_MAX =>
            {
                *blocks = *block - *first + 1;
            }
            _ => ranges.push((*block, 1)),
        }
    }
    ranges
}

impl Job {
    fn new(req: ReqId, slot: u32, goal: Goal, wanted: SmallVec<[Wanted; 4]>, seal: Option<SealName>) -> Job {
        let (footers, frames) = (SmallVec::new(), SmallVec::new());
        Job { req, slot, goal, wanted, seal, footers, frames, waiting: 0, failure: None }
    }

    /// What the footers say about `block`; `None` when none of them covers it.
    fn in_footer(&self, block: Blocks) -> Option<Wanted> {
        let (_, footer) = self.footers.iter().find(|(index, _)| *index == block / FOOTER_COVERS)?;
        Some(Wanted { block, sum: footer.sum(block), is_head: footer.is_head(block) })
    }

    /// Wants the headers that the footers show from block `from` on; whether there are no more beyond them.
    fn find_headers(&mut self, from: Blocks) -> bool {
        let length = self.seal.map_or(0, |seal| seal.length);
        let shown = (from / FOOTER_COVERS).saturating_add(2).saturating_mul(FOOTER_COVERS).min(length);
        let mut heads = (from..shown).filter_map(|block| self.in_footer(block)).filter(|wanted| wanted.is_head);
        let wanted = heads.by_ref().take(FRAMES_HEADERS_MAX).collect();
        let end = heads.next().is_none() && shown == length;
        self.wanted = wanted;
        end || from >= length
    }

    /// Block `block` of what was read.
    fn block(&self, block: Blocks) -> Option<Bytes> {
        let holds = |(first, bytes): &&(Blocks, Bytes)| {
            *first <= block && ((block - first) as usize) < bytes.len() / BLOCK_SIZE
        };
        let (first, bytes) = self.frames.iter().find(holds)?;
        let at = (block - first) as usize * BLOCK_SIZE;
        Some(bytes.slice(at..at + BLOCK_SIZE))
    }

    /// Checks everything and answers.
    fn finish(mut self, out: &mut MemberEffects) -> Result<(), (ReqId, Rejection)> {
        let req = self.req;
        if let Some(why) = self.failure.take() {
            return Err((req, why));
        }
        let damaged = |block| (req, Rejection::Damaged { block });
        match self.goal {
            Goal::Data { offset, blocks } => {
                if self.seal.is_some() {
                    let wanted = (offset..offset + blocks).map(|block| self.in_footer(block).ok_or(damaged(block)));
                    self.wanted = wanted.collect::<Result<_, _>>()?;
                }
                let (_, bytes) = self.frames.pop().ok_or(damaged(offset))?;
                let mut crcs = SmallVec::with_capacity(blocks as usize);
                for (wanted, block) in self.wanted.iter().zip(bytes.chunks_exact(BLOCK_SIZE)) {
                    if !block_matches(block, wanted.sum, wanted.is_head) && !active(Mutation::CrcIgnored) {
                        return Err(damaged(wanted.block));
                    }
                    crcs.push(if wanted.is_head { crc(block) } else { wanted.sum });
                }
                out.replies.data(req, crcs, bytes);
            }
            Goal::Headers { end } => {
                let mut headers = Vec::with_capacity(self.wanted.len());
                for wanted in &self.wanted {
                    let header = self.block(wanted.block).ok_or(damaged(wanted.block))?;
                    if !block_matches(&header, wanted.sum, true) {
                        return Err(damaged(wanted.block));
                    }
                    headers.push(header);
                }
                out.replies.frames(req, headers, end);
            }
            Goal::FindHeaders { .. } => unreachable!("headers are found before they are checked"),
        }
        Ok(())
    }
}

/// Footer blocks of sealed copies, those used last. A block is found only under the seal it belongs to, so what a slot
/// held before is never taken for what it holds now.
#[derive(Debug)]
struct FooterCache {
    room: usize,
    clock: u64,
    blocks: BTreeMap<(u32, u32), (u64, SealName, FooterBlock)>,
    by_use: BTreeMap<u64, (u32, u32)>,
}

impl FooterCache {
    fn new(room: usize) -> FooterCache {
        FooterCache { room, clock: 0, blocks: BTreeMap::new(), by_use: BTreeMap::new() }
    }

    fn get(&mut self, slot: u32, index: u32, seal: &SealName) -> Option<FooterBlock> {
        let (used, name, block) = self.blocks.get_mut(&(slot, index))?;
        if name != seal {
            return None;
        }
        self.clock += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.clock, (slot, index));
        *used = self.clock;
        Some(block.clone())
    }

    fn put(&mut self, slot: u32, index: u32, seal: &SealName, block: FooterBlock) {
        self.clock += 1;
        if let Some((used, ..)) = self.blocks.insert((slot, index), (self.clock, *seal, block)) {
            self.by_use.remove(&used);
        }
        self.by_use.insert(self.clock, (slot, index));
        while self.blocks.len() > self.room
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.blocks.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Digest;
    use crate::ids::{ExtentSeq, VolumeId};

    #[test]
    fn the_cache_keeps_what_was_used_last_and_tells_seals_apart() {
        let seal = |seq| SealName {
            extent: ExtentId { volume: VolumeId(1), seq: ExtentSeq(seq) },
            length: 1,
            digest: Digest(seq),
        };
        let footer = |seq| {
            let block = FooterBlock::encode(&seal(seq), 0, &[seq as u32], std::iter::once(0));
            FooterBlock::decode(block, &seal(seq), 0).unwrap()
        };
        let mut cache = FooterCache::new(2);
        cache.put(1, 0, &seal(1), footer(1));
        cache.put(2, 0, &seal(2), footer(2));
        assert_eq!(cache.get(1, 0, &seal(1)).map(|f| f.sum(0)), Some(1));
        assert_eq!(cache.get(1, 0, &seal(7)), None, "the slot holds another extent now");
        cache.put(3, 0, &seal(3), footer(3));
        assert_eq!(cache.get(2, 0, &seal(2)), None, "used longest ago");
        assert!(cache.get(1, 0, &seal(1)).is_some() && cache.get(3, 0, &seal(3)).is_some());
        assert_eq!((cache.blocks.len(), cache.by_use.len()), (2, 2));
    }

    #[test]
    fn headers_near_each_other_are_read_together() {
        let wanted = |blocks: &[Blocks]| -> Vec<Wanted> {
            blocks.iter().map(|block| Wanted { block: *block, sum: 0, is_head: true }).collect()
        };
        assert_eq!(ranges_of(&wanted(&[0, 1, 5, 100, 357, 360]))[..], [(0, 6), (100, 1), (357, 4)]);
        let dense: Vec<Blocks> = (0..300).collect();
        let rest = 300 - READ_BLOCKS_MAX;
        assert_eq!(ranges_of(&wanted(&dense))[..], [(0, READ_BLOCKS_MAX), (READ_BLOCKS_MAX, rest)]);
    }
}
