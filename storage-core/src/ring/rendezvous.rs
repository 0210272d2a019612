//! `rendezvous`: each agent draws a number for the key, and who draws best comes first (highest random weight).
//!
//! With the draw as a number u between 0 and 1, an agent's cost is -log(u) / weight: the time until the first event of
//! a process with that rate, so that each agent comes first with a probability of exactly its share of the weight.
//! Whether one agent is before another depends on these two alone: one that comes or goes moves only what it gets or
//! had, and one whose weight changes moves only between itself and the others.
//!
//! Costs are compared as fractions, multiplied out: nothing is rounded, and equal ones go by id.

use super::hash::{neg_log2, rendezvous};
use super::{Built, Key, Kind, Order, Placement, RingAgent, RingSpec};
use crate::ids::AgentId;

pub(super) const KIND: Kind =
    Kind { name: "rendezvous", about: "weighted draw between all agents; changes move the least", build };

fn build(spec: &RingSpec, agents: &[RingAgent]) -> Built {
    spec.takes_no_options()?;
    spec.needs_agents(agents)?;
    Ok(Box::new(Rendezvous { agents: agents.iter().map(|agent| (agent.id, agent.weight)).collect() }))
}

#[derive(Debug)]
struct Rendezvous {
    agents: Vec<(AgentId, u64)>,
}

impl Placement for Rendezvous {
    fn order(&self, key: Key) -> Order<'_> {
        struct Bid {
            cost: u64,
            weight: u64,
            agent: usize,
        }
        let bids = self.agents.iter().enumerate();
        let bids = bids.map(|(agent, &(id, weight))| Bid { cost: neg_log2(rendezvous(key.hash, id)), weight, agent });
        let mut bids: Vec<Bid> = bids.collect();
        bids.sort_unstable_by(|a, b| {
            let (ours, theirs) = (u128::from(a.cost) * u128::from(b.weight), u128::from(b.cost) * u128::from(a.weight));
            ours.cmp(&theirs).then(a.agent.cmp(&b.agent))
        });
        Box::new(bids.into_iter().map(|bid| bid.agent))
    }
}
