//! Disks in memory, with nothing durable before its commit is done, and a member over them.

use crate::format::disk::{DiskIds, Geometry, SECTOR_SIZE};
use crate::format::{Digest, Frame, FrameHeader, Record, Stream, crc};
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, ClusterId, DiskId, Epoch, ExtentId, ExtentSeq, VolumeId, Vseq};
use crate::limits::EXTENT_BLOCKS_MIN;
use crate::member::{
    DiskCore, DiskError, DiskErrorKind, DiskEvent, DiskNo, DiskOp, DiskReader, DiskWrite, Expected, Member,
    MemberEffects, MemberEvent, RecoverError, ReqId, format_disk,
};
use crate::peer::{Class, Copy, Request, Response};
use crate::time::{Duration, Instant};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

pub const CLUSTER: ClusterId = ClusterId(0xc1);
pub const AGENT: AgentId = AgentId(0xa1);
pub const V: VolumeId = VolumeId(0xbeef);

/// What is on stable storage. Blocks never written read as zeros.
#[derive(Clone, Default)]
pub struct Platter {
    pub bytes: u64,
    pub blocks: BTreeMap<u64, Vec<u8>>,
    pub unreadable: BTreeSet<u64>,
}

impl Platter {
    pub fn block(&mut self, offset: u64) -> &mut Vec<u8> {
        assert_eq!(offset % BLOCK_SIZE as u64, 0, "an unaligned block");
        self.blocks.entry(offset).or_insert_with(|| vec![0; BLOCK_SIZE])
    }

    /// Writes the sectors of `write` that `keep` wants.
    pub fn apply(&mut self, write: &DiskWrite, keep: &mut dyn FnMut() -> bool) {
        assert!(write.offset + write.len() as u64 <= self.bytes, "a write beyond the disk");
        assert!(write.pieces.iter().all(|piece| piece.len() % BLOCK_SIZE == 0), "a piece that is not in whole blocks");
        let bytes = write.pieces.concat();
        for (i, block) in bytes.chunks_exact(BLOCK_SIZE).enumerate() {
            let to = self.block(write.offset + (i * BLOCK_SIZE) as u64);
            for (from, to) in block.chunks_exact(SECTOR_SIZE).zip(to.chunks_exact_mut(SECTOR_SIZE)) {
                if keep() {
                    to.copy_from_slice(from);
                }
            }
        }
    }

    pub fn flip(&mut self, offset: u64, at: usize) {
        self.block(offset)[at] ^= 0x20;
    }
}

impl DiskReader for Platter {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        assert!(
            offset.is_multiple_of(BLOCK_SIZE as u64)
                && len.is_multiple_of(BLOCK_SIZE)
                && offset + len as u64 <= self.bytes
        );
        let mut out = Vec::with_capacity(len);
        for at in (offset..offset + len as u64).step_by(BLOCK_SIZE) {
            if self.unreadable.contains(&at) {
                return Err(eio());
            }
            match self.blocks.get(&at) {
                Some(block) => out.extend_from_slice(block),
                None => out.resize(out.len() + BLOCK_SIZE, 0),
            }
        }
        Ok(out.into())
    }
}

pub fn eio() -> DiskError {
    DiskError { kind: DiskErrorKind::Io, text: "disk: Input/output error".into() }
}

/// A disk at work.
#[derive(Default)]
pub struct Disk {
    pub platter: Platter,
    pub commit: Option<(u64, Vec<DiskWrite>)>,
    pub reads: Vec<(u64, u64, usize)>,
}

impl Disk {
    fn take(&mut self, op: DiskOp) {
        match op {
            DiskOp::Commit { id, writes } => {
                assert!(self.commit.is_none(), "two commits in flight");
                self.commit = Some((id, writes));
            }
            DiskOp::Read { id, offset, len } => self.reads.push((id, offset, len)),
        }
        let writes = self.commit.iter().flat_map(|(_, writes)| writes);
        let mut ranges: Vec<_> = writes.map(|w| (w.offset, w.offset + w.len() as u64)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0), "writes of one commit overlap");
        for (_, offset, len) in &self.reads {
            let end = offset + *len as u64;
            assert!(ranges.iter().all(|(from, to)| end <= *from || to <= offset), "a read of what is being written");
        }
    }
}

/// A member and its disks.
pub struct World {
    pub member: Member,
    pub disks: Vec<Disk>,
    pub now: Instant,
    pub out: MemberEffects,
    pub answers: BTreeMap<ReqId, Vec<Response>>,
    next: u64,
}

pub fn ids(disk: usize) -> DiskIds {
    DiskIds { cluster: CLUSTER, agent: AGENT, disk: DiskId(0xd15c_0000 + disk as u64) }
}

pub fn expected() -> Expected {
    Expected { cluster: CLUSTER, agent: AGENT, extent_blocks: EXTENT_BLOCKS_MIN }
}

/// A formatted disk.
pub fn formatted(disk: usize, slots: u32) -> Platter {
    let geometry = Geometry::with_slots(EXTENT_BLOCKS_MIN, slots).unwrap();
    let mut platter = Platter { bytes: geometry.bytes(), ..Platter::default() };
    for write in format_disk(geometry, ids(disk)) {
        platter.apply(&write, &mut || true);
    }
    platter
}

pub fn recover(platter: &mut Platter) -> Result<DiskCore, RecoverError> {
    DiskCore::recover(platter, &expected())
}

impl World {
    pub fn new(disks: usize, slots: u32) -> World {
        World::over((0..disks).map(|disk| formatted(disk, slots)).collect(), Instant(0))
    }

    /// Starts an agent, up to the first commits.
    pub fn starting(mut platters: Vec<Platter>, now: Instant) -> World {
        let cores = platters.iter_mut().map(|platter| recover(platter).unwrap()).collect();
        let mut out = MemberEffects::default();
        let member = Member::new(cores, 0, now, &mut out);
        let disks = platters.into_iter().map(|platter| Disk { platter, ..Disk::default() }).collect();
        let mut world = World { member, disks, now, out, answers: BTreeMap::new(), next: 0 };
        world.collect();
        world
    }

    pub fn over(platters: Vec<Platter>, now: Instant) -> World {
        let mut world = World::starting(platters, now);
        world.settle();
        assert!(world.member.is_started());
        world
    }

    fn collect(&mut self) {
        for (disk, op) in self.out.ops.drain(..) {
            self.disks[usize::from(disk.0)].take(op);
        }
        for (req, response) in self.out.replies.drain(..) {
            let answers = self.answers.entry(req).or_default();
            let more = matches!(answers.last(), None | Some(Response::Received { .. }));
            assert!(more, "{req:?} is answered again: {answers:?}, {response:?}");
            answers.push(response);
        }
    }

    fn event(&mut self, event: MemberEvent) {
        self.member.step(self.now, event, &mut self.out);
        self.collect();
    }

    pub fn ask(&mut self, request: Request) -> ReqId {
        self.next += 1;
        let req = ReqId(self.next);
        self.event(MemberEvent::Request { req, request });
        req
    }

    /// Requests that come at the same time.
    pub fn ask_all(&mut self, requests: impl IntoIterator<Item = Request>) -> Vec<ReqId> {
        let before = self.next;
        let events: Vec<_> = (before + 1..)
            .zip(requests)
            .map(|(req, request)| MemberEvent::Request { req: ReqId(req), request })
            .collect();
        self.next += events.len() as u64;
        self.member.step_all(self.now, events, &mut self.out);
        self.collect();
        (before + 1..=self.next).map(ReqId).collect()
    }

    /// The last answer to `req` so far.
    pub fn answer(&self, req: ReqId) -> Option<&Response> {
        self.answers.get(&req).and_then(|answers| answers.last())
    }

    pub fn finish_commit(&mut self, disk: usize) -> bool {
        let Some((id, writes)) = self.disks[disk].commit.take() else { return false };
        for write in &writes {
            self.disks[disk].platter.apply(write, &mut || true);
        }
        self.disk_event(disk, DiskEvent::Committed { id, result: Ok(()) });
        true
    }

    pub fn fail_commit(&mut self, disk: usize) {
        self.fail_commit_after(disk, &mut || false);
    }

    /// A commit fails, after some of its sectors were written.
    pub fn fail_commit_after(&mut self, disk: usize, keep: &mut dyn FnMut() -> bool) {
        let (id, writes) = self.disks[disk].commit.take().expect("a commit in flight");
        writes.iter().for_each(|write| self.disks[disk].platter.apply(write, keep));
        self.disk_event(disk, DiskEvent::Committed { id, result: Err(eio()) });
    }

    pub fn finish_read(&mut self, disk: usize) -> bool {
        if self.disks[disk].reads.is_empty() {
            return false;
        }
        let (id, offset, len) = self.disks[disk].reads.remove(0);
        let result = self.disks[disk].platter.read(offset, len);
        self.disk_event(disk, DiskEvent::Read { id, result });
        true
    }

    pub fn disk_event(&mut self, disk: usize, event: DiskEvent) {
        self.event(MemberEvent::Disk { disk: DiskNo(disk as u16), event });
    }

    /// Lets the disks finish everything.
    pub fn settle(&mut self) {
        while (0..self.disks.len()).any(|disk| self.finish_commit(disk) || self.finish_read(disk)) {}
    }

    /// Asks, lets the disks finish, and gives the last answer.
    pub fn call(&mut self, request: Request) -> Response {
        let req = self.ask(request);
        self.settle();
        self.answer(req).cloned().expect("an answer once the disks are done")
    }

    /// Power is lost: of the commits in flight each sector is kept as `keep` says. Then the agent starts again.
    pub fn crash(self, keep: &mut dyn FnMut() -> bool) -> World {
        let now = self.now;
        World::over(self.lose_power(keep), now)
    }

    pub fn lose_power(mut self, keep: &mut dyn FnMut() -> bool) -> Vec<Platter> {
        for disk in &mut self.disks {
            for write in disk.commit.iter().flat_map(|(_, writes)| writes) {
                disk.platter.apply(write, keep);
            }
        }
        self.disks.into_iter().map(|disk| disk.platter).collect()
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// What a new owner of `epoch` is told of `extent`.
    pub fn copy(&mut self, extent: ExtentId, epoch: u64) -> Copy {
        let volume = extent.volume;
        match self.call(Request::Fence { volume, epoch: Epoch(epoch), extents: vec![extent.seq] }) {
            Response::Fenced { extents, .. } => extents[0].1,
            other => panic!("{other:?}"),
        }
    }

    /// Where a block of an extent lies on the first disk.
    pub fn place(&self, extent: ExtentId, block: Blocks) -> u64 {
        let core = &self.member.disks()[0];
        core.geometry.data_at(core.extents[&extent], block)
    }
}

/// Extent `count` that epoch `epoch` drew for [`V`].
pub fn extent(epoch: u64, count: u64) -> ExtentId {
    ExtentId { volume: V, seq: ExtentSeq::new(Epoch(epoch), count).unwrap() }
}

/// The epoch that drew a number, which in the first image stands above a count of 24 bits.
fn drew(seq: ExtentSeq) -> Epoch {
    if seq.epoch() == Epoch(0) { Epoch(seq.0 >> 24) } else { seq.epoch() }
}

/// The frame that every member has at `offset`: vseqs go with offsets, and the LAC runs five behind.
pub fn frame(extent: ExtentId, offset: Blocks, payload_blocks: usize) -> Frame {
    let (seed, seq) = (u64::from(offset) * 31 + extent.seq.0, extent.seq);
    let payload: Vec<u8> =
        (0..payload_blocks * BLOCK_SIZE).map(|i| ((i as u64 / 7 * (seed + 1)) ^ (seed >> (i % 8))) as u8).collect();
    let base = u64::from(offset) + 1;
    let header = FrameHeader {
        extent,
        offset,
        stream: Stream::Log,
        epoch: drew(seq),
        base: Vseq(base),
        lac: Vseq(base.saturating_sub(5)),
        records: smallvec::smallvec![Record {
            kind: 1,
            flags: 0,
            payload_blocks: payload_blocks as u16,
            body: [7; 28]
        }],
        crcs: payload.chunks(BLOCK_SIZE).map(crc).collect(),
    };
    Frame { header: header.encode(), payload: smallvec::smallvec![payload.into()] }
}

pub fn raw(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.header.to_vec();
    frame.payload.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes
}

pub fn create(extent: ExtentId, epoch: u64) -> Request {
    Request::Create { extent, epoch: Epoch(epoch), stream: Stream::Log, class: Class::Data }
}

pub fn append(extent: ExtentId, offset: Blocks, payload_blocks: usize) -> Request {
    let frame = frame(extent, offset, payload_blocks);
    Request::Append { extent, epoch: drew(extent.seq), offset, frame, early: false }
}

pub fn fill(extent: ExtentId, epoch: u64, offset: Blocks, bytes: Vec<u8>) -> Request {
    let bytes = smallvec::smallvec![Bytes::from(bytes)];
    Request::Fill { extent, epoch: Epoch(epoch), stream: Stream::Log, copy: 0, offset, bytes }
}

pub fn read(extent: ExtentId, epoch: u64, offset: Blocks, blocks: Blocks) -> Request {
    Request::Read { extent, epoch: Epoch(epoch), offset, blocks }
}

pub fn frames(extent: ExtentId, epoch: u64, from: Blocks) -> Request {
    Request::Frames { extent, epoch: Epoch(epoch), from }
}

pub fn seal(extent: ExtentId, epoch: u64, length: Blocks) -> Request {
    Request::Seal { extent, epoch: Epoch(epoch), length }
}

pub fn delete(extent: ExtentId, epoch: u64) -> Request {
    Request::Delete { extent, epoch: Epoch(epoch), copy: 0 }
}

pub fn fence(volume: VolumeId, epoch: u64) -> Request {
    Request::Fence { volume, epoch: Epoch(epoch), extents: vec![] }
}

/// The digest of these frames.
pub fn digest(frames: &[Frame]) -> Digest {
    frames.iter().fold(Digest::default(), |digest, frame| digest.then(&frame.header))
}

impl World {
    /// Asks what is answered at once.
    pub fn call_now(&mut self, request: Request) -> Response {
        let req = self.ask(request);
        self.answer(req).cloned().expect("an answer at once")
    }
}
