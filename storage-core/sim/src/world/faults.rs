//! What breaks when.

use super::phases::Phase;
use super::{Event, World};
use crate::check::Violation;
use crate::net::Way;
use crate::owner::Run;
use torus_core::ids::AgentId;
use torus_core::time::Duration;

#[derive(Clone, Copy, Debug)]
enum Fault {
    AgentCrash,
    PowerCut,
    AgentPause,
    Disconnect,
    Partition,
    OwnerCrash,
    OwnerPause,
    Rival,
    MetadataOutage,
    Rot,
    Wipe,
}

impl World {
    /// Faults still happen.
    pub(super) fn is_faulty(&self) -> bool {
        matches!(self.phase, Phase::Faults)
    }

    fn kinds(&self) -> Vec<Fault> {
        let options = &self.options;
        let spares = !self.spares.is_empty();
        let all = [
            (Fault::AgentCrash, options.agent_crashes, 4),
            (Fault::PowerCut, options.power_cuts, 1),
            (Fault::AgentPause, options.agent_pauses, 2),
            (Fault::Disconnect, options.disconnects, 4),
            (Fault::Partition, options.partitions, 3),
            (Fault::OwnerCrash, options.owner_crashes, 3),
            (Fault::OwnerPause, options.owner_pauses, 2),
            (Fault::Rival, options.rivals, 1),
            (Fault::MetadataOutage, options.meta_faults, 2),
            (Fault::Rot, options.rot && spares, 4),
            (Fault::Wipe, options.wipes && spares, 1),
        ];
        all.into_iter()
            .filter(|(_, on, _)| *on)
            .flat_map(|(kind, _, weight)| std::iter::repeat_n(kind, weight))
            .collect()
    }

    /// An operator makes the volume larger: the store says so, and then every owner is told.
    pub(super) fn grow(&mut self) -> Result<(), Violation> {
        let blocks = self.workload.blocks + self.rng.within(1..64);
        self.trace.note(self.now, &[41, blocks], || format!("the volume grows to {blocks} blocks"));
        self.set_size(blocks);
        self.history.grow(blocks);
        self.workload.blocks = blocks;
        for run in self.runs_now() {
            self.push(Duration::ZERO, Event::Resized { run, blocks });
        }
        if matches!(self.phase, Phase::ReadBack { .. }) {
            // Who was through with the volume is not any more.
            self.wake_client();
        }
        Ok(())
    }

    /// Something breaks, and something else will.
    pub(super) fn fault(&mut self) -> Result<(), Violation> {
        if !self.is_faulty() {
            return Ok(());
        }
        let kinds = self.kinds();
        if kinds.is_empty() {
            return Ok(());
        }
        let kind = *self.rng.pick(&kinds);
        self.counts.faults += 1;
        self.trace.note(self.now, &[40, kind as u64], || format!("fault: {kind:?}"));
        self.cause(kind);
        let pause = self.some(self.options.fault_every_max) + Duration::from_millis(1);
        self.push(pause, Event::Fault);
        Ok(())
    }

    fn cause(&mut self, kind: Fault) {
        match kind {
            Fault::AgentCrash => {
                let agent = self.any_agent();
                let power = self.rng.one_in(2);
                self.crash_and_restart(agent, power);
            }
            Fault::PowerCut => {
                for agent in self.agents.keys().copied().collect::<Vec<_>>() {
                    self.crash_and_restart(agent, true);
                }
                if self.options.owner_crashes || self.rng.one_in(2) {
                    for run in self.runs_now() {
                        self.crash_owner(run, "power cut");
                    }
                }
            }
            Fault::AgentPause => {
                let (agent, length) = (self.any_agent(), self.some_ms(20, 6_000));
                self.pause_agent(agent, length);
            }
            Fault::Disconnect => {
                if let Some(run) = self.any_run() {
                    let agent = self.any_agent();
                    let notice = self.some_ms(0, 20);
                    self.break_link(run, agent, notice);
                }
            }
            Fault::Partition => self.partition(),
            Fault::OwnerCrash => {
                if let Some(run) = self.any_run() {
                    self.crash_owner(run, "killed");
                }
            }
            Fault::OwnerPause => {
                if let Some(run) = self.any_run() {
                    let length = self.some_ms(50, 8_000);
                    self.pause_owner(run, length);
                    if self.rng.percent(70) {
                        let after = self.some(length);
                        self.push(after, Event::Open);
                    }
                }
            }
            Fault::Rival => {
                if self.owners.len() < 3 {
                    self.push(Duration::ZERO, Event::Open);
                }
            }
            Fault::MetadataOutage => {
                let length = self.some_ms(50, 4_000);
                self.metadata_outage(length);
            }
            Fault::Rot => {
                let agent = *self.rng.pick(&self.spares);
                if let Some(node) = self.agents.get_mut(&agent) {
                    node.rot(&mut self.rng);
                }
            }
            Fault::Wipe => {
                let agent = *self.rng.pick(&self.spares);
                if self.agents.contains_key(&agent) {
                    self.wipe_agent(agent);
                }
            }
        }
    }

    /// Sometimes the owner whose extents were just registered stands still before it hears of it, and another one takes over.
    pub(super) fn usurp(&mut self, run: Run) {
        if !self.is_faulty() || self.owners.len() > 1 || !self.rng.one_in(3) {
            return;
        }
        let length = self.some_ms(5_000, 8_000);
        self.pause_owner(run, length);
        let opens = self.some_ms(1, 300);
        self.push(opens, Event::Open);
        let over = self.some_ms(3_000, 4_500);
        self.push(over, Event::Usurped { run });
    }

    pub(super) fn usurped(&mut self, run: Run) {
        if !self.is_faulty() {
            return;
        }
        for other in self.runs_now().into_iter().filter(|other| *other != run) {
            self.crash_owner(other, "killed");
        }
        for agent in self.agents.keys().copied().collect::<Vec<_>>() {
            self.crash_and_restart(agent, false);
        }
    }

    fn crash_and_restart(&mut self, agent: AgentId, power: bool) {
        self.crash_agent(agent, power);
        let pause = if self.rng.one_in(4) { self.some_ms(500, 6_000) } else { self.some_ms(2, 500) };
        self.push(pause, Event::StartAgent { agent });
    }

    fn partition(&mut self) {
        let until = self.now + self.some_ms(20, 5_000);
        let (there, back) = *self.rng.pick(&[(true, true), (true, false), (false, true)]);
        let agents: Vec<AgentId> = match self.rng.one_in(3) {
            true => self.agents.keys().copied().collect(),
            false => vec![self.any_agent()],
        };
        let Some(run) = self.any_run() else { return };
        for agent in agents {
            if there {
                self.net.kill(run, agent, Way::There, until);
            }
            if back {
                self.net.kill(run, agent, Way::Back, until);
            }
        }
    }

    fn any_agent(&mut self) -> AgentId {
        let agents: Vec<AgentId> = self.agents.keys().copied().collect();
        *self.rng.pick(&agents)
    }

    fn runs_now(&self) -> Vec<Run> {
        self.owners.keys().copied().collect()
    }

    fn any_run(&mut self) -> Option<Run> {
        let runs = self.runs_now();
        (!runs.is_empty()).then(|| *self.rng.pick(&runs))
    }
}
