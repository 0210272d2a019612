//! A block volume and its one owner: from the claim to the close.
//!
//! ```text
//! Opening (log::recover) ──▶ Loading (checkpoint, replay) ──▶ Serving ──▶ Ended (closed, fenced, or why not)
//! ```
//!
//! [`Volume::step`] takes one event in; [`Volume::turn`], called once after a batch of events, does what has become possible.
//! Both are synchronous and touch no clock, so a driver and the simulator see the same machine.

#![allow(missing_docs, reason = "the fields of a variant are described by its own line")]

use super::checkpoint::load::merge_extent;
use super::io::{IoDone, IoError, IoId, IoOp};
use super::loading::{Load, Loaded};
use super::map::Map;
use super::serving::Serving;
use super::state::apply;
use crate::ids::{AgentId, Epoch, RpcId, VolumeId};
use crate::log::recover::{Claim, OpenError, Progress, Recovered, Recovery};
use crate::log::{AgentView, Log, LogConfig, MetaId, Note, Peers, Send, Writer, WriterConfig};
use crate::log::{Effects as Wire, Table};
use crate::meta::{MetaError, MetaOp, MetaReply};
use crate::mutation::{self, Mutation};
use crate::peer::{Response, Unanswered};
use crate::ring::Ring;
use crate::time::{Duration, Instant};
use std::sync::Arc;

/// How an owner is set up.
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    /// The claim.
    pub claim: Claim,
    /// Blocks of an extent's data area, as the cluster has it.
    pub extent_blocks: u32,
    /// Most hot extents written at the same time.
    pub open_max: usize,
    /// Frames under way beyond which records wait to be packed together.
    pub frames_max: usize,
    /// Frames that are not full wait for company while more than twice their records are unacknowledged.
    pub gather: bool,
    /// How long an agent may be away before its copies are made anew elsewhere.
    pub grace: Duration,
    /// The agent of the owner's own process, if it has one: read from first, and a member of new extents where the ring allows.
    pub near: Option<AgentId>,
}

/// What reaches an owner.
#[derive(Clone, Debug)]
pub enum Event {
    /// A front end wants something. Numbers stay below 2⁶³.
    Io { id: IoId, op: IoOp },
    /// An agent's answer, or the certainty that there will be none.
    Answer { rpc: RpcId, result: Result<Response, Unanswered> },
    /// The metadata store's.
    Meta { id: MetaId, result: Result<MetaReply, MetaError> },
    /// The cluster's view of all agents.
    Agents(Vec<AgentView>),
    /// A connection to an agent stands (again).
    PeerUp(AgentId),
    /// A new ring.
    Ring(Arc<Ring>),
    /// The volume has grown to so many blocks.
    Resized(u64),
    /// The deadline has come.
    Tick,
    /// Finish what was asked, write a checkpoint, let go.
    Close,
}

/// What an owner wants done.
#[derive(Default, Debug)]
pub struct Effects {
    /// Requests to agents, to be sent in this order.
    pub sends: Vec<Send>,
    /// Requests to the metadata store.
    pub meta: Vec<(MetaId, MetaOp)>,
    /// Requests of front ends that are over.
    pub done: Vec<(IoId, Result<IoDone, IoError>)>,
    /// What people should be told.
    pub notes: Vec<Note>,
}

/// Where an owner stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VolumeState {
    /// Not serving yet: what it is doing.
    Opening(Progress),
    /// Serving at this epoch.
    Serving(Epoch),
    /// It could not be opened.
    Failed(OpenError),
    /// A newer owner has the volume.
    Fenced(Epoch),
    /// Closed in good order.
    Closed,
}

#[derive(Debug)]
enum Stage {
    Opening(Box<Recovery>),
    Loading(Box<Load>),
    Serving(Box<Serving>),
    Ended(VolumeState),
}

/// An owner of a block volume.
#[derive(Debug)]
pub struct Volume {
    config: VolumeConfig,
    ring: Arc<Ring>,
    stage: Stage,
    early: Vec<(IoId, IoOp)>,
    /// The largest size heard of: the volume may grow while it is being opened.
    size: u64,
    /// Done, and not told yet: no lease stands, so a newer owner may be serving (I4).
    held: Vec<(IoId, IoDone)>,
    wire: Wire,
}

impl Volume {
    /// An owner about to claim its volume.
    #[must_use]
    pub fn new(config: VolumeConfig, ring: Arc<Ring>) -> Volume {
        let stage = Stage::Opening(Box::new(Recovery::new(config.claim.clone())));
        Volume { config, ring, stage, early: Vec::new(), size: 0, held: Vec::new(), wire: Wire::default() }
    }

    /// The volume.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.config.claim.volume
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> VolumeState {
        match &self.stage {
            Stage::Opening(recovery) => VolumeState::Opening(recovery.progress()),
            Stage::Loading(load) => VolumeState::Opening(load.progress()),
            Stage::Serving(serving) => VolumeState::Serving(serving.log.writer.epoch()),
            Stage::Ended(state) => state.clone(),
        }
    }

    /// The inner state while it serves: for status, metrics and checkers.
    #[must_use]
    pub fn serving(&self) -> Option<&Serving> {
        match &self.stage {
            Stage::Serving(serving) => Some(serving),
            _ => None,
        }
    }

    /// Takes one event in. [`Volume::turn`] must follow before time is spent elsewhere.
    pub fn step(&mut self, now: Instant, event: Event, out: &mut Effects) {
        match event {
            Event::Io { id, op } => match &mut self.stage {
                Stage::Serving(serving) => serving.on_io(id, op, &mut out.done),
                Stage::Opening(_) | Stage::Loading(_) => self.early.push((id, op)),
                Stage::Ended(state) => out.done.push((id, Err(ended(state)))),
            },
            Event::Ring(ring) => {
                if let Stage::Serving(serving) = &mut self.stage {
                    serving.log.on_ring(ring.clone());
                }
                self.ring = ring;
            }
            Event::Agents(views) => match &mut self.stage {
                Stage::Opening(recovery) => recovery.on_agents(now, &views),
                Stage::Loading(load) => load.on_agents(now, &views),
                Stage::Serving(serving) => serving.log.on_agents(now, &views),
                Stage::Ended(_) => {}
            },
            Event::PeerUp(agent) => match &mut self.stage {
                Stage::Opening(recovery) => recovery.on_peer_up(now, agent),
                Stage::Loading(load) => load.on_peer_up(now, agent),
                Stage::Serving(serving) => serving.log.on_peer_up(now, agent),
                Stage::Ended(_) => {}
            },
            Event::Answer { rpc, result } => self.on_answer(now, rpc, result, out),
            Event::Meta { id, result } => self.on_meta(now, id, result),
            Event::Resized(blocks) => {
                self.size = self.size.max(blocks);
                if let Stage::Serving(serving) = &mut self.stage {
                    serving.resize(blocks);
                }
            }
            Event::Close => match &mut self.stage {
                Stage::Serving(serving) => serving.close(),
                Stage::Opening(_) | Stage::Loading(_) => self.end(VolumeState::Closed, out),
                Stage::Ended(_) => {}
            },
            Event::Tick => {}
        }
    }

    fn on_answer(&mut self, now: Instant, rpc: RpcId, result: Result<Response, Unanswered>, out: &mut Effects) {
        match &mut self.stage {
            Stage::Opening(recovery) => {
                if let Err(error) = recovery.on_answer(now, rpc, result, &mut self.wire) {
                    self.end(VolumeState::Failed(error), out);
                }
            }
            Stage::Loading(load) => {
                if let Err(error) = load.on_answer(now, rpc, result) {
                    self.end(VolumeState::Failed(error), out);
                }
            }
            Stage::Serving(serving) => serving.on_answer(now, rpc, result, &mut self.wire, &mut out.done),
            Stage::Ended(_) => {}
        }
    }

    fn on_meta(&mut self, now: Instant, id: MetaId, result: Result<MetaReply, MetaError>) {
        match &mut self.stage {
            Stage::Opening(recovery) => {
                if let Err(error) = recovery.on_meta(now, id, result) {
                    self.stage = Stage::Ended(VolumeState::Failed(error));
                }
            }
            Stage::Serving(serving) => serving.on_meta(now, id, result, &mut self.wire),
            Stage::Loading(_) | Stage::Ended(_) => {}
        }
    }

    /// Does what has become possible. Call after every batch of events.
    pub fn turn(&mut self, now: Instant, out: &mut Effects) {
        loop {
            let next = match &mut self.stage {
                Stage::Opening(recovery) => match recovery.expire(now, &mut self.wire) {
                    Err(error) => Some(Err(error)),
                    Ok(()) => match recovery.turn(now, &mut self.wire) {
                        Some(Ok(recovered)) => {
                            let (peers, next_call) = (recovery.take_peers(), recovery.next_call());
                            Some(self.load(recovered, peers, next_call))
                        }
                        Some(Err(error)) => Some(Err(error)),
                        None => None,
                    },
                },
                Stage::Loading(load) => match load.turn(now, self.config.claim.patience, &mut self.wire) {
                    Ok(loaded) => loaded.map(|loaded| self.serve(loaded)),
                    Err(error) => Some(Err(error)),
                },
                Stage::Serving(serving) => {
                    serving.turn(now, &mut self.wire, &mut out.done);
                    if let Some(state) = serving.ended() {
                        self.end(state, out);
                    }
                    None
                }
                Stage::Ended(state) => {
                    let error = ended(state);
                    out.done.extend(self.early.drain(..).map(|(id, _)| (id, Err(error.clone()))));
                    None
                }
            };
            match next {
                Some(Ok(stage)) => {
                    self.stage = stage;
                    if let Stage::Serving(serving) = &mut self.stage {
                        serving.resize(self.size);
                        for (id, op) in std::mem::take(&mut self.early) {
                            serving.on_io(id, op, &mut out.done);
                        }
                    }
                }
                Some(Err(error)) => self.end(VolumeState::Failed(error), out),
                None => break,
            }
        }
        self.hold(now, out);
        let Wire { sends, meta, notes } = &mut self.wire;
        out.sends.append(sends);
        out.meta.append(meta);
        out.notes.append(notes);
    }

    /// Nothing is acknowledged while no lease stands: a newer owner may be serving, and what it has shown must not be
    /// followed by anything of this one.
    fn hold(&mut self, now: Instant, out: &mut Effects) {
        let Stage::Serving(serving) = &mut self.stage else {
            return;
        };
        if self.held.is_empty() && !out.done.iter().any(|(_, result)| result.is_ok()) {
            return;
        }
        if serving.log.may_read(now) {
            out.done.splice(..0, self.held.drain(..).map(|(id, done)| (id, Ok(done))));
            return;
        }
        for (id, result) in std::mem::take(&mut out.done) {
            match result {
                Ok(done) => self.held.push((id, done)),
                Err(error) => out.done.push((id, Err(error))),
            }
        }
        serving.log.want_lease(now, &mut self.wire);
    }

    /// When [`Volume::turn`] wants to be called even if nothing happens; `None`: not before the next event.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        match &self.stage {
            Stage::Opening(recovery) => recovery.deadline(now),
            Stage::Loading(_) => Some(now + crate::limits::RETRY_PAUSE),
            Stage::Serving(serving) if self.held.is_empty() => serving.deadline(now),
            Stage::Serving(serving) => {
                let soon = now + crate::limits::RETRY_PAUSE;
                Some(serving.deadline(now).map_or(soon, |at| at.min(soon)))
            }
            Stage::Ended(_) => None,
        }
    }

    fn end(&mut self, state: VolumeState, out: &mut Effects) {
        let error = ended(&state);
        if let Stage::Serving(serving) = &mut self.stage {
            serving.fail_all(&error, &mut out.done);
        }
        out.done.extend(self.early.drain(..).map(|(id, _)| (id, Err(error.clone()))));
        out.done.extend(self.held.drain(..).map(|(id, _)| (id, Err(error.clone()))));
        self.stage = Stage::Ended(state);
    }

    /// From a log that is sealed to the map: by its checkpoint, if there is one.
    fn load(&mut self, recovered: Recovered, peers: Peers, next_call: u64) -> Result<Stage, OpenError> {
        let Some((head, _)) = recovered.head.clone() else {
            let map = Map::new(recovered.meta.size.0);
            return self.serve(Loaded { recovered, map, table: Table::default(), peers, next_call });
        };
        Ok(Stage::Loading(Box::new(Load::new(self.id(), head, recovered, peers, next_call))))
    }

    /// Replays the log on top of the checkpoint and begins to serve.
    fn serve(&self, loaded: Loaded) -> Result<Stage, OpenError> {
        let Loaded { recovered, mut map, mut table, peers, next_call } = loaded;
        for x in &recovered.extents {
            merge_extent(&mut table, x);
        }
        let done = recovered.head.as_ref().map_or(0, |(head, _)| head.vseq.0);
        let mut frames: Vec<_> = recovered
            .extents
            .iter()
            .flat_map(|x| x.frames.iter().map(move |frame| (frame.base, x.seq, frame)))
            .filter(|(base, ..)| base.0 > done)
            .collect();
        frames.sort_by_key(|(base, seq, _)| (*base, *seq));
        if mutation::active(Mutation::FrameSkipped) && frames.len() > 1 {
            frames.remove(frames.len() - 2);
        }
        let mut last = None;
        let mut logged = 0;
        for (base, seq, frame) in frames {
            // A frame that moved when its extent lost a member may be found at both places: it is the same frame.
            if last == Some(base) {
                continue;
            }
            last = Some(base);
            let mut records = frame.records.clone();
            if mutation::active(Mutation::ReplayOutOfOrder) {
                records.reverse();
            }
            if !apply(&mut map, &mut table, seq, frame.offset, &records) {
                let what = format!(
                    "the frame at block {} of extent {seq} holds a record that this program does not know",
                    frame.offset
                );
                return Err(OpenError::Inconsistent(what));
            }
            logged += 1 + records.iter().map(|r| u64::from(r.payload_blocks)).sum::<u64>();
        }
        check(&table)?;
        let meta = &recovered.meta;
        let config = LogConfig {
            volume: self.id(),
            replicas: usize::from(meta.replicas),
            min_replicas: usize::from(meta.min_replicas),
            mode: meta.ack_mode,
            capacity: self.config.extent_blocks,
            open_max: self.config.open_max,
            frames_max: self.config.frames_max,
            gather: self.config.gather,
            grace: self.config.grace,
            near: self.config.near,
        };
        let writer = WriterConfig {
            volume: config.volume,
            mode: config.mode,
            capacity: config.capacity,
            open_max: config.open_max,
            frames_max: config.frames_max,
            gather: config.gather,
        };
        let writer = Writer::new(writer, recovered.epoch, recovered.next);
        let log = Log::new(
            config,
            writer,
            table,
            peers,
            self.ring.clone(),
            recovered.epoch_doc,
            recovered.witness,
            next_call,
        );
        Ok(Stage::Serving(Box::new(Serving::new(log, map, recovered.head, logged))))
    }
}

/// What the table must be like before anything is served.
fn check(table: &Table) -> Result<(), OpenError> {
    for (_, entry) in table.iter() {
        if entry.seal().is_none() {
            return Err(OpenError::Inconsistent(format!("extent {} is neither sealed nor registered", entry.seq)));
        }
        if entry.dead && entry.live > 0 {
            return Err(OpenError::Inconsistent(format!("extent {} is declared dead and yet needed", entry.seq)));
        }
        if entry.live > entry.seal().map_or(0, |s| s.length) {
            return Err(OpenError::Inconsistent(format!(
                "the map refers to more of extent {} than there is",
                entry.seq
            )));
        }
    }
    Ok(())
}

fn ended(state: &VolumeState) -> IoError {
    match state {
        VolumeState::Fenced(epoch) => IoError::Fenced { epoch: *epoch },
        _ => IoError::Closed,
    }
}
