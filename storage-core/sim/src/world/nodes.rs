//! Agents and owners: start, stop, stand still, and the steps of their cores.

use super::client::Pending;
use super::phases::Phase;
use super::{Event, VOLUME, World};
use crate::agent::{AgentNode, DiskWork, Source};
use crate::check::Violation;
use crate::check::maps::Made;
use crate::clock::Clock;
use crate::net::Conn;
use crate::options::Kind;
use crate::owner::{Done, Input, Output, Owner, Run, Seen};
use crate::scripted::Scripted;
use crate::volume::VolumeOwner;
use std::collections::BTreeMap;
use torus_core::ids::{AgentId, Epoch, ExtentId, RpcId};
use torus_core::member::{DiskEvent, DiskNo};
use torus_core::peer::{Request, Response};
use torus_core::time::{Duration, Instant};

/// How long an agent is seen alive after it has last said so.
const ALIVE_FOR_MS: (u64, u64) = (1_000, 4_000);

/// An owner's process.
pub(super) struct OwnerNode {
    core: Box<dyn Owner>,
    clock: Clock,
    /// The epoch it serves in.
    pub(super) serving: Option<Epoch>,
    pub(super) pending: BTreeMap<u64, Pending>,
    /// A client wants to issue and waits for room.
    pub(super) client_waits: bool,
    paused: bool,
    backlog: Vec<Event>,
    /// When its core wants to be woken, by its own clock.
    alarm: Option<Instant>,
    /// The world time of the wake-up that is in the queue.
    woken_at: Option<Instant>,
    pub(super) since: Instant,
}

impl World {
    pub(super) fn is_paused_agent(&self, agent: AgentId) -> bool {
        self.agents.get(&agent).is_some_and(|a| a.paused)
    }

    pub(super) fn postpone_agent(&mut self, agent: AgentId, event: Event) {
        self.stalled.entry(agent).or_default().push(event);
    }

    pub(super) fn is_paused_owner(&self, run: Run) -> bool {
        self.owners.get(&run).is_some_and(|o| o.paused)
    }

    pub(super) fn postpone_owner(&mut self, run: Run, event: Event) {
        if let Some(node) = self.owners.get_mut(&run) {
            node.backlog.push(event);
        }
    }

    /// A new agent with empty disks, not started.
    pub(super) fn add_agent(&mut self) -> AgentId {
        self.agents_made += 1;
        let id = AgentId(self.agents_made);
        let clock = self.draw_clock();
        let slow = self.options.slow_disks && (self.options.all_slow || self.rng.one_in(4));
        let node = AgentNode::new(id, clock, &self.options, slow, &mut self.rng);
        self.agents.insert(id, node);
        id
    }

    fn draw_clock(&mut self) -> Clock {
        let wild = self.mutated(crate::mutation::WorldMutation::ClocksRunWild);
        Clock::draw(&mut self.rng, self.options.drift, wild)
    }

    /// Starts an agent's process over its disks.
    pub(super) fn start_agent(&mut self, agent: AgentId) -> Result<(), Violation> {
        let now = self.now;
        let Some(node) = self.agents.get_mut(&agent) else { return Ok(()) };
        if node.is_running() {
            return Ok(());
        }
        let work = node.start(now);
        let life = node.life;
        self.trace.note(now, &[10, agent.0, life], || format!("{agent:?} starts, life {life}"));
        self.agent_did(agent, work)
    }

    /// Ends an agent's process; `power`: its disks lose power too.
    pub(super) fn crash_agent(&mut self, agent: AgentId, power: bool) {
        let now = self.now;
        let grace = self.some_ms(ALIVE_FOR_MS.0, ALIVE_FOR_MS.1);
        let Some(node) = self.agents.get_mut(&agent) else { return };
        if !node.is_running() && !power {
            return;
        }
        node.crash(power, now + grace);
        self.stalled.remove(&agent);
        self.trace.note(now, &[11, agent.0, u64::from(power)], || format!("{agent:?} dies, power lost: {power}"));
        for run in self.net.owners_of(agent) {
            let notice = if self.rng.one_in(8) { self.some_ms(300, 3_000) } else { self.some_ms(1, 30) };
            self.break_link(run, agent, notice);
        }
    }

    pub(super) fn pause_agent(&mut self, agent: AgentId, length: Duration) {
        let grace = self.now + self.options.fault_every_max + Duration::from_secs(2);
        let Some(node) = self.agents.get_mut(&agent).filter(|a| a.is_running() && !a.paused) else { return };
        node.paused = true;
        node.seen_until = Some(grace);
        self.trace.note(self.now, &[12, agent.0], || format!("{agent:?} stands still for {length:?}"));
        self.push(length, Event::ResumeAgent { agent });
        for run in self.net.owners_of(agent) {
            if self.rng.one_in(2) {
                // The owner's requests time out.
                let timeout = self.some_ms(300, 3_000);
                if timeout < length {
                    self.break_link(run, agent, timeout);
                }
            }
        }
    }

    pub(super) fn resume_agent(&mut self, agent: AgentId) {
        let Some(node) = self.agents.get_mut(&agent).filter(|a| a.paused) else { return };
        node.paused = false;
        if node.is_running() {
            node.seen_until = None;
        }
        let backlog = self.stalled.remove(&agent).unwrap_or_default();
        self.trace.note(self.now, &[13, agent.0], || format!("{agent:?} goes on"));
        for event in backlog {
            self.push(Duration::ZERO, event);
        }
    }

    /// Takes an agent and its disks away for good; another one comes in its place.
    pub(super) fn wipe_agent(&mut self, agent: AgentId) {
        self.crash_agent(agent, true);
        self.agents.remove(&agent);
        self.trace.note(self.now, &[14, agent.0], || format!("{agent:?} is gone for good"));
        let new = self.add_agent();
        let pause = self.some_ms(10, 2_000);
        self.push(pause, Event::StartAgent { agent: new });
    }

    pub(super) fn step_agent_request(
        &mut self,
        run: Run,
        agent: AgentId,
        conn: Conn,
        rpc: Option<RpcId>,
        request: Request,
    ) -> Result<(), Violation> {
        let now = self.now;
        let Some(node) = self.agents.get_mut(&agent) else { return Ok(()) };
        let work = node.request(now, Source { run, conn, rpc, about: about(&request) }, request);
        self.agent_did(agent, work)
    }

    pub(super) fn disk_done(
        &mut self,
        agent: AgentId,
        life: u64,
        disk: DiskNo,
        event: DiskEvent,
    ) -> Result<(), Violation> {
        let now = self.now;
        let lies = self.mutated(crate::mutation::WorldMutation::CommitWithoutSync);
        let Some(node) = self.agents.get_mut(&agent).filter(|a| a.is_running() && a.life == life) else {
            return Ok(());
        };
        let (work, durable) = node.disk_done(now, disk, event, lies);
        self.trace.note(now, &[15, agent.0, u64::from(disk.0)], || format!("{agent:?} {disk:?} finishes"));
        self.frames.durable(agent, &durable);
        self.agent_did(agent, work)
    }

    /// Carries out what an agent's core wants.
    fn agent_did(&mut self, agent: AgentId, work: DiskWork) -> Result<(), Violation> {
        for (source, response) in work.replies {
            self.checks_response(agent, &source, &response)?;
            if let Some(rpc) = source.rpc {
                self.send_response(source.run, agent, source.conn, rpc, response);
            }
        }
        for (disk, op) in work.ops {
            let Some(node) = self.agents.get_mut(&agent) else { return Ok(()) };
            let life = node.life;
            let (event, places, latency) = node.disk_op(disk, op, &mut self.frames, &mut self.rng)?;
            self.trace.note(self.now, &[16, agent.0, u64::from(disk.0), places as u64], || {
                format!("{agent:?} {disk:?} is given work, {places} frames")
            });
            self.push(latency, Event::Disk { agent, life, disk, event });
        }
        Ok(())
    }

    fn checks_response(&mut self, agent: AgentId, source: &Source, response: &Response) -> Result<(), Violation> {
        if let Response::Fenced { extents, .. } = response {
            self.extents.told(agent, extents, &self.frames);
        }
        let Some(extent) = source.about else { return Ok(()) };
        match response {
            Response::Sealed { length, digest } => self.extents.member_sealed(extent, agent, *length, *digest),
            Response::Deleted { .. } => {
                self.counts.deletes += 1;
                self.extents.deleted(extent, agent)
            }
            _ => Ok(()),
        }
    }

    /// A new owner's process begins to open the volume.
    pub(super) fn open(&mut self) {
        self.runs += 1;
        let run = Run(self.runs);
        let core: Box<dyn Owner> = match self.options.kind {
            Kind::Scripted => Box::new(Scripted::new(run, &self.options, self.rng.split())),
            Kind::Volume => Box::new(VolumeOwner::new(run, &self.options, self.rng.bits())),
        };
        let node = OwnerNode {
            core,
            clock: self.draw_clock(),
            serving: None,
            pending: BTreeMap::new(),
            client_waits: false,
            paused: false,
            backlog: Vec::new(),
            alarm: None,
            woken_at: None,
            since: self.now,
        };
        self.owners.insert(run, node);
        self.trace.note(self.now, &[20, run.0], || format!("{run:?} opens the volume"));
        self.push(Duration::ZERO, Event::View { run });
    }

    pub(super) fn crash_owner(&mut self, run: Run, why: &str) {
        let Some(node) = self.owners.remove(&run) else { return };
        self.last_pictures.extend(node.core.picture().map(|picture| (Made::Running, picture)));
        self.trace.note(self.now, &[21, run.0], || format!("{run:?} ends: {why}"));
        for agent in self.net.peers(run) {
            self.net.disconnect(run, agent);
        }
        self.counts.lost += node.pending.len() as u64;
        if self.owners.is_empty() {
            let pause = self.some_ms(1, 800);
            self.push(pause, Event::Open);
        } else if matches!(self.phase, Phase::Progress { .. } | Phase::ReadBack { .. }) {
            // Clients turn to whoever serves now: only by being asked it learns whether it still may.
            self.wake_client();
        }
    }

    pub(super) fn pause_owner(&mut self, run: Run, length: Duration) {
        let Some(node) = self.owners.get_mut(&run).filter(|o| !o.paused) else { return };
        node.paused = true;
        self.trace.note(self.now, &[22, run.0], || format!("{run:?} stands still for {length:?}"));
        self.push(length, Event::ResumeOwner { run });
    }

    pub(super) fn resume_owner(&mut self, run: Run) {
        let Some(node) = self.owners.get_mut(&run).filter(|o| o.paused) else { return };
        node.paused = false;
        let backlog = std::mem::take(&mut node.backlog);
        self.trace.note(self.now, &[23, run.0], || format!("{run:?} goes on"));
        for event in backlog {
            // The store's answers come by another way than the agents': they may be behind broken connections and new ones.
            let behind = self.options.usurpers && matches!(event, Event::MetaAnswer { .. });
            let pause = if behind { self.some_ms(400, 1_500) } else { Duration::ZERO };
            self.push(pause, event);
        }
    }

    pub(super) fn wake(&mut self, run: Run) -> Result<(), Violation> {
        let now = self.now;
        let Some(node) = self.owners.get_mut(&run) else { return Ok(()) };
        if node.woken_at.is_some_and(|at| at <= now) {
            node.woken_at = None;
        }
        if node.alarm.is_some_and(|alarm| alarm <= node.clock.local(now)) {
            return self.step_owner(run, Input::Tick);
        }
        self.ring_at(run);
        Ok(())
    }

    /// Sees to it that a wake-up is in the queue for the owner's alarm.
    fn ring_at(&mut self, run: Run) {
        let now = self.now;
        let Some(node) = self.owners.get_mut(&run) else { return };
        let Some(deadline) = node.alarm else { return };
        // A timer is never early and always a little late.
        let at = node.clock.world(deadline).max(now) + Duration::from_micros(10);
        if node.woken_at.is_none_or(|woken| at < woken) {
            node.woken_at = Some(at);
            self.push_at(at, Event::Wake { run });
        }
    }

    pub(super) fn step_owner(&mut self, run: Run, input: Input) -> Result<(), Violation> {
        let now = self.now;
        let Some(node) = self.owners.get_mut(&run) else { return Ok(()) };
        let mut out = Output::default();
        node.core.step(node.clock.local(now), input, &mut out);
        for note in std::mem::take(&mut out.notes) {
            self.trace.note(now, &[24, run.0], || format!("{run:?}: {note}"));
        }
        if let Some(epoch) = out.serving.take() {
            self.begins_to_serve(run, epoch)?;
        }
        for (id, done) in std::mem::take(&mut out.done) {
            self.operation_done(run, id, done)?;
        }
        for (agent, rpc, request) in std::mem::take(&mut out.sends) {
            self.send_request(run, agent, rpc, request);
        }
        for (id, op) in std::mem::take(&mut out.meta) {
            self.send_meta(run, id, op);
        }
        if let Some(why) = out.ended {
            self.crash_owner(run, &why);
        }
        if let Some(node) = self.owners.get_mut(&run) {
            node.alarm = node.core.deadline(node.clock.local(now));
        }
        self.ring_at(run);
        Ok(())
    }

    fn begins_to_serve(&mut self, run: Run, epoch: Epoch) -> Result<(), Violation> {
        self.counts.opens += 1;
        self.trace.note(self.now, &[25, run.0, epoch.0], || format!("{run:?} serves in epoch {epoch}"));
        self.history.serves(epoch)?;
        if let Some(node) = self.owners.get_mut(&run) {
            node.serving = Some(epoch);
            self.last_pictures.extend(node.core.picture().map(|picture| (Made::Replayed, picture)));
        }
        for (made, picture) in std::mem::take(&mut self.last_pictures) {
            self.maps.taken(VOLUME, (made, &picture), &self.frames)?;
        }
        self.push(Duration::ZERO, Event::Client { run });
        Ok(())
    }

    /// Tells an owner who is alive, and will again.
    pub(super) fn view(&mut self, run: Run) -> Result<(), Violation> {
        if !self.owners.contains_key(&run) {
            return Ok(());
        }
        let now = self.now;
        let seen: Vec<Seen> = self.agents.values_mut().map(|agent| agent.seen(now)).collect();
        let pause = self.some_ms(100, 700);
        self.push(pause, Event::View { run });
        self.step_owner(run, Input::Agents(seen))
    }

    pub(super) fn ended(&mut self, run: Run, id: u64) -> Option<Pending> {
        self.owners.get_mut(&run)?.pending.remove(&id)
    }

    pub(super) fn operation_done(&mut self, run: Run, id: u64, done: Done) -> Result<(), Violation> {
        let Some(pending) = self.ended(run, id) else {
            return Violation::new("I2", format!("{run:?} ends operation {id}, which is not under way"));
        };
        self.judge(run, pending, done)?;
        if let Some(node) = self.owners.get_mut(&run)
            && std::mem::take(&mut node.client_waits)
        {
            self.push(Duration::ZERO, Event::Client { run });
        }
        Ok(())
    }
}

/// The extent that a request is about.
fn about(request: &Request) -> Option<ExtentId> {
    match request {
        Request::Seal { extent, .. } | Request::Delete { extent, .. } => Some(*extent),
        _ => None,
    }
}
