//! The task that owns the member and its disks.

use super::alone::Alone;
use super::report::{DiskReport, Report};
use crate::clock::Clock;
use crate::tdp::Server;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use torus_core::ids::{Epoch, VolumeId};
use torus_core::member::{DiskCore, DiskEvent, DiskNo, DiskOp, Member, MemberEffects, MemberEvent, ReqId};
use torus_core::peer::Request;
use torus_store::{BufferPool, Disk};

/// How long an orderly stop waits for requests that are under way.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// What the control side asks of a plane.
#[derive(Debug)]
pub enum Command {
    /// How it is. That it answers shows that it lives.
    Report(oneshot::Sender<Report>),
    /// All fences that it keeps to.
    Fences(oneshot::Sender<Vec<(VolumeId, Epoch)>>),
    /// Take nothing new, answer what is under way, then end.
    Stop,
    /// End at once, as if the power had failed.
    Kill,
}

/// Why a plane ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaneEnd {
    /// Asked to, and everything was answered.
    Drained,
    /// Asked to, and something was not answered in time.
    Cut,
    /// Told to at once, or nobody is left to ask.
    Killed,
}

/// An agent's data plane. See the module.
pub struct Plane {
    clock: Clock,
    member: Member,
    disks: Vec<AsyncFd<Disk>>,
    server: Server,
    pool: BufferPool,
    commands: mpsc::Receiver<Command>,
    commit_seconds: Histogram,
    alone: Alone,
    /// When the commit in flight on each disk began.
    committing: BTreeMap<DiskNo, Instant>,
    effects: MemberEffects,
    requests: Vec<(ReqId, Request)>,
    completions: Vec<DiskEvent>,
    /// What has come in since the last step.
    events: Vec<MemberEvent>,
}

impl Plane {
    /// The plane over `disks`, each with what was recovered from it. `missing` disks are known and not there.
    ///
    /// # Errors
    /// When a disk's descriptor cannot be waited for.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        disks: Vec<(Disk, DiskCore)>,
        missing: usize,
        server: Server,
        pool: BufferPool,
        commands: mpsc::Receiver<Command>,
        commit_seconds: Histogram,
    ) -> io::Result<Plane> {
        let clock = Clock::start();
        let (disks, cores): (Vec<_>, Vec<_>) = disks.into_iter().unzip();
        // Read readiness alone: taking what an eventfd holds makes it writable, and would wake the thread for nothing.
        #[expect(deprecated, reason = "its replacement is unsafe: it trusts us with what a Disk's own type promises")]
        let watched = |disk| AsyncFd::with_interest(disk, Interest::READABLE);
        let disks = disks.into_iter().map(watched).collect::<io::Result<_>>()?;
        let mut effects = MemberEffects::default();
        let member = Member::new(cores, missing, clock.now(), &mut effects);
        let (committing, requests, completions, events) = Default::default();
        Ok(Plane {
            clock,
            member,
            disks,
            server,
            pool,
            commands,
            commit_seconds,
            alone: Alone::default(),
            committing,
            effects,
            requests,
            completions,
            events,
        })
    }

    /// Serves until a [`Command`] ends it. Says `started` once the start is recorded on the disks: from then on requests
    /// are answered.
    pub async fn run(mut self, started: oneshot::Sender<()>) -> PlaneEnd {
        let mut started = Some(started);
        self.carry_out();
        loop {
            if let Some(started) = started.take_if(|_| self.member.is_started()) {
                // Whoever waited may have given up.
                let _ = started.send(());
            }
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Report(asker)) => {
                        // Whoever asked may have given up.
                        let _ = asker.send(self.report());
                    }
                    Some(Command::Fences(asker)) => {
                        let _ = asker.send(self.member.fences().collect());
                    }
                    Some(Command::Stop) => return self.drain().await,
                    Some(Command::Kill) | None => {
                        self.server.kill();
                        return PlaneEnd::Killed;
                    }
                },
                number = completion(&self.disks) => self.complete(number),
                () = self.server.arrival() => {}
            }
            self.turn();
        }
    }

    /// Answers what is under way, and takes nothing new.
    async fn drain(mut self) -> PlaneEnd {
        self.server.stop();
        let deadline = tokio::time::Instant::now() + DRAIN_TIME;
        while !self.server.is_drained() || self.disks.iter().any(|disk| disk.get_ref().outstanding() > 0) {
            tokio::select! {
                number = completion(&self.disks) => self.complete(number),
                () = self.server.arrival() => {}
                () = self.server.ended() => {}
                () = tokio::time::sleep_until(deadline) => {
                    self.server.kill();
                    return PlaneEnd::Cut;
                }
            }
            self.turn();
        }
        PlaneEnd::Drained
    }

    /// Takes everything that is there, and does everything that follows from it.
    fn turn(&mut self) {
        self.server.take(&mut self.requests);
        if !self.requests.is_empty() {
            self.alone.met(Instant::now());
        }
        self.events.extend(self.requests.drain(..).map(|(req, request)| MemberEvent::Request { req, request }));
        loop {
            let mut performed = false;
            if !self.events.is_empty() {
                self.member.step_all(self.clock.now(), self.events.drain(..), &mut self.effects);
                performed = self.perform();
            }
            self.carry_out();
            if !performed {
                return;
            }
            self.alone.answered(Instant::now());
        }
    }

    /// Carries out what the step asks of the disk, if that is one thing and nothing else is to be done meanwhile. What
    /// came of it is then among the events.
    fn perform(&mut self) -> bool {
        let MemberEffects { ops, replies, .. } = &mut self.effects;
        let ([disk], [(number, op)]) = (&self.disks[..], &ops[..]) else { return false };
        if !replies.is_empty() || disk.get_ref().outstanding() > 0 {
            return false;
        }
        let began = Instant::now();
        if !self.alone.takes(op, began) {
            return false;
        }
        let number = *number;
        let Some((_, op)) = ops.pop() else { return false };
        let event = disk.get_ref().perform(op);
        let ended = Instant::now();
        self.alone.done(began, ended);
        if let DiskEvent::Committed { .. } = event {
            self.commit_seconds.observe(ended.duration_since(began).as_secs_f64());
        }
        self.events.push(MemberEvent::Disk { disk: number, event });
        true
    }

    /// Collects what a disk has done.
    fn complete(&mut self, number: usize) {
        let disk = DiskNo(number as u16);
        self.disks[number].get_mut().completions(&mut self.completions);
        for event in self.completions.drain(..) {
            if let DiskEvent::Committed { .. } = event
                && let Some(began) = self.committing.remove(&disk)
            {
                self.commit_seconds.observe(began.elapsed().as_secs_f64());
            }
            self.events.push(MemberEvent::Disk { disk, event });
        }
    }

    fn carry_out(&mut self) {
        self.effects.ops.sort_by_key(|(disk, _)| *disk);
        let mut ops = self.effects.ops.drain(..).peekable();
        while let Some((number, _)) = ops.peek() {
            let number = *number;
            let of_disk = std::iter::from_fn(|| ops.next_if(|(disk, _)| *disk == number));
            let committing = &mut self.committing;
            let submitted = of_disk.map(|(_, op)| {
                if let DiskOp::Commit { .. } = op {
                    committing.insert(number, Instant::now());
                }
                op
            });
            self.disks[usize::from(number.0)].get_mut().submit_all(submitted);
        }
        drop(ops);
        for (number, error) in self.effects.failed.drain(..) {
            let path = self.disks[usize::from(number.0)].get_ref().path();
            tracing::error!(
                disk = %self.member.disks()[usize::from(number.0)].ids().disk,
                path = %path.display(),
                "disk failed and is not used any more: {error}. Its extents are repaired from other agents; replace it"
            );
        }
        for (req, response) in self.effects.replies.drain(..) {
            self.server.reply(req, response);
        }
        self.effects.clear();
        self.server.flush();
    }

    fn report(&self) -> Report {
        let disks = self.member.disks().iter().zip(&self.disks).map(|(core, disk)| DiskReport {
            id: core.ids().disk,
            path: disk.get_ref().path().into(),
            space: core.free_space(),
            failure: core.failure().map(|error| error.text.clone()),
        });
        Report {
            started: self.member.is_started(),
            space: self.member.free_space(),
            disks: disks.collect(),
            member: self.member.stats(),
            server: self.server.stats(),
            buffers_bytes: self.pool.in_use_bytes() as u64,
        }
    }
}

/// Waits until a disk has something to collect. Cancel safe.
async fn completion(disks: &[AsyncFd<Disk>]) -> usize {
    poll_fn(|cx| {
        for (number, disk) in disks.iter().enumerate() {
            if let Poll::Ready(Ok(mut ready)) = disk.poll_read_ready(cx) {
                // The next completion raises it anew; what is there now is collected by whoever waits here.
                ready.clear_ready();
                return Poll::Ready(number);
            }
        }
        Poll::Pending
    })
    .await
}
