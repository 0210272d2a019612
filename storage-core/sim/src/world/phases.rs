//! Faults first; then everything is healed that can be, and the world must come to rest with all data in it.
//!
//! ```text
//! Faults ──workload done──▶ Healed ──all ends (I21, I22)──▶ Progress ──▶ Closing ──▶ ReadBack ──twice──▶ Over
//! ```

use super::{Event, VOLUME, World};
use crate::check::Violation;
use crate::owner::{Input, Run};
use torus_core::format::crc;
use torus_core::ids::{Epoch, Lba};
use torus_core::meta::docs::{self, EpochDoc, VolumeDoc};
use torus_core::meta::{MetaOp, Txn, Write, keys};
use torus_core::time::{Duration, Instant};

/// How often to look whether a phase is over.
const REVIEW_EVERY: Duration = Duration::from_millis(40);
/// Longest phase of faults.
const FAULTS_MAX: Duration = Duration::from_secs(30);
/// World time after which a world that is whole again must have finished what it was asked: leases, timeouts and
/// retries are seconds at most.
const HEALED_MAX: Duration = Duration::from_secs(90);
/// How late an ambiguous transaction may still be carried out.
const LATE_MAX: Duration = Duration::from_secs(5);
/// Operations that a healed world must carry out.
const PROGRESS_OPERATIONS: u32 = 24;

/// Where a world is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Things break.
    Faults,
    /// Nothing breaks any more: all that is under way must end.
    Healed { until: Instant },
    /// New operations must be carried out.
    Progress { target: u32, until: Instant },
    /// The owner has been asked to end, or was killed: another one must serve.
    Closing { round: u32, last: Run, until: Instant },
    /// It reads everything back.
    ReadBack { round: u32, until: Instant },
    /// All is well.
    Over,
}

impl Phase {
    /// When it must be over.
    fn until(self) -> Option<Instant> {
        match self {
            Phase::Healed { until }
            | Phase::Progress { until, .. }
            | Phase::Closing { until, .. }
            | Phase::ReadBack { until, .. } => Some(until),
            Phase::Faults | Phase::Over => None,
        }
    }
}

impl World {
    /// What is there before anything happens.
    pub(super) fn prepare(&mut self) {
        self.set_size(self.options.volume_blocks);
        for nth in 0..self.options.agents {
            let agent = self.add_agent();
            if nth < self.options.spare_agents {
                self.spares.push(agent);
                let faults = self.options.disk_faults;
                if let Some(node) = self.agents.get_mut(&agent) {
                    node.set_faults(faults);
                }
            }
            self.push(Duration::ZERO, Event::StartAgent { agent });
        }
        self.push(Duration::from_millis(2), Event::Open);
        let first = self.some_ms(20, 1_000);
        self.push(first, Event::Fault);
        if self.options.grows {
            let at = self.some_ms(10, 6_000);
            self.push(at, Event::Grow);
        }
        self.push(REVIEW_EVERY, Event::Review);
    }

    /// The volume's document, with this size.
    pub(super) fn set_size(&mut self, blocks: u64) {
        let doc = VolumeDoc {
            name: "sim".into(),
            size: Lba(blocks),
            replicas: self.options.replicas,
            min_replicas: self.options.min_replicas,
            ack_mode: self.options.ack_mode,
            deleting: false,
        };
        let put = Write::Put { key: keys::volume_meta(VOLUME), value: docs::encode(&doc), lease: None };
        self.meta.execute(&MetaOp::Txn(Txn { when: Vec::new(), then: vec![put] }));
    }

    /// The epoch that the store holds.
    pub(super) fn raised_epoch(&self) -> Epoch {
        let key = keys::volume_epoch(VOLUME);
        let doc = self.meta.get(&key).and_then(|entry| docs::decode::<EpochDoc>(&key, &entry.value).ok());
        doc.map_or(Epoch(0), |doc| doc.epoch)
    }

    /// The newest owner that serves.
    pub(super) fn newest_serving(&self) -> Option<Run> {
        self.owners
            .iter()
            .filter(|(_, node)| node.serving.is_some())
            .max_by_key(|(_, node)| node.serving)
            .map(|(run, _)| *run)
    }

    fn nothing_under_way(&self) -> bool {
        self.owners.values().all(|node| node.pending.is_empty())
    }

    /// Goes on to the next phase when this one is over.
    pub(super) fn review(&mut self) -> Result<(), Violation> {
        let now = self.now;
        if self.phase.until().is_some_and(|until| now >= until) && self.newest_serving().is_none() {
            // Copies whose ends a power cut tore, beside ones that are gone for good, prove nothing, and neither does one that ends before
            // its extent: to refuse is right.
            let is_left = |agent| self.agents.get(&agent).is_some_and(|node| !node.has_lost_all());
            let undecidable =
                self.extents.undecidable(is_left).map(|x| (51, format!("nobody can tell where {x} ends")));
            let refused = undecidable.or_else(|| {
                let incomplete = self.extents.incomplete(is_left, &self.frames)?;
                Some((52, format!("nobody has {incomplete} whole, of which nothing acknowledged is lost")))
            });
            if let Some((mark, why)) = refused {
                self.trace.note(now, &[mark], || why);
                self.counts.refused += 1;
                self.phase = Phase::Over;
                return Ok(());
            }
        }
        match self.phase {
            Phase::Faults => {
                let issued_all = self.workload.issued >= self.options.operations && self.nothing_under_way();
                if issued_all || now >= Instant(0) + FAULTS_MAX {
                    self.heal()?;
                    self.phase = Phase::Healed { until: now + HEALED_MAX };
                }
            }
            Phase::Healed { until } => {
                self.in_time(until)?;
                // What was sent to the metadata store before may still arrive.
                let late = now + HEALED_MAX < until + LATE_MAX;
                let settled = !late && self.owners.values().all(|node| node.serving.is_some());
                if settled && self.newest_serving().is_some() && self.nothing_under_way() {
                    let target = self.workload.issued + PROGRESS_OPERATIONS;
                    self.phase = Phase::Progress { target, until: now + HEALED_MAX };
                    self.wake_client();
                }
            }
            Phase::Progress { target, until } => {
                self.in_time(until)?;
                if self.workload.issued >= target && self.nothing_under_way() {
                    self.replace_owner(0)?;
                }
            }
            Phase::Closing { round, last, until } => {
                self.in_time(until)?;
                if self.newest_serving().is_some_and(|run| run > last) {
                    self.workload.read_back = 0;
                    self.phase = Phase::ReadBack { round, until: now + HEALED_MAX };
                    self.wake_client();
                }
            }
            Phase::ReadBack { round, until } => {
                self.in_time(until)?;
                if self.workload.read_back >= self.workload.blocks && self.nothing_under_way() {
                    match round {
                        0 => self.replace_owner(1)?,
                        _ => self.phase = Phase::Over,
                    }
                }
            }
            Phase::Over => return Ok(()),
        }
        self.push(REVIEW_EVERY, Event::Review);
        Ok(())
    }

    /// The client of the newest owner that serves goes on.
    pub(super) fn wake_client(&mut self) {
        if let Some(run) = self.newest_serving() {
            self.push(Duration::ZERO, Event::Client { run });
        }
    }

    fn in_time(&self, until: Instant) -> Result<(), Violation> {
        if self.now < until {
            return Ok(());
        }
        match self.newest_serving() {
            None => {
                let since = self.owners.values().map(|node| self.now.since(node.since)).max().unwrap_or_default();
                let what =
                    format!("no owner serves {HEALED_MAX:?} after the world was healed; one has tried for {since:?}");
                Violation::new("I21", what)
            }
            Some(run) => {
                let under_way: usize = self.owners.values().map(|node| node.pending.len()).sum();
                let what = format!(
                    "{under_way} operations are under way {HEALED_MAX:?} after the world was healed, {run:?} serves, {:?}",
                    self.phase
                );
                Violation::new("I22", what)
            }
        }
    }

    /// Makes everything whole again that the promise does not give up.
    fn heal(&mut self) -> Result<(), Violation> {
        self.trace.note(self.now, &[50], || "everything is healed".into());
        self.net.heal();
        self.end_metadata_outage();
        for agent in self.agents.keys().copied().collect::<Vec<_>>() {
            if let Some(node) = self.agents.get_mut(&agent) {
                node.set_faults(crate::disk::DiskFaults::default());
            }
            self.resume_agent(agent);
            self.start_agent(agent)?;
        }
        for run in self.owners.keys().copied().collect::<Vec<_>>() {
            self.resume_owner(run);
        }
        Ok(())
    }

    /// Ends the owner, in peace or not, and waits for the next one.
    fn replace_owner(&mut self, round: u32) -> Result<(), Violation> {
        let last = self.newest_serving().unwrap_or(Run(self.runs));
        self.phase = Phase::Closing { round, last: Run(self.runs).max(last), until: self.now + HEALED_MAX };
        let peaceful = self.rng.one_in(2);
        for run in self.owners.keys().copied().collect::<Vec<_>>() {
            match peaceful && run == last {
                true => self.step_owner(run, Input::Close)?,
                false => self.crash_owner(run, "replaced"),
            }
        }
        Ok(())
    }

    /// A number for the whole world, for tests of determinism.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.hash() ^ u64::from(crc(format!("{:?}", self.counts()).as_bytes()))
    }
}
