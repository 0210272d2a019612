//! A small owner, for the member core by itself.
//!
//! It keeps every rule that an owner must keep towards members (fence, fill and seal before it serves; append to all;
//! acknowledge in order, under a lease; register before use) in the simplest way there is: one open extent, one record
//! per frame, no garbage collection beyond the dead front of the log, and when anything is odd it ends and leaves the
//! rest to the next one. So the members see all of the protocol, and what goes wrong here is theirs.
//!
//! Not a model of the real owner: that one is simulated as itself.

mod recovery;
mod serving;

use crate::options::Options;
use crate::owner::{Done, Input, Op, Output, Owner, Picture, Run, Seen};
use crate::rng::Rng;
use crate::world::VOLUME;
use recovery::Recovery;
use serving::Serving;
use std::collections::BTreeMap;
use torus_core::format::{FrameHeader, Record, Stream};
use torus_core::ids::{AgentId, Blocks, Epoch, ExtentId, ExtentSeq, RpcId};
use torus_core::limits::{READ_LEASE, READ_LEASE_MARGIN};
use torus_core::meta::docs::Seal;
use torus_core::peer::{Rejection, Request, Response, Unanswered};
use torus_core::time::{Duration, Instant};

/// Record kinds of the scripted owner.
const WRITE: u8 = 1;
const ZERO: u8 = 2;
/// How often leases are renewed.
const RENEW_EVERY: Duration = Duration::from_millis(500);

/// An extent as the scripted owner knows it.
#[derive(Clone, Debug)]
struct Extent {
    members: Vec<AgentId>,
    seal: Option<Seal>,
    /// Blocks of the address space whose newest version lies here.
    live: usize,
}

/// Where a block is.
#[derive(Clone, Copy, Debug)]
struct At {
    extent: ExtentSeq,
    block: Blocks,
    crc: u32,
}

/// What both halves of the owner work with.
struct Base {
    run: Run,
    rng: Rng,
    replicas: usize,
    min_replicas: usize,
    capacity: Blocks,

    epoch: Epoch,
    epoch_doc: Vec<u8>,
    extents: BTreeMap<ExtentSeq, Extent>,
    map: BTreeMap<u64, At>,
    seen: Vec<Seen>,
    leases: BTreeMap<AgentId, Instant>,
    /// When each request was sent: a lease counts from there.
    sent: BTreeMap<RpcId, (AgentId, Instant)>,
    rpcs: u64,
    metas: u64,
}

impl Base {
    fn id(seq: ExtentSeq) -> ExtentId {
        ExtentId { volume: VOLUME, seq }
    }

    fn send(&mut self, now: Instant, to: AgentId, request: Request, out: &mut Output) -> RpcId {
        self.rpcs += 1;
        let rpc = RpcId(self.rpcs);
        self.sent.insert(rpc, (to, now));
        out.sends.push((to, rpc, request));
        rpc
    }

    fn ask(&mut self, op: torus_core::meta::MetaOp, out: &mut Output) -> u64 {
        self.metas += 1;
        out.meta.push((self.metas, op));
        self.metas
    }

    fn is_up(&self, agent: AgentId) -> bool {
        self.seen.iter().any(|seen| seen.id == agent && seen.up)
    }

    /// Applies one frame's records to the map.
    fn apply(&mut self, header: &FrameHeader) {
        let mut block = header.offset + 1;
        for record in &header.records {
            let (lba, blocks) = decode(record);
            for i in 0..blocks {
                let at = (record.kind == WRITE).then(|| At {
                    extent: header.extent.seq,
                    block: block + i,
                    crc: header.crcs[(block + i - header.offset - 1) as usize],
                });
                self.set(lba + u64::from(i), at);
            }
            block += Blocks::from(record.payload_blocks);
        }
    }

    fn set(&mut self, lba: u64, at: Option<At>) {
        let old = match at {
            Some(at) => self.map.insert(lba, at),
            None => self.map.remove(&lba),
        };
        for (place, sign) in [(old, -1isize), (at, 1)] {
            if let Some(extent) = place.and_then(|at| self.extents.get_mut(&at.extent)) {
                extent.live = extent.live.saturating_add_signed(sign);
            }
        }
    }
}

fn record(kind: u8, lba: u64, blocks: Blocks) -> Record {
    let mut body = [0; 28];
    body[..8].copy_from_slice(&lba.to_le_bytes());
    body[8..12].copy_from_slice(&blocks.to_le_bytes());
    let payload_blocks = if kind == WRITE { blocks as u16 } else { 0 };
    Record { kind, flags: 0, payload_blocks, body }
}

fn decode(record: &Record) -> (u64, Blocks) {
    let (mut lba, mut blocks) = ([0; 8], [0; 4]);
    lba.copy_from_slice(&record.body[..8]);
    blocks.copy_from_slice(&record.body[8..12]);
    (u64::from_le_bytes(lba), Blocks::from_le_bytes(blocks))
}

enum State {
    Opening(Recovery),
    Serving(Serving),
    Over,
}

/// The owner.
pub struct Scripted {
    base: Base,
    state: State,
}

/// What a step of either half came to.
enum Turn {
    Stay,
    Serve(Serving),
    End(String),
}

impl Scripted {
    /// One that has just started.
    #[must_use]
    pub fn new(run: Run, options: &Options, mut rng: Rng) -> Self {
        let base = Base {
            run,
            replicas: usize::from(options.replicas),
            min_replicas: usize::from(options.min_replicas),
            capacity: options.extent_blocks,
            epoch: Epoch(0),
            epoch_doc: Vec::new(),
            extents: BTreeMap::new(),
            map: BTreeMap::new(),
            seen: Vec::new(),
            leases: BTreeMap::new(),
            sent: BTreeMap::new(),
            rpcs: 0,
            metas: 0,
            rng: rng.split(),
        };
        Self { base, state: State::Opening(Recovery::default()) }
    }

    fn answer(&mut self, now: Instant, rpc: RpcId, result: Result<Response, Unanswered>, out: &mut Output) -> Turn {
        let early = matches!(result, Ok(Response::Received { .. }));
        let sender = if early { self.base.sent.get(&rpc).copied() } else { self.base.sent.remove(&rpc) };
        let Some((agent, sent)) = sender else { return Turn::Stay };
        match &result {
            Ok(Response::Rejected(Rejection::Fenced { epoch })) => {
                return Turn::End(format!("fenced by epoch {epoch}"));
            }
            Ok(Response::Appended { .. } | Response::Leased) => {
                self.base.leases.insert(agent, sent + (READ_LEASE - READ_LEASE_MARGIN));
            }
            _ => {}
        }
        match &mut self.state {
            State::Opening(recovery) => recovery.answer(&mut self.base, now, agent, rpc, result, out),
            State::Serving(serving) => serving.answer(&mut self.base, now, agent, rpc, result, out),
            State::Over => Turn::Stay,
        }
    }
}

impl Owner for Scripted {
    fn step(&mut self, now: Instant, input: Input, out: &mut Output) {
        let base = &mut self.base;
        let turn = match (input, &mut self.state) {
            (Input::Answer { rpc, result }, _) => self.answer(now, rpc, result, out),
            (Input::Agents(seen), state) => {
                base.seen = seen;
                match state {
                    State::Opening(recovery) => recovery.begin(base, out),
                    _ => Turn::Stay,
                }
            }
            (Input::Close, _) => Turn::End("closed".into()),
            (Input::Meta { id, result }, State::Opening(recovery)) => recovery.meta(base, now, id, result, out),
            (Input::Meta { id, result }, State::Serving(serving)) => serving.meta(base, now, id, result, out),
            (Input::Tick, State::Opening(recovery)) => recovery.tick(base, now, out),
            (Input::Tick, State::Serving(serving)) => serving.tick(base, now, out),
            (Input::Io { id, op }, State::Serving(serving)) => serving.io(base, now, id, op, out),
            (Input::Io { id, op: Op::Flush | Op::Read { .. } | Op::Write { .. } | Op::Zero { .. } }, _) => {
                out.done.push((id, Done::Failed("not open".into())));
                Turn::Stay
            }
            (Input::PeerUp(_) | Input::Meta { .. } | Input::Tick | Input::Resized(_), _) => Turn::Stay,
        };
        match turn {
            Turn::Stay => {}
            Turn::Serve(serving) => {
                self.state = State::Serving(serving);
                out.serving = Some(self.base.epoch);
            }
            Turn::End(why) => {
                self.state = State::Over;
                out.ended = Some(why);
            }
        }
    }

    fn picture(&self) -> Option<Picture> {
        None
    }

    fn deadline(&self, _: Instant) -> Option<Instant> {
        match &self.state {
            State::Opening(recovery) => recovery.deadline(),
            State::Serving(serving) => Some(serving.deadline()),
            State::Over => None,
        }
    }
}

/// The stream of everything that this owner writes.
const STREAM: Stream = Stream::Log;
