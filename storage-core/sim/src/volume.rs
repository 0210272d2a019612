//! The real owner, as the world drives it.

use crate::options::Options;
use crate::owner::{Done, Input, Op, Output, Owner, Picture, Run, Seen};
use crate::world::VOLUME;
use std::sync::Arc;
use torus_core::block::{Effects, Event, IoDone, IoError, IoId, IoOp, Volume, VolumeConfig, VolumeState};
use torus_core::ids::{AgentId, Blocks, Lba};
use torus_core::log::recover::Claim;
use torus_core::log::{AgentView, MetaId, Send};
use torus_core::meta::docs::Holder;
use torus_core::ring::{Ring, RingAgent, RingSpec};
use torus_core::time::{Duration, Instant};

/// How long an opening is tried.
const PATIENCE: Duration = Duration::from_secs(20);

/// A block volume's owner.
pub struct VolumeOwner {
    volume: Volume,
    replicas: u8,
    racks: u64,
    /// The agents that the ring in force was made of.
    ring: Vec<AgentId>,
    state: VolumeState,
    effects: Effects,
}

impl VolumeOwner {
    /// One that has just started.
    #[must_use]
    pub fn new(run: Run, options: &Options, nonce: u64) -> Self {
        let claim = Claim {
            volume: VOLUME,
            holder: Holder { host: format!("{run:?}"), pid: run.0 as u32, serves: String::new() },
            nonce,
            lease: None,
            force: true,
            patience: PATIENCE,
        };
        let config = VolumeConfig {
            claim,
            extent_blocks: options.extent_blocks,
            open_max: options.open_extents,
            frames_max: options.frames_max,
            gather: options.gather,
            grace: options.grace,
            near: options.near.then_some(AgentId(1)),
        };
        let volume = Volume::new(config, ring_of(&[], options.replicas, options.racks));
        let state = volume.state();
        let (replicas, racks) = (options.replicas, options.racks);
        Self { volume, replicas, racks, ring: Vec::new(), state, effects: Effects::default() }
    }

    fn one(&mut self, now: Instant, event: Event) {
        self.volume.step(now, event, &mut self.effects);
    }

    fn agents(&mut self, now: Instant, seen: Vec<Seen>) {
        let ids: Vec<AgentId> = seen.iter().map(|seen| seen.id).collect();
        if ids != self.ring {
            self.one(now, Event::Ring(ring_of(&ids, self.replicas, self.racks)));
            self.ring = ids;
        }
        let view = |seen: Seen| AgentView {
            id: seen.id,
            name: format!("agent-{}", seen.id.0),
            up: seen.up,
            incarnation: seen.incarnation,
            space: seen.space,
        };
        self.one(now, Event::Agents(seen.into_iter().map(view).collect()));
    }

    fn carry_out(&mut self, out: &mut Output) {
        let Effects { sends, meta, done, notes } = &mut self.effects;
        out.sends.extend(sends.drain(..).map(|Send { to, rpc, request }| (to, rpc, request)));
        out.meta.extend(meta.drain(..).map(|(id, op)| (id.0, op)));
        out.done.extend(done.drain(..).map(|(id, result)| (id.0, outcome(result))));
        out.notes.extend(notes.drain(..).map(|note| format!("{note:?}")));
        let state = self.volume.state();
        if state == self.state {
            return;
        }
        match &state {
            VolumeState::Opening(progress) => match &self.state {
                VolumeState::Opening(before) if before.what == progress.what => {}
                _ => out.notes.push(format!("is {}", progress.what)),
            },
            VolumeState::Serving(epoch) => out.serving = Some(*epoch),
            VolumeState::Failed(error) => out.ended = Some(error.to_string()),
            VolumeState::Fenced(epoch) => out.ended = Some(format!("fenced by epoch {epoch}")),
            VolumeState::Closed => out.ended = Some("closed".into()),
        }
        self.state = state;
    }
}

impl Owner for VolumeOwner {
    fn step(&mut self, now: Instant, input: Input, out: &mut Output) {
        match input {
            Input::Io { id, op } => self.one(now, Event::Io { id: IoId(id), op: request(op) }),
            Input::Answer { rpc, result } => self.one(now, Event::Answer { rpc, result }),
            Input::Meta { id, result } => self.one(now, Event::Meta { id: MetaId(id), result }),
            Input::Agents(seen) => self.agents(now, seen),
            Input::PeerUp(agent) => self.one(now, Event::PeerUp(agent)),
            Input::Resized(blocks) => self.one(now, Event::Resized(blocks)),
            Input::Tick => self.one(now, Event::Tick),
            Input::Close => self.one(now, Event::Close),
        }
        self.volume.turn(now, &mut self.effects);
        self.carry_out(out);
    }

    fn picture(&self) -> Option<Picture> {
        let serving = self.volume.serving()?;
        let (map, log) = (&serving.map, &serving.log);
        let vseq = log.writer.acked();
        if log.writer.lac() != vseq {
            return None;
        }
        let mut places = Vec::new();
        for run in map.get(Lba(0), map.blocks()) {
            let Some(at) = run.at else { continue };
            let seq = log.table.at(at.extent).seq;
            places.extend((0..run.blocks).map(|i| (Lba(run.lba.0 + i), seq, at.block + i as Blocks)));
        }
        Some(Picture { vseq, places })
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        self.volume.deadline(now)
    }
}

fn request(op: Op) -> IoOp {
    match op {
        Op::Write { lba, data, fua } => IoOp::Write { lba, payload: smallvec::smallvec![data], fua },
        Op::Zero { lba, blocks, trim: true } => IoOp::Trim { lba, blocks: u64::from(blocks), fua: false },
        Op::Zero { lba, blocks, trim: false } => IoOp::Zero { lba, blocks: u64::from(blocks), fua: false },
        Op::Read { lba, blocks } => IoOp::Read { lba, blocks: u64::from(blocks) },
        Op::Flush => IoOp::Flush,
    }
}

fn outcome(result: Result<IoDone, IoError>) -> Done {
    match result {
        Ok(IoDone::Data(pieces)) => Done::Data(pieces.concat()),
        Ok(IoDone::Done) => Done::Ok,
        Ok(IoDone::Status(_)) => Done::Failed("the workload asks for no status".into()),
        Err(IoError::Unreadable { .. }) => Done::Unreadable,
        Err(error) => Done::Failed(error.to_string()),
    }
}

/// The ring of these agents.
fn ring_of(agents: &[AgentId], replicas: u8, racks: u64) -> Arc<Ring> {
    let kind = if agents.is_empty() { "empty" } else { "rendezvous" };
    let agent = |id: &AgentId| RingAgent { id: *id, weight: 1, domain: Options::domain(racks, *id) };
    let agents = agents.iter().map(agent).collect();
    let spec = RingSpec { kind: kind.into(), replicas, spread: None, agents, options: serde_json::Value::Null };
    Arc::new(Ring::new(&spec).expect("a ring of plain agents is sound"))
}
