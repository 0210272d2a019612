//! The world: one queue of events, one source of chance, and everything that happens in between.
//!
//! Nothing here decides anything about data. The world carries messages and disk operations around, breaks things as
//! [`Options`] say, tells the checkers what it sees, and asks in the end whether everything is there again.
//!
//! | file | part |
//! |---|---|
//! | `wire` | requests and answers on their way, metadata operations, the view of who is alive |
//! | `nodes` | agents and owners: start, crash, pause, and the steps of their cores |
//! | `client` | the workload and its judgement |
//! | `faults` | what breaks when |
//! | `phases` | faults, then healing, then reading everything back |

mod client;
mod faults;
mod nodes;
mod phases;
mod wire;

use crate::agent::AgentNode;
use crate::check::Violation;
use crate::check::extents::Extents;
use crate::check::frames::Frames;
use crate::check::history::History;
use crate::check::maps::{Made, Maps};
use crate::meta::SimMeta;
use crate::mutation::WorldMutation;
use crate::net::{Conn, Net};
use crate::options::Options;
use crate::owner::{Input, Picture, Run};
use crate::rng::Rng;
use crate::trace::Trace;
use client::Workload;
use nodes::OwnerNode;
use phases::Phase;
use std::collections::BTreeMap;
use torus_core::ids::{AgentId, RpcId, VolumeId};
use torus_core::member::{DiskEvent, DiskNo};
use torus_core::meta::{MetaError, MetaOp, MetaReply};
use torus_core::peer::{Request, Response};
use torus_core::time::{Duration, Instant};

/// The one volume of the world.
pub const VOLUME: VolumeId = VolumeId(0x766f_6c31);

/// Something that will happen.
#[derive(Debug)]
enum Event {
    /// A request reaches an agent's process of this life; `rpc` is `None` for a duplicate that nobody waits for.
    Request { run: Run, agent: AgentId, life: u64, conn: Conn, rpc: Option<RpcId>, request: Box<Request> },
    /// An answer reaches an owner.
    Response { run: Run, agent: AgentId, conn: Conn, rpc: RpcId, response: Box<Response> },
    /// An owner notices that a connection is gone.
    Broken { run: Run, agent: AgentId, conn: Conn },
    /// An owner has a connection to an agent again.
    PeerUp { run: Run, agent: AgentId },
    /// A disk has finished.
    Disk { agent: AgentId, life: u64, disk: DiskNo, event: DiskEvent },
    /// An operation reaches the metadata store.
    MetaArrives { run: Run, id: u64, op: MetaOp, answered: bool },
    /// Its answer reaches the owner.
    MetaAnswer { run: Run, id: u64, result: Result<MetaReply, MetaError> },
    /// An owner's deadline, if it still is.
    Wake { run: Run },
    /// An owner is told who is alive.
    View { run: Run },
    /// A client of this owner may issue.
    Client { run: Run },
    /// An owner is told that the volume has grown.
    Resized { run: Run, blocks: u64 },
    /// The volume grows.
    Grow,
    /// Something breaks.
    Fault,
    /// An agent comes back.
    StartAgent { agent: AgentId },
    /// All agents restart, and all owners but the one that stands still end.
    Usurped { run: Run },
    /// A paused agent goes on.
    ResumeAgent { agent: AgentId },
    /// A paused owner goes on.
    ResumeOwner { run: Run },
    /// Somebody opens the volume.
    Open,
    /// Time to see whether the phase is over.
    Review,
}

/// A world.
pub struct World {
    seed: u64,
    options: Options,
    mutation: Option<WorldMutation>,
    rng: Rng,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    pushed: u64,
    trace: Trace,
    agents: BTreeMap<AgentId, AgentNode>,
    /// What happened to agents that stand still.
    stalled: BTreeMap<AgentId, Vec<Event>>,
    agents_made: u64,
    spares: Vec<AgentId>,
    owners: BTreeMap<Run, OwnerNode>,
    runs: u64,
    meta: SimMeta,
    meta_down_until: Instant,
    net: Net,
    frames: Frames,
    extents: Extents,
    maps: Maps,
    /// Maps of owners that have ended, not looked at yet.
    last_pictures: Vec<(Made, Picture)>,
    history: History,
    workload: Workload,
    phase: Phase,
    counts: Counts,
}

/// What came of a run, for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations acknowledged.
    pub acked: u64,
    /// Operations that failed, or whose outcome was lost with their owner.
    pub lost: u64,
    /// Times that an owner began to serve.
    pub opens: u64,
    /// Faults of any kind that the world caused.
    pub faults: u64,
    /// Bytes that disks corrupted.
    pub corruptions: u64,
    /// Extents deleted.
    pub deletes: u64,
    /// Frames written.
    pub frames: u64,
    /// Worlds that ended with nobody able to tell what was acknowledged, and no owner that pretends to.
    pub refused: u64,
    /// Blocks read and judged.
    pub blocks_read: u64,
    /// World time, milliseconds.
    pub world_ms: u64,
}

impl World {
    /// The world of `seed`.
    #[must_use]
    pub fn new(seed: u64, options: Options, mutation: Option<WorldMutation>, print: bool) -> Self {
        let mut world = Self {
            seed,
            rng: Rng::new(seed),
            now: Instant(0),
            queue: BTreeMap::new(),
            pushed: 0,
            trace: Trace::new(print),
            agents: BTreeMap::new(),
            stalled: BTreeMap::new(),
            agents_made: 0,
            spares: Vec::new(),
            owners: BTreeMap::new(),
            runs: 0,
            meta: SimMeta::default(),
            meta_down_until: Instant(0),
            net: Net::default(),
            frames: Frames::new(seed),
            extents: Extents::new(VOLUME, options.racks),
            maps: Maps::default(),
            last_pictures: Vec::new(),
            history: History::new(options.ack_mode, options.volume_blocks),
            workload: Workload::new(options.volume_blocks),
            phase: Phase::Faults,
            counts: Counts::default(),
            mutation,
            options,
        };
        world.meta.ignores_epochs = mutation == Some(WorldMutation::StoreIgnoresEpochs);
        world.prepare();
        world
    }

    fn mutated(&self, mutation: WorldMutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn run(&mut self) -> Result<(), Violation> {
        while !matches!(self.phase, Phase::Over) {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                return Violation::new("I22", "nothing will ever happen again".into());
            };
            self.now = at;
            self.deliver(event)?;
        }
        Ok(())
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.push_at(self.now + after, event);
    }

    fn push_at(&mut self, at: Instant, event: Event) {
        self.pushed += 1;
        self.queue.insert((at.max(self.now), self.pushed), event);
    }

    /// A random time of at most `max`.
    fn some(&mut self, max: Duration) -> Duration {
        Duration::from_nanos(self.rng.within(0..max.as_nanos() as u64 + 1))
    }

    /// A random number of milliseconds.
    fn some_ms(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.rng.within(least * 1_000..most * 1_000 + 1))
    }

    fn deliver(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Request { agent, .. } | Event::Disk { agent, .. } if self.is_paused_agent(agent) => {
                self.postpone_agent(agent, event);
                Ok(())
            }
            Event::Response { run, .. }
            | Event::Broken { run, .. }
            | Event::PeerUp { run, .. }
            | Event::MetaAnswer { run, .. }
            | Event::Wake { run }
            | Event::View { run }
            | Event::Resized { run, .. }
            | Event::Client { run }
                if self.is_paused_owner(run) =>
            {
                self.postpone_owner(run, event);
                Ok(())
            }
            Event::Request { run, agent, life, conn, rpc, request } => {
                self.request_arrives(run, agent, life, conn, rpc, *request)
            }
            Event::Response { run, agent, conn, rpc, response } => {
                self.response_arrives(run, agent, conn, rpc, *response)
            }
            Event::Broken { run, agent, conn } => self.broken(run, agent, conn),
            Event::PeerUp { run, agent } => self.peer_up(run, agent),
            Event::Disk { agent, life, disk, event } => self.disk_done(agent, life, disk, event),
            Event::MetaArrives { run, id, op, answered } => self.meta_arrives(run, id, &op, answered),
            Event::MetaAnswer { run, id, result } => self.meta_answers(run, id, result),
            Event::Wake { run } => self.wake(run),
            Event::View { run } => self.view(run),
            Event::Client { run } => self.client(run),
            Event::Resized { run, blocks } => self.step_owner(run, Input::Resized(blocks)),
            Event::Grow => self.grow(),
            Event::Fault => self.fault(),
            Event::StartAgent { agent } => self.start_agent(agent),
            Event::Usurped { run } => {
                self.usurped(run);
                Ok(())
            }
            Event::ResumeAgent { agent } => {
                self.resume_agent(agent);
                Ok(())
            }
            Event::ResumeOwner { run } => {
                self.resume_owner(run);
                Ok(())
            }
            Event::Open => {
                if self.is_faulty() || self.owners.is_empty() {
                    self.open();
                }
                Ok(())
            }
            Event::Review => self.review(),
        }
    }

    /// The hash of everything that happened.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.trace.hash()
    }

    /// How many things happened.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.trace.events()
    }

    /// What came of it.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            frames: self.frames.len() as u64,
            blocks_read: self.history.blocks_read(),
            world_ms: self.now.0 / 1_000_000,
            corruptions: self.agents.values().map(AgentNode::corruptions).sum(),
            ..self.counts
        }
    }
}
