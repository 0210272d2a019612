//! Serving, as the scripted owner does it: append to all members of one extent, acknowledge in order, under leases.

use super::{Base, RENEW_EVERY, STREAM, Turn, WRITE, ZERO, record};
use crate::owner::{Done, Op, Output};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use torus_core::format::{Frame, FrameHeader, crc};
use torus_core::ids::{AgentId, BLOCK_SIZE, Blocks, ExtentSeq, Lba, RpcId, Vseq};
use torus_core::meta::{MetaError, MetaReply};
use torus_core::peer::{Request, Response, Unanswered};
use torus_core::time::Instant;

/// Leases in a row that a member does not grant before the owner gives up.
const SILENT_MAX: u32 = 12;

/// A frame that not all members have.
#[derive(Debug)]
struct Flight {
    io: u64,
    header: FrameHeader,
    end: Blocks,
}

/// A read under way: blocks still to come.
#[derive(Debug)]
struct Reading {
    lba: u64,
    data: Vec<u8>,
    missing: usize,
}

#[derive(Debug)]
enum Asked {
    Append { request: Request, tries: u32 },
    Block { io: u64, lba: u64, tries: u32 },
    Lease,
}

/// An owner that serves.
#[derive(Debug)]
pub(super) struct Serving {
    seq: ExtentSeq,
    members: Vec<AgentId>,
    durable: BTreeMap<AgentId, Blocks>,
    length: Blocks,
    next: Vseq,
    lac: Vseq,
    flights: VecDeque<Flight>,
    reads: BTreeMap<u64, Reading>,
    asked: BTreeMap<RpcId, Asked>,
    /// Ended, but no lease stands.
    held: Vec<(u64, Done)>,
    renew_at: Instant,
    /// Leases in a row that a member has not granted.
    silent: BTreeMap<AgentId, u32>,
}

impl Serving {
    pub(super) fn new(base: &Base, now: Instant, seq: ExtentSeq, members: Vec<AgentId>, last: Vseq) -> Self {
        let durable = members.iter().map(|agent| (*agent, 0)).collect();
        debug_assert!(base.extents.contains_key(&seq));
        Self {
            seq,
            members,
            durable,
            length: 0,
            next: last.next(),
            lac: last,
            flights: VecDeque::new(),
            reads: BTreeMap::new(),
            asked: BTreeMap::new(),
            held: Vec::new(),
            renew_at: now,
            silent: BTreeMap::new(),
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.renew_at
    }

    pub(super) fn tick(&mut self, base: &mut Base, now: Instant, out: &mut Output) -> Turn {
        if now >= self.renew_at {
            self.renew_at = now + RENEW_EVERY;
            for agent in self.members.clone() {
                let request = Request::Lease { volume: crate::world::VOLUME, epoch: base.epoch };
                let rpc = base.send(now, agent, request, out);
                self.asked.insert(rpc, Asked::Lease);
            }
        }
        Turn::Stay
    }

    fn lease_stands(&self, base: &Base, now: Instant) -> bool {
        self.members.iter().all(|agent| base.leases.get(agent).is_some_and(|until| now < *until))
    }

    fn end(&mut self, base: &Base, now: Instant, io: u64, done: Done, out: &mut Output) {
        self.held.push((io, done));
        self.release(base, now, out);
    }

    fn release(&mut self, base: &Base, now: Instant, out: &mut Output) {
        if self.lease_stands(base, now) {
            out.done.append(&mut self.held);
        }
    }

    pub(super) fn meta(
        &mut self,
        _: &mut Base,
        _: Instant,
        _: u64,
        _: Result<MetaReply, MetaError>,
        _: &mut Output,
    ) -> Turn {
        Turn::Stay
    }

    pub(super) fn io(&mut self, base: &mut Base, now: Instant, io: u64, op: Op, out: &mut Output) -> Turn {
        match op {
            Op::Write { lba, data, .. } => self.append(base, now, io, WRITE, lba, &data, out),
            Op::Zero { lba, blocks, .. } => {
                let nothing = Bytes::new();
                self.append_blocks(base, now, io, (ZERO, lba, blocks), &nothing, out)
            }
            Op::Flush => {
                self.end(base, now, io, Done::Ok, out);
                Turn::Stay
            }
            Op::Read { lba, blocks } => self.read(base, now, io, lba, blocks, out),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one operation, spelled out")]
    fn append(
        &mut self,
        base: &mut Base,
        now: Instant,
        io: u64,
        kind: u8,
        lba: Lba,
        data: &Bytes,
        out: &mut Output,
    ) -> Turn {
        let blocks = (data.len() / BLOCK_SIZE) as Blocks;
        self.append_blocks(base, now, io, (kind, lba, blocks), data, out)
    }

    fn append_blocks(
        &mut self,
        base: &mut Base,
        now: Instant,
        io: u64,
        (kind, lba, blocks): (u8, Lba, Blocks),
        data: &Bytes,
        out: &mut Output,
    ) -> Turn {
        let header = FrameHeader {
            extent: Base::id(self.seq),
            offset: self.length,
            stream: STREAM,
            epoch: base.epoch,
            base: self.next,
            lac: self.lac,
            records: smallvec::smallvec![record(kind, lba.0, blocks)],
            crcs: data.chunks(BLOCK_SIZE).map(crc).collect(),
        };
        if self.length + header.blocks() > base.capacity {
            return Turn::End("the extent is full".into());
        }
        let payload = if data.is_empty() { smallvec::smallvec![] } else { smallvec::smallvec![data.clone()] };
        let frame = Frame { header: header.encode(), payload };
        self.length += header.blocks();
        self.next = header.last().next();
        let early = base.rng.one_in(3);
        let offset = header.offset;
        self.flights.push_back(Flight { io, end: self.length, header });
        for agent in self.members.clone() {
            let request =
                Request::Append { extent: Base::id(self.seq), epoch: base.epoch, offset, frame: frame.clone(), early };
            let rpc = base.send(now, agent, request.clone(), out);
            self.asked.insert(rpc, Asked::Append { request, tries: 0 });
        }
        Turn::Stay
    }

    fn read(&mut self, base: &mut Base, now: Instant, io: u64, lba: Lba, blocks: Blocks, out: &mut Output) -> Turn {
        let data = vec![0; blocks as usize * BLOCK_SIZE];
        let wanted: Vec<u64> = (lba.0..lba.0 + u64::from(blocks)).filter(|lba| base.map.contains_key(lba)).collect();
        if wanted.is_empty() {
            self.end(base, now, io, Done::Data(data), out);
            return Turn::Stay;
        }
        self.reads.insert(io, Reading { lba: lba.0, data, missing: wanted.len() });
        for lba in wanted {
            if let Turn::End(why) = self.read_block(base, now, io, lba, 0, out) {
                return Turn::End(why);
            }
        }
        Turn::Stay
    }

    fn read_block(&mut self, base: &mut Base, now: Instant, io: u64, lba: u64, tries: u32, out: &mut Output) -> Turn {
        let Some(at) = base.map.get(&lba).copied() else {
            self.block_read(base, now, io, lba, &[0; BLOCK_SIZE], out);
            return Turn::Stay;
        };
        let members = &base.extents[&at.extent].members;
        if tries as usize > 4 * members.len() {
            return Turn::End(format!("block {lba} cannot be read from anyone"));
        }
        let agent = members[(base.run.0 as usize + lba as usize + tries as usize) % members.len()];
        let request = Request::Read { extent: Base::id(at.extent), epoch: base.epoch, offset: at.block, blocks: 1 };
        let rpc = base.send(now, agent, request, out);
        self.asked.insert(rpc, Asked::Block { io, lba, tries });
        Turn::Stay
    }

    fn block_read(&mut self, base: &Base, now: Instant, io: u64, lba: u64, bytes: &[u8], out: &mut Output) {
        let Some(reading) = self.reads.get_mut(&io) else { return };
        let at = (lba - reading.lba) as usize * BLOCK_SIZE;
        reading.data[at..at + BLOCK_SIZE].copy_from_slice(bytes);
        reading.missing -= 1;
        if reading.missing == 0
            && let Some(reading) = self.reads.remove(&io)
        {
            self.end(base, now, io, Done::Data(reading.data), out);
        }
    }

    pub(super) fn answer(
        &mut self,
        base: &mut Base,
        now: Instant,
        agent: AgentId,
        rpc: RpcId,
        result: Result<Response, Unanswered>,
        out: &mut Output,
    ) -> Turn {
        if matches!(result, Ok(Response::Received { .. })) {
            return Turn::Stay;
        }
        match (self.asked.remove(&rpc), result) {
            (Some(Asked::Append { .. }), Ok(Response::Appended { length })) => {
                let durable = self.durable.entry(agent).or_default();
                *durable = length.max(*durable);
                self.acknowledge(base, now, out);
            }
            (Some(Asked::Append { request, tries }), Err(_)) if tries < 4 => {
                // In order: nothing overtakes a resend, because all of the connection's were unanswered alike.
                let rpc = base.send(now, agent, request.clone(), out);
                self.asked.insert(rpc, Asked::Append { request, tries: tries + 1 });
            }
            (Some(Asked::Append { .. }), result) => return Turn::End(format!("{agent} does not append: {result:?}")),
            (Some(Asked::Block { io, lba, .. }), Ok(Response::Data { bytes, .. }))
                if base.map.get(&lba).is_some_and(|at| crc(&bytes) == at.crc) =>
            {
                self.block_read(base, now, io, lba, &bytes, out);
            }
            (Some(Asked::Block { io, lba, tries }), _) => return self.read_block(base, now, io, lba, tries + 1, out),
            (Some(Asked::Lease), Ok(_)) => {
                self.silent.remove(&agent);
                self.release(base, now, out);
            }
            (Some(Asked::Lease), Err(_)) => {
                let silent = self.silent.entry(agent).or_default();
                *silent += 1;
                if *silent > SILENT_MAX && !self.lease_stands(base, now) {
                    return Turn::End(format!("{agent} is gone"));
                }
            }
            (None, _) => {}
        }
        Turn::Stay
    }

    fn acknowledge(&mut self, base: &mut Base, now: Instant, out: &mut Output) {
        let everywhere = self.durable.values().copied().min().unwrap_or(0);
        while let Some(flight) = self.flights.pop_front_if(|flight| flight.end <= everywhere) {
            base.apply(&flight.header);
            self.lac = flight.header.last();
            self.end(base, now, flight.io, Done::Ok, out);
        }
        self.release(base, now, out);
    }
}
