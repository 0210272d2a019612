//! `mod`: the key's number modulo the weight of all agents falls into one agent's share; after it come the next ones,
//! in order of their ids.
//!
//! Simple enough to be worked out by hand, and what small clusters that never change may want. When an agent comes or
//! goes, nearly everything moves.

use super::hash::{Draw, draw};
use super::{Built, Key, Kind, Order, Placement, RingAgent, RingSpec};

pub(super) const KIND: Kind = Kind {
    name: "mod",
    about: "remainder of the key, then the agents after it; changes move nearly everything",
    build,
};

fn build(spec: &RingSpec, agents: &[RingAgent]) -> Built {
    spec.takes_no_options()?;
    spec.needs_agents(agents)?;
    let ends = agents.iter().scan(0, |end, agent| {
        *end += agent.weight;
        Some(*end)
    });
    Ok(Box::new(Modulo { ends: ends.collect() }))
}

#[derive(Debug)]
struct Modulo {
    /// Where each agent's share ends; the last is the weight of all.
    ends: Vec<u64>,
}

impl Placement for Modulo {
    fn order(&self, key: Key) -> Order<'_> {
        let total = self.ends.last().copied().unwrap_or(1);
        let share = draw(Draw::Mod, &[key.hash]) % total;
        let first = self.ends.partition_point(|&end| end <= share);
        Box::new((first..self.ends.len()).chain(0..first))
    }
}
