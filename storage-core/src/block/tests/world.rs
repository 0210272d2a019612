//! Agents (the real member core over memory), a metadata store and an owner, moved one event at a time.

use crate::block::volume::{Effects, Event, Volume, VolumeConfig, VolumeState};
use crate::block::{IoDone, IoError, IoId, IoOp};
use crate::format::Pieces;
use crate::format::disk::{DiskIds, Geometry};
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, ClusterId, DiskId, Incarnation, Lba, RingVersion, RpcId, VolumeId};
use crate::log::AgentView;
use crate::log::recover::Claim;
use crate::member::{
    DiskCore, DiskError, DiskEvent, DiskOp, DiskReader, Expected, Member, MemberEffects, MemberEvent, ReqId,
    format_disk,
};
use crate::meta::docs::{AckMode, Holder, VolumeDoc, encode};
use crate::meta::{Compare, Entry, MetaOp, MetaReply, Revision, Txn, Write, keys};
use crate::peer::{Request, Unanswered};
use crate::ring::{Ring, RingAgent, RingSpec};
use crate::time::{Duration, Instant};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub const VOLUME: VolumeId = VolumeId(0xabc);
pub const EXTENT_BLOCKS: Blocks = crate::limits::EXTENT_BLOCKS_MIN;
const CLUSTER: ClusterId = ClusterId(1);

#[derive(Default)]
struct Memory(BTreeMap<u64, Bytes>, u64);

impl DiskReader for Memory {
    fn size(&self) -> u64 {
        self.1
    }
    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let mut out = Vec::with_capacity(len);
        for at in (offset..offset + len as u64).step_by(BLOCK_SIZE) {
            match self.0.get(&at) {
                Some(block) => out.extend_from_slice(block),
                None => out.resize(out.len() + BLOCK_SIZE, 0),
            }
        }
        Ok(out.into())
    }
}

impl Memory {
    fn write(&mut self, offset: u64, pieces: &Pieces) {
        let mut at = offset;
        for piece in pieces {
            for block in piece.chunks(BLOCK_SIZE) {
                self.0.insert(at, Bytes::copy_from_slice(block));
                at += BLOCK_SIZE as u64;
            }
        }
    }
}

pub struct Agent {
    member: Option<Member>,
    memory: Memory,
    /// What the blocks of its last commit held before.
    before: Vec<(u64, Option<Bytes>)>,
    incarnation: u64,
    pub requests: u64,
}

pub struct World {
    pub now: Instant,
    pub agents: BTreeMap<AgentId, Agent>,
    pub meta: BTreeMap<String, (Vec<u8>, Revision)>,
    revision: i64,
    pub owner: Volume,
    ring: Arc<Ring>,
    inbox: VecDeque<Event>,
    /// How long an agent's answers take,
    pub answers_take: Duration,
    /// and those on their way.
    answers: VecDeque<(Instant, Event)>,
    pub done: BTreeMap<IoId, Result<IoDone, IoError>>,
    next_io: u64,
    nonce: u64,
    /// The agent beside the next owner.
    pub near: Option<AgentId>,
}

impl Agent {
    pub fn free_slots(&self) -> u32 {
        self.member.as_ref().map_or(0, |member| member.free_space().free)
    }
}

impl World {
    pub fn new(agents: u64, slots: u32, replicas: u8, blocks: u64, mode: AckMode) -> World {
        let ids: Vec<AgentId> = (1..=agents).map(AgentId).collect();
        let spec = RingSpec {
            kind: "rendezvous".into(),
            replicas,
            spread: None,
            agents: ids.iter().map(|&id| RingAgent { id, domain: format!("node-{id}"), weight: 1 }).collect(),
            options: serde_json::Value::Null,
        };
        let ring = Arc::new(Ring::new(&spec).unwrap());
        let _ = RingVersion::default();
        let doc = VolumeDoc {
            name: "v".into(),
            size: Lba(blocks),
            replicas,
            min_replicas: 1,
            ack_mode: mode,
            deleting: false,
        };
        let mut world = World {
            now: Instant(1_000_000_000_000),
            agents: BTreeMap::new(),
            meta: BTreeMap::from([(keys::volume_meta(VOLUME), (encode(&doc), Revision(1)))]),
            revision: 1,
            owner: Volume::new(config(0), ring.clone()),
            ring,
            inbox: VecDeque::new(),
            answers_take: Duration::ZERO,
            answers: VecDeque::new(),
            done: BTreeMap::new(),
            next_io: 0,
            nonce: 0,
            near: None,
        };
        for id in ids {
            let geometry = Geometry::with_slots(EXTENT_BLOCKS, slots).unwrap();
            let mut memory = Memory(BTreeMap::new(), geometry.bytes());
            let disk = DiskIds { cluster: CLUSTER, agent: id, disk: DiskId(id.0 + 100) };
            for write in format_disk(geometry, disk) {
                memory.write(write.offset, &write.pieces);
            }
            world.agents.insert(id, Agent { member: None, memory, before: Vec::new(), incarnation: 0, requests: 0 });
            world.start(id);
        }
        world.open();
        world
    }

    pub fn kill(&mut self, id: AgentId) {
        self.agents.get_mut(&id).unwrap().member = None;
        self.views();
    }

    /// Its disk has lied: what it committed last, with success, is not there. Found when it starts again.
    pub fn forget_last_commit(&mut self, id: AgentId) {
        self.kill(id);
        let Agent { memory, before, .. } = self.agents.get_mut(&id).unwrap();
        for (at, block) in before.drain(..) {
            match block {
                Some(block) => memory.0.insert(at, block),
                None => memory.0.remove(&at),
            };
        }
        self.start(id);
    }

    pub fn start(&mut self, id: AgentId) {
        let now = self.now;
        let agent = self.agents.get_mut(&id).unwrap();
        let expected = Expected { cluster: CLUSTER, agent: id, extent_blocks: EXTENT_BLOCKS };
        let core = DiskCore::recover(&mut agent.memory, &expected).unwrap();
        agent.incarnation += 1;
        let mut effects = MemberEffects::default();
        agent.member = Some(Member::new(vec![core], 0, now, &mut effects));
        self.carry_out(id, effects);
        self.views();
        self.inbox.push_back(Event::PeerUp(id));
    }

    fn views(&mut self) {
        let views = self
            .agents
            .iter()
            .map(|(&id, agent)| AgentView {
                id,
                name: format!("node-{id}"),
                up: agent.member.is_some(),
                incarnation: Incarnation(agent.incarnation),
                space: agent.member.as_ref().map(Member::free_space).unwrap_or_default(),
            })
            .collect();
        self.inbox.push_back(Event::Agents(views));
    }

    /// A new owner process: whatever the old one had not finished is gone.
    pub fn open(&mut self) {
        self.begin_open();
        self.finish_open();
    }

    pub fn begin_open(&mut self) {
        self.nonce += 1;
        self.inbox.clear();
        self.answers.clear();
        self.owner = Volume::new(VolumeConfig { near: self.near, ..config(self.nonce) }, self.ring.clone());
        self.views();
    }

    pub fn finish_open(&mut self) {
        self.until(|w| !matches!(w.owner.state(), VolumeState::Opening(_)));
        assert!(matches!(self.owner.state(), VolumeState::Serving(_)), "{:?}", self.owner.state());
    }

    pub fn is_opening(&self, what: &str) -> bool {
        matches!(self.owner.state(), VolumeState::Opening(progress) if progress.what == what)
    }

    pub fn close(&mut self) {
        self.inbox.push_back(Event::Close);
        self.until(|w| w.owner.state() == VolumeState::Closed);
    }

    pub fn submit(&mut self, op: IoOp) -> IoId {
        self.next_io += 1;
        let id = IoId(self.next_io);
        self.inbox.push_back(Event::Io { id, op });
        id
    }

    pub fn finish(&mut self, id: IoId) -> Result<IoDone, IoError> {
        self.until(|w| w.done.contains_key(&id));
        self.done.remove(&id).unwrap()
    }

    pub fn io(&mut self, op: IoOp) -> Result<IoDone, IoError> {
        let id = self.submit(op);
        self.finish(id)
    }

    pub fn write(&mut self, lba: u64, blocks: u64, tag: u64) {
        let payload = Pieces::from_iter([content(lba, blocks, tag)]);
        assert_eq!(self.io(IoOp::Write { lba: Lba(lba), payload, fua: false }), Ok(IoDone::Done));
    }

    pub fn read(&mut self, lba: u64, blocks: u64) -> Vec<u8> {
        match self.io(IoOp::Read { lba: Lba(lba), blocks }) {
            Ok(IoDone::Data(pieces)) => pieces.concat(),
            other => panic!("read of {lba}+{blocks}: {other:?}"),
        }
    }

    /// Moves the world until `goal`, one event after the other; time goes by only when nothing else happens.
    pub fn until(&mut self, goal: impl Fn(&World) -> bool) {
        let give_up = self.now + Duration::from_secs(600);
        for _ in 0..3_000_000 {
            if goal(self) {
                return;
            }
            let event = match self.next() {
                Some(event) => event,
                None => {
                    let Some(at) = self.owner.deadline(self.now) else {
                        panic!("the owner waits for what never comes: {:#?}", self.owner)
                    };
                    self.now = self.now.max(at) + Duration::from_micros(1);
                    assert!(self.now < give_up, "nothing comes of it: {:#?}", self.owner);
                    Event::Tick
                }
            };
            self.step(event);
        }
        panic!("no end: {:?}", self.owner.state());
    }

    /// What happens next, if anything does by itself.
    fn next(&mut self) -> Option<Event> {
        match self.answers.front() {
            Some((due, _)) if *due <= self.now || self.inbox.is_empty() => {
                self.now = self.now.max(*due);
                self.answers.pop_front().map(|(_, event)| event)
            }
            _ => self.inbox.pop_front(),
        }
    }

    /// Lets time pass.
    pub fn idle(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let event = self.next().unwrap_or_else(|| {
                let at = self.owner.deadline(self.now).unwrap_or(end);
                self.now = self.now.max(at).min(end) + Duration::from_micros(1);
                Event::Tick
            });
            self.step(event);
        }
    }

    fn step(&mut self, event: Event) {
        let mut out = Effects::default();
        self.owner.step(self.now, event, &mut out);
        self.owner.turn(self.now, &mut out);
        self.now = self.now + Duration::from_micros(5);
        for (id, result) in out.done {
            assert!(self.done.insert(id, result).is_none(), "{id:?} answered twice");
        }
        for (id, op) in out.meta {
            let result = Ok(self.execute(op));
            self.inbox.push_back(Event::Meta { id, result });
        }
        for send in out.sends {
            self.deliver(send.to, send.rpc, send.request);
        }
    }

    pub fn deliver(&mut self, to: AgentId, rpc: RpcId, request: Request) {
        let now = self.now;
        let Some(agent) = self.agents.get_mut(&to) else { panic!("no agent {to}") };
        let Some(member) = &mut agent.member else {
            self.inbox.push_back(Event::Answer { rpc, result: Err(Unanswered) });
            return;
        };
        agent.requests += 1;
        let mut effects = MemberEffects::default();
        member.step(now, MemberEvent::Request { req: ReqId(rpc.0), request }, &mut effects);
        self.carry_out(to, effects);
    }

    fn carry_out(&mut self, id: AgentId, mut effects: MemberEffects) {
        let now = self.now;
        let agent = self.agents.get_mut(&id).unwrap();
        loop {
            for (req, response) in effects.replies.drain(..) {
                let answer = Event::Answer { rpc: RpcId(req.0), result: Ok(response) };
                match self.answers_take {
                    Duration::ZERO => self.inbox.push_back(answer),
                    time => self.answers.push_back((now + time, answer)),
                }
            }
            let ops = std::mem::take(&mut effects.ops);
            if ops.is_empty() {
                return;
            }
            for (disk, op) in ops {
                let event = match op {
                    DiskOp::Commit { id, writes } => {
                        agent.before.clear();
                        for write in &writes {
                            let blocks = (write.offset..write.offset + write.len() as u64).step_by(BLOCK_SIZE);
                            agent.before.extend(blocks.map(|at| (at, agent.memory.0.get(&at).cloned())));
                            agent.memory.write(write.offset, &write.pieces);
                        }
                        DiskEvent::Committed { id, result: Ok(()) }
                    }
                    DiskOp::Read { id, offset, len } => DiskEvent::Read { id, result: agent.memory.read(offset, len) },
                };
                let event = MemberEvent::Disk { disk, event };
                agent.member.as_mut().unwrap().step(now, event, &mut effects);
            }
        }
    }

    pub fn execute(&mut self, op: MetaOp) -> MetaReply {
        let entry = |key: &String, (value, modified): &(Vec<u8>, Revision)| Entry {
            key: key.clone(),
            value: value.clone(),
            modified: *modified,
        };
        match op {
            MetaOp::Get(key) => MetaReply::Got(self.meta.get(&key).map(|found| entry(&key, found))),
            MetaOp::List(prefix) => {
                let found =
                    self.meta.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(k, v)| entry(k, v)).collect();
                MetaReply::Listed(found, Revision(self.revision))
            }
            MetaOp::Txn(Txn { when, then }) => {
                let holds = |compare: &Compare| match compare {
                    Compare::Absent(key) => !self.meta.contains_key(key),
                    Compare::Present(key) => self.meta.contains_key(key),
                    Compare::Unchanged(key, revision) => self.meta.get(key).is_some_and(|(_, r)| r == revision),
                    Compare::Holds(key, value) => self.meta.get(key).is_some_and(|(v, _)| v == value),
                };
                if !when.iter().all(holds) {
                    return MetaReply::Conflict;
                }
                self.revision += 1;
                for write in then {
                    match write {
                        Write::Put { key, value, .. } => {
                            self.meta.insert(key, (value, Revision(self.revision)));
                        }
                        Write::Delete(key) => {
                            self.meta.remove(&key);
                        }
                    }
                }
                MetaReply::Committed(Revision(self.revision))
            }
        }
    }

    pub fn extents_in_meta(&self) -> usize {
        self.meta.keys().filter(|k| k.starts_with(&keys::extents(VOLUME))).count()
    }

    /// Slots in use on all agents that run.
    pub fn used_slots(&self) -> u32 {
        self.agents
            .values()
            .filter_map(|a| a.member.as_ref())
            .map(|m| m.free_space())
            .map(|space| space.total - space.free)
            .sum()
    }
}

pub fn config(nonce: u64) -> VolumeConfig {
    VolumeConfig {
        claim: Claim {
            volume: VOLUME,
            holder: Holder { host: "here".into(), pid: 1, serves: String::new() },
            nonce,
            lease: None,
            force: true,
            patience: Duration::from_secs(30),
        },
        extent_blocks: EXTENT_BLOCKS,
        open_max: 4,
        frames_max: 4,
        gather: true,
        grace: Duration::from_secs(5),
        near: None,
    }
}

/// Blocks that say what they are.
pub fn content(lba: u64, blocks: u64, tag: u64) -> Bytes {
    let mut out = Vec::with_capacity(blocks as usize * BLOCK_SIZE);
    for i in 0..blocks {
        let mut block = vec![0; BLOCK_SIZE];
        block[..8].copy_from_slice(&(lba + i).to_le_bytes());
        block[8..16].copy_from_slice(&tag.to_le_bytes());
        block[4088..].copy_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&block);
    }
    out.into()
}
