//! An agent: the real member core over simulated disks.
//!
//! A *life* is one run of its process. Disks outlive it: killing a process loses what had not reached them, a power
//! loss also what was not synced (see [`crate::disk`]).

use crate::check::Violation;
use crate::check::frames::{Frames, Place};
use crate::clock::Clock;
use crate::disk::{DiskFaults, SimDisk};
use crate::net::Conn;
use crate::options::Options;
use crate::owner::{Run, Seen};
use crate::rng::Rng;
use bytes::Bytes;
use std::collections::BTreeMap;
use torus_core::format::disk::{DiskIds, Geometry};
use torus_core::ids::{AgentId, Blocks, ClusterId, DiskId, ExtentId, Incarnation, RpcId};
use torus_core::member::{
    DiskCore, DiskError, DiskErrorKind, DiskEvent, DiskNo, DiskOp, DiskReader, Expected, Member, MemberEffects,
    MemberEvent, ReqId, format_disk,
};
use torus_core::peer::{FreeSpace, Request, Response};
use torus_core::time::{Duration, Instant};

/// The one cluster of the world.
const CLUSTER: ClusterId = ClusterId(0x636c_7573);

/// Who asked.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Which owner.
    pub run: Run,
    /// On which connection.
    pub conn: Conn,
    /// Its number; none for a duplicate, whose answer nobody waits for.
    pub rpc: Option<RpcId>,
    /// The extent whose end it is about, for the checkers.
    pub about: Option<ExtentId>,
}

/// What a step of an agent's core asks of the world.
#[derive(Debug, Default)]
pub struct DiskWork {
    /// Answers.
    pub replies: Vec<(Source, Response)>,
    /// For the disks.
    pub ops: Vec<(DiskNo, DiskOp)>,
}

#[derive(Debug)]
struct Drive {
    disk: SimDisk,
    /// Frames of the commit in flight.
    in_flight: Vec<Place>,
    latency: Duration,
}

/// One agent.
pub struct AgentNode {
    id: AgentId,
    clock: Clock,
    extent_blocks: Blocks,
    drives: Vec<Drive>,
    /// The drives that its process could use at its start: what the core calls a disk's number is an index into these.
    used: Vec<usize>,
    core: Option<Member>,
    /// Counts the runs of its process.
    pub life: u64,
    /// It stands still.
    pub paused: bool,
    /// When its lease runs out; none: it keeps it alive.
    pub seen_until: Option<Instant>,
    requests: BTreeMap<ReqId, Source>,
    next_request: u64,
    effects: MemberEffects,
    space: FreeSpace,
}

impl AgentNode {
    /// A new agent with empty, formatted disks; not started.
    pub fn new(id: AgentId, clock: Clock, options: &Options, slow: bool, rng: &mut Rng) -> Self {
        let drives = (0..options.disks_per_agent)
            .map(|nth| {
                let geometry = Geometry::with_slots(options.extent_blocks, options.slots_per_disk)
                    .expect("the options draw a possible geometry");
                let mut disk = SimDisk::new(geometry.bytes(), rng.split());
                let ids = DiskIds { cluster: CLUSTER, agent: id, disk: DiskId(id.0 << 8 | (nth as u64 + 1)) };
                for write in format_disk(geometry, ids) {
                    disk.write(write.offset, &write.pieces);
                }
                disk.sync();
                let latency = Duration::from_micros(if slow { rng.within(3_000..40_000) } else { rng.within(30..800) });
                Drive { disk, in_flight: Vec::new(), latency }
            })
            .collect();
        Self {
            id,
            clock,
            extent_blocks: options.extent_blocks,
            drives,
            used: Vec::new(),
            core: None,
            life: 0,
            paused: false,
            seen_until: None,
            requests: BTreeMap::new(),
            next_request: 0,
            effects: MemberEffects::default(),
            space: FreeSpace::default(),
        }
    }

    /// Its process exists.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.core.is_some()
    }

    /// Its process exists and does something.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.core.is_some() && !self.paused
    }

    /// It runs and none of its disks works: what it held is gone, as if it had been taken away.
    #[must_use]
    pub fn has_lost_all(&self) -> bool {
        self.core.as_ref().is_some_and(|core| core.disks().iter().all(|disk| disk.failure().is_some()))
    }

    /// Starts its process over its disks.
    pub fn start(&mut self, now: Instant) -> DiskWork {
        self.life += 1;
        let expected = Expected { cluster: CLUSTER, agent: self.id, extent_blocks: self.extent_blocks };
        let mut cores = Vec::new();
        self.used.clear();
        for (nth, drive) in self.drives.iter_mut().enumerate() {
            if let Ok(core) = DiskCore::recover(&mut Reader(&mut drive.disk), &expected) {
                cores.push(core);
                self.used.push(nth);
            }
        }
        let missing = self.drives.len() - cores.len();
        self.effects.clear();
        self.core = Some(Member::new(cores, missing, self.clock.local(now), &mut self.effects));
        self.seen_until = None;
        self.work()
    }

    /// Ends its process; with `power` its disks lose theirs.
    pub fn crash(&mut self, power: bool, seen_until: Instant) {
        if self.core.take().is_some() && self.seen_until.is_none() {
            self.seen_until = Some(seen_until);
        }
        self.paused = false;
        self.requests.clear();
        for drive in &mut self.drives {
            drive.in_flight.clear();
            match power {
                true => drive.disk.lose_power(),
                false => drive.disk.lose_process(),
            }
        }
    }

    /// A request arrives.
    pub fn request(&mut self, now: Instant, source: Source, request: Request) -> DiskWork {
        self.next_request += 1;
        let req = ReqId(self.next_request);
        self.requests.insert(req, source);
        self.step(now, MemberEvent::Request { req, request })
    }

    /// A disk has finished; with what it holds durably now. `lies`: it says so without having synced.
    pub fn disk_done(&mut self, now: Instant, disk: DiskNo, event: DiskEvent, lies: bool) -> (DiskWork, Vec<Place>) {
        let drive = &mut self.drives[self.used[usize::from(disk.0)]];
        let mut durable = Vec::new();
        let event = match event {
            DiskEvent::Committed { id, result: Ok(()) } => {
                if drive.disk.commit_fails() {
                    drive.disk.lose_power();
                    let text = format!("commit {id}: simulated input/output error");
                    DiskEvent::Committed { id, result: Err(DiskError { kind: DiskErrorKind::Io, text }) }
                } else {
                    match lies {
                        true => drive.disk.skip_sync(),
                        false => drive.disk.sync(),
                    }
                    durable = std::mem::take(&mut drive.in_flight);
                    DiskEvent::Committed { id, result: Ok(()) }
                }
            }
            other => other,
        };
        (self.step(now, MemberEvent::Disk { disk, event }), durable)
    }

    fn step(&mut self, now: Instant, event: MemberEvent) -> DiskWork {
        let local = self.clock.local(now);
        self.effects.clear();
        if let Some(core) = &mut self.core {
            core.step(local, event, &mut self.effects);
        }
        self.work()
    }

    fn work(&mut self) -> DiskWork {
        let ops = std::mem::take(&mut self.effects.ops);
        if let Some(core) = &self.core {
            self.space = core.free_space();
        }
        let mut replies = Vec::new();
        for (req, response) in self.effects.replies.drain(..) {
            let source = match response {
                Response::Received { .. } => self.requests.get(&req).copied(),
                _ => self.requests.remove(&req),
            };
            replies.extend(source.map(|source| (source, response)));
        }
        DiskWork { replies, ops }
    }

    /// Gives a disk something to do: what it will answer, how many frames that writes, and how long it takes.
    ///
    /// # Errors
    /// When what is written breaks an invariant.
    pub fn disk_op(
        &mut self,
        disk: DiskNo,
        op: DiskOp,
        frames: &mut Frames,
        rng: &mut Rng,
    ) -> Result<(DiskEvent, usize, Duration), Violation> {
        let drive = &mut self.drives[self.used[usize::from(disk.0)]];
        let mut latency = Duration::from_nanos(rng.within(10_000..drive.latency.as_nanos() as u64 * 2));
        if rng.one_in(300) {
            latency += Duration::from_millis(rng.within(5..120));
        }
        match op {
            DiskOp::Commit { id, writes } => {
                for write in &writes {
                    drive.in_flight.extend(frames.written(&write.pieces)?);
                    drive.disk.write(write.offset, &write.pieces);
                }
                Ok((DiskEvent::Committed { id, result: Ok(()) }, drive.in_flight.len(), latency))
            }
            DiskOp::Read { id, offset, len } => {
                let bytes = drive.disk.read(offset, len);
                Ok((DiskEvent::Read { id, result: Ok(bytes) }, 0, latency))
            }
        }
    }

    /// How the cluster sees it.
    pub fn seen(&mut self, now: Instant) -> Seen {
        let up = match self.seen_until {
            None => self.core.is_some(),
            Some(until) => now < until,
        };
        Seen { id: self.id, up, incarnation: Incarnation(self.life), space: self.space }
    }

    /// Faults of its disks from now on.
    pub fn set_faults(&mut self, faults: DiskFaults) {
        for drive in &mut self.drives {
            drive.disk.faults = faults;
        }
    }

    /// A bit of one of its disks rots.
    pub fn rot(&mut self, rng: &mut Rng) {
        let nth = rng.index(self.drives.len());
        self.drives[nth].disk.rot();
    }

    /// Blocks that its disks corrupted.
    #[must_use]
    pub fn corruptions(&self) -> u64 {
        self.drives.iter().map(|drive| drive.disk.corruptions).sum()
    }
}

struct Reader<'a>(&'a mut SimDisk);

impl DiskReader for Reader<'_> {
    fn size(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        if offset + len as u64 > self.0.size_bytes() {
            return Err(DiskError { kind: DiskErrorKind::Io, text: format!("read at {offset} beyond the disk") });
        }
        Ok(self.0.read(offset, len))
    }
}
